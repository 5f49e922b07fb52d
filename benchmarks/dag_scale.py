"""What this workflow's dry run and null rerun cost beside a bare Snakemake workflow with the same jobs and files.

    python benchmarks/dag_scale.py            67 jobs with some 2,000 files: about a minute
    python benchmarks/dag_scale.py --large    and 1,091 jobs and 50,794 files: about 20 minutes more
    python benchmarks/dag_scale.py --quick    16 jobs, one run of each, no verdict

The bare workflow is written from the dry run of ours: the same rules, inputs and outputs, `touch` as their work, and neither
parameters, logs, configuration nor profile. All files are empty and recorded as made by `snakemake --touch`. CPU seconds
count, of both in turn, because other work on the machine costs them less than it costs wall time. How both grow with the jobs,
up to 5,000 of them (there the dry run only), is measured by `growth.py --only jobs`. Ends with 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import yaml
from project_copy import copy_project
from record import Row, save, spread

METHODS = ["snapkv", "observed_attention", "tova", "streaming_llm", "knorm", "random"]
TARGET = "results/report.md"
BAR = 1.2


@dataclass(frozen=True)
class Size:
    """How large an experiment is."""

    tasks: int
    methods: int
    budgets: int
    shards: int


@dataclass(frozen=True)
class Called:
    """What a call of Snakemake printed, its CPU seconds and its peak memory, those of its child processes included."""

    text: str
    cpu: float
    peak_mb: float


@dataclass(frozen=True)
class Compared:
    """The calls of ours and of the bare workflow, in turns, nothing made yet and all made, with what there is to do.

    Without a null rerun `null` has no calls and `files` is 0.
    """

    dry: tuple[list[Called], list[Called]]
    null: tuple[list[Called], list[Called]]
    jobs: int
    files: int


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--large", action="store_true", help="also 20 tasks in 50 shards: 1,091 jobs")
    options.add_argument("--repeats", type=int, default=3, help="runs of each")
    options.add_argument("--quick", action="store_true", help="see that it works: one small experiment")
    return options


def main() -> int:
    """Measure and keep; 0 if the bar is reached."""
    given = parser().parse_args()
    sizes = [Size(4, 6, 8, 10), *[Size(20, 6, 8, 50)] * given.large]
    rows = []
    for size in [Size(1, 2, 2, 1)] if given.quick else sizes:
        found = compared(size, 1 if given.quick else given.repeats)
        scale = f"{found.jobs:,} jobs, {found.files:,} files"
        for what, sides in (("dry run", found.dry), ("null rerun", found.null)):
            ours, bare = ([one.cpu for one in calls] for calls in sides)
            rows.append(judged(f"{what}, {scale}", ours, bare))
    if given.quick:  # the bar is one of a larger experiment
        rows = [replace(row, bar="", met=None) for row in rows]
    save("dag_scale", rows, ["snakemake"])
    return int(any(row.met is False for row in rows))


def compared(size: Size, repeats: int, rerun: bool = True) -> Compared:
    """Dry run and, if asked for, null rerun of one experiment."""
    with tempfile.TemporaryDirectory(prefix="dag_scale_") as folder:
        ours, bare = Path(folder, "ours"), Path(folder, "bare")
        set_up_ours(ours, size)
        listed = call(ours, "-n").text
        write_bare(bare, jobs_of(listed))
        stats = [job_counts(text) for text in (listed, call(bare, "-n").text)]
        if stats[0] != stats[1]:
            raise SystemExit(f"not the same jobs: {stats}")
        jobs, dry = sum(stats[0].values()), in_turn(ours, bare, ["-n"], repeats)
        if not rerun:
            return Compared(dry, ([], []), jobs, 0)
        files = [make_files(place) for place in (ours, bare)]
        if files[0] != files[1]:
            raise SystemExit(f"not the same files: {sorted(files[0] ^ files[1])[:5]}")
        null = in_turn(ours, bare, [], repeats, expect="Nothing to be done")
    return Compared(dry, null, jobs, len(files[0]))


def set_up_ours(folder: Path, size: Size) -> None:
    """A copy of the project, with as many tasks of one small record each."""
    copy_project(folder)
    tasks = [f"task{index:02d}" for index in range(size.tasks)]
    (folder / "records").mkdir()
    for task in tasks:
        record = {"input": "Where?", "context": "Here.", "answers": ["here"]}
        (folder / f"records/{task}.jsonl").write_text(json.dumps(record) + "\n")
    config = {
        "experiment": {"id": "scale"},
        "dataset": {"path": "records", "tasks": tasks},
        "kv": {
            "methods": METHODS[: size.methods],
            "budgets": [16 * 2**step for step in range(size.budgets)],
        },
        "run": {"shards": size.shards},
    }
    (folder / "config/scale.yaml").write_text(yaml.safe_dump(config))


def call(folder: Path, *options: str, expect: str = "") -> Called:
    """Call Snakemake there for the whole report."""
    configured = ["--configfile", "config/scale.yaml"] if (folder / "config").is_dir() else []
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", TARGET, "--cores", "2", *options, *configured],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        text = process.stdout.read()
    # Only wait4 tells what this call cost; getrusage has the largest memory of all calls so far.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or expect not in text:
        raise SystemExit(f"{folder.name}: snakemake {' '.join(options)}:\n{text[-2000:]}")
    return Called(text, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def jobs_of(listed: str) -> dict[str, dict[str, list[str]]]:
    """Rule -> its inputs and outputs with {wildcards}, read from one job of each in a dry run."""
    rules: dict[str, dict[str, list[str]]] = {}
    for name, block in re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)+)", listed, re.MULTILINE):
        if name in rules:
            continue
        fields = dict(re.findall(r"^    (\w+): (.*)$", block, re.MULTILINE))
        wildcards = dict(re.findall(r"(\w+)=(\w+)", fields.get("wildcards", "")))
        rules[name] = {
            side: [generalised(path, wildcards) for path in fields.get(side, "").split(", ") if path]
            for side in ("input", "output")
        }
    return rules


def generalised(path: str, wildcards: dict[str, str]) -> str:
    """A path with the wildcards in the place of their values."""
    for name, value in wildcards.items():
        path = re.sub(rf"(?<![A-Za-z0-9]){value}(?=[./])", f"{{{name}}}", path)
    return path


def write_bare(folder: Path, rules: dict[str, dict[str, list[str]]]) -> None:
    """The same rules as a Snakefile that holds nothing else, and the leaf files that they take."""
    folder.mkdir()
    text = []
    for name, sides in rules.items():
        text.append(f"rule {name}:\n")
        text += [f"    {side}: {paths!r}\n" for side, paths in sides.items() if paths]
        text.append('    shell: "touch {output}"\n\n')
    (folder / "Snakefile").write_text("".join(text))
    for part in ("resources", "records"):
        shutil.copytree(folder.parent / "ours" / part, folder / part)


def job_counts(text: str) -> dict[str, int]:
    """Rule -> jobs, by Snakemake's own table."""
    table = text.partition("Job stats:")[2].partition("\ntotal")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def make_files(folder: Path) -> set[str]:
    """Make every output, empty, and have it recorded as made; returns their paths."""
    rows = [line.split("\t")[0] for line in call(folder, "--summary").text.splitlines() if "\t" in line]
    files = {row for row in rows if row != "output_file"}
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    call(folder, "--touch", "--quiet", "all")
    return files


def in_turn(
    ours: Path, bare: Path, options: Sequence[str], repeats: int, expect: str = ""
) -> tuple[list[Called], list[Called]]:
    """Calls in both folders, in turns; without their texts, which are long."""
    calls = [
        [replace(call(place, *options, expect=expect), text="") for place in (ours, bare)]
        for _ in range(repeats)
    ]
    return [turn[0] for turn in calls], [turn[1] for turn in calls]


def judged(what: str, ours: Sequence[float], bare: Sequence[float]) -> Row:
    """The row of a comparison of CPU seconds."""
    ratios = tuple(a / b for a, b in zip(ours, bare, strict=True))
    peer = f"bare Snakemake {version('snakemake')}"
    met = statistics.median(ratios) <= BAR
    return Row(what, spread(ours, "CPU s"), spread(bare, "CPU s"), peer, ratios, f"<= {BAR}x", met)


if __name__ == "__main__":
    sys.exit(main())
