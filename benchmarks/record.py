"""What a benchmark found, kept as results/bench/<name>.json, from which docs/performance.md is written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from kv_transition.files import write_text

#: Where figures are kept; those of a run that only shows that a benchmark works are kept apart.
FOLDER = Path("results/bench/quick" if "--quick" in sys.argv else "results/bench")


@dataclass(frozen=True)
class Row:
    """One comparison, ours beside a peer or a limit, measured in one run.

    Attributes
    ----------
    work : what was done, sizes included.
    ours, theirs : the figures with their units; `theirs` is "" where the bar is a limit and no peer.
    peer : who the peer is, with its version; "" for none.
    ratio : the ratio of every turn, whichever way round the bar asks for it; empty for none.
    bar : what has to be reached, in words; "" where the figure is only told.
    met : whether it is; None without a bar.
    """

    work: str
    ours: str
    theirs: str = ""
    peer: str = ""
    ratio: tuple[float, ...] = ()
    bar: str = ""
    met: bool | None = None


def without_bar(row: Row) -> Row:
    """The row as a figure only told: a bar on time or memory holds for the sizes that it was set for, not for a trial."""
    return replace(row, bar="", met=None)


def number(value: float) -> str:
    """Three figures, or all of a large number's: 0.0123, 1.23, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median of turns and their range: "1.23 (1.20-1.31) s"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    text = number(middle) if low == high else f"{number(middle)} ({number(low)}-{number(high)})"
    return f"{text} {unit}".rstrip()


def machine() -> str:
    """Processor, cores, memory and system, in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = named[0] if named else name
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def save(name: str, rows: Sequence[Row], packages: Sequence[str] = (), note: str = "") -> None:
    """Keep the rows of the benchmark `benchmarks/<name>.py` and print them.

    Parameters
    ----------
    packages : distributions of this environment whose versions matter.
    note : a sentence about the run that a reader has to know, such as what a peer was not asked to do.
    """
    load = os.getloadavg()[0]
    document = {
        "name": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load": round(load, 1),
        "versions": {package: metadata.version(package) for package in packages},
        "note": note,
        "rows": [asdict(row) for row in rows],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_text(FOLDER / f"{name}.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for row in rows:
        verdict = {True: "reached", False: "MISSED", None: ""}[row.met]
        beside = f" | {row.peer}: {row.theirs}" if row.peer else ""
        ratio = f" | ratio {spread(row.ratio)}" if row.ratio else ""
        bar = f" | {row.bar}: {verdict}" if row.bar else ""
        print(f"{row.work}: {row.ours}{beside}{ratio}{bar}", flush=True)
