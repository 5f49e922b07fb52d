"""Two experiments at the same time share the journal and the score cache, and neither loses or doubles a row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import EXAMPLES, SMALL, Project

pytestmark = pytest.mark.workflow

TASKS = ("phrasebook_qa", "phrasebook_multi_qa")
REFERENCES = ("full", "no_context")


def start(project: Project, experiment: str, target: str, dataset: dict, kv: dict) -> subprocess.Popen[str]:
    """Start an experiment of that name, with its own configuration and target."""
    config = {**SMALL, "experiment": {"id": experiment}}
    config |= {"dataset": {**SMALL["dataset"], **dataset}, "kv": {**SMALL["kv"], **kv}}
    (project.folder / f"{experiment}.yaml").write_text(yaml.safe_dump(config))
    command = project.command(target=target)
    command[command.index("small.yaml")] = f"{experiment}.yaml"
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait(processes: list[subprocess.Popen[str]]) -> None:
    """Both end well, and in time."""
    try:
        for process in processes:
            text, _ = process.communicate(timeout=240)
            assert process.returncode == 0, text[-5000:]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def journal(project: Project) -> list[dict]:
    """All rows of the journal; a torn one fails the test."""
    files = project.folder.glob("journal/**/*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def scores(project: Project, experiment: str) -> pd.DataFrame:
    tables = [
        pd.read_parquet(project.folder / f"results/{experiment}/scores/{task}.parquet") for task in TASKS
    ]
    table = pd.concat(tables).drop(columns=["run_id", "request_id"])
    return table.sort_values(["task", "method", "budget", "example_id", "replicate"], ignore_index=True)


def test_two_experiments_on_different_tasks_write_each_answer_once(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    wait([start(project, task, "all_scores", {"tasks": [task]}, {}) for task in TASKS])
    keys = Counter(row["key"] for row in journal(project))
    assert set(keys.values()) == {1}
    assert len(keys) == 2 * EXAMPLES * (2 + 2 * (1 + 3))


def test_two_experiments_that_share_their_references_get_what_each_would_get_alone(
    finished: Project, fresh: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    methods = ("snapkv", "random")
    wait([start(project, m, f"results/{m}/report.md", {}, {"methods": [m]}) for m in methods])
    alone = scores(finished, "small")
    for method in methods:
        assert (project.folder / f"results/{method}/report.md").exists()
        expected = alone[alone["method"].isin([method, *REFERENCES])].reset_index(drop=True)
        pd.testing.assert_frame_equal(scores(project, method), expected)
    rows = journal(project)
    twice = {key for key, count in Counter(row["key"] for row in rows).items() if count > 1}
    assert {row["method"] for row in rows if row["key"] in twice} <= set(REFERENCES), (
        "what both asked for in one moment"
    )
    # What either left behind is whole: the experiment of both methods finds every answer and every score.
    project.run(target="all_scores")
    assert len(journal(project)) == len(rows)
    logs = [(project.folder / f"results/small/logs/score_task/{task}.log").read_text() for task in TASKS]
    assert all(" 0 answers scored" in log for log in logs)
