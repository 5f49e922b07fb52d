"""How time and memory grow with prompt length, cells, examples, jobs and database rows.

    python benchmarks/growth.py                          all series: about 30 minutes, 12 of them for the jobs
    python benchmarks/growth.py --only cells examples    some of them; the others stay as they were last measured
    python benchmarks/growth.py --draw                   the figures again, from what was last measured
    python benchmarks/growth.py --quick                  the smallest sizes on a tiny model, to see that it works

Every point is measured in a process of its own (`growth_points.py`). A line is fitted to the medians in log-log; its slope is
the exponent, of all sizes and of the upper half, where start-up no longer counts. Points are kept in results/bench/growth/,
figures in docs/figures/growth_*.svg; --quick keeps neither. Two things have a bar: memory has to be flat in the number of
examples, and at about 100, 1,000 and 5,000 jobs a bare workflow of the same jobs and files bounds the dry run and, up to
1,000, the null rerun (`dag_scale.py`). Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import dag_scale
import numpy as np
from growth_figure import Axis, Fit, draw_growth, fit_power
from growth_points import BARE, FULL_ALONE, GRID, Point
from record import FOLDER, Row, save, spread

from kv_transition.files import write_text

KEPT = FOLDER / "growth"
FIGURES = Path("docs/figures")
#: Peak memory at the most examples, as a multiple of that at the fewest.
FLAT_BAR = 1.25
#: About so many jobs have the bar of dag_scale.
JUDGED_JOBS = (100, 1000, 5000)
#: Threads that wait for each other spin, and would be charged for the machine's other work.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
PACKAGES = ("numpy", "torch", "transformers", "kvpress", "snakemake", "pyarrow")


@dataclass(frozen=True)
class Series:
    """What is varied.

    Attributes
    ----------
    title, axis : of the figure and its x axis.
    sizes, quick : sizes that are measured.
    curves : one process measures one curve; more may come back from it.
    memory : what is drawn and fitted of it: "peak", or "above" what model and packages held before the work, which is most of
        the peak at small sizes and would hide the growth. "both" fits both and draws the peak.
    """

    title: str
    axis: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    curves: tuple[str, ...] = (GRID,)
    memory: str = "peak"


SERIES = {
    "prompt_length": Series(
        "Local engine (kvpress): prompt length",
        "prompt length (tokens)",
        (256, 512, 1024, 2048, 4096, 8192),
        (128,),
        (GRID, FULL_ALONE),
        memory="above",
    ),
    "cells": Series(
        "Local engine (kvpress): cells of the grid",
        "cells (method, budget) beside full, 2,048-token prompt",
        (1, 2, 4, 8, 12, 24, 48),
        (4,),
        ("cells + full",),
        memory="above",
    ),
    "examples": Series(
        "Local engine (reference): examples of a shard",
        "examples, 8 cells each",
        (10, 30, 100, 300, 1000),
        (3, 12),
        ("a shard, its journal and files",),
        memory="both",
    ),
    "jobs": Series("Workflow: jobs", "jobs", (10, 30, 100, 300, 1000, 5000), (10,)),
    "database": Series(
        *("Database: rows", "rows of all tables (four a request)"),
        (2500, 7500, 25_000, 75_000, 250_000),
        (300,),
        ("assembly",),
    ),
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    options.add_argument("--repeats", type=int, default=3, help="of each size; the largest ones are run once")
    options.add_argument("--draw", action="store_true", help="measure nothing")
    options.add_argument("--quick", action="store_true")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep, draw; 0 unless a bar is missed."""
    given = parser().parse_args(arguments)
    found: dict[str, list[Point]] = {}
    for name, series in SERIES.items():
        if name in given.only and not given.draw:
            found[name] = measure(name, series, given)
        elif not given.quick:
            found[name] = read_points(KEPT / f"{name}.json")
    rows = []
    for name, points in found.items():
        if not points:
            rows.append(Row(f"{SERIES[name].title}: not measured", ""))
            continue
        rows += rows_of(name, points)
        if not given.quick:
            write_text(
                KEPT / f"{name}.json", json.dumps([asdict(point) for point in points], indent=1) + "\n"
            )
            series = SERIES[name]
            axis = Axis(series.title, series.axis, above=series.memory == "above")
            draw_growth(points, axis, FIGURES / f"growth_{name}.svg")
    save("growth", rows, [name for name in PACKAGES if find_spec(name)], NOTE)
    return 1 if any(row.met is False for row in rows) else 0


NOTE = (
    "Medians and ranges of the repeats; exponents of a line fitted by least squares to the medians in log-log, with its standard "
    "error, over all sizes and over the upper half. The grid is SnapKV, StreamingLLM, Knorm and TOVA at 64 to 2,048 tokens, as "
    "far as these are below the prompt's length, on a random 28 M-parameter Llama, 16 new tokens. Engines have one thread. Memory of prompt length and cells is fitted and drawn above what "
    "the process held before the work, which each row names. The bare workflow has the same jobs and files; of 5,000 jobs there is "
    "one turn, of the dry run only: to have their files recorded as made takes Snakemake many minutes a side."
)


def measure(name: str, series: Series, given: argparse.Namespace) -> list[Point]:
    """All points of a series; fewer where something that is measured is not there."""
    sizes = series.quick if given.quick else series.sizes
    points: list[Point] = []
    for size in sizes:
        for curve in series.curves:
            last = size == sizes[-1] and name in ("examples", "jobs", "database")
            repeats = 1 if given.quick or last else given.repeats
            command = [sys.executable, str(Path(__file__).with_name("growth_points.py"))]
            command += [name, str(size), "--curve", curve, "--repeats", str(repeats)]
            done = subprocess.run(
                [*command, *["--quick"] * given.quick],
                env={**os.environ, **ONE_THREAD},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{name} {size}: not measured", file=sys.stderr)
                continue
            points += as_points(done.stdout.splitlines()[-1])
            print(f"{name} {size} {curve}: {spread(points[-1].cpu, 'CPU s')}", file=sys.stderr, flush=True)
    return points


def as_points(text: str) -> list[Point]:
    """Points from JSON."""
    return [
        Point(**{**given, "wall": tuple(given["wall"]), "cpu": tuple(given["cpu"])})
        for given in json.loads(text)
    ]


def read_points(path: Path) -> list[Point]:
    """What was last measured; nothing where it was not."""
    return as_points(path.read_text()) if path.is_file() else []


def rows_of(name: str, points: Sequence[Point]) -> list[Row]:
    """Every size of every curve, then the exponents."""
    rows, title = [], SERIES[name].title
    for curve in dict.fromkeys(point.curve for point in points):
        own = sorted((point for point in points if point.curve == curve), key=lambda point: point.size)
        for point in own:
            wall = f", {spread(point.wall, 's')} wall" if point.wall else ""
            before = f" ({point.before_mb:,.0f} before)" if point.before_mb else ""
            figures = f"{spread(point.cpu, 'CPU s')}{wall}, peak {point.peak_mb:,.0f} MB{before}"
            rows.append(Row(f"{title}: {curve}, {point.size:,}", figures))
        if len(own) < 2:
            continue
        for what, values in fitted(own, SERIES[name].memory).items():
            whole, upper = both_fits([point.size for point in own], values)
            row = Row(f"{title}: {curve}, exponent of {what}", f"{whole}; upper half {upper}")
            rows.append(judged_flat(row, own) if name == "examples" and what == "peak memory" else row)
        if name == "cells":
            rows.append(each_cell(own))
    return rows + beside_bare(points)


def fitted(points: Sequence[Point], memory: str) -> dict[str, list[float]]:
    """What has an exponent -> its values."""
    values = {"time": [statistics.median(point.cpu) for point in points]}
    if memory != "above":
        values["peak memory"] = [point.peak_mb for point in points]
    if memory != "peak":
        values["peak memory above that before"] = [point.above_mb for point in points]
    return values


def beside_bare(points: Sequence[Point]) -> list[Row]:
    """Our curves beside those of the bare workflow, where there are any; at some sizes with the bar."""
    bare = {(point.curve, point.size): point.cpu for point in points if point.curve.endswith(BARE)}
    rows = []
    for point in points:
        theirs = bare.get((point.curve + BARE, point.size))
        if theirs is None:
            continue
        row = dag_scale.judged(f"Workflow: {point.curve} beside bare, {point.size:,} jobs", point.cpu, theirs)
        has_bar = any(abs(point.size / size - 1) < 0.2 for size in JUDGED_JOBS)
        rows.append(row if has_bar else replace(row, bar="", met=None))
    return rows


def each_cell(points: Sequence[Point]) -> Row:
    """What one more cell costs: the slope of a straight line through the times."""
    seconds = [statistics.median(point.cpu) for point in points]
    slope, rest = np.polyfit([point.size for point in points], seconds, 1)
    share = f"{slope / rest:.1%} of the {rest:.3g} CPU s that the prefill and the full answer cost"
    return Row(f"{SERIES['cells'].title}: each further cell", f"{slope:.3g} CPU s, {share}")


def both_fits(sizes: Sequence[int], values: Sequence[float]) -> tuple[Fit, Fit]:
    """Fits over all sizes and over the upper half, which is at least three of them."""
    upper = max(3, (len(sizes) + 1) // 2)
    return fit_power(sizes, values), fit_power(sizes[-upper:], values[-upper:])


def judged_flat(row: Row, points: Sequence[Point]) -> Row:
    """The row with the bar on memory."""
    ratio = points[-1].peak_mb / points[0].peak_mb
    bar = f"flat: at {points[-1].size:,} examples <= {FLAT_BAR}x that at {points[0].size:,}"
    return replace(row, ratio=(ratio,), bar=bar, met=ratio <= FLAT_BAR)


if __name__ == "__main__":
    sys.exit(main())
