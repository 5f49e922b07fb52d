"""How often the reported intervals hold the truth, on made-up scores whose truth is known.

    python benchmarks/coverage.py              the tables and the bars; about two minutes on one core
    python benchmarks/coverage.py --write      and docs/coverage.md from them
    python benchmarks/coverage.py --quick      too few data sets to judge by

The intervals are those of `kv_transition.analysis`, called as the analysis calls them; the bootstrap percentile interval
and the normal (CLT) interval stand beside them, because they are what is mostly used. Seeds are fixed. Ends with 1 if a
bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from made_up_scores import (
    EM_50,
    F1_35,
    ICC,
    PROFILES,
    ROUGE,
    SCENARIOS,
    Array,
    Clusters,
    alike,
    alone,
    draw_curves,
    in_fours,
    shapes,
)
from record import Row, save
from usual_intervals import (
    normal_difference,
    normal_mean,
    normal_ratio,
    percentile_difference,
    percentile_mean,
    percentile_ratio,
)

from kv_transition.analysis.intervals import (
    augmented_tests,
    difference_interval,
    fieller_interval,
    mean_interval,
)
from kv_transition.analysis.thresholds import fixed_sequence_limits, sustained_point
from kv_transition.files import write_text

#: (clusters, scores, ...) -> lower and upper limits of each data set; scores are (sets, n), limits nan where there are none.
Method = Callable[..., tuple[Array, Array]]

SEED = 20260
SIZES = (25, 30, 40, 60)
#: What the transition budget is looked for on.
CURVE_PROFILES, TAUS, CURVE_SIZES = (F1_35, EM_50, ROUGE), (0.8, 0.9, 0.95), (25, 40, 60)
#: Examples of the clustered data sets: fewer would leave hardly ten clusters.
CLUSTERED_SIZES = (40, 60)
PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"


TRANSITION_TEXT = (
    "Limits of T, the smallest of six budgets from which retention stays at or above tau (0.8, 0.9, 0.95), for seven curves and "
    "three profiles. An upper limit U below T would promise retention where it is not: nominally in at most 2.5 % of the "
    "data sets, and the bar is 4 %, because a t test of skewed differences is not exact. U is censored where no budget is sure to retain tau: the price at small n. The CLT's tests differ in that "
    "nothing steadies samples in which most answers are the same."
)
BARS_TEXT = (
    "The average is over profiles or scenarios. For pairs it may be up to 98 %: where hardly an answer differs, the intervals are "
    "wider than they need to be, on purpose."
)


@dataclass(frozen=True)
class Bar:
    """A number that has to lie within bounds."""

    what: str
    value: float
    low: float = 0.0
    high: float = 1.0

    @property
    def reached(self) -> bool:
        """Whether it does."""
        return bool(self.low <= self.value <= self.high)

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        return " and ".join(
            [f">= {self.low:.0%}"] * (self.low > 0) + [f"<= {self.high:.0%}"] * (self.high < 1)
        )

    @property
    def word(self) -> str:
        """The verdict."""
        return "reached" if self.reached else "MISSED"

    def __str__(self) -> str:
        return f"{self.what:92} {self.value:7.2%}  {self.bounds:18} {self.word}"


@dataclass(frozen=True)
class Cell:
    """One method on one kind of data: coverage and mean width where there are limits, and how often there are none."""

    kind: str
    n: int
    method: str
    covered: float
    width: float
    without: float

    @classmethod
    def of(cls, kind: str, n: int, method: str, limits: tuple[Array, Array], truth: float) -> Cell:
        """Judge the limits of many data sets."""
        lo, hi = limits
        shown = ~np.isnan(lo) & ~np.isnan(hi)
        covered = (lo[shown] <= truth + 1e-12) & (truth - 1e-12 <= hi[shown])
        return cls(
            kind, n, method, float(covered.mean()), float((hi - lo)[shown].mean()), float(1 - shown.mean())
        )


def each(interval: Callable[..., Any]) -> Method:
    """An interval of one data set, for many: it is called as the analysis calls it."""

    def limits(clusters: Clusters, *scores: Array) -> tuple[Array, Array]:
        found = [interval(*one, clusters) for one in zip(*scores, strict=True)]
        return np.array([i.lo for i in found]), np.array([i.hi for i in found])

    return limits


MEANS: Mapping[str, Method] = {
    "quasi-Wilson (reported)": each(mean_interval),
    "bootstrap percentile": percentile_mean,
    "CLT z": normal_mean,
}
DIFFERENCES: Mapping[str, Method] = {
    "paired t (reported)": each(difference_interval),
    "bootstrap percentile": percentile_difference,
    "CLT z": normal_difference,
}
RATIOS: Mapping[str, Method] = {
    "Fieller (reported)": each(fieller_interval),
    "bootstrap percentile": percentile_ratio,
    "delta method, z": normal_ratio,
}


def mean_cells(methods: Mapping[str, Method], sets: int, n: int, clustered: bool = False) -> Iterator[Cell]:
    """Coverage of the mean for every profile."""
    for i, profile in enumerate(PROFILES):
        rng = np.random.default_rng([SEED, 1, n, i, clustered])
        clusters = in_fours(n) if clustered else alone(n)
        scores = profile.draw(rng, (sets, 2 * n if clustered else n))
        [scores] = alike(rng, clusters, scores) if clustered else [scores]
        for method, limits in methods.items():
            yield Cell.of(profile.name, n, method, limits(clusters, scores), profile.mean)


def paired_cells(
    differences: Mapping[str, Method],
    ratios: Mapping[str, Method],
    sets: int,
    n: int,
    clustered: bool = False,
) -> tuple[list[Cell], list[Cell]]:
    """Coverage of the paired difference and of retention for every scenario."""
    found: tuple[list[Cell], list[Cell]] = ([], [])
    for i, scenario in enumerate(SCENARIOS):
        rng = np.random.default_rng([SEED, 2, n, i, clustered])
        clusters = in_fours(n) if clustered else alone(n)
        scores = list(scenario.draw(rng, (sets, 2 * n if clustered else n)))
        scores = alike(rng, clusters, *scores) if clustered else scores
        for cells, methods, truth in (
            (found[0], differences, scenario.difference),
            (found[1], ratios, scenario.retention),
        ):
            for method, limits in methods.items():
                cells.append(Cell.of(scenario.name, n, method, limits(clusters, *scores), truth))
    return found


@dataclass(frozen=True)
class TransitionCell:
    """Limits of the transition budget for one true curve: how often they hold it, and how often each is on the wrong side."""

    kind: str
    n: int
    method: str
    covered: float
    upper_too_low: float
    lower_too_high: float
    upper_censored: float


#: (e, clusters) -> p-values "up" and "down" of each budget, (budgets,); e is (budgets, n).
Tests = Callable[[Array, Clusters], tuple[Sequence[float], Sequence[float]]]


def reported_tests(e: Array, clusters: Clusters) -> tuple[Sequence[float], Sequence[float]]:
    """The one-sided tests of the analysis at each budget."""
    up, down = zip(*(augmented_tests(values, clusters) for values in e), strict=True)
    return up, down


def normal_tests(e: Array, clusters: Clusters) -> tuple[Sequence[float], Sequence[float]]:
    """One-sided z tests; without spread the sign decides."""
    from scipy.special import ndtr

    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.nan_to_num(e.mean(axis=1) / (e.std(axis=1, ddof=1) / np.sqrt(e.shape[1])))
    return ndtr(-z).tolist(), ndtr(z).tolist()


TESTS: Mapping[str, Tests] = {"with the pseudo-pair (reported)": reported_tests, "CLT z": normal_tests}


def transition_cells(methods: Mapping[str, Tests], sets: int, n: int) -> Iterator[TransitionCell]:
    """Limits of the transition budget for every shape, profile and tau."""
    clusters = alone(n)
    for (i, profile), tau in itertools.product(enumerate(CURVE_PROFILES), TAUS):
        for j, (name, shape) in enumerate(shapes(tau).items()):
            rng = np.random.default_rng([SEED, 3, n, i, j])
            compressed, full = draw_curves(rng, profile, shape, (sets, n))
            truth = sustained_point(np.array(shape), tau)
            e = compressed - tau * full[:, None]
            for method, tests in methods.items():
                limits = [fixed_sequence_limits(*tests(values, clusters)) for values in e]
                lower, upper = np.array(limits).T
                yield TransitionCell(
                    kind=f"{name}, {profile.name}, tau = {tau:g}",
                    n=n,
                    method=method,
                    covered=float(((lower <= truth) & (truth <= upper)).mean()),
                    upper_too_low=float((upper < truth).mean()),
                    lower_too_high=float((lower > truth).mean()),
                    upper_censored=float(np.isinf(upper).mean()),
                )


def interval_bars(what: str, cells: Sequence[Cell], average: tuple[float, float], worst: float) -> list[Bar]:
    """The bars of the reported interval, the first method: the average at each n, and the worst cell."""
    own = [cell for cell in cells if cell.method == cells[0].method]
    bars = []
    for n in sorted({cell.n for cell in own}):
        mean = float(np.mean([cell.covered for cell in own if cell.n == n]))
        bars.append(Bar(f"{what}: average coverage at n = {n}", mean, *average))
    lowest = min(own, key=lambda cell: cell.covered)
    return [*bars, Bar(f"{what}: worst cell ({lowest.kind}, n = {lowest.n})", lowest.covered, worst)]


def transition_bars(cells: Sequence[TransitionCell]) -> list[Bar]:
    """The bars of the reported limits: no configuration with an upper limit too low in more than 4 % of the data sets."""
    own = [cell for cell in cells if cell.method == cells[0].method]
    high = max(own, key=lambda cell: cell.upper_too_low)
    low = min(own, key=lambda cell: cell.covered)
    return [
        Bar(f"transition: P(U < T) at worst ({high.kind}, n = {high.n})", high.upper_too_low, high=0.04),
        Bar(f"transition: coverage at worst ({low.kind}, n = {low.n})", low.covered, low=0.93),
    ]


def interval_table(cells: Sequence[Cell]) -> list[str]:
    """A Markdown table: average coverage by n, the worst cell, mean width, data sets without limits."""
    sizes = sorted({cell.n for cell in cells})
    lines = [
        f"| interval | {' | '.join(f'n = {n}' for n in sizes)} | worst cell | mean width | without limits |",
        f"|---|{'---|' * (len(sizes) + 3)}",
    ]
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == method]
        averages = [float(np.mean([cell.covered for cell in own if cell.n == n])) for n in sizes]
        worst = min(own, key=lambda cell: cell.covered)
        width = np.mean([cell.width for cell in own])
        lines.append(
            f"| {method} | {' | '.join(f'{a:.1%}' for a in averages)} | {worst.covered:.1%} ({worst.kind}, n = {worst.n}) "
            f"| {width:.3f} | {np.mean([cell.without for cell in own]):.2%} |"
        )
    return lines


def transition_table(cells: Sequence[TransitionCell]) -> list[str]:
    """A Markdown table: by method and n."""
    lines = [
        "| tests | n | coverage, average | at worst | P(U < T), average | at worst | P(L > T) at worst | U censored |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(cell.method for cell in cells):
        for n in sorted({cell.n for cell in cells}):
            own = [cell for cell in cells if (cell.method, cell.n) == (method, n)]
            covered, too_low = [cell.covered for cell in own], [cell.upper_too_low for cell in own]
            too_high, censored = (
                [cell.lower_too_high for cell in own],
                np.mean([cell.upper_censored for cell in own]),
            )
            lines.append(
                f"| {method} | {n} | {np.mean(covered):.1%} | {min(covered):.1%} | {np.mean(too_low):.1%} "
                f"| {max(too_low):.1%} | {max(too_high):.1%} | {censored:.0%} |"
            )
    return lines


def measure(sets: int) -> tuple[dict[str, list[str]], list[Bar]]:
    """All tables, by heading, and all bars."""
    tables: dict[str, list[str]] = {}
    bars: list[Bar] = []
    for clustered, sizes in ((False, SIZES), (True, CLUSTERED_SIZES)):
        means = [cell for n in sizes for cell in mean_cells(MEANS, sets, n, clustered)]
        pairs = [paired_cells(DIFFERENCES, RATIOS, sets, n, clustered) for n in sizes]
        differences, ratios = (
            [cell for part in column for cell in part] for column in zip(*pairs, strict=True)
        )
        for what, cells, most in (
            ("Mean score", means, 0.97),
            ("Paired difference", differences, 0.98),
            ("Retention (ratio of means)", ratios, 0.98),
        ):
            name = f"{what}, clusters of 1 to 4" if clustered else what
            tables[name] = interval_table(cells)
            bars += interval_bars(name, cells, (0.93, most), 0.88)
    curves = [cell for n in CURVE_SIZES for cell in transition_cells(TESTS, sets, n)]
    tables["Transition budget"] = transition_table(curves)
    return tables, [*bars, *transition_bars(curves)]


def page(tables: Mapping[str, Sequence[str]], bars: Sequence[Bar], sets: int) -> str:
    """The text of docs/coverage.md."""
    profiles = "; ".join(f"{p.name} (mean {p.mean:.3f})" for p in PROFILES)
    parts = [
        "# Do the intervals hold what they promise?",
        "Made by `python benchmarks/coverage.py --write`.",
        f"Each number is the share of {sets:,} made-up data sets in which a nominal 95 % interval holds the true value, which "
        "is known. Seeds are fixed, so the numbers do not depend on the machine (a new release of numpy may draw other scores). "
        f"A single cell is uncertain by about {100 * 1.96 * np.sqrt(0.95 * 0.05 / sets):.1f} points. Widths are those of the "
        "intervals that have limits; the last column is the share of data sets without them (retention: the reference may be 0).",
        f"**Scores.** {profiles}. Pairs: a share 1 - R of the answers is lost (score 0), and of the others some are answered "
        "anew. With clusters of 1 to 4 examples in turns, two examples of a cluster have the same draw with probability "
        f"{ICC:g}, their correlation; the CLT interval does not look at clusters, the two others do.",
    ]
    for heading, lines in tables.items():
        parts += [
            f"## {heading}",
            *([TRANSITION_TEXT] if heading.startswith("Transition") else []),
            "\n".join(lines),
        ]
    listed = [f"| {bar.what} | {bar.value:.2%} | {bar.bounds} | {bar.word} |" for bar in bars]
    parts += ["## Bars", BARS_TEXT, "\n".join(["| | value | bar | |", "|---|---|---|---|", *listed])]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Measure, print, and write the page if asked; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=2_000, help="data sets of each kind")
    parser.add_argument("--quick", action="store_true", help="see that it works: 50 data sets, no verdict")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.parent.name}/{PAGE.name}")
    options = parser.parse_args()
    start = time.process_time()
    sets = 50 if options.quick else options.sets
    tables, bars = measure(sets)
    for heading, lines in tables.items():
        print(f"{heading}\n", *lines, "", sep="\n")
    rows = [
        Row(bar.what, f"{bar.value:.2%}", bar=bar.bounds, met=None if options.quick else bar.reached)
        for bar in bars
    ]
    spent = f"{sets:,} data sets of each kind, {time.process_time() - start:.0f} CPU s. All intervals: [coverage](coverage.md)."
    save("coverage", rows, ["numpy", "scipy"], spent)
    if options.write:
        write_text(PAGE, page(tables, bars, sets))
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
