"""A small experiment in a copy of the project, run by the real Snakemake with the real model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from preloaded import call_snakemake

PARTS = ("Snakefile", "rules", "scripts", "config", "profiles", "envs", "resources", "src")

#: 2 tasks x (full + no_context + 2 methods x 2 budgets, random three times) x 2 bins x 3 examples.
SMALL = {
    "experiment": {"id": "small"},
    "dataset": {"synthetic": {"n_documents": 24, "min_tokens": 64, "max_tokens": 256}},
    "binning": {"n_bins": 2, "n_per_bin": 3},
    "kv": {"methods": ["snapkv", "random"], "budgets": [16, 64]},
    "analysis": {
        "bootstrap_replicates": 200,
        "transition_replicates": 100,
        "fit_replicates": 100,
        "collapse_replicates": 100,
    },
    "output": {"figure_dpi": 50},
}

TARGET = "results/report.md"
WITHOUT_FIGURES = ("--omit-from", "plot_figures")
EXAMPLES = 2 * 3


@dataclass(frozen=True)
class Project:
    """A copy of the project with its own library, results and journal."""

    folder: Path

    def configure(self, **changes: dict) -> None:
        """Write small.yaml: the small experiment with some sections changed."""
        config = {
            section: {**SMALL.get(section, {}), **changes.get(section, {})}
            for section in {**SMALL, **changes}
        }
        (self.folder / "small.yaml").write_text(yaml.safe_dump(config))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def options(self, *options: str, target: str = TARGET) -> list[str]:
        """What a call of Snakemake has behind its name."""
        return [target, "--cores", "2", "--configfile", "small.yaml", *options]

    def command(self, *options: str, target: str = TARGET) -> list[str]:
        """The call in a process that can be watched and killed."""
        return [sys.executable, "-m", "snakemake", *self.options(*options, target=target)]

    def call(self, *options: str, target: str = TARGET) -> subprocess.CompletedProcess[str]:
        """Run Snakemake; standard output and error in `stdout`."""
        return call_snakemake(self.options(*options, target=target), self.folder, self.environment)

    def run(self, *options: str, target: str = TARGET) -> str:
        """Run Snakemake to a good end and return what it printed."""
        done = self.call(*options, target=target)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    def run_tables(self) -> None:
        """Run Snakemake for the analysis tables, without figures and report."""
        self.run(*WITHOUT_FIGURES, target="all_analysis")

    def due(self, *options: str, target: str = TARGET) -> dict[str, int]:
        """Rule -> number of jobs that the next run would do, by `snakemake -n`."""
        text = self.run("-n", *options, target=target)
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats:", 1)[1].split("total", 1)[0]
        return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}

    def kvt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return subprocess.run(
            [sys.executable, "-m", "kv_transition", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def journal_rows(self) -> int:
        """Lines of all journal files."""
        return sum(file.read_bytes().count(b"\n") for file in self.folder.glob("journal/**/*.jsonl"))

    def bytes_of(self, pattern: str) -> dict[str, bytes]:
        """Relative path -> content of the files that match."""
        return {
            str(file.relative_to(self.folder)): file.read_bytes()
            for file in sorted(self.folder.glob(pattern))
        }

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace text in a file of the project."""
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} does not hold {old!r}"
        path.write_text(text.replace(old, new, 1))

    def copy(self, folder: Path, results: bool = True) -> Project:
        """A fresh clone of the project: new dates on every file, and the old results beside it if wanted."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            source = self.folder / part
            if source.is_dir():
                shutil.copytree(
                    source,
                    folder / part,
                    copy_function=shutil.copyfile,
                    ignore=shutil.ignore_patterns("__pycache__"),
                )
            else:
                shutil.copyfile(source, folder / part)
        if (self.folder / "small.yaml").exists():
            shutil.copyfile(self.folder / "small.yaml", folder / "small.yaml")
        if results:
            for part in ("results", "journal", ".snakemake"):
                shutil.copytree(self.folder / part, folder / part)
        return Project(folder)
