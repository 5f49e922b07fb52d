"""Where the time of the default experiment goes: every stage by what Snakemake's `benchmark:` kept of its jobs.

    python benchmarks/stage_cost.py            the default experiment in a copy of the project: about four minutes
    python benchmarks/stage_cost.py --quick    config/experiments/quick.yaml, about a minute, no verdict

Nothing is in the journal and no cache is filled. In turns the same is run from a copy whose rules have no `benchmark:`, which
tells what the measuring costs. CPU seconds of a job are sampled every half second and end with the last sample, so they are up
to half a second short; "Snakemake itself" is what is left of the CPU seconds of the whole call. Ends with 1 if the run takes
longer than 60 s.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from project_copy import Called, copy_project, snakemake
from record import Row, save, spread

#: What Snakemake's benchmark file says of a job, with the job's rule.
Job = tuple[str, dict[str, float]]

TARGET = ("results/report.md", "--cores", "2")
#: Most seconds of the clock, on two cores.
BAR = 60


def without_benchmarks(folder: Path) -> None:
    """Take `benchmark:` out of a copy's rules."""
    for file in (folder / "rules").glob("*.smk"):
        text = file.read_text(encoding="utf-8")
        file.write_text(
            re.sub(r"^( +)benchmark:\n(?:\1 +.*\n)+", "", text, flags=re.MULTILINE), encoding="utf-8"
        )


def run_once(place: Path, measured: bool, options: tuple[str, ...]) -> tuple[Called, list[Job]]:
    """One run from nothing; (the call, (rule, what its benchmark file says) of every job)."""
    copy_project(place)
    if not measured:
        without_benchmarks(place)
    call = snakemake(place, *TARGET, *options)
    jobs: list[Job] = []
    for folder in (place / "results").glob("*/benchmarks"):
        for file in sorted(folder.rglob("*.tsv")):
            rule = file.relative_to(folder).parts[0].removesuffix(".tsv")
            with file.open(encoding="utf-8") as lines:
                row = next(csv.DictReader(lines, delimiter="\t"))
            jobs.append((rule, {name: _number(row[name]) for name in ("s", "cpu_time", "max_rss")}))
    return call, jobs


def _number(text: str) -> float:
    """A figure; a job that was over before the first sample has none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def stage_rows(calls: list[Called], turns: list[list[Job]]) -> list[Row]:
    """A row for each rule, the dearest first, and one for Snakemake; figures of all turns."""
    by_rule: dict[str, list[list[dict[str, float]]]] = defaultdict(lambda: [[] for _ in turns])
    for turn, jobs in enumerate(turns):
        for rule, job in jobs:
            by_rule[rule][turn].append(job)
    cpu = {rule: [sum(job["cpu_time"] for job in jobs) for jobs in found] for rule, found in by_rule.items()}
    rows = []
    for rule in sorted(by_rule, key=lambda rule: -sum(cpu[rule])):
        count = len(by_rule[rule][0])
        walls = [sum(job["s"] for job in jobs) for jobs in by_rule[rule]]
        most = max(job["max_rss"] for jobs in by_rule[rule] for job in jobs)
        figures = f"{share(cpu[rule], calls)}; {spread(walls, 's')}; at most {most:.0f} MB"
        rows.append(Row(f"{rule}, {count} job{'s' * (count > 1)}", figures))
    rest = [call.cpu - sum(own[turn] for own in cpu.values()) for turn, call in enumerate(calls)]
    return [*rows, Row("Snakemake itself, and what the samples missed", share(rest, calls))]


def share(seconds: list[float], calls: list[Called]) -> str:
    """CPU seconds of every turn and their share of all that the runs took."""
    return f"{spread(seconds, 'CPU s')}, {sum(seconds) / sum(call.cpu for call in calls):.0%}"


def main() -> int:
    """Measure and keep; 0 if the run is fast enough."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="see that it works: a small experiment, one turn"
    )
    options = parser.parse_args()
    extra = ("--configfile", "config/experiments/quick.yaml") if options.quick else ()
    runs: dict[bool, list[Called]] = {True: [], False: []}
    jobs: list[list[Job]] = []
    for turn in range(1 if options.quick else options.turns):
        for measured, calls in runs.items():
            with tempfile.TemporaryDirectory(prefix="stages_") as folder:
                call, found = run_once(Path(folder, f"turn{turn}"), measured, extra)
                calls.append(call)
                if measured:
                    jobs.append(found)
    walls = [call.wall for call in runs[True]]
    name = "quick" if options.quick else "default"
    pairs = list(zip(runs[True], runs[False], strict=True))
    without = f"without `benchmark:`, Snakemake {version('snakemake')}"
    rows = [
        Row(
            f"the {name} experiment from nothing to its report, wall time",
            spread(walls, "s"),
            spread([call.wall for call in runs[False]], "s"),
            without,
            tuple(a.wall / b.wall for a, b in pairs),
            "" if options.quick else f"<= {BAR} s",
            None if options.quick else statistics.median(walls) <= BAR,
        ),
        Row(
            "the same, CPU time",
            spread([call.cpu for call in runs[True]], "CPU s"),
            spread([call.cpu for call in runs[False]], "CPU s"),
            without,
            tuple(a.cpu / b.cpu for a, b in pairs),
        ),
        *stage_rows(runs[True], jobs),
    ]
    save("stage_cost", rows, ["snakemake", "numpy", "matplotlib"])
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
