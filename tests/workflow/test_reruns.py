"""Each line of the table in docs/reruns.md: what is due after a change, why, and how many answers are computed."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from project import EXAMPLES, PARTS, Project

from kv_transition.commands import workflow

pytestmark = pytest.mark.workflow

TABLE = Path(__file__).resolve().parents[2] / "docs/reruns.md"

#: Answers of one task of the small experiment: full, no_context, snapkv and three times random at two budgets.
OF_A_TASK = EXAMPLES * (2 + 2 * (1 + 3))
ALL = 2 * OF_A_TASK
#: The table's words for Snakemake's.
REASONS = {
    "params": "params have changed since last execution",
    "missing": "output files have to be generated",
    "inputs": "set of input files has changed since last execution",
}
LATER = 1.1  # seconds after which a file's date counts as newer


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes
    ----------
    due : rules that are due first -> reason; those that depend on them follow.
    """

    change: str
    due: dict[str, str]
    computed: str

    def __str__(self) -> str:
        return self.change


def lines() -> list[Line]:
    """The table in the page."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    assert rows[0][0] == "change"
    return [
        Line(change, dict(re.findall(r"`(\w+)` \((\w+)\)", due)), computed)
        for change, due, computed in rows[2:]
    ]


def configured(**sections: dict[str, Any]) -> Callable[[Project], None]:
    """A change of the configuration."""
    return lambda project: project.configure(**sections)


def edited(file: str, old: str, new: str) -> Callable[[Project], None]:
    return lambda project: project.edit(file, old, new)


def comments(project: Project) -> None:
    for file in [*project.folder.glob("src/**/*.py"), *project.folder.glob("scripts/*.py")]:
        file.write_text(f"{file.read_text()}\n# a remark\n")


def touched(pattern: str) -> Callable[[Project], None]:
    def touch(project: Project) -> None:
        time.sleep(LATER)
        files = list(project.folder.glob(pattern))
        assert files
        for file in files:
            file.touch()

    return touch


def lost(*parts: str) -> Callable[[Project], None]:
    def remove(project: Project) -> None:
        for part in parts:
            shutil.rmtree(project.folder / part)

    return remove


def cloned(project: Project) -> None:
    """A fresh clone: every tracked file with a new date, the results as they were."""
    time.sleep(LATER)
    for part in PARTS:
        path = project.folder / part
        for file in [path, *path.rglob("*")]:
            file.touch()


def back_from_another(project: Project) -> None:
    """Run another, smaller experiment, then return to the first."""
    project.configure(
        experiment={"id": "other"},
        dataset={"tasks": ["phrasebook_qa"]},
        kv={"methods": ["snapkv"], "budgets": [16]},
    )
    project.run()
    project.configure()


def from_one_task(project: Project) -> None:
    """Run one task alone from the beginning, then return to both."""
    lost("results", "journal", ".snakemake")(project)
    project.configure(dataset={"tasks": ["phrasebook_qa"]})
    project.run()
    project.configure()


def without_metadata_in_a_clone(project: Project) -> None:
    lost(".snakemake")(project)
    cloned(project)


#: First column of the table -> what is done to the finished experiment, and how many answers are then computed.
CHANGES: dict[str, tuple[Callable[[Project], None], int]] = {
    "a comment or docstring in any module or script": (comments, 0),
    "a script touched": (touched("scripts/*.py"), 0),
    "the model's files touched": (touched("resources/tiny-reader/*"), 0),
    "a response file touched": (touched("results/small/responses/phrasebook_qa/full/full/*"), 0),
    "a fresh clone beside old results": (cloned, 0),
    "`.snakemake/` lost": (lost(".snakemake"), 0),
    "`.snakemake/` lost in a fresh clone": (without_metadata_in_a_clone, 0),
    "`results/` lost": (lost("results"), 0),
    "`journal/` lost": (lost("journal"), 0),
    "`results/` and `journal/` lost": (lost("results", "journal"), ALL),
    "a metric's code": (edited("src/kv_transition/eval/metrics.py", "2 *", "2.0 *"), 0),
    "an engine's code": (
        edited("src/kv_transition/engines/reference.py", '"dtype": "float32"', '"dtype": str("float32")'),
        0,
    ),
    "an engine's answers (`ENGINE_PROTOCOL` raised)": (
        edited("src/kv_transition/engines/base.py", "ENGINE_PROTOCOL = 2", "ENGINE_PROTOCOL = 3"),
        ALL,
    ),
    "the logic of a script": (edited("scripts/retention.py", "with job", "print()\nwith job"), 0),
    "the report's template": (
        edited("src/kv_transition/report/templates/report.md.jinja", "\n", " \n"),
        0,
    ),
    "the model's files": (
        edited("resources/tiny-reader/generation_config.json", '"do_sample"', '"note": 1, "do_sample"'),
        ALL,
    ),
    "a budget added": (configured(kv={"budgets": [16, 32, 64]}), 2 * EXAMPLES * (1 + 3)),
    "a method added": (configured(kv={"methods": ["snapkv", "random", "tova"]}), 2 * EXAMPLES * 2),
    "a task added": (from_one_task, OF_A_TASK),
    "`binning.n_per_bin` raised": (configured(binning={"n_bins": 2, "n_per_bin": 4}), ALL // 3),
    "a budget removed": (configured(kv={"budgets": [64]}), 0),
    "a method removed": (configured(kv={"methods": ["random"]}), 0),
    "a task removed": (configured(dataset={"tasks": ["phrasebook_qa"]}), 0),
    "`binning.n_per_bin` lowered": (configured(binning={"n_bins": 2, "n_per_bin": 2}), 0),
    "`run.shards`": (configured(run={"shards": 2}), 0),
    "a hyper-parameter of a chosen method": (configured(kv={"kernel": 3}), 2 * EXAMPLES * 2),
    "a hyper-parameter of another method": (configured(kv={"n_sink": 2}), 0),
    "`experiment.id`": (configured(experiment={"id": "second"}), 0),
    "back to an experiment that was run": (back_from_another, 0),
    "`analysis.tau`": (configured(analysis={"tau": [0.8]}), 0),
    "`analysis.delta`": (configured(analysis={"delta": 0.1}), 0),
    "`analysis.bootstrap_replicates`": (configured(analysis={"bootstrap_replicates": 300}), 0),
    "`analysis.seed`": (configured(analysis={"seed": 7}), 0),
    "`analysis.policy`": (configured(analysis={"policy": "exclude"}), 0),
    "`output.figure_dpi`": (configured(output={"figure_dpi": 100}), 0),
    "`experiment.title`": (configured(experiment={"title": "Another title"}), 0),
    "`scoring.primary`": (configured(scoring={"primary": "f1"}), 0),
}

#: Lines that need another experiment than the small one, and are tested by themselves.
OF_A_SERVER = {
    "the server's address or time-outs": {"base_url": "http://127.0.0.1:9/v1", "read_timeout_s": 77},
    "`http.concurrency`": {"concurrency": 3},
}
LARGE_RECORDS = "a 2 MB file of records touched"


@pytest.fixture(scope="module")
def edges(finished: Project) -> dict[str, set[str]]:
    """Rule -> rules that take what it makes."""
    return rules_after(finished.run("--forceall", "--rulegraph", "mermaid-js"))


def rules_after(mermaid: str) -> dict[str, set[str]]:
    """Rule -> rules that take what it makes, read from a picture."""
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", mermaid))
    after: dict[str, set[str]] = {rule: set() for rule in names.values()}
    for source, target in re.findall(r"(id\d+) --> (id\d+)", mermaid):
        after[names[source]].add(names[target])
    return after


def with_all_that_follows(rules: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(rules)
    while waiting:
        rule = waiting.pop()
        if rule not in found:
            found.add(rule)
            waiting += edges[rule]
    return found


def planned(project: Project, config: str = "small.yaml") -> dict[str, Any]:
    done = project.kvt("plan", "-c", config, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["problem"] is None
    return plan


def assert_due(plan: dict[str, Any], line: Line, edges: dict[str, set[str]]) -> None:
    assert set(plan["jobs"]) == with_all_that_follows(line.due, edges)
    for rule, word in line.due.items():
        assert rule in plan["reasons"].get(REASONS[word], []), plan["reasons"]


def test_each_line_of_the_table_is_tested_and_each_test_is_a_line() -> None:
    changes = [line.change for line in lines()]
    assert len(set(changes)) == len(changes)
    assert set(changes) == {*CHANGES, *OF_A_SERVER, LARGE_RECORDS}


def test_the_plan_of_a_first_run_is_what_it_computes(fresh: Project, finished: Project) -> None:
    plan = planned(fresh)
    assert plan["total"]["to_compute"] == ALL == finished.journal_rows()
    made = {path for path in finished.folder.glob("results/**/*") if path.is_file()}
    # What Snakemake tells of its jobs beside the results: their log and their time.
    told = {
        path for kind in ("logs", "benchmarks") for path in finished.folder.glob(f"results/*/{kind}/**/*")
    }
    assert plan["files"] == len(made - told)
    assert planned(finished)["total"]["to_compute"] == 0
    assert planned(finished)["orphans"] == []


@pytest.mark.parametrize("line", [line for line in lines() if line.change in CHANGES], ids=str)
def test_what_is_due_after_a_change_and_what_is_computed(
    line: Line, project: Project, edges: dict[str, set[str]]
) -> None:
    change, computed = CHANGES[line.change]
    change(project)
    plan = planned(project)
    assert_due(plan, line, edges)
    assert plan["total"]["to_compute"] == computed
    assert (line.computed == "none") == (computed == 0)
    if "infer_sweep" in plan["jobs"]:
        rows = project.journal_rows()
        project.run(target="all_responses")
        assert project.journal_rows() - rows == computed, "the plan says what the run then adds"


@pytest.fixture(scope="module")
def served(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An experiment that asks a server, as if it had been run: empty files, recorded as made."""
    project = fresh.copy(tmp_path_factory.mktemp("served") / "project", results=False)
    project.configure(**SERVER)
    listed = project.run("--summary")
    # `--touch` keeps no record of jobs without inputs, so these are run.
    project.run(target="results/small/config.yaml")
    project.run(target="results/small/records/phrasebook_qa.jsonl")
    for line in listed.splitlines():
        if line.startswith("results/"):
            path = project.folder / line.split("\t")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    project.run("--touch")
    assert project.due() == {}
    return project


SERVER: dict[str, Any] = {
    "dataset": {"tasks": ["phrasebook_qa"]},
    "engine": {"kind": "openai_compat"},
    "kv": {"methods": ["snapkv"], "budgets": [16]},
}


@pytest.mark.parametrize("line", [line for line in lines() if line.change in OF_A_SERVER], ids=str)
def test_how_a_server_is_reached_asks_nothing_anew(
    line: Line, served: Project, edges: dict[str, set[str]]
) -> None:
    served.configure(**SERVER, http=OF_A_SERVER[line.change])
    text = served.run("-n", "--quiet", "rules")
    due = set(workflow._jobs(text))
    assert due == with_all_that_follows(line.due, edges)
    for rule, word in line.due.items():
        assert rule in workflow._reasons(text).get(REASONS[word], [])
    assert line.computed == "none"


def test_a_large_leaf_file_counts_by_its_content(fresh: Project, tmp_path: Path) -> None:
    line = next(line for line in lines() if line.change == LARGE_RECORDS)
    project = fresh.copy(tmp_path / "project", results=False)
    record = {"input": "Where?", "context": "Here it is. " * 2000, "answers": ["here"], "length": 6000}
    file = project.folder / "records/mine.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps({**record, "_id": str(index)}) + "\n" for index in range(90)))
    assert file.stat().st_size > 2e6
    project.configure(dataset={"path": "records", "tasks": ["mine"]}, tokenizer={"name": "length"})
    project.run(target="all_manifests")
    time.sleep(LATER)
    file.touch()
    assert "Nothing to be done" in project.run("-n", target="all_manifests")
    assert (line.due, line.computed) == ({}, "none")
    file.write_text(file.read_text() + json.dumps({**record, "_id": "one more"}) + "\n")
    assert "normalize_task" in project.run("-n", target="all_manifests")


def test_the_picture_of_the_rules_is_that_of_the_rules(root: Path, edges: dict[str, set[str]]) -> None:
    picture = (root / "docs/dag.md").read_text(encoding="utf-8").partition("\n## The jobs")[0]
    assert rules_after(picture) == edges, "draw it again with: make dag"
