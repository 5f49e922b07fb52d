"""Score against what is kept of the cache: which budgets another cell beats with no more memory, one panel per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    budget_tick,
    bytes_words,
    draw_points,
    finite,
    house_style,
    legible,
    panel_grid,
    quiet_grid,
    save_figure,
    set_ticks,
)
from kv_transition.analysis.figures.cells import (
    POOLED,
    caption_tail,
    each_row,
    length_bins,
    nothing_asked_words,
    rows_of,
)
from kv_transition.analysis.figures.latency import pooled_costs, save_words
from kv_transition.analysis.figures.palette import INK, MUTED, RULE, Style, method_styles
from kv_transition.budgets import UNCOMPRESSED, budget_from_label
from kv_transition.methods import TEXT_METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kv_transition.analysis.tables import Row

PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 2.6, 2.3, 3
#: Where the budgets are written above the scores, in rows so that neighbours do not touch, and the room that takes; in parts
#: of the score axis.
ROWS, HEADROOM = (1.05, 1.14, 1.23), 0.31
#: Inches free at the left of the smallest point, and at the right of the full cache, where its size is written.
LEFT, RIGHT = 0.14, 0.32
OTHERS = "#BDBDBD"
CSV_COLUMNS = [
    "task", "method", "budget", "kept_as", "kept", "kept_lo", "kept_hi", "mean", "lo", "hi", "n", "dominated",
    "unreliable", "drawn",
]  # fmt: skip
BYTES, TOKENS = "bytes", "tokens"


@dataclass(frozen=True)
class _Scale:
    """The shared axes: what is kept in octaves, and scores up to `top`."""

    low: float
    high: float
    top: float
    kept_as: str

    @property
    def ticks(self) -> tuple[list[float], list[str]]:
        """Powers of two that can be labelled; the ends where there are not two of them."""
        at = [float(power) for power in range(math.ceil(self.low), math.floor(self.high) + 1)]
        if len(at) < 2:
            octave = (self.high - self.low) / PANEL_WIDTH
            at = [self.low + LEFT * octave, self.high - RIGHT * octave]
        texts = [size_words(2**power, self.kept_as) for power in at]
        shown = legible(at, texts, PANEL_WIDTH, self.low, self.high)
        return [at[index] for index in shown], [texts[index] for index in shown]


def plot_pareto(
    bin_stats: pd.DataFrame, costs: pd.DataFrame, task: str, out_stem: str | Path, context: FigureContext
) -> str:
    """Draw a task's scores against the mean size of the kept cache, all lengths together, and return the caption.

    Parameters
    ----------
    bin_stats, costs : the tables of those names.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.

    Raises
    ------
    UserError
        When a table has no row for the task.
    """
    stats = rows_of(bin_stats, task, context, "bin_stats")
    stats = stats[stats["bin_idx"] == POOLED]
    cells = _cells(stats, pooled_costs(costs, task))
    tail = caption_tail(task, length_bins(stats), context)
    numbers = cells[CSV_COLUMNS].assign(protocol=context.protocol)
    drawn = cells.loc[cells["drawn"], [*CSV_COLUMNS, "budget_value"]]
    with house_style():
        if not (drawn["method"] != "full").any():
            words = "No size is known for any compressed cell with a score: the responses say nothing of the kept cache."
            save_words(words, numbers, out_stem, context)
            return " ".join([words, *nothing_asked_words(stats), tail])
        styles = method_styles(drawn["method"])
        scale = _scale(drawn)
        columns = 2 if len(styles) in (2, 4) else COLUMNS
        figure, panels = panel_grid(len(styles), PANEL_WIDTH, PANEL_HEIGHT, columns, left=0.65, right=0.2)
        for index, (axes, (method, style)) in enumerate(zip(panels, styles.items(), strict=True)):
            _frame(axes, scale)
            axes.set_title(method)
            _background(axes, drawn, method, scale, stats)
            _own(axes, drawn[drawn["method"] == method], style, scale)
            if index % columns == 0:
                axes.set_ylabel(f"{context.metric(task)} (mean)")
            if index + columns >= len(styles):
                axes.set_xlabel(f"{'KV cache' if scale.kept_as == BYTES else 'prompt tokens'} kept (mean)")
        save_figure(figure, numbers, out_stem, context.dpi)
    return " ".join([*_caption(cells, task, scale.kept_as, context), *nothing_asked_words(stats), tail])


def size_words(size: float, kept_as: str) -> str:
    """A size as axes and lines name it: "96 KiB", "1.5 MiB", "230"."""
    return f"{size:,.0f}" if kept_as == TOKENS else bytes_words(size)


def is_dominated(cell: tuple[float, float], others: list[tuple[float, float]]) -> bool:
    """Whether another (size, score) is at least as good on both and better on one."""
    size, score = cell
    return any(
        other_size <= size and other_score >= score and (other_size, other_score) != cell
        for other_size, other_score in others
    )


def _cells(stats: pd.DataFrame, sizes: pd.DataFrame) -> pd.DataFrame:
    """Scores beside sizes: bytes, or tokens where these are known for more cells with a score."""
    known = ["method", "budget", "kept_mean", "bytes_kept_mean", "bytes_kept_lo", "bytes_kept_hi"]
    cells = sizes[known].merge(stats.drop(columns="kept_mean", errors="ignore"), on=["method", "budget"])
    compressed = ~cells["method"].isin(UNCOMPRESSED) & cells["mean"].map(finite)
    in_bytes, in_tokens = (
        (compressed & cells[name].map(finite)).sum() for name in ("bytes_kept_mean", "kept_mean")
    )
    kept_as = BYTES if in_bytes >= in_tokens else TOKENS
    cells["kept_as"] = kept_as
    cells["kept"] = cells["bytes_kept_mean" if kept_as == BYTES else "kept_mean"]
    for end in ("lo", "hi"):
        cells[f"kept_{end}"] = cells[f"bytes_kept_{end}"] if kept_as == BYTES else math.nan
    cells["unreliable"] = cells["unreliable"].astype(bool)
    sized = cells["kept"].map(finite) & (cells["kept"] > 0)
    cells["drawn"] = sized & cells["mean"].map(finite) & (cells["method"] != "no_context")
    rivals = cells[cells["drawn"] & ~cells["unreliable"]]
    points = list(zip(rivals["kept"], rivals["mean"], strict=True))
    cells["dominated"] = [
        bool(drawn) and is_dominated((kept, mean), points)
        for drawn, kept, mean in zip(cells["drawn"], cells["kept"], cells["mean"], strict=True)
    ]
    return cells


def _scale(drawn: pd.DataFrame) -> _Scale:
    first = math.log2(drawn["kept"].min())
    last = math.log2(drawn[["kept", "kept_hi"]].max().max())
    octave = max(last - first, 0.5) / (PANEL_WIDTH - LEFT - RIGHT)
    highest = max(float(value) for value in [*drawn["mean"], *drawn["hi"]] if finite(value))
    top = 1.0 if highest > 0.8 else max(0.1, math.ceil(highest * 10 + 0.2) / 10)
    last = max(last, first + octave * (PANEL_WIDTH - LEFT - RIGHT))
    return _Scale(first - LEFT * octave, last + RIGHT * octave, top, str(drawn["kept_as"].iloc[0]))


def _frame(axes: Axes, scale: _Scale) -> None:
    axes.set_xlim(scale.low, scale.high)
    axes.set_ylim(0, scale.top * (1 + HEADROOM))
    quiet_grid(axes)
    step = scale.top / 5
    set_ticks(axes.yaxis, [step * n for n in range(6)], [f"{step * n:.2g}" for n in range(6)])
    set_ticks(axes.xaxis, *scale.ticks)


def _background(axes: Axes, drawn: pd.DataFrame, method: str, scale: _Scale, stats: pd.DataFrame) -> None:
    """What every panel shows: the best of all cells, the other methods, the full cache and the floor."""
    best = drawn[~drawn["dominated"] & ~drawn["unreliable"]].drop_duplicates(["kept", "mean"])
    best = best.sort_values(["kept", "mean"])
    axes.step(
        [math.log2(kept) for kept in best["kept"]],
        best["mean"],
        where="post",
        color=MUTED,
        linewidth=0.7,
        zorder=1,
    )
    others = drawn[~drawn["method"].isin([method, "full"])]
    axes.plot(
        [math.log2(kept) for kept in others["kept"]],
        others["mean"],
        "o",
        color=OTHERS,
        markersize=2.6,
        zorder=1.2,
    )
    for floor in stats.loc[stats["method"] == "no_context", "mean"]:
        if finite(floor):
            axes.axhline(float(floor), color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.7)
    for full in each_row(drawn[drawn["method"] == "full"]):
        ((x, y),) = _places(axes, [full], INK, scale)
        axes.plot([x], [y], "o", color=INK, markersize=5.0, clip_on=False, zorder=4)
        axes.plot([x, x], [0, scale.top], color=MUTED, linewidth=0.8, linestyle=(0, (5, 3)), zorder=0.8)
        end = math.log2(full["kept_hi"]) if finite(full["kept_hi"]) else x
        words = f"full cache: {size_words(full['kept'], scale.kept_as)}"
        axes.text(
            end + 0.1 * (scale.high - scale.low) / PANEL_WIDTH, 0.03 * scale.top, words, rotation=90, fontsize=6.5,
            color=MUTED, ha="left", va="bottom", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _places(axes: Axes, cells: Sequence[Row], colour: str, scale: _Scale) -> list[tuple[float, float]]:
    """The places of cells, with their intervals on both axes drawn."""
    places = [(math.log2(cell["kept"]), float(cell["mean"])) for cell in cells]
    upright, level = [], []
    for (x, y), cell in zip(places, cells, strict=True):
        if finite(cell["lo"]) and finite(cell["hi"]):
            upright.append((x, cell["lo"], cell["hi"]))
        if finite(cell["kept_lo"]) and finite(cell["kept_hi"]):
            left = math.log2(cell["kept_lo"]) if cell["kept_lo"] > 0 else scale.low
            level.append((y, left, math.log2(cell["kept_hi"])))
    for draw, bars in ((axes.vlines, upright), (axes.hlines, level)):
        if bars:
            draw(
                *zip(*bars, strict=True), color=colour, linewidth=0.9, alpha=0.75, capstyle="projecting", zorder=2
            )  # fmt: skip
    return places


def _own(axes: Axes, cells: pd.DataFrame, style: Style, scale: _Scale) -> None:
    """The panel's own method: points with their intervals, and its budgets above them."""
    ascending = each_row(cells.sort_values("budget_value"))
    for colour, unreliable in ((style.colour, False), (MUTED, True)):
        alike = [cell for cell in ascending if cell["unreliable"] == unreliable]
        places = _places(axes, alike, colour, scale)
        points = [(*place, cell["dominated"]) for place, cell in zip(places, alike, strict=True)]
        draw_points(axes, points, style.marker, colour, 4.8)
    x = [math.log2(cell["kept"]) for cell in ascending]
    y = [cell["mean"] for cell in ascending]
    axes.vlines(x, y, scale.top * 1.03, color=RULE, linewidth=0.5, capstyle="projecting", zorder=0.5)
    budgets = [budget_from_label(cell["budget"]) for cell in ascending]
    texts = ["full" if budget is None else budget_tick(budget) for budget in budgets]
    _write_budgets(axes, x, texts, scale)


def _write_budgets(axes: Axes, places: list[float], texts: list[str], scale: _Scale) -> None:
    """Every budget above its point, in the first row where it touches no other; what fits in none is left out."""
    left = list(range(len(places)))
    for row in ROWS:
        if not left:
            return
        ascending, words = [places[index] for index in left], [texts[index] for index in left]
        written = [left[index] for index in legible(ascending, words, PANEL_WIDTH, scale.low, scale.high)]
        for index in written:
            axes.text(places[index], scale.top * row, texts[index], fontsize=6.5, ha="center", va="bottom")
        left = [index for index in left if index not in written]


def _caption(cells: pd.DataFrame, task: str, kept_as: str, context: FigureContext) -> list[str]:
    drawn = cells[cells["drawn"]]
    parts = [
        f"Score against the size of the kept cache on {task}, all prompt lengths together, one panel per method with its "
        "budgets written above its points (where they fit) and the other methods in light grey.",
        *_what_is_kept(drawn, kept_as),
    ]
    if context.scope == "context":
        parts.append("The question's tokens come on top, the same at every budget.")
    across = (
        "t intervals over source contexts across (none to be seen where all prompts keep the same)"
        if kept_as == BYTES
        else "sizes have no interval"
    )
    parts += [
        f"Bars are {context.conf:.0%} intervals, each for its own cell: quasi-Wilson of the score upwards, {across}.",
        "A hollow point is dominated: another one has at least its mean score with no more kept, and is better in one of both; "
        "the grey steps join those that are not. The full cache, in black, is always solid. This compares points, it is no "
        "test.",
    ]
    if drawn["unreliable"].any():
        parts.append(
            f"Grey points: more than {context.max_failures:.0%} of the requests failed; they dominate nothing."
        )
    if (cells["method"] == "no_context").any():
        parts.append("The dotted line is the score without any context.")
    unsized = cells[~cells["drawn"] & cells["mean"].map(finite) & (cells["method"] != "no_context")]
    if len(unsized):
        names = ", ".join(dict.fromkeys(unsized["method"]))
        parts.append(f"Not drawn, because their size is not known: {len(unsized)} cells ({names}).")
    return parts


def _what_is_kept(drawn: pd.DataFrame, kept_as: str) -> list[str]:
    """What the horizontal axis measures, and what it does not."""
    full = drawn[drawn["method"] == "full"]
    line = (
        "The size of the full cache is not known."
        if full.empty
        else f"The dashed vertical line is the full cache, {size_words(full['kept'].iloc[0], kept_as)}"
        + (" on average." if kept_as == BYTES else " tokens on average.")
    )
    if kept_as == TOKENS:
        return [
            "The bytes kept are not known for every cell, so sizes are mean prompt tokens kept, on a logarithmic axis.",
            line,
        ]
    words = (
        "Sizes are mean bytes of the keys and values that are kept of the prompt, in all layers, after the prefill, on a "
        "logarithmic axis. They are not the peak of memory: eviction methods, SnapKV among them, build the whole cache in the "
        "prefill before they cut it, so that their peak is not below the full cache's size"
    )
    shorter = set(drawn["method"]) & set(TEXT_METHODS)
    return [f"{words}; only a method that shortens the text reads less." if shorter else f"{words}.", line]
