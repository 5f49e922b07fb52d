"""The README's commands work as typed, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import Project

pytestmark = pytest.mark.workflow


ENVIRONMENT = {
    "MY_RECORDS": "given",
    "MY_MODEL": "resources/tiny-reader",
    "MY_MAX_LENGTH": "7500",
    "PUBLISHED_SCORES": "scores.csv",
    "PUBLISHED_PREDICTIONS": "predictions",
}


@pytest.fixture(scope="module")
def supplied(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A fresh clone with small files where the README and the experiments name the user's own."""
    project = fresh.copy(tmp_path_factory.mktemp("supplied") / "project", results=False)
    (project.folder / "given").mkdir()
    write_lines(
        project.folder / "given/my_task.jsonl",
        [{"input": "What?", "context": "A door.", "answers": ["door"]}],
    )
    settings = {
        name: yaml.safe_load((project.folder / f"config/experiments/published_{name}.yaml").read_text())
        for name in ("scores", "predictions")
    }
    table = ["method,budget,task,idx,length,score"]
    table += [
        f"{method},{budget},{task},{row},{100 + row},0.5"
        for task in settings["scores"]["dataset"]["tasks"]
        for method, budgets in (("hf", [""]), ("streamingllm", settings["scores"]["kv"]["budgets"]))
        for budget in budgets
        for row in range(12)
    ]
    (project.folder / "scores.csv").write_text("\n".join(table) + "\n")
    examples = [
        (f"e{row}", method, budget) for row in range(12) for method, budget in (("full", None), ("m", 64))
    ]
    frame = pd.DataFrame(examples, columns=["example_id", "method", "budget"]).astype({"budget": "Int64"})
    frame = frame.assign(
        cluster_id=frame["example_id"], bin_idx=0, token_len=900, score=0.5, failure=pd.Series(dtype=object)
    )
    frame.to_parquet(project.folder / "scores.parquet")
    rows = [
        {
            "pred": "Paragraph 1",
            "answers": [f"Paragraph {row}"],
            "all_classes": ["Paragraph 1"],
            "length": 100 + row,
        }
        for row in range(12)
    ]
    runs = [run["path"] for run in settings["predictions"]["published"]["runs"]]
    for run in ("my-model", "full", "compressed", *runs):
        tasks = settings["predictions"]["dataset"]["tasks"] if run in runs else ["qasper"]
        for task in tasks:
            write_lines(project.folder / "predictions" / run / f"{task}.jsonl", rows)
    write_lines(project.folder / "qasper.jsonl", rows)
    return project


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def commands(text: str) -> list[str]:
    """The command lines of the README's shell blocks, comments cut off."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_snakemake_and_command_line_call_is_accepted(root: Path, supplied: Project) -> None:
    """Snakemake calls are planned, not run; where one of them makes the whole report, other tests run it."""
    tried = 0
    for line in commands((root / "README.md").read_text()):
        words = shlex.split(line)
        environment = dict(supplied.environment)
        while re.match(r"[A-Z_]+=", words[0]):
            environment.update([words.pop(0).split("=", 1)])
        if words[0] == "make":
            targets = (root / "Makefile").read_text()
            assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), line
            continue
        module = {"snakemake": "snakemake", "kv-transition": "kv_transition"}[words[0]]
        dry = ["-n"] if module == "snakemake" and "-n" not in words and "--rulegraph" not in words else []
        done = subprocess.run(
            [sys.executable, "-m", module, *words[1:], *dry],
            cwd=supplied.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        tried += 1
    assert tried >= 5


def test_every_link_leads_to_a_file(root: Path) -> None:
    for page in [root / "README.md", *root.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


OVERLAYS = sorted(path.stem for path in (Path(__file__).parents[2] / "config/experiments").glob("*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_experiment_that_comes_with_the_project_is_valid(
    supplied: Project, overlay: str, monkeypatch: pytest.MonkeyPatch, missing: Callable[[str], None]
) -> None:
    settings = yaml.safe_load((supplied.folder / f"config/experiments/{overlay}.yaml").read_text())
    if settings.get("engine", {}).get("kind") == "kvpress" and importlib.util.find_spec("kvpress") is None:
        missing("kvpress is not installed (make setup-full)")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    checked = supplied.kvt("validate", "-c", f"config/experiments/{overlay}.yaml")
    assert checked.returncode == 0, checked.stderr


def test_the_rule_graph_in_the_docs_is_that_of_the_rules(root: Path) -> None:
    shown = set(re.findall(r'\[\s*"?(\w+)"?\s*\]', (root / "docs/dag.md").read_text()))
    rules = set(
        re.findall(r"^rule (\w+):", "".join(f.read_text() for f in root.glob("rules/*.smk")), re.MULTILINE)
    )
    aside = {"train_tiny_reader", "retrieve_longbench", *(rule for rule in rules if rule.startswith("all_"))}
    assert rules - aside <= shown, "run `make dag`"
