"""Score against budget, one panel per length bin."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kv_transition.analysis.figures.budget_panels import (
    LABEL_GAP,
    MAX_BANDS,
    PANEL_WIDTH,
    BudgetAxis,
    draw_methods,
    draw_references,
    label_ends,
)
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
    text_width,
)
from kv_transition.analysis.figures.cells import (
    LengthBin,
    caption_tail,
    drawn_methods,
    each_row,
    is_hollow,
    length_bins,
    nothing_asked_words,
    rows_of,
)
from kv_transition.analysis.figures.palette import RULE, in_order, method_styles
from kv_transition.budgets import UNCOMPRESSED
from kv_transition.methods import TEXT_METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3

CSV_COLUMNS = [
    "task", "bin_idx", "token_len_min", "token_len_max", "method", "budget", "mean", "lo", "hi", "n", "n_clusters",
    "active_frac", "unreliable", "hollow",
]  # fmt: skip


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
        for row in each_row(rows)
    ]
    styles = method_styles(drawn_methods(rows))
    axis = BudgetAxis(sorted_budgets(list(rows["budget"])))
    top = _score_top(rows)
    cells = each_row(rows)
    with house_style():
        height = max(2.0, LABEL_GAP * (len(styles) + 2))
        room = 0.45 + max(text_width(name) for name in [*styles, "no context"])
        columns = 2 if len(bins) in (2, 4) else COLUMNS
        figure, panels = panel_grid(len(bins), PANEL_WIDTH, height, columns, right=room)
        for index, (axes, length_bin) in enumerate(zip(panels, bins, strict=True)):
            shown = [row for row in cells if row["bin_idx"] == length_bin.bin_idx]
            _frame(axes, axis, length_bin, top)
            if index % columns == 0:
                axes.set_ylabel(f"{context.metric(task)} (mean)")
            if index + columns >= len(bins):
                axes.set_xlabel(budget_axis_title(axis.budgets))
            draw_references(axes, shown, axis)
            ends = draw_methods(axes, shown, styles, axis)
            label_ends(axes, ends, styles, axis, top, height)
        save_figure(figure, _numbers(rows).assign(protocol=context.protocol), out_stem, context.dpi)
    return _caption(task, bins, rows, context, bands=len(styles) <= MAX_BANDS)


def _score_top(rows: pd.DataFrame) -> float:
    """A round upper end of the score axis, never above what a score of 1 needs."""
    highest = float(pd.concat([rows["hi"], rows["mean"]]).max())
    if not finite(highest) or highest > 0.8:
        return 1.0
    return max(0.1, math.ceil(highest * 10 + 0.2) / 10)


def _frame(axes: Axes, axis: BudgetAxis, length_bin: LengthBin, top: float) -> None:
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
