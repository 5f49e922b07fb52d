"""Every cell's number: length bins down, budgets across, one panel per method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    budget_axis_title,
    budget_tick,
    finite,
    house_style,
    panel_grid,
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
    length_bins,
    mostly_inactive,
    nothing_asked_words,
    rows_of,
)
from kv_transition.analysis.figures.palette import INK, in_order, retention_colours, score_colours
from kv_transition.budgets import UNCOMPRESSED, Budget, budget_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.patches import Rectangle

    from kv_transition.analysis.tables import Row

CELL_WIDTH, CELL_HEIGHT, COLUMNS = 0.46, 0.27, 3
ESTIMABLE = ("ok", "ok_degenerate")
CSV_COLUMNS = [
    "task", "method", "bin_idx", "token_len_min", "token_len_max", "budget", "value", "n", "n_bin", "active_frac",
    "unreliable", "status", "hatched", "mostly_inactive",
]  # fmt: skip


def plot_heatmap(
    bin_stats: pd.DataFrame,
    task: str,
    out_stem: str | Path,
    context: FigureContext,
    retention: pd.DataFrame | None = None,
) -> str:
    """Draw one task's cells with their numbers, one panel per method, and return the caption.

    Parameters
    ----------
    bin_stats : the table of that name.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.
    retention : the table of that name; given, the numbers are retentions, else mean scores.

    Raises
    ------
    UserError
        When a table has no row for the task under the context's policy.
    """
    stats = rows_of(bin_stats, task, context, "bin_stats")
    bins = length_bins(stats)
    budgets = sorted_budgets(list(stats["budget"]))
    methods = in_order(set(drawn_methods(stats)) - set(UNCOMPRESSED))
    ratios = None if retention is None else rows_of(retention, task, context, "retention")
    numbers = _numbers(stats, ratios, bins, budgets, methods)
    numbers["mostly_inactive"] = [mostly_inactive(active, context) for active in numbers["active_frac"]]
    cells = each_row(numbers)
    with_full = ratios is None
    with house_style():
        texts = [f"{one.lengths}, {one.size}" if one.n else "no examples" for one in bins]
        width = CELL_WIDTH * (len(budgets) + (1.25 if with_full else 0))
        left = 0.15 + max(text_width(text, 8.0) for text in texts)
        title = budget_axis_title(budgets)
        overhang = max(
            [(text_width(title, 9.0) - width) / 2, *(text_width(name, 9.0) - width for name in methods), 0.06]
        )
        columns = max(1, min(COLUMNS, int(11 / (width + 2 * overhang))))
        figure, panels = panel_grid(
            max(len(methods), 1),
            width,
            CELL_HEIGHT * len(bins),
            columns,
            left=max(overhang, 0.12),
            first_left=max(left, overhang),
            right=overhang + 0.1,
            bottom=0.5,
        )
        for index, (axes, method) in enumerate(zip(panels, methods, strict=False)):
            _draw_cells(
                axes,
                [cell for cell in cells if cell["method"] in (method, "full")],
                bins,
                budgets,
                score_colours() if ratios is None else retention_colours(),
                ratios is None,
            )
            axes.set_title(method)
            set_ticks(axes.yaxis, range(len(bins)), texts if index % columns == 0 else [""] * len(bins))
            if index + columns >= len(methods):
                axes.set_xlabel(title)
        save_figure(figure, numbers[CSV_COLUMNS].assign(protocol=context.protocol), out_stem, context.dpi)
    return _caption(task, bins, context, nothing_asked_words(stats), scores=ratios is None)


def _numbers(
    stats: pd.DataFrame,
    ratios: pd.DataFrame | None,
    bins: list[LengthBin],
    budgets: list[Budget],
    methods: list[str],
) -> pd.DataFrame:
    """One row per drawn cell, the absent ones among them."""
    task = str(stats["task"].iloc[0])
    by_cell = {(row["method"], int(row["bin_idx"]), row["budget"]): row for row in each_row(stats)}
    ratio_by_cell = (
        {}
        if ratios is None
        else {(row["method"], int(row["bin_idx"]), row["budget"]): row for row in each_row(ratios)}
    )
    columns = [(method, budget_label(budget)) for method in methods for budget in budgets]
    if ratios is None:
        columns.insert(0, ("full", "full"))
    out = []
    for method, label in columns:
        for length_bin in bins:
            key = (method, length_bin.bin_idx, label)
            stat, ratio = by_cell.get(key), ratio_by_cell.get(key)
            if ratios is None:
                value, status = (None, "absent") if stat is None else (stat["mean"], "ok")
            else:
                value, status = (None, "absent") if ratio is None else (ratio["R"], str(ratio["status"]))
            active = None if stat is None else stat["active_frac"]
            unreliable = stat is not None and bool(stat["unreliable"])
            out.append(
                {
                    "task": task, "method": method, "bin_idx": length_bin.bin_idx,
                    "token_len_min": length_bin.token_len_min, "token_len_max": length_bin.token_len_max,
                    "budget": label, "value": value if finite(value) else None,
                    "n": 0 if stat is None else int(stat["n"]), "n_bin": length_bin.n,
                    "active_frac": active if finite(active) else None, "unreliable": unreliable,
                    "status": status, "hatched": unreliable or not finite(value) or status not in ESTIMABLE,
                }
            )  # fmt: skip
    return pd.DataFrame(out, columns=[name for name in CSV_COLUMNS if name != "mostly_inactive"])


def _draw_cells(
    axes: Axes,
    cells: Sequence[Row],
    bins: list[LengthBin],
    budgets: list[Budget],
    colours: Colormap,
    scores: bool,
) -> None:
    from matplotlib.collections import PatchCollection

    places: dict[str, float] = {budget_label(budget): float(index) for index, budget in enumerate(budgets)}
    if scores:
        places["full"] = len(budgets) + 0.25
    heights = {length_bin.bin_idx: index for index, length_bin in enumerate(bins)}
    boxes = [
        _draw_cell(axes, cell, places[cell["budget"]], heights[cell["bin_idx"]], colours, scores)
        for cell in cells
    ]
    # A collection cannot have several hatches.
    axes.add_collection(PatchCollection([box for box in boxes if not box.get_hatch()], match_original=True))
    for box in boxes:
        if box.get_hatch():
            axes.add_patch(box)
    axes.set_xlim(-0.5, max(places.values(), default=0) + 0.5)
    axes.set_ylim(len(bins) - 0.5, -0.5)
    texts = [*(budget_tick(budget) for budget in budgets), *(["full"] if scores else [])]
    set_ticks(axes.xaxis, list(places.values()), texts)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_cell(axes: Axes, cell: Row, x: float, y: float, colours: Colormap, scores: bool) -> Rectangle:
    """Write a cell's number, and return the box that it stands on."""
    from matplotlib.patches import Rectangle

    known = finite(cell["value"])
    value = float(cell["value"]) if known else 0.0
    # Scores lie in 0..1; retention is centred, with everything it gained or lost beyond 0 and 2 at the ends.
    shade = min(max(value if scores else value / 2, 0.0), 1.0)
    face = colours(shade) if known else (1.0, 1.0, 1.0, 1.0)
    text = f"{value:.2f}" if known else "–"
    luminance = 0.2126 * face[0] + 0.7152 * face[1] + 0.0722 * face[2]
    ink = INK if luminance > 0.45 else "white"
    hatch = "////" if cell["hatched"] else None
    plate = {"facecolor": face, "edgecolor": "none", "pad": 0.8} if cell["hatched"] else None
    axes.text(
        x, y, f"({text})" if cell["mostly_inactive"] else text, ha="center", va="center_baseline", fontsize=7.5,
        color=ink, bbox=plate,
    )  # fmt: skip
    return Rectangle(
        (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=face, edgecolor=ink, linewidth=0, hatch=hatch
    )


def _caption(
    task: str, bins: list[LengthBin], context: FigureContext, not_drawn: list[str], *, scores: bool
) -> str:
    what = (
        f"Mean {context.metric(task)}; darker is higher."
        if scores
        else "Retention (score divided by the full-cache score of the same examples); white is 1, orange lost, purple gained."
    )
    return " ".join(
        [
            f"Prompt length against KV budget on {task}, one panel per method. {what}",
            "Numbers are point estimates without an interval; the tables give the intervals.",
            f"Hatched: not estimable, or more than {context.max_failures:.0%} of the requests failed. In brackets: fewer "
            f"than {context.min_active_share:.0%} of the prompts were longer than the budget, so the cell says little about it. A dash: no such cell.",
            *not_drawn,
            caption_tail(task, bins, context),
        ]
    )
