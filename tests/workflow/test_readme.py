"""The README's commands work as typed, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.workflow


def commands(text: str) -> list[str]:
    """The command lines of the README's shell blocks, comments cut off."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_snakemake_and_command_line_call_is_accepted(root: Path, fresh: Project) -> None:
    """Snakemake calls are planned, not run; where one of them makes the whole report, other tests run it."""
    tried = 0
    for line in commands((root / "README.md").read_text()):
        words = shlex.split(line)
        if words[0] == "make":
            targets = (root / "Makefile").read_text()
            assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), line
            continue
        module = {"snakemake": "snakemake", "kv-transition": "kv_transition"}[words[0]]
        dry = ["-n"] if module == "snakemake" and "-n" not in words and "--rulegraph" not in words else []
        done = subprocess.run(
            [sys.executable, "-m", module, *words[1:], *dry],
            cwd=fresh.folder,
            env=fresh.environment,
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


@pytest.mark.parametrize("overlay", ["quick", "my_records"])
def test_every_experiment_that_comes_with_the_project_is_valid(
    fresh: Project, overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_task.jsonl").write_text('{"input": "What?", "context": "A door.", "answers": ["door"]}\n')
    monkeypatch.setenv("MY_RECORDS", str(tmp_path))
    monkeypatch.setenv("MY_MODEL", "resources/tiny-reader")
    checked = fresh.kvt("validate", "-c", f"config/experiments/{overlay}.yaml")
    assert checked.returncode == 0, checked.stderr


def test_the_rule_graph_in_the_docs_is_that_of_the_rules(root: Path) -> None:
    shown = set(re.findall(r'\[\s*"?(\w+)"?\s*\]', (root / "docs/dag.md").read_text()))
    rules = set(
        re.findall(r"^rule (\w+):", "".join(f.read_text() for f in root.glob("rules/*.smk")), re.MULTILINE)
    )
    aside = {"train_tiny_reader", "retrieve_longbench", *(rule for rule in rules if rule.startswith("all_"))}
    assert rules - aside <= shown, "run `make dag`"
