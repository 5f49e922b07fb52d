"""What panels with a budget axis share: the axis with `full` beside it, lines with intervals, names at line ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import draw_points, finite, spread
from kv_transition.analysis.figures.palette import BAND, INK, MUTED, Style
from kv_transition.budgets import Budget, budget_from_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kv_transition.analysis.tables import Row

PANEL_WIDTH = 2.55
#: Inches between two labels at the line ends.
LABEL_GAP = 0.135
#: More methods than this and filled bands hide each other: bars, side by side, instead.
MAX_BANDS = 3


@dataclass(frozen=True)
class BudgetAxis:
    """The shared x axis: budgets in octaves, `full` detached to their right."""

    budgets: list[Budget]

    @property
    def full(self) -> float:
        octaves = math.log2(self.budgets[-1] / self.budgets[0]) if self.budgets else 0.0
        return self.last + max(0.8, 0.16 * octaves)

    @property
    def last(self) -> float:
        return math.log2(self.budgets[-1]) if self.budgets else 0.0

    @property
    def limits(self) -> tuple[float, float]:
        first = math.log2(self.budgets[0]) if self.budgets else 0.0
        pad = 0.06 * (self.full - first)
        return first - pad, self.full + pad


def draw_references(axes: Axes, cells: Sequence[Row], axis: BudgetAxis) -> None:
    """`full` as a band with a detached point, the no-context floor as a thin line."""
    for row in cells:
        if row["method"] != "full" or not finite(row["mean"]):
            continue
        mean = float(row["mean"])
        if finite(row["lo"]) and finite(row["hi"]):
            axes.axhspan(float(row["lo"]), float(row["hi"]), color=BAND, linewidth=0, zorder=0.4)
            axes.plot([axis.full, axis.full], [row["lo"], row["hi"]], color=INK, linewidth=1.1, zorder=3)
        axes.axhline(mean, color=MUTED, linewidth=0.8, linestyle=(0, (5, 3)), zorder=0.6)
        face = "white" if row["hollow"] else INK
        axes.plot(
            [axis.full], [mean], "o", color=INK, markerfacecolor=face, markersize=5.5, clip_on=False, zorder=4
        )
    for row in cells:
        if row["method"] == "no_context" and finite(row["mean"]):
            axes.axhline(float(row["mean"]), color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.7)


def draw_methods(
    axes: Axes, cells: Sequence[Row], styles: dict[str, Style], axis: BudgetAxis
) -> dict[str, tuple[float, float]]:
    """Points, lines and intervals; returns where each line ends. A missing cell breaks the line."""
    ends: dict[str, tuple[float, float]] = {}
    dodge = min(0.07, 0.35 / max(len(styles), 1)) if len(styles) > MAX_BANDS else 0.0
    for slot, (method, style) in enumerate(styles.items()):
        by_budget = {
            budget_from_label(row["budget"]): row
            for row in cells
            if row["method"] == method and finite(row["mean"])
        }
        shift = dodge * (slot - (len(styles) - 1) / 2)
        x = [math.log2(budget) + shift for budget in axis.budgets]
        found = [by_budget.get(budget) for budget in axis.budgets]
        mean = [math.nan if row is None else float(row["mean"]) for row in found]
        low = [math.nan if row is None or not finite(row["lo"]) else float(row["lo"]) for row in found]
        high = [math.nan if row is None or not finite(row["hi"]) else float(row["hi"]) for row in found]
        if dodge or len(x) == 1:
            axes.vlines(x, low, high, color=style.colour, linewidth=0.9, alpha=0.75, zorder=2)
        else:
            axes.fill_between(x, low, high, color=style.colour, alpha=0.14, linewidth=0, zorder=1)
        axes.plot(x, mean, color=style.colour, linestyle=style.dash, linewidth=1.3, zorder=2.5)
        points = [
            (place, height, bool(row["hollow"]))
            for place, height, row in zip(x, mean, found, strict=True)
            if row is not None
        ]
        draw_points(axes, points, style.marker, style.colour, 4.6)
        if points:
            ends[method] = points[-1][:2]
    for row in cells:
        if row["method"] == "no_context" and finite(row["mean"]):
            ends["no_context"] = (axis.limits[1], float(row["mean"]))
    return ends


def label_ends(
    axes: Axes,
    ends: dict[str, tuple[float, float]],
    styles: dict[str, Style],
    axis: BudgetAxis,
    top: float,
    height: float,
) -> None:
    """Names to the right of the panel, each led to the end of its line."""
    names = list(ends)
    # Equal heights keep the order of the panel's methods, so that leaders do not cross for nothing.
    wishes = [ends[name][1] for name in names]
    placed = spread(wishes, LABEL_GAP / height * top, 0.03 * top, 0.99 * top)
    left, right = axis.limits
    inch = (right - left) / PANEL_WIDTH
    for name, y in zip(names, placed, strict=True):
        x_end, y_end = ends[name]
        style = styles.get(name)
        colour = style.colour if style else MUTED
        edge = right + 0.05 * inch
        axes.plot(
            [x_end, right, right + 0.10 * inch], [y_end, y_end, y], color=colour, linewidth=0.6, alpha=0.55,
            clip_on=False, zorder=1.5,
        )  # fmt: skip
        if style:
            axes.plot(
                [edge + 0.12 * inch], [y], style.marker, color=colour, markersize=3.8, clip_on=False, zorder=3
            )
        label = "no context" if name == "no_context" else name
        axes.text(
            edge + (0.20 if style else 0.08) * inch, y, label, fontsize=7.5, va="center_baseline", color=INK if style else MUTED
        )  # fmt: skip
