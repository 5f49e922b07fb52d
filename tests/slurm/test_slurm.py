"""On a real Slurm: the numbers are those of a local run, and whatever happens to a job, no answer is computed twice."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, OnCluster, Run
from project import Project

pytestmark = [pytest.mark.workflow, pytest.mark.slurm]

EXAMPLES = 2 * 24
ANSWERS = 2 + 2 * (1 + 3)  # of one example: full, no_context, and two budgets of snapkv and of random, thrice
ONE_TASK = {
    "dataset": {
        "tasks": ["phrasebook_qa"],
        "synthetic": {"n_documents": 72, "min_tokens": 64, "max_tokens": 512},
    }
}
SCORES = "results/small/scores/phrasebook_qa.parquet"

Make = Callable[..., OnCluster]


def each_once(project: OnCluster, n_tasks: int) -> bool:
    """Whether the journal has every answer of the experiment, and none twice."""
    answers = project.answers()
    return set(answers.values()) == {1} and len(answers) == n_tasks * EXAMPLES * ANSWERS


@pytest.fixture(scope="module", autouse=True)
def over_time(on_cluster: Make) -> Iterator[tuple[OnCluster, Run]]:
    """A job that hangs in the middle of its work; started first, because its limit of one minute is a long wait."""
    project = on_cluster(
        **ONE_TASK,
        run={"shards": 1},
        cluster={"inference": {"mem_mb": 1200, "runtime_minutes": 1, "gpus": 1}, "scoring": {"mem_mb": 1000}},
    )
    run = Run(project, SCORES)
    try:
        run.wait_for(lambda: project.journal_rows() >= ANSWERS)
        project.cluster.freeze(project.cluster.running(project.folder))
        yield project, run
    finally:
        run.kill()


@pytest.fixture(scope="module")
def over_memory(on_cluster: Make) -> Iterator[tuple[OnCluster, Run]]:
    """A job that leaks memory in the middle of its work, and does not when it is tried again."""
    project = on_cluster(
        **ONE_TASK,
        run={"shards": 1},
        cluster={"inference": {"mem_mb": 700, "runtime_minutes": 3}, "scoring": {"mem_mb": 1000}},
    )
    shutil.copyfile(Path(__file__).with_name("leak.py"), project.folder / "src/sitecustomize.py")
    run = Run(project, SCORES)
    yield project, run
    run.kill()


@pytest.fixture(scope="module")
def undisturbed(on_cluster: Make, over_memory: object) -> Iterator[tuple[OnCluster, Run]]:
    project = on_cluster()
    run = Run(project, "results/report.md")
    yield project, run
    run.kill()


def test_a_second_run_of_the_experiment_is_refused_while_its_jobs_are_on_the_cluster(
    undisturbed: tuple[OnCluster, Run],
) -> None:
    project, run = undisturbed
    run.wait_for(lambda: project.cluster.running(project.folder))
    second = project.call()
    assert second.returncode == 1
    assert second.stdout.count("experiment small is being run by another snakemake in this folder") == 1
    assert "Traceback" not in second.stdout
    assert run.process.poll() is None, "the first run is not disturbed"


def test_the_tables_are_those_of_a_local_run_byte_for_byte(
    undisturbed: tuple[OnCluster, Run], local: Project
) -> None:
    project, run = undisturbed
    assert run.end() == 0, run.text[-5000:]
    tables = project.bytes_of("results/small/analysis/*.parquet")
    assert len(tables) == 8
    assert tables == local.bytes_of("results/small/analysis/*.parquet")
    assert (project.folder / "results/report.md").exists()
    assert each_once(project, n_tasks=2)
    rules = sorted({job.rule.split("_wildcards_")[0] for job in project.cluster.jobs(project.folder)})
    assert rules == ["rule_infer_sweep", "rule_score_task"], "what is cheap is no job"
    assert project.due() == {}


def test_a_cancelled_job_and_a_node_set_down_cost_no_answer(on_cluster: Make, local: Project) -> None:
    # So much memory that two jobs fit on a node and not a third.
    project = on_cluster(cluster={"inference": {"mem_mb": 2100, "runtime_minutes": 3}})
    cluster: Cluster = project.cluster
    run = Run(project, "all_scores")
    try:
        run.wait_for(lambda: len(cluster.running(project.folder)) == 4 and project.journal_rows() >= ANSWERS)
        jobs = cluster.running(project.folder)
        cluster.freeze(jobs)
        assert not project.bytes_of("results/small/responses/**/*.parquet"), "too late to show anything"
        lost = jobs[0].node
        cancelled, *others = [job for job in jobs if job.node != lost]
        assert others, "each node has two of the four jobs"
        assert cluster.script("node-down", lost).returncode == 0
        cluster.go_on([cancelled, *others])  # Slurm does not cancel what is frozen
        cluster.call("scancel", cancelled.id)
        assert run.end() == 0, run.text[-5000:]
    finally:
        cluster.script("node-up", lost)
        run.kill()
    assert {job.state for job in cluster.jobs(project.folder)} == {"COMPLETED", "CANCELLED"}
    assert each_once(project, n_tasks=2)
    scores = project.bytes_of("results/small/scores/*.parquet")
    assert scores == local.bytes_of("results/small/scores/*.parquet")


def test_a_job_over_its_memory_gets_more_and_goes_on(
    over_memory: tuple[OnCluster, Run], local: Project
) -> None:
    project, run = over_memory
    assert run.end() == 0, run.text[-5000:]
    jobs = project.cluster.jobs(project.folder)
    assert sorted(job.state for job in jobs if "infer_sweep" in job.rule) == ["COMPLETED", "FAILED"]
    (log,) = (project.folder / ".snakemake/slurm_logs/rule_infer_sweep").glob("*/*.log")
    assert "exceeded memory limit" in log.read_text()
    written = [file.stat().st_size > 0 for file in project.folder.glob("journal/*/*.jsonl")]
    assert written == [True, True], "both attempts have answered something"
    assert each_once(project, n_tasks=1)
    assert project.bytes_of(SCORES) == local.bytes_of(SCORES)


def test_a_job_over_its_time_gets_more_and_goes_on(over_time: tuple[OnCluster, Run], local: Project) -> None:
    project, run = over_time
    assert run.end() == 0, run.text[-5000:]
    jobs = project.cluster.jobs(project.folder)
    assert sorted(job.state for job in jobs if "infer_sweep" in job.rule) == ["COMPLETED", "TIMEOUT"]
    assert each_once(project, n_tasks=1)
    assert project.bytes_of(SCORES) == local.bytes_of(SCORES)


def test_only_jobs_that_load_the_model_ask_for_a_gpu(over_time: tuple[OnCluster, Run]) -> None:
    project, run = over_time
    run.end()
    cluster = project.cluster
    jobs = cluster.jobs(project.folder)
    asked = {(job.rule.split("_wildcards_")[0], cluster.asks_for_gpu(job)) for job in jobs}
    assert asked == {("rule_infer_sweep", True), ("rule_score_task", False)}


def test_a_second_up_changes_nothing(cluster: Cluster) -> None:
    pids = {path.name: path.read_text() for path in (cluster.state / "run").glob("*.pid")}
    again: subprocess.CompletedProcess[str] = cluster.script("up")
    assert again.returncode == 0
    assert len(pids) == 4
    assert {path.name: path.read_text() for path in (cluster.state / "run").glob("*.pid")} == pids


def test_a_slurm_that_belongs_to_somebody_else_is_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    script = Path(__file__).with_name("cluster.sh")
    environment = {**os.environ, "SLURM_TEST_DIR": str(tmp_path / "other")}
    refused, _ = (
        subprocess.run(
            [script, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        for words in (["up"], ["down", "--purge"])
    )
    assert refused.returncode == 1
    assert "belongs to another Slurm; nothing was started" in refused.stderr
    assert "2 nodes" in cluster.call("sinfo", "--noheader", "--format=%D nodes")
