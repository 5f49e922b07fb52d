"""Paired differences of every cell to the full cache, all lengths together, with what could have been found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    draw_points,
    finite,
    house_style,
    panel_grid,
    save_figure,
    set_ticks,
    text_width,
)
from kv_transition.analysis.figures.canvas import budget_tick as tick_of
from kv_transition.analysis.figures.cells import (
    POOLED,
    LengthBin,
    cannot_show_budget,
    caption_tail,
    each_row,
    length_unit,
    mostly_inactive,
    nothing_asked_words,
    rows_of,
)
from kv_transition.analysis.figures.labels import short_status
from kv_transition.analysis.figures.palette import BAND, INK, MUTED, RULE, Style, in_order, method_styles
from kv_transition.budgets import budget_from_label
from kv_transition.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kv_transition.analysis.tables import Row

AXIS_WIDTH, ROW_HEIGHT = 2.3, 0.19
#: More rows than this and every method has its own panel.
MAX_ROWS = 40
#: Column in the margin -> its centre, in inches from the axis.
MARGIN = {"n": 0.28, "MDE": 0.72, "p (Holm)": 1.25}
MARGIN_WIDTH = 1.6
#: Differences that were estimated; anything else is a word in place of a bar.
ESTIMATED = ("ok", "degenerate")
#: The cell of a retention, and the same cell in a comparison with the full cache.
_NAMES = (("method", "budget", "budget_value"), ("method_b", "budget_b", "budget_value_b"))
CSV_COLUMNS = [
    "task", "method", "budget", "diff", "diff_lo", "diff_hi", "p", "p_adjusted", "adjustment", "mde", "n_pairs", "n_clusters",
    "delta", "status", "gate", "inactive", "unreliable", "hollow", "rank",
]  # fmt: skip


def plot_forest(
    retention: pd.DataFrame,
    paired_tests: pd.DataFrame,
    task: str,
    out_stem: str | Path,
    context: FigureContext,
) -> str:
    """Draw one task's differences, compressed minus full, sorted by size, and return the caption.

    Parameters
    ----------
    retention, paired_tests : the tables of these names; the first only says what counted as lossless (delta).
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.

    Raises
    ------
    UserError
        When retention has no row for the task under the context's policy, or a task with a full cache no comparison with it.
    """
    ratios = rows_of(retention, task, context, "retention")
    rows = _comparisons(paired_tests, ratios, task, context)
    deltas = [float(value) for value in ratios["delta"] if finite(value)]
    rows = _sorted(rows, deltas[0] if deltas else math.nan, task, context)
    styles = method_styles(rows["method"])
    parts = _parts(rows)
    with house_style():
        longest = max(len(part) for part in parts.values())
        labels = {title: _labels(part, alone=len(parts) == 1) for title, part in parts.items()}
        left = 0.2 + max(text_width(text, 8.0) for texts in labels.values() for text in texts)
        figure, panels = panel_grid(
            len(parts), AXIS_WIDTH, ROW_HEIGHT * (longest + 0.6), 3 if len(parts) > 4 else 2,
            left=max(left, 0.45), right=MARGIN_WIDTH, bottom=0.6, title=0.42,
        )  # fmt: skip
        limits = _limits(rows)
        for axes, (title, part) in zip(panels, parts.items(), strict=True):
            _frame(axes, title, labels[title], limits, float(rows["delta"].iloc[0]), longest)
            cells = list(enumerate(each_row(part)))
            for place, row in cells:
                _write(axes, row, place, limits)
            for method, style in styles.items():
                _draw(axes, [(place, row) for place, row in cells if row["method"] == method], style)
        save_figure(figure, rows[CSV_COLUMNS].assign(protocol=context.protocol), out_stem, context.dpi)
    return _caption(task, rows, ratios, context)


def _comparisons(
    paired_tests: pd.DataFrame, ratios: pd.DataFrame, task: str, context: FigureContext
) -> pd.DataFrame:
    """The comparisons with the full cache over all lengths; of a task without full cache its cells and why there are none."""
    table = paired_tests
    rows = table[
        (table["task"] == task)
        & (table["policy"] == context.policy)
        & (table["kind"] == "full")
        & (table["bin_idx"] == POOLED)
    ]
    pooled = ratios[ratios["bin_idx"] == POOLED]
    if rows.empty and (pooled.empty or (pooled["gate"] == "ok").any()):
        raise UserError(
            f"paired_tests: no comparison with the full cache over all lengths of task {task!r}; analyse the task again"
        )
    if rows.empty:
        rows = pooled.rename(columns=dict(zip(*_NAMES, strict=True)))
        unknown = dict.fromkeys(("diff", "diff_lo", "diff_hi", "p", "p_adjusted", "mde"), math.nan)
        inactive = [mostly_inactive(active, context) for active in rows["active_frac"]]
        rows = rows.assign(
            status=rows["gate"],
            adjustment="holm",
            inactive=inactive,
            unreliable=rows["unreliable"],
            **unknown,
        )
    applicable = rows["status"] != "not_applicable"
    return rows[applicable] if applicable.any() else rows


def _sorted(rows: pd.DataFrame, delta: float, task: str, context: FigureContext) -> pd.DataFrame:
    """The rows from the greatest loss to the least; those without a difference last."""
    rows = rows.rename(columns=dict(zip(*_NAMES[::-1], strict=True)))
    order = {name: rank for rank, name in enumerate(in_order(rows["method"]))}
    rows = rows.assign(
        delta=delta,
        hollow=[
            bool(row["inactive"])
            or bool(row["unreliable"])
            or cannot_show_budget(row["method"], task, context)
            for row in each_row(rows)
        ],
        _unknown=~rows["status"].isin(ESTIMATED) | rows["diff"].isna(),
        _method=rows["method"].map(order),
    )
    rows = rows.sort_values(["_unknown", "diff", "_method", "budget_value"], kind="stable")
    return rows.assign(rank=range(1, len(rows) + 1))


def _parts(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title -> rows of a panel: all cells together where they are few, else each method for itself."""
    methods = in_order(rows["method"])
    if len(rows) <= MAX_ROWS:
        return {methods[0] if len(methods) == 1 else "": rows}
    return {method: rows[rows["method"] == method] for method in methods}


def _labels(part: pd.DataFrame, *, alone: bool) -> list[str]:
    """What stands before each row: the budget, and the method where a panel has several."""
    several = alone and part["method"].nunique() > 1
    texts = []
    for method, label in zip(part["method"], part["budget"], strict=True):
        budget = budget_from_label(label)
        tick = label if budget is None else tick_of(budget)
        texts.append(f"{method} {tick}" if several else tick)
    return texts


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """The shared difference axis: every interval, 0 and both limits of what counts as lossless."""
    delta = float(rows["delta"].iloc[0])
    values = [0.0, *((-1.6 * delta, 1.6 * delta) if finite(delta) else ())]
    for name in ("diff", "diff_lo", "diff_hi"):
        values += [float(value) for value in rows.loc[rows["status"].isin(ESTIMATED), name] if finite(value)]
    low, high = min(values), max(values)
    pad = 0.03 * max(high - low, 0.1)
    return low - pad, high + pad


def _frame(
    axes: Axes, title: str, labels: list[str], limits: tuple[float, float], delta: float, longest: int
) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(longest - 0.2, -0.8)
    set_ticks(axes.yaxis, range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    if finite(delta):
        axes.axvspan(-delta, delta, color=BAND, linewidth=0, zorder=0.3)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=0.6)
    axes.set_xlabel("score difference, compressed − full")
    axes.set_title(title, pad=15.0)
    for name, inches in MARGIN.items():
        axes.annotate(
            name, (1 + inches / AXIS_WIDTH, 1), xytext=(0, 2), xycoords="axes fraction", textcoords="offset points",
            fontsize=7.5, color=MUTED, ha="center", va="bottom", annotation_clip=False,
        )  # fmt: skip


def _known(row: Row) -> bool:
    return row["status"] in ESTIMATED and finite(row["diff"])


def _draw(axes: Axes, cells: Sequence[tuple[int, Row]], style: Style) -> None:
    """The differences of a method's cells with their intervals, each cell at its place."""
    known = [(place, row) for place, row in cells if _known(row)]
    bars = [
        (place, row["diff_lo"], row["diff_hi"])
        for place, row in known
        if finite(row["diff_lo"]) and finite(row["diff_hi"])
    ]
    if bars:
        axes.hlines(
            *zip(*bars, strict=True), color=style.colour, linewidth=1.3, capstyle="projecting", zorder=2
        )
    points = [(row["diff"], place, row["hollow"]) for place, row in known]
    draw_points(axes, points, style.marker, style.colour, 5.2)


def _write(axes: Axes, row: Row, place: int, limits: tuple[float, float]) -> None:
    """A cell's numbers in the margin, and why it has no difference where it has none."""
    if not _known(row):
        words = short_status(str(row["status"]))
        axes.text(
            sum(limits) / 2, place, words, fontsize=7.5, color=MUTED, ha="center", va="center_baseline",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    texts = (str(int(row["n_pairs"])), _number(row["mde"]), p_text(row["p_adjusted"]))
    for text, inches in zip(texts, MARGIN.values(), strict=True):
        axes.text(
            1 + inches / AXIS_WIDTH, place, text, transform=axes.get_yaxis_transform(), fontsize=7.5, color=INK,
            ha="center", va="center_baseline",
        )  # fmt: skip


def _number(value: object) -> str:
    return f"{float(str(value)):.3f}" if finite(value) else "–"


def p_text(value: object) -> str:
    """A p-value as a reader wants it; a dash where there is none."""
    if not finite(value):
        return "–"
    p = float(str(value))
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _caption(task: str, rows: pd.DataFrame, ratios: pd.DataFrame, context: FigureContext) -> str:
    delta = float(rows["delta"].iloc[0])
    most = int(rows["n_pairs"].max())
    clusters = int(rows["n_clusters"].max())
    whole = LengthBin(POOLED, math.nan, math.nan, most, clusters, length_unit(ratios))
    parts = [
        f"Paired differences on {task}, compressed minus full cache on the same examples, all prompt lengths together, sorted "
        "from the greatest loss.",
        f"Bars are {context.conf:.0%} paired t intervals. Each interval holds {context.conf:.0%} on its own; "
        f"{'1 cell is' if len(rows) == 1 else f'{len(rows)} cells are'} shown. The p-values are two-sided and adjusted over all of them (Holm).",
        "MDE: the smallest loss that a one-sided 5% test would have found with power 0.8; a difference that is not significant is "
        "no evidence of a loss smaller than this.",
    ]
    if finite(delta):
        parts.append(f"Shaded: within {delta:g} of the full cache, the limits of lossless.")
    gates = sorted({short_status(str(gate)) for gate in rows["gate"] if isinstance(gate, str)} - {"ok"})
    if gates:
        parts.append(f"No retention may be read off these differences: {', '.join(gates)}.")
    if (rows["status"] == "degenerate").any():
        parts.append(
            "Where the difference is the same for every example, the limits come from two pseudo-values."
        )
    parts.append(
        "Hollow markers are no evidence about the budget: fewer than "
        f"{context.min_active_share:.0%} of the prompts were longer than it, or more than {context.max_failures:.0%} of "
        "the requests failed."
    )
    if clusters < most:
        parts.append(f"The examples come from {clusters} contexts.")
    return " ".join([*parts, *nothing_asked_words(ratios), caption_tail(task, [whole], context)])
