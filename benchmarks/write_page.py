"""Write docs/performance.md from what the benchmarks kept in results/bench.

    python benchmarks/write_page.py                    docs/performance.md
    python benchmarks/write_page.py --out FILE         another file
    python benchmarks/write_page.py --quick --out FILE from the figures of runs with --quick

The words are in performance.md.jinja, the figures only in the files of results/bench. A benchmark that left none is
named with the command that makes it, and one of `--broken` as incomplete. Where there was no GPU, the figures of
benchmarks/measured/gpu_sweep.json are shown, if there is this copy of what a machine with one kept. Ends with 1 if a
bar was missed, if a benchmark is missing, or if one of `--broken` ended with an error after all; prints which.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from record import FOLDER

from kv_transition.files import write_text

HERE = Path(__file__).resolve().parent
PAGE = Path("docs/performance.md")
FIGURES = Path("docs/figures")
#: What was measured elsewhere, because most machines cannot.
MEASURED = HERE / "measured"
#: The only figure that gpu_sweep keeps where there is no GPU.
NO_GPU = "no GPU here, not measured"
TEMPLATE = "performance.md.jinja"


@dataclass(frozen=True)
class Topic:
    """A heading of the page and the benchmarks below it, in order."""

    key: str
    heading: str
    benchmarks: tuple[str, ...]


TOPICS = (
    Topic("engine", "Local engines", ("kvpress_sweep", "sweep_cost", "gpu_sweep")),
    Topic("client", "HTTP client", ("client_cost", "crash_cost")),
    Topic("scoring", "Scoring", ("metrics_cost",)),
    Topic("statistics", "Statistics", ("bootstrap_cost", "coverage")),
    Topic("tokenising", "Tokenising", ("tokenise_cost",)),
    Topic("workflow", "The workflow itself", ("dag_scale", "touched_cost", "stage_cost")),
    Topic("start", "Start-up", ("startup_cost",)),
    Topic("database", "Database", ("sqlite_cost",)),
    Topic("growth", "How cost grows", ("growth",)),
)
BENCHMARKS = tuple(name for topic in TOPICS for name in topic.benchmarks)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What each benchmark kept, by its name; those that kept nothing are absent."""
    files = {name: folder / f"{name}.json" for name in BENCHMARKS}
    return {
        name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()
    }


def no_gpu(results: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the benchmark of the GPU found none."""
    return [row["ours"] for row in results.get("gpu_sweep", {"rows": []})["rows"]] == [NO_GPU]


def read_elsewhere(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the repository holds of a machine with a GPU, where this run had none."""
    file = MEASURED / "gpu_sweep.json"
    if not no_gpu(results) or not file.is_file():
        return {}
    return {"gpu_sweep": json.loads(file.read_text(encoding="utf-8"))}


def ratio_text(ratios: Sequence[float]) -> str:
    """The median of the turns' ratios with their range: "1.23 (1.20-1.31)"; "" for none."""
    if not ratios:
        return ""
    shown = [f"{value:.3g}" for value in (statistics.median(ratios), min(ratios), max(ratios))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]}-{shown[2]})"


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of a benchmark's rows."""
    lines = ["| what | ours | peer | ratio | bar | |", "|---|---|---|---|---|---|"]
    for row in rows:
        peer = ": ".join(part for part in (row["peer"], row["theirs"]) if part)
        verdict = {True: "reached", False: "**missed**", None: ""}[row["met"]]
        columns = (row["work"], row["ours"], peer, ratio_text(row["ratio"]), row["bar"], verdict)
        lines.append(f"| {' | '.join(map(cell, columns))} |")
    return "\n".join(lines)


def shared(results: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """The different values of a fact over all benchmarks."""
    return sorted({str(result[key]) for result in results.values()})


def versions(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Package -> version, over all benchmarks."""
    found = {
        package: version for result in results.values() for package, version in result["versions"].items()
    }
    return dict(sorted(found.items()))


def missed(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every bar that was missed, in a line each."""
    return [
        f"{name}: {row['work']}: {', ratio '.join(filter(None, (row['ours'], ratio_text(row['ratio']))))} (bar: {row['bar']})"
        for name, result in results.items()
        for row in result["rows"]
        if row["met"] is False
    ]


def render(
    results: Mapping[str, Mapping[str, Any]],
    elsewhere: Mapping[str, Mapping[str, Any]],
    figures: Sequence[str],
    broken: Sequence[str],
) -> str:
    """The text of the page.

    Parameters
    ----------
    results : what :func:`read_results` read.
    elsewhere : what :func:`read_elsewhere` read; it is shown instead, with its own machine.
    figures : names of the pictures of growth that there are, in docs/figures.
    broken : benchmarks that ended with an error, though no bar was missed.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    everything = {**results, **elsewhere}
    judged = [
        row["met"] for result in everything.values() for row in result["rows"] if row["met"] is not None
    ]
    return environment.get_template(TEMPLATE).render(
        topics=TOPICS,
        results=results,
        elsewhere=elsewhere,
        no_gpu=no_gpu(results),
        table=table,
        machines=shared(results, "machine"),
        dates=shared(results, "date"),
        loads=[result["load"] for result in results.values()],
        versions=versions(results),
        bars=len(judged),
        missed=missed(everything),
        figures=figures,
        broken=broken,
    )


def main() -> int:
    """Write the page; 0 if every benchmark was measured and every bar reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="of runs with --quick")
    parser.add_argument("--out", type=Path, default=PAGE, help=f"default: {PAGE}")
    parser.add_argument("--broken", nargs="*", default=[], help="benchmarks that did not end with 0")
    options = parser.parse_args()
    results = read_results(FOLDER)
    elsewhere = read_elsewhere(results)
    problems = missed({**results, **elsewhere})
    problems += [f"{name}: not measured" for name in BENCHMARKS if name not in results]
    told = {line.partition(":")[0] for line in problems}
    broken = [name for name in options.broken if name not in told]
    problems += [f"{name}: ended with an error" for name in broken]
    # The figures are those of a whole run.
    figures = [] if options.quick else sorted(file.name for file in FIGURES.glob("growth_*.svg"))
    write_text(options.out, render(results, elsewhere, figures, broken))
    print(f"{options.out}: {len(results)} of {len(BENCHMARKS)} benchmarks")
    print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
