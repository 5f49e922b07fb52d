"""Do the curves of all prompt lengths fall together in tokens kept, or in the share of the prompt kept?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    LineEnd,
    budget_tick,
    draw_points,
    finite,
    house_style,
    legible,
    name_line_ends,
    quiet_grid,
    save_figure,
    set_ticks,
    text_width,
    title_lines,
)
from kv_transition.analysis.figures.cells import (
    LengthBin,
    cannot_show_budget,
    caption_tail,
    drawn_methods,
    each_row,
    is_hollow,
    length_bins,
    length_unit,
    nothing_asked_words,
    rows_of,
    truncated_bins,
)
from kv_transition.analysis.figures.labels import looked_at, short_status
from kv_transition.analysis.figures.length_law import COLUMNS as LAW_COLUMNS
from kv_transition.analysis.figures.length_law import LengthLaw, read_length_law
from kv_transition.analysis.figures.palette import INK, MUTED, method_styles
from kv_transition.analysis.gates import MIN_REFERENCE_MEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_WIDTH, PANEL_HEIGHT = 2.15, 2.0
CSV_COLUMNS = [
    "task", "method", "bin_idx", "token_len_min", "token_len_median", "token_len_max", "budget", "budget_tokens",
    "budget_share", "mean", "full_mean", "ratio", "n", "active_frac", "unreliable", "hollow", "left_out",
    *LAW_COLUMNS,
]  # fmt: skip


def plot_collapse(
    bin_stats: pd.DataFrame,
    effect_models: pd.DataFrame,
    task: str,
    out_stem: str | Path,
    context: FigureContext,
    retention: pd.DataFrame | None = None,
) -> str:
    """Draw one task's scores, relative to the full cache, against tokens kept and against the share of the prompt kept.

    Two panels for each method, a line for each length bin, and the collapse model's exponent and misfits in words.

    Parameters
    ----------
    bin_stats, effect_models : the tables of these names.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.
    retention : the table of that name; given, bins whose reference its gate refuses are dashed too.

    Raises
    ------
    UserError
        When bin_stats has no row for the task under the context's policy.
    """
    rows = rows_of(bin_stats, task, context, "bin_stats")
    bins = length_bins(rows)
    left_out = _left_out(rows, bins, retention, task, context)
    numbers = _numbers(rows, bins, left_out, task, context)
    methods = list(method_styles(drawn_methods(rows)))
    laws = {method: read_length_law(effect_models, task, method, context) for method in methods}
    drawn = [one for one in bins if (numbers["bin_idx"] == one.bin_idx).any()]
    looks = {
        one.bin_idx: _Look(one, colour, one.bin_idx in left_out)
        for one, colour in zip(drawn, bin_colours(len(drawn)), strict=True)
    }
    with house_style():
        room = 0.35 + max([text_width(look.name) for look in looks.values()], default=0.5)
        figure, pairs = _pairs(max(len(methods), 1), room)
        for pair, method in zip(pairs, methods, strict=False):
            cells, law = numbers[numbers["method"] == method], laws[method]
            top = max(1.1, 1.06 * float(numbers["ratio"].max())) if len(numbers) else 1.1
            for exponent, axes in enumerate(pair):
                column = "budget_tokens" if exponent == 0 else "budget_share"
                _draw_panel(axes, cells, numbers, column, looks, top, named=exponent == 0)
                title_lines(axes, _head(method, law) if exponent == 0 else "", law.misfit(exponent))
        for pair in pairs[len(methods) :]:
            for axes in pair:
                axes.set_axis_off()
        law_columns: dict[str, Any] = {
            name: [laws[method].row()[name] for method in numbers["method"]] for name in LAW_COLUMNS
        }
        table = numbers.assign(**law_columns)
        save_figure(figure, table[CSV_COLUMNS].assign(protocol=context.protocol), out_stem, context.dpi)
    return _caption(task, bins, rows, laws, left_out, context)


@dataclass(frozen=True)
class _Look:
    """How a bin is drawn in every panel."""

    length_bin: LengthBin
    colour: str
    dashed: bool

    @property
    def name(self) -> str:
        unit = f" {self.length_bin.unit}"
        return self.length_bin.lengths.removesuffix(unit).removeprefix("all lengths, ")


def bin_colours(count: int) -> list[str]:
    """One colour for each length bin, the shortest lightest (cividis without its yellow end)."""
    import matplotlib
    from matplotlib.colors import to_hex

    source = matplotlib.colormaps["cividis"]
    return [to_hex(source(0.85 * (1 - index / max(count - 1, 1)))) for index in range(count)]


def _left_out(
    rows: pd.DataFrame,
    bins: list[LengthBin],
    retention: pd.DataFrame | None,
    task: str,
    context: FigureContext,
) -> dict[int, str]:
    """Bins the length law does not stand on, and why."""
    reasons = {idx: "more than half of the prompts cut" for idx in truncated_bins(rows)}
    if retention is not None:
        gated = rows_of(retention, task, context, "retention")
        gated = gated[gated["gate"] != "ok"]
        reasons |= {
            int(idx): short_status(str(gate))
            for idx, gate in zip(gated["bin_idx"], gated["gate"], strict=True)
        }
    return {one.bin_idx: reasons[one.bin_idx] for one in bins if one.bin_idx in reasons}


def _numbers(
    rows: pd.DataFrame, bins: list[LengthBin], left_out: dict[int, str], task: str, context: FigureContext
) -> pd.DataFrame:
    """One row per drawn cell: compressed, with a score, in a bin whose full cache scores anything."""
    references = each_row(rows[rows["method"] == "full"])
    full = {int(row["bin_idx"]): row["mean"] for row in references}
    lengths = {int(row["bin_idx"]): row["token_len_median"] for row in references}
    order = {name: rank for rank, name in enumerate(method_styles(drawn_methods(rows)))}
    known = {
        one.bin_idx
        for one in bins
        if finite(full.get(one.bin_idx)) and full[one.bin_idx] >= MIN_REFERENCE_MEAN
    }
    cells = rows[rows["method"].isin(order) & rows["bin_idx"].isin(known)].copy()
    cells = cells[
        cells["mean"].map(finite).astype(bool) & cells["budget_value"].map(finite).astype(bool)
    ].copy()
    cells["full_mean"] = [float(full[idx]) for idx in cells["bin_idx"]]
    cells["token_len_median"] = [float(lengths[idx]) for idx in cells["bin_idx"]]
    cells["ratio"] = cells["mean"] / cells["full_mean"]
    shares, tokens = cells["budget_value"] < 1, length_unit(rows) == "tokens"
    length = cells["token_len_median"] if tokens else math.nan
    cells["budget_tokens"] = (cells["budget_value"] * length).where(shares, cells["budget_value"])
    cells["budget_share"] = (cells["budget_value"] / length).where(~shares, cells["budget_value"])
    cells["hollow"] = [
        is_hollow(row, context) or cannot_show_budget(row["method"], task, context) for row in each_row(cells)
    ]
    cells["left_out"] = [left_out.get(int(idx), "") for idx in cells["bin_idx"]]
    cells["_method"] = [order[name] for name in cells["method"]]
    return cells.sort_values(["_method", "bin_idx", "budget_value"], kind="stable")


def _pairs(count: int, room: float) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A figure of panels in pairs, two pairs in a row, with fixed margins in inches.

    Parameters
    ----------
    room : inches between the panels of a pair, for the names of the lines.
    """
    from matplotlib.figure import Figure

    left, right, above, below = 0.62, 0.3, 0.42, 0.6
    across = min(2, count)
    step_x, step_y = left + 2 * PANEL_WIDTH + room + right, above + PANEL_HEIGHT + below
    rows = math.ceil(count / across)
    width, height = across * step_x, rows * step_y
    figure = Figure(figsize=(width, height))
    pairs = []
    for index in range(count):
        row, column = divmod(index, across)
        y = (height - row * step_y - above - PANEL_HEIGHT) / height
        starts = [column * step_x + left, column * step_x + left + PANEL_WIDTH + room]
        boxes = [(x / width, y, PANEL_WIDTH / width, PANEL_HEIGHT / height) for x in starts]
        pairs.append((figure.add_axes(boxes[0]), figure.add_axes(boxes[1])))
    return figure, pairs


def _head(method: str, law: LengthLaw) -> str:
    verdict = f", {law.verdict}" if law.verdict else ""
    return f"{method}: {law.words}{verdict}"


def _draw_panel(
    axes: Axes,
    cells: pd.DataFrame,
    numbers: pd.DataFrame,
    column: str,
    looks: dict[int, _Look],
    top: float,
    *,
    named: bool,
) -> None:
    """One method against one kind of budget; all panels of a kind have the same axes."""
    share = column == "budget_share"
    _frame(axes, [float(value) for value in numbers[column] if finite(value) and value > 0], top, share=share)
    if named:
        axes.set_ylabel("score / full-cache score")
    else:
        axes.tick_params(labelleft=False)
    axes.set_xlabel("budget / median prompt length" if share else "KV budget (tokens kept)")
    if len(numbers) and not numbers[column].notna().any():
        words = "prompt lengths are not in tokens:\nno such axis"
        axes.text(
            0.5, 0.5, words, transform=axes.transAxes, fontsize=7.5, color=MUTED, ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.0},
        )  # fmt: skip
        set_ticks(axes.xaxis, [], [])
    ends = []
    for idx, look in looks.items():
        mine = cells[(cells["bin_idx"] == idx) & cells[column].notna()].sort_values(column, kind="stable")
        if mine.empty:
            continue
        x, y = [math.log2(value) for value in mine[column]], list(mine["ratio"])
        axes.plot(
            x, y, color=look.colour, linewidth=1.3, linestyle=(0, (3, 2)) if look.dashed else "-", zorder=2.5
        )
        draw_points(axes, list(zip(x, y, mine["hollow"], strict=True)), "o", look.colour, 4.2)
        ends.append(LineEnd(x[-1], y[-1], look.name, look.colour, "o"))
    if named:
        # The longest prompts come last to the full score: of equal ends theirs stands lowest.
        name_line_ends(axes, ends[::-1], PANEL_WIDTH, PANEL_HEIGHT)


def _frame(axes: Axes, values: list[float], top: float, *, share: bool) -> None:
    octaves = [math.log2(value) for value in values] or [0.0, 1.0]
    pad = 0.07 * max(max(octaves) - min(octaves), 1.0)
    low, high = min(octaves) - pad, max(octaves) + pad
    axes.set_xlim(low, high)
    axes.set_ylim(0, top)
    quiet_grid(axes)
    axes.axhline(1, color=INK, linewidth=0.9, zorder=0.6)
    ticks = [float(exponent) for exponent in range(math.ceil(low), math.floor(high) + 1)]
    ticks = (ticks or octaves[:1]) if values else []
    texts = [_share_tick(2**tick) if share else budget_tick(round(2**tick)) for tick in ticks]
    shown = legible(ticks, texts, PANEL_WIDTH, low, high)
    set_ticks(axes.xaxis, [ticks[index] for index in shown], [texts[index] for index in shown])


def _share_tick(share: float) -> str:
    return f"{share:g}" if share >= 1 else f"1/{round(1 / share)}"


def _caption(
    task: str,
    bins: list[LengthBin],
    rows: pd.DataFrame,
    laws: dict[str, LengthLaw],
    left_out: dict[int, str],
    context: FigureContext,
) -> str:
    parts = [
        f"Length law on {task}: mean score divided by the bin's full-cache mean, one line per range of prompt lengths "
        f"({length_unit(rows)}, dark is long), against tokens kept (left) and against the share of the bin's median prompt "
        "(right). Lines that fall together on the left speak for an absolute budget (α₁ = 0), on the right for a relative one "
        "(α₁ = 1).",
        f"α₁ with its {context.conf:.0%} bootstrap interval (clusters resampled within bins) is the exponent of the transition "
        "budget in the prompt length; rss is the collapse model's residual sum of squares with α₁ held and free. Points are "
        f"means without an interval; each interval of α₁ holds {context.conf:.0%} on its own; {looked_at(len(laws))}.",
        "Hollow markers are no evidence about the budget: fewer than "
        f"{context.min_active_share:.0%} of the prompts were longer than it, or more than {context.max_failures:.0%} of "
        "the requests failed.",
    ]
    fitted = sorted({law.n_bins for law in laws.values() if law.known and law.n_bins is not None})
    if fitted:
        many = f"{fitted[0]}" if len(fitted) == 1 else f"{fitted[0]} to {fitted[-1]}"
        parts.append(f"The model stands on {many} of {len(bins)} length bins.")
    if left_out:
        why = "; ".join(f"{one.lengths}: {left_out[one.bin_idx]}" for one in bins if one.bin_idx in left_out)
        parts.append(f"Dashed, left out of α₁: {why}.")
    weak = [one.lengths for one in bins if one.n and one.bin_idx not in _drawn(rows, bins)]
    if weak:
        parts.append(
            f"Not drawn, because the full cache scores nearly 0 there or was not run: {', '.join(weak)}."
        )
    if truncated_bins(rows):
        parts.append("Where prompts were cut, full means the shortened document, uncompressed.")
    return " ".join([*parts, *nothing_asked_words(rows), caption_tail(task, bins, context)])


def _drawn(rows: pd.DataFrame, bins: list[LengthBin]) -> set[int]:
    full = rows[(rows["method"] == "full") & (rows["mean"] >= MIN_REFERENCE_MEAN)]
    return {int(idx) for idx in full["bin_idx"]} & {one.bin_idx for one in bins}
