"""Score against budget, one panel per length bin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    budget_axis_title,
    budget_tick,
    finite,
    house_style,
    legible,
    panel_grid,
    quiet_grid,
    save_figure,
    set_ticks,
    sorted_budgets,
    spread,
    text_width,
)
from kv_transition.analysis.figures.cells import (
    LengthBin,
    caption_tail,
    drawn_methods,
    is_hollow,
    length_bins,
    nothing_asked_words,
    rows_of,
)
from kv_transition.analysis.figures.palette import BAND, INK, MUTED, RULE, Style, in_order, method_styles
from kv_transition.budgets import UNCOMPRESSED, Budget, budget_from_label
from kv_transition.methods import TEXT_METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_WIDTH, COLUMNS = 2.55, 3
#: Inches between two labels at the line ends.
LABEL_GAP = 0.135
#: More methods than this and filled bands hide each other: bars, side by side, instead.
MAX_BANDS = 3

CSV_COLUMNS = [
    "task", "bin_idx", "token_len_min", "token_len_max", "method", "budget", "mean", "lo", "hi", "n", "n_clusters",
    "active_frac", "unreliable", "hollow",
]  # fmt: skip


@dataclass(frozen=True)
class _Axis:
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


def plot_score_vs_budget(
    bin_stats: pd.DataFrame, task: str, out_stem: str | Path, context: FigureContext
) -> str:
    """Draw one task's score against the budget, one panel per length bin, and return the caption.

    Parameters
    ----------
    bin_stats : the table of that name; its rows of other tasks and policies are passed over.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.

    Raises
    ------
    UserError
        When the table has no row for the task under the context's policy.
    """
    rows = rows_of(bin_stats, task, context, "bin_stats")
    bins = length_bins(rows)
    rows = rows[rows["bin_idx"].isin([length_bin.bin_idx for length_bin in bins])].copy()
    rows["hollow"] = [
        is_hollow(row, context) or (context.cannot_show_budget(task) and row["method"] not in TEXT_METHODS)
        for _, row in rows.iterrows()
    ]
    styles = method_styles(drawn_methods(rows))
    axis = _Axis(sorted_budgets(list(rows["budget"])))
    top = _score_top(rows)
    with house_style():
        height = max(2.0, LABEL_GAP * (len(styles) + 2))
        room = 0.45 + max(text_width(name) for name in [*styles, "no context"])
        columns = 2 if len(bins) in (2, 4) else COLUMNS
        figure, panels = panel_grid(len(bins), PANEL_WIDTH, height, columns, right=room)
        for index, (axes, length_bin) in enumerate(zip(panels, bins, strict=True)):
            cells = rows[rows["bin_idx"] == length_bin.bin_idx]
            _frame(axes, axis, length_bin, top)
            if index % columns == 0:
                axes.set_ylabel(f"{context.metric(task)} (mean)")
            if index + columns >= len(bins):
                axes.set_xlabel(budget_axis_title(axis.budgets))
            _draw_references(axes, cells, axis)
            ends = _draw_methods(axes, cells, styles, axis)
            _label_ends(axes, ends, styles, axis, top, height)
        save_figure(figure, _numbers(rows).assign(protocol=context.protocol), out_stem, context.dpi)
    return _caption(task, bins, rows, context, bands=len(styles) <= MAX_BANDS)


def _score_top(rows: pd.DataFrame) -> float:
    """A round upper end of the score axis, never above what a score of 1 needs."""
    highest = float(pd.concat([rows["hi"], rows["mean"]]).max())
    if not finite(highest) or highest > 0.8:
        return 1.0
    return max(0.1, math.ceil(highest * 10 + 0.2) / 10)


def _frame(axes: Axes, axis: _Axis, length_bin: LengthBin, top: float) -> None:
    axes.set_xlim(*axis.limits)
    axes.set_ylim(0, top * 1.02)
    quiet_grid(axes)
    positions = [*(math.log2(budget) for budget in axis.budgets), axis.full]
    texts = [*(budget_tick(budget) for budget in axis.budgets), "full"]
    shown = legible(positions, texts, PANEL_WIDTH, *axis.limits)
    set_ticks(axes.xaxis, [positions[index] for index in shown], [texts[index] for index in shown])
    if axis.budgets:
        axes.axvline((axis.last + axis.full) / 2, color=RULE, linewidth=0.7, linestyle=(0, (2, 2)))
    title = length_bin.lengths if length_bin.n == 0 else f"{length_bin.lengths} · {length_bin.size}"
    axes.set_title(title)


def _draw_references(axes: Axes, cells: pd.DataFrame, axis: _Axis) -> None:
    """`full` as a band with a detached point, the no-context floor as a thin line."""
    for _, row in cells[cells["method"] == "full"].iterrows():
        if not finite(row["mean"]):
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
    for _, row in cells[cells["method"] == "no_context"].iterrows():
        if finite(row["mean"]):
            axes.axhline(float(row["mean"]), color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.7)


def _draw_methods(
    axes: Axes, cells: pd.DataFrame, styles: dict[str, Style], axis: _Axis
) -> dict[str, tuple[float, float]]:
    """Points, lines and intervals; returns where each line ends. A missing cell breaks the line."""
    ends: dict[str, tuple[float, float]] = {}
    dodge = min(0.07, 0.35 / max(len(styles), 1)) if len(styles) > MAX_BANDS else 0.0
    for slot, (method, style) in enumerate(styles.items()):
        by_budget = {
            budget_from_label(row["budget"]): row
            for _, row in cells[cells["method"] == method].iterrows()
            if finite(row["mean"])
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
        for position, height, row in zip(x, mean, found, strict=True):
            if row is None:
                continue
            face = "white" if row["hollow"] else style.colour
            axes.plot(
                [position], [height], style.marker, color=style.colour, markerfacecolor=face, markersize=4.6,
                markeredgewidth=1.0, clip_on=False, zorder=3,
            )  # fmt: skip
            ends[method] = (position, height)
    for _, row in cells[cells["method"] == "no_context"].iterrows():
        if finite(row["mean"]):
            ends["no_context"] = (axis.limits[1], float(row["mean"]))
    return ends


def _label_ends(
    axes: Axes,
    ends: dict[str, tuple[float, float]],
    styles: dict[str, Style],
    axis: _Axis,
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


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    order = {name: rank for rank, name in enumerate([*UNCOMPRESSED, *in_order(rows["method"])])}
    keyed = rows.assign(_method=rows["method"].map(order))
    keyed = keyed.sort_values(["bin_idx", "_method", "budget_value"], na_position="first", kind="stable")
    return keyed[CSV_COLUMNS]


def _caption(
    task: str, bins: list[LengthBin], rows: pd.DataFrame, context: FigureContext, *, bands: bool
) -> str:
    mark = "bands" if bands else "bars"
    parts = [
        f"Score against KV budget on {task}, one panel per range of prompt lengths.",
        f"Points are means; {mark} are {context.conf:.0%} quasi-Wilson intervals, each for its own cell. "
        "Answers to the same examples are compared, so overlapping intervals are not a test of a difference.",
        "The dashed line and grey band are the full cache, drawn as a detached point at the right.",
    ]
    if (rows["method"] == "no_context").any():
        parts.append("The dotted line is the score without any context.")
    else:
        parts.append("The floor without context was not measured.")
    parts.append(
        "Hollow markers are no evidence about the budget: fewer than "
        f"{context.min_active_share:.0%} of the prompts were longer than it, or more than {context.max_failures:.0%} of "
        "the requests failed."
    )
    return " ".join([*parts, *nothing_asked_words(rows), caption_tail(task, bins, context)])
