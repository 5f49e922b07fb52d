"""Log-log figures of what grows with what, and the exponents of the lines in them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_transition.analysis.figures.canvas import house_style, panel_grid, set_ticks, title_lines
from kv_transition.analysis.figures.palette import CATEGORICAL, INK, MARKERS, RULE
from kv_transition.files import atomic_path

if TYPE_CHECKING:
    from growth_points import Point

#: Largest value of an axis over its smallest, at least.
LEAST_SPAN = 2.5


@dataclass(frozen=True)
class Fit:
    """value = factor * size ** exponent."""

    exponent: float
    error: float
    factor: float

    def __str__(self) -> str:
        error = f" ± {self.error:.2f}" if np.isfinite(self.error) else ""
        return f"{self.exponent:.2f}{error}"

    def at(self, sizes: Any) -> Any:
        """The line's values."""
        return self.factor * np.asarray(sizes, float) ** self.exponent


@dataclass(frozen=True)
class Axis:
    """What a figure is called, what its x axis counts, and whether memory is drawn above what was held before the work."""

    title: str
    label: str
    above: bool = False


def fit_power(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """Least squares in log-log, with the standard error of the exponent; nan where there are too few points."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    if len(set(sizes)) < 2:
        return Fit(float("nan"), float("nan"), float("nan"))
    centred = x - x.mean()
    exponent = float(centred @ y / (centred @ centred))
    left = y - y.mean() - exponent * centred
    error = float("nan")
    if len(x) > 2:
        error = float(np.sqrt(left @ left / (len(x) - 2) / (centred @ centred)))
    return Fit(exponent, error, float(np.exp(y.mean() - exponent * x.mean())))


def draw_growth(points: Sequence[Point], axis: Axis, path: Path) -> None:
    """Time beside peak memory, with the points' ranges, the fitted lines and their exponents.

    Parameters
    ----------
    path : an SVG or PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with house_style():
        figure, (time, memory) = panel_grid(2, 3.3, 2.6, 2, left=0.68, title=0.42)
        _panel(time, points, axis, "CPU time", "CPU time (s)", [point.cpu for point in points])
        what = "Peak memory above that before the work" if axis.above else "Peak memory of the process"
        peaks = [(point.above_mb if axis.above else point.peak_mb,) for point in points]
        _panel(memory, points, axis, what, "memory (MB)", peaks)
        FigureCanvasAgg(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            kind = path.suffix[1:]
            dated = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            figure.savefig(temporary, format=kind, dpi=150, metadata=dated)


def _panel(
    axes: Any, points: Sequence[Point], axis: Axis, what: str, unit: str, values: Sequence[Sequence[float]]
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    title_lines(axes, axis.title, what)
    for number, curve in enumerate(dict.fromkeys(point.curve for point in points)):
        chosen = sorted(
            (point.size, tuple(turns))
            for point, turns in zip(points, values, strict=True)
            if point.curve == curve
        )
        sizes = [size for size, _ in chosen]
        middle = [statistics.median(turns) for _, turns in chosen]
        below = [median - min(turns) for median, (_, turns) in zip(middle, chosen, strict=True)]
        above = [max(turns) - median for median, (_, turns) in zip(middle, chosen, strict=True)]
        colour, upper = CATEGORICAL[number], max(3, (len(sizes) + 1) // 2)
        whole, last = fit_power(sizes, middle), fit_power(sizes[-upper:], middle[-upper:])
        axes.errorbar(
            sizes, middle, yerr=[below, above], fmt=MARKERS[number], color=colour, markersize=4, elinewidth=0.8,
            capsize=2, zorder=3, label=f"{curve}: {whole}, upper half {last}",
        )  # fmt: skip
        axes.plot(sizes, whole.at(sizes), color=colour, linewidth=0.9, zorder=2)
        axes.plot(
            sizes[-upper:], last.at(sizes[-upper:]), color=colour, linewidth=0.9, linestyle=(0, (3, 1.5)), zorder=2
        )  # fmt: skip
    _ticks(axes, sorted({point.size for point in points}))
    low, high = _not_too_close(*axes.get_ylim())
    axes.set_ylim(low, high)
    _decades(axes)
    # Room for the legend above the points.
    axes.set_ylim(low, high * (high / low) ** 0.5)
    axes.set_xlabel(axis.label)
    axes.set_ylabel(unit)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.legend(
        title="exponent of the fitted line", title_fontsize=7, alignment="left", loc="upper left", frameon=False, fontsize=7, labelcolor=INK, handletextpad=0.3, borderaxespad=0.2,
        labelspacing=0.3,
    )  # fmt: skip


def _ticks(axes: Any, sizes: Sequence[int]) -> None:
    """The sizes themselves, as far as their numbers do not touch."""
    low, high = np.log10(axes.get_xlim())
    shown: list[int] = []
    for size in reversed(sizes):
        text = (len(f"{size:,}") + 1.5) * 0.07
        if not shown or (np.log10(shown[-1]) - np.log10(size)) / (high - low) * 3.3 >= text:
            shown.append(size)
    set_ticks(axes.xaxis, shown[::-1], [f"{size:,}" for size in shown[::-1]])


def _not_too_close(low: float, high: float) -> tuple[float, float]:
    """Limits in which what hardly grows looks flat, and at least two round numbers stand."""
    spare = max(LEAST_SPAN / (high / low), 1.0) ** 0.5
    return low / spare, high * spare


def _decades(axes: Any) -> None:
    """Round numbers, as many in every decade as there is room for."""
    low, high = axes.get_ylim()
    steps = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 500 else (1,)
    ticks = [
        step * 10.0**power
        for power in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        for step in steps
        if low <= step * 10.0**power <= high
    ]
    set_ticks(axes.yaxis, ticks, [f"{tick:,.10g}" for tick in ticks])
