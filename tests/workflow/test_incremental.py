"""What each change reruns: one command does what is due, computes what is new, and leaves nothing to be done."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from project import EXAMPLES, WITHOUT_FIGURES, Project

from kv_transition.paths import raw_records

pytestmark = pytest.mark.workflow


def test_the_report_the_figures_and_the_database_are_there(finished: Project) -> None:
    files = {
        str(path.relative_to(finished.folder / "results")) for path in finished.folder.glob("results/**/*")
    }
    assert {
        "report.md",
        "small/report.md",
        "small/kv_transition.sqlite",
        "small/analysis/transition.parquet",
    } <= files
    assert {
        f"small/figures/score_vs_budget__phrasebook_qa.{suffix}" for suffix in ("svg", "png", "csv")
    } <= files


def test_after_a_run_nothing_is_to_be_done(finished: Project) -> None:
    assert finished.due() == {}


def test_every_request_is_one_journal_row(finished: Project) -> None:
    cells = 2 + 2 * (1 + 3)  # full, no_context, and at two budgets snapkv once and random three times
    assert finished.journal_rows() == 2 * EXAMPLES * cells


@pytest.mark.parametrize("lost", [(), (".snakemake",)], ids=["with .snakemake", "without .snakemake"])
def test_a_fresh_clone_beside_old_results_has_nothing_to_do(
    finished: Project, tmp_path: Path, lost: tuple
) -> None:
    time.sleep(1.1)  # a clone's files are newer than the results
    clone = finished.copy(tmp_path / "clone")
    for part in lost:
        shutil.rmtree(clone.folder / part)
    assert clone.due() == {}


def test_touches_and_comments_rerun_nothing(project: Project) -> None:
    time.sleep(1.1)
    for file in [*project.folder.glob("scripts/*.py"), *project.folder.glob("resources/**/*.*")]:
        file.touch()
    for file in project.folder.glob("src/**/*.py"):
        file.write_text(f"{file.read_text()}\n# a remark\n")
    next(project.folder.glob("results/small/responses/**/*.parquet")).touch()
    assert project.due() == {}


def test_what_a_job_took_is_kept_and_nothing_depends_on_it(project: Project) -> None:
    kept = sorted(project.folder.glob("results/small/benchmarks/**/*.tsv"))
    assert {"score_task", "infer_sweep"} <= {file.parent.name for file in kept} | {
        file.parent.parent.name for file in kept
    }
    for file in kept[::2]:
        file.unlink()
    for file in kept[1::2]:
        file.write_text("s\n1\n")
    project.edit("rules/scoring.smk", 'FILES.benchmark("score_task"', 'FILES.benchmark("elsewhere"')
    assert project.due() == {}


def test_editing_f1_rescores_without_inference(project: Project) -> None:
    project.edit("src/kv_transition/eval/metrics.py", "2 *", "2.0 *")
    due = project.due()
    assert due["score_task"] == 2
    assert "infer_sweep" not in due
    rows = project.journal_rows()
    project.run(target="all_scores")
    assert project.journal_rows() == rows
    assert project.due(target="all_scores") == {}


ADDITIONS = {
    "a budget": ({"kv": {"budgets": [16, 32, 64]}}, EXAMPLES * (1 + 3)),
    "a method": ({"kv": {"methods": ["snapkv", "random", "tova"]}}, EXAMPLES * 2),
    "examples per bin": ({"binning": {"n_per_bin": 4}}, 2 * (2 + 2 * (1 + 3))),
}


@pytest.mark.parametrize("addition", ADDITIONS)
def test_an_addition_computes_the_new_cells_and_nothing_else(project: Project, addition: str) -> None:
    change, new_rows_per_task = ADDITIONS[addition]
    before = project.bytes_of("results/small/responses/**/*.parquet")
    rows = project.journal_rows()
    project.configure(**{section: keys for section, keys in change.items()})
    project.run()
    assert project.journal_rows() - rows == 2 * new_rows_per_task
    after = project.bytes_of("results/small/responses/**/*.parquet")
    if "binning" not in change:
        assert {path: after[path] for path in before} == before
    assert project.due() == {}


REMOVALS = {
    "a budget less": {"kv": {"budgets": [64]}},
    "a method less": {"kv": {"methods": ["random"]}},
    "examples less": {"binning": {"n_per_bin": 2}},
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_removal_computes_no_answer(project: Project, removal: str) -> None:
    rows = project.journal_rows()
    project.configure(**REMOVALS[removal])
    project.run()
    assert project.journal_rows() == rows
    assert project.due() == {}


@pytest.mark.parametrize("shards", [2, 7], ids=["more shards", "more shards than examples"])
def test_the_number_of_shards_computes_no_answer_and_changes_no_table(project: Project, shards: int) -> None:
    rows = project.journal_rows()
    tables = project.bytes_of("results/small/analysis/*.parquet")
    project.configure(run={"shards": shards})
    project.run_tables()
    assert project.journal_rows() == rows
    assert project.due(*WITHOUT_FIGURES, target="all_analysis") == {}
    assert project.bytes_of("results/small/analysis/*.parquet") == tables


def test_without_results_the_journal_answers_everything(project: Project) -> None:
    tables = project.bytes_of("results/small/analysis/*.parquet")
    responses = project.bytes_of("results/small/responses/**/*.parquet")
    rows = project.journal_rows()
    shutil.rmtree(project.folder / "results")
    project.run_tables()
    assert project.journal_rows() == rows
    assert project.bytes_of("results/small/analysis/*.parquet") == tables
    assert project.bytes_of("results/small/responses/**/*.parquet") == responses


def test_another_clone_computes_byte_identical_tables(
    fresh: Project, finished: Project, tmp_path: Path
) -> None:
    clone = fresh.copy(tmp_path / "clone", results=False)
    clone.configure(run={"shards": 3})
    clone.run_tables()
    assert clone.bytes_of("results/small/analysis/*.parquet") == finished.bytes_of(
        "results/small/analysis/*.parquet"
    )


def test_switching_experiments_computes_nothing_and_moves_the_report(project: Project) -> None:
    project.configure(experiment={"id": "second"})
    rows = project.journal_rows()
    project.run()
    assert project.journal_rows() == rows, "both experiments share the journal"
    assert "second" in (project.folder / "results/report.md").read_text().splitlines()[0]
    project.configure()
    assert set(project.due()) == {"copy_report"}


def test_a_run_starts_from_manifests_alone(project: Project, fresh: Project, tmp_path: Path) -> None:
    clone = fresh.copy(tmp_path / "clone", results=False)
    shutil.copytree(project.folder / "results/small/data", clone.folder / "given")
    for file in clone.folder.glob("given/*/*"):
        if file.name != "manifest.json":
            file.unlink()
    clone.configure(dataset={"source": "manifest", "path": "given"})
    clone.run_tables()
    assert clone.bytes_of("results/small/analysis/*") == project.bytes_of("results/small/analysis/*")


def test_each_rule_carries_the_hash_of_its_own_script(root: Path) -> None:
    """Snakemake does not look at scripts here (their dates change in every clone), so the hash in params must."""
    rules = "".join(file.read_text() for file in sorted(root.glob("rules/*.smk")))
    blocks = re.split(r"^\s*rule (?=\w+:)", rules, flags=re.MULTILINE)[1:]
    with_script = {block: re.search(r"scripts/(\w+)\.py", block) for block in blocks}
    assert sum(script is not None for script in with_script.values()) >= 14
    for block, script in with_script.items():
        if script:
            assert re.search(rf'code_version\(\s*"{script[1]}"', block), block


def test_editing_a_script_reruns_its_rule(project: Project) -> None:
    project.edit("scripts/retention.py", "with job", "print()\nwith job")
    assert "retention" in project.due()
    assert "bin_stats" not in project.due()


#: These name files that the user gives.
LEAF_FUNCTIONS = ("record_file", "published_files", "published_reference")


def test_no_rule_calls_ancient_on_a_file_that_a_rule_makes(root: Path) -> None:
    """Snakemake 9.27 silently skips due jobs behind such a file."""
    calls = re.findall(
        r"ancient\(([^()]*(?:\([^()]*\))?)", "".join(f.read_text() for f in root.glob("rules/*.smk"))
    )
    assert calls
    leaves = {f"preflight.{name}(settings, wildcards.task)" for name in LEAF_FUNCTIONS} | {"MODEL_FILES"}
    assert {call.strip() for call in calls} <= leaves


def test_records_that_came_from_the_hub_can_be_used_as_a_folder(fresh: Project, tmp_path: Path) -> None:
    """No rule makes a file that the configuration names as given."""
    project = fresh.copy(tmp_path / "project", results=False)
    given = project.folder / "resources/longbench/THUDM--LongBench@abc"
    given.mkdir(parents=True)
    (given / "t.jsonl").write_text('{"input": "What?", "context": "A door.", "answers": ["door"]}\n')
    project.configure(dataset={"path": str(given.relative_to(project.folder)), "tasks": ["t"]})
    due = project.due()
    assert due["normalize_task"] == 1
    assert "retrieve_longbench" not in due
    assert "make_synthetic" not in due


def test_a_clone_of_the_hub_s_records_is_kept_apart_by_dataset_and_revision() -> None:
    paths_of = {
        raw_records("t", hub, revision) for hub in ("org/a", "org/b") for revision in ("1", "2", None)
    }
    assert len(paths_of) == 6
