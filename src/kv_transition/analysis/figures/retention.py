"""Share of the full cache's score that is retained, against budget: one panel per length bin and one of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    LineEnd,
    budget_axis_title,
    budget_tick,
    draw_points,
    finite,
    house_style,
    legible,
    name_line_ends,
    panel_grid,
    quiet_grid,
    save_figure,
    set_ticks,
    sorted_budgets,
    text_width,
    title_lines,
)
from kv_transition.analysis.figures.cells import (
    POOLED,
    LengthBin,
    cannot_show_budget,
    caption_tail,
    drawn_methods,
    each_row,
    is_hollow,
    length_unit,
    nothing_asked_words,
    rows_of,
)
from kv_transition.analysis.figures.labels import short_status
from kv_transition.analysis.figures.palette import BAND, INK, MUTED, Style, in_order, method_styles
from kv_transition.budgets import Budget, budget_from_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kv_transition.analysis.tables import Row

PANEL_WIDTH, COLUMNS = 2.55, 3
#: More methods than this and filled bands hide each other: bars, side by side, instead.
MAX_BANDS = 3
#: A retention that stands for a comparison with a reference that can carry one.
ESTIMABLE = ("ok", "ok_degenerate")
CSV_COLUMNS = [
    "task", "bin_idx", "token_len_min", "token_len_max", "method", "budget", "R", "R_lo", "R_hi", "n_pairs",
    "n_clusters", "active_frac", "unreliable", "gate", "status", "hollow", "lo_clipped", "hi_clipped",
]  # fmt: skip


def plot_retention_vs_budget(
    retention: pd.DataFrame,
    task: str,
    out_stem: str | Path,
    context: FigureContext,
    bin_stats: pd.DataFrame | None = None,
    taus: Sequence[float] = (),
) -> str:
    """Draw one task's retention against the budget, one panel per length bin, and return the caption.

    Parameters
    ----------
    retention : the table of that name; its rows of other tasks and policies are passed over.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.
    bin_stats : the table of that name; given, panels are named by their prompt lengths, else by their number.
    taus : retentions at which a line is drawn; without any, `context.tau`.

    Raises
    ------
    UserError
        When the table has no row for the task under the context's policy.
    """
    rows = rows_of(retention, task, context, "retention")
    bins = _panels(rows, task, context, bin_stats)
    rows = rows[rows["bin_idx"].isin([length_bin.bin_idx for length_bin in bins])]
    top = _retention_top(rows)
    rows = _marked(rows, bins, top, task, context)
    styles, budgets = method_styles(drawn_methods(rows)), sorted_budgets(list(rows["budget"]))
    taus = sorted({*taus} or {context.tau})
    cells = each_row(rows)
    with house_style():
        height = max(2.0, 0.135 * (len(styles) + 2))
        room = 0.45 + max([text_width(name) for name in styles], default=0.5)
        columns = 2 if len(bins) in (2, 4) else COLUMNS
        figure, panels = panel_grid(len(bins), PANEL_WIDTH, height, columns, right=room, title=0.36)
        for index, (axes, length_bin) in enumerate(zip(panels, bins, strict=True)):
            shown = [row for row in cells if row["bin_idx"] == length_bin.bin_idx]
            _frame(
                axes, budgets, length_bin, top, taus, pooled=length_bin.bin_idx == POOLED and len(bins) > 1
            )
            title_lines(axes, *_titles(length_bin, shown))
            if index % columns == 0:
                axes.set_ylabel("retention")
            if index + columns >= len(bins):
                axes.set_xlabel(budget_axis_title(budgets))
            ends = _draw_methods(axes, shown, styles, budgets, top)
            if not ends:
                axes.text(
                    0.5, 0.4, "no retention", transform=axes.transAxes, fontsize=7.5, color=MUTED, ha="center"
                )  # fmt: skip
            name_line_ends(axes, ends[::-1], PANEL_WIDTH, height)
        save_figure(figure, _numbers(rows).assign(protocol=context.protocol), out_stem, context.dpi)
    return _caption(task, bins, rows, taus, context, bands=len(styles) <= MAX_BANDS)


def _panels(
    rows: pd.DataFrame, task: str, context: FigureContext, bin_stats: pd.DataFrame | None
) -> list[LengthBin]:
    """The bins in order of length, all lengths together last; a single bin is not shown twice."""
    found = sorted(set(rows["bin_idx"]))
    if len(found) <= 2 and POOLED in found:
        found = [idx for idx in found if idx != POOLED] or [POOLED]
    order = [*(idx for idx in found if idx != POOLED), *(idx for idx in found if idx == POOLED)]
    stats = None if bin_stats is None else rows_of(bin_stats, task, context, "bin_stats")
    return [_length_bin(rows[rows["bin_idx"] == idx], int(idx), stats) for idx in order]


def _length_bin(rows: pd.DataFrame, bin_idx: int, stats: pd.DataFrame | None) -> LengthBin:
    fullest = rows.sort_values("n_pairs", ascending=False).iloc[0]
    low = high = math.nan
    name = "all lengths" if bin_idx == POOLED else f"length bin {bin_idx + 1}"
    if stats is not None:
        cells = stats[stats["bin_idx"] == bin_idx]
        low, high = float(cells["token_len_min"].min()), float(cells["token_len_max"].max())
        given = str(cells["bin_name"].iloc[0]) if len(cells) and "bin_name" in cells else ""
        name = given if given or finite(low) else name
    return LengthBin(
        bin_idx, low, high, int(fullest["n_pairs"]), int(fullest["n_clusters"]), length_unit(rows), name
    )


def _retention_top(rows: pd.DataFrame) -> float:
    """The upper end of the axis: every estimable point is inside, a wide limit may be cut (and is marked)."""
    sure = rows[rows["status"].isin(ESTIMABLE)]
    points = float(sure["R"].max()) if len(sure) else math.nan
    limits = float(sure["R_hi"].max()) if len(sure) else math.nan
    room = max(1.15, 1.1 * points if finite(points) else 0.0)
    return max(room, min(limits * 1.04, 1.35 * room)) if finite(limits) else room


def _marked(
    rows: pd.DataFrame, bins: list[LengthBin], top: float, task: str, context: FigureContext
) -> pd.DataFrame:
    """The rows with prompt lengths, and with what is drawn otherwise: hollow marks and limits cut off."""
    lengths = {length_bin.bin_idx: length_bin for length_bin in bins}
    return rows.assign(
        token_len_min=[lengths[idx].token_len_min for idx in rows["bin_idx"]],
        token_len_max=[lengths[idx].token_len_max for idx in rows["bin_idx"]],
        hollow=[
            is_hollow(row, context)
            or cannot_show_budget(row["method"], task, context)
            or row["status"] not in ESTIMABLE
            for row in each_row(rows)
        ],
        lo_clipped=[finite(low) and float(low) > top for low in rows["R_lo"]],
        hi_clipped=[finite(high) and float(high) > top for high in rows["R_hi"]],
    )


def _titles(length_bin: LengthBin, cells: Sequence[Row]) -> tuple[str, str]:
    """Lengths, and below them the number of pairs and why the bin has no limits where it has none."""
    gates = sorted({short_status(str(row["gate"])) for row in cells} - {"ok"})
    closed = f" · no intervals: {', '.join(gates)}" if gates else ""
    # A bin without a pair has its lengths all the same where it has examples.
    return replace(length_bin, n=max(length_bin.n, 1)).lengths, f"{length_bin.size}{closed}"


def _frame(
    axes: Axes, budgets: list[Budget], length_bin: LengthBin, top: float, taus: list[float], *, pooled: bool
) -> None:
    positions = [math.log2(budget) for budget in budgets] or [0.0]
    pad = 0.07 * max(positions[-1] - positions[0], 1.0)
    limits = positions[0] - pad, positions[-1] + pad
    axes.set_xlim(*limits)
    axes.set_ylim(0, top)
    quiet_grid(axes)
    texts = [budget_tick(budget) for budget in budgets] or [""]
    shown = legible(positions, texts, PANEL_WIDTH, *limits)
    set_ticks(axes.xaxis, [positions[index] for index in shown], [texts[index] for index in shown])
    step = 0.2 if top < 1.9 else 0.5
    ticks = [step * index for index in range(int(top / step + 1e-9) + 1)]
    set_ticks(axes.yaxis, ticks, [f"{tick:.1f}" for tick in ticks])
    axes.axhline(1, color=INK, linewidth=0.9, zorder=0.6)
    for tau in taus:
        axes.axhline(tau, color=MUTED, linewidth=0.8, linestyle=(0, (5, 3)), zorder=0.6)
    if pooled:
        axes.set_facecolor(BAND)


def _draw_methods(
    axes: Axes, cells: Sequence[Row], styles: dict[str, Style], budgets: list[Budget], top: float
) -> list[LineEnd]:
    """Points, lines and intervals; returns where each line ends. A missing cell breaks the line."""
    ends = []
    dodge = min(0.07, 0.35 / max(len(styles), 1)) if len(styles) > MAX_BANDS else 0.0
    for slot, (method, style) in enumerate(styles.items()):
        by_budget = {
            budget_from_label(row["budget"]): row
            for row in cells
            if row["method"] == method and finite(row["R"])
        }
        shift = dodge * (slot - (len(styles) - 1) / 2)
        places = [(math.log2(budget) + shift, by_budget.get(budget)) for budget in budgets]
        x = [place for place, _ in places]
        points = [math.nan if row is None else float(row["R"]) for _, row in places]
        limits = [_limits(row) for _, row in places]
        _draw_limits(axes, x, limits, style, top, bands=not dodge)
        axes.plot(x, points, color=style.colour, linestyle=style.dash, linewidth=1.3, zorder=2.5)
        found = [(place, float(row["R"]), bool(row["hollow"])) for place, row in places if row is not None]
        for place, height, _ in found:
            if height > top:
                _arrow(axes, place, style)
        draw_points(axes, [point for point in found if point[1] <= top], style.marker, style.colour, 4.6)
        if found:
            place, height, _ = found[-1]
            ends.append(LineEnd(place, min(height, top), method, style.colour, style.marker))
    return ends


def _limits(row: Row | None) -> tuple[float, float]:
    """The confidence limits of a cell, nan where it has none."""
    if row is None or not finite(row["R_lo"]) or not finite(row["R_hi"]):
        return math.nan, math.nan
    return float(row["R_lo"]), float(row["R_hi"])


def _draw_limits(
    axes: Axes, x: list[float], limits: list[tuple[float, float]], style: Style, top: float, *, bands: bool
) -> None:
    """Bands through neighbouring cells, bars elsewhere, and an arrow where the axis cuts a limit off."""
    low, high = [one[0] for one in limits], [min(one[1], top) for one in limits]
    if bands:
        axes.fill_between(x, low, high, color=style.colour, alpha=0.14, linewidth=0, zorder=1)
    bars = []
    for index, place in enumerate(x):
        if not math.isfinite(low[index]):
            continue
        beside = [limits[other][0] for other in (index - 1, index + 1) if 0 <= other < len(x)]
        if not bands or not any(math.isfinite(value) for value in beside):
            bars.append((place, low[index], high[index]))
        if limits[index][1] > top:
            _arrow(axes, place, style)
    if bars:
        axes.vlines(*zip(*bars, strict=True), color=style.colour, linewidth=0.9, alpha=0.75, zorder=2)


def _arrow(axes: Axes, x: float, style: Style) -> None:
    """The limit or point lies above the axis."""
    axes.annotate(
        "", (x, 1.0), xytext=(x, 0.92), xycoords=("data", "axes fraction"), zorder=2,
        arrowprops={"arrowstyle": "-|>", "color": style.colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6},
    )  # fmt: skip


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    order = {name: rank for rank, name in enumerate(in_order(rows["method"]))}
    keyed = rows.assign(_method=[order[name] for name in rows["method"]])
    return keyed.sort_values(["bin_idx", "_method", "budget_value"], kind="stable")[CSV_COLUMNS]


def _caption(
    task: str,
    bins: list[LengthBin],
    rows: pd.DataFrame,
    taus: list[float],
    context: FigureContext,
    *,
    bands: bool,
) -> str:
    lines = " and ".join(f"{tau:g}" for tau in taus)
    single = [length_bin for length_bin in bins if length_bin.bin_idx != POOLED] or bins
    pooled = " The shaded panel is all lengths together." if len(bins) > len(single) else ""
    parts = [
        f"Retention (score divided by the full-cache score of the same examples) against KV budget on {task}, one panel per "
        f"range of prompt lengths.{pooled} The solid line at 1 is the full cache; dashed: tau = {lines}.",
        f"Points are ratios of means; {'bands (bars where a cell stands alone)' if bands else 'bars'} are {context.conf:.0%} "
        f"Fieller intervals. Each interval holds {context.conf:.0%} on its own; "
        f"{rows.groupby(['method', 'bin_idx']).ngroups} curves are drawn.",
        "Hollow markers are no evidence about the budget: fewer than "
        f"{context.min_active_share:.0%} of the prompts were longer than it, more than {context.max_failures:.0%} of "
        "the requests failed, or the full-cache score of the bin cannot carry a ratio.",
    ]
    if rows["lo_clipped"].any() or rows["hi_clipped"].any() or (rows["R"] > _retention_top(rows)).any():
        parts.append("An arrow: the point or the limit lies above the axis.")
    if (rows["status"] == "ok_degenerate").any():
        parts.append(
            "Where the difference to the full cache is the same for every example, the limits come from two pseudo-pairs."
        )
    return " ".join([*parts, *nothing_asked_words(rows), caption_tail(task, single, context)])
