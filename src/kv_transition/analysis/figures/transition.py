"""Transition budget against prompt length, both in octaves, one panel per method."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    budget_tick,
    finite,
    house_style,
    legible,
    panel_grid,
    save_figure,
    set_ticks,
    text_width,
    title_lines,
)
from kv_transition.analysis.figures.cells import (
    POOLED,
    LengthBin,
    caption_tail,
    drawn_methods,
    each_row,
    length_unit,
    nothing_asked_words,
    rows_of,
    truncated_bins,
)
from kv_transition.analysis.figures.labels import Estimate, looked_at, read_estimate, short_status
from kv_transition.analysis.figures.length_law import COLUMNS as LAW_COLUMNS
from kv_transition.analysis.figures.length_law import LengthLaw, read_length_law
from kv_transition.analysis.figures.palette import BAND, MUTED, RULE, Style, method_styles
from kv_transition.budgets import Budget
from kv_transition.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kv_transition.analysis.tables import Row

PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 2.6, 2.3, 3
CSV_COLUMNS = [
    "task", "method", "bin_idx", "tau", "token_len_median", "n_pairs", "T_point", "T_lower", "T_upper",
    "T_point_tokens", "T_lower_tokens", "T_upper_tokens", "status", "flags", "mostly_truncated",
]  # fmt: skip


@dataclass(frozen=True)
class _Scale:
    """The shared y axis: the smallest budget means "at or below it", one place beyond the largest means "above"."""

    budgets: list[float]

    @property
    def above(self) -> float:
        octaves = math.log2(self.budgets[-1] / self.budgets[0])
        return math.log2(self.budgets[-1]) + max(0.7, octaves / max(len(self.budgets) - 1, 1))

    @property
    def low(self) -> float:
        return math.log2(self.budgets[0])

    @property
    def shares(self) -> bool:
        return self.budgets[-1] < 1

    def place(self, estimate: Estimate) -> float:
        """Where a point or limit stands, censored or not."""
        return self.above if estimate.side == "right" else math.log2(estimate.budget)

    def texts(self) -> tuple[list[float], list[str]]:
        typed: list[Budget] = [value if self.shares else int(value) for value in self.budgets]
        ticks = [
            f"≤ {budget_tick(typed[0])}",
            *(budget_tick(value) for value in typed[1:]),
            f"> {budget_tick(typed[-1])}",
        ]
        return [*(math.log2(value) for value in self.budgets), self.above], ticks


def plot_transition_vs_length(
    transition: pd.DataFrame,
    task: str,
    out_stem: str | Path,
    context: FigureContext,
    effect_models: pd.DataFrame | None = None,
    bin_stats: pd.DataFrame | None = None,
) -> str:
    """Draw one task's transition budgets against the median prompt length of each bin, and return the caption.

    Parameters
    ----------
    transition : the table of that name; the rows of `context.tau` are drawn.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.
    effect_models : the table of that name; given, every panel says its method's exponent in the prompt length.
    bin_stats : the table of that name; given, bins in which most prompts were cut are grey.

    Raises
    ------
    UserError
        When a table has no row for the task and the policy, or transition none for tau.
    """
    rows = rows_of(transition, task, context, "transition")
    wanted = rows[(rows["tau"] - context.tau).abs() < 1e-9]
    if wanted.empty:
        known = ", ".join(f"{tau:g}" for tau in sorted(rows["tau"].unique()))
        raise UserError(f"transition: no rows for {task!r} at tau {context.tau:g}; the table has: {known}")
    rows = wanted[wanted["bin_idx"] != POOLED] if (wanted["bin_idx"] != POOLED).any() else wanted
    rows = rows.sort_values(["method", "bin_idx"], kind="stable")
    scale = _Scale(sorted({float(budget) for budgets in rows["budgets"] for budget in budgets}) or [1.0])
    styles = method_styles(drawn_methods(rows))
    laws = {
        method: read_length_law(effect_models, task, method, context)
        for method in styles
        if effect_models is not None
    }
    cut = set() if bin_stats is None else truncated_bins(rows_of(bin_stats, task, context, "bin_stats"))
    rows = rows.assign(mostly_truncated=rows["bin_idx"].isin(cut))
    lengths = sorted(float(value) for value in rows["token_len_median"] if finite(value) and value > 0) or [
        1.0
    ]
    cells = each_row(rows)
    with house_style():
        room = 0.85 if scale.shares else 0.75
        left = max(0.75, 0.38 + max(text_width(text, 8.0) for text in scale.texts()[1]))
        figure, panels = panel_grid(
            max(len(styles), 1), PANEL_WIDTH, PANEL_HEIGHT, COLUMNS, left=left, right=room,
            title=0.46 if laws else 0.3,
        )  # fmt: skip
        for index, (axes, (method, style)) in enumerate(zip(panels, styles.items(), strict=False)):
            _frame(axes, scale, lengths)
            # The second line stands above the names of the guides that leave the panel through its top.
            if method in laws:
                title_lines(axes, method, _law_words(laws[method]), lift=11.0)
            else:
                axes.set_title(method)
            _guides(axes, scale, diagonal=length_unit(rows) == "tokens")
            for row in cells:
                if row["method"] == method:
                    _draw(
                        axes, row, replace(style, colour=MUTED) if row["mostly_truncated"] else style, scale
                    )
            if index % COLUMNS == 0:
                axes.set_ylabel(f"budget keeping {context.tau:.0%} of the score")
            if index + COLUMNS >= len(styles):
                axes.set_xlabel(f"prompt length (median {length_unit(rows)} of the bin)")
        laid: dict[str, Any] = {
            name: [laws[method].row()[name] if method in laws else None for method in rows["method"]]
            for name in (LAW_COLUMNS if laws else ())
        }
        numbers = rows[CSV_COLUMNS].assign(**laid)
        save_figure(figure, numbers.assign(protocol=context.protocol), out_stem, context.dpi)
    return _caption(task, rows, scale, context, laws)


def _law_words(law: LengthLaw) -> str:
    return f"{law.words}, {law.verdict}" if law.verdict else law.words


def _frame(axes: Axes, scale: _Scale, lengths: list[float]) -> None:
    low, high = math.log2(lengths[0]) - 0.45, math.log2(lengths[-1]) + 0.45
    axes.set_xlim(low, high)
    axes.set_ylim(scale.low - 0.55, scale.above + 0.55)
    ticks = sorted({round(math.log2(length), 6) for length in lengths})
    texts = [f"{2**tick:.0f}" for tick in ticks]
    shown = legible(ticks, texts, PANEL_WIDTH, low, high)
    set_ticks(axes.xaxis, [ticks[index] for index in shown], [texts[index] for index in shown])
    set_ticks(axes.yaxis, *scale.texts())
    axes.axhspan(
        (scale.above + math.log2(scale.budgets[-1])) / 2,
        scale.above + 0.55,
        color=BAND,
        linewidth=0,
        zorder=0,
    )


def _guides(axes: Axes, scale: _Scale, *, diagonal: bool) -> None:
    """Slope 0 at every budget; slope 1 (slope -1 where budgets are shares) at constant shares (tokens).

    The second kind compares budgets with lengths, so both have to be in tokens (`diagonal`).
    """
    levels = [math.log2(budget) for budget in scale.budgets]
    axes.hlines(
        levels, 0, 1, transform=axes.get_yaxis_transform(), color=RULE, linewidth=0.5, capstyle="projecting", zorder=0.5
    )  # fmt: skip
    if not diagonal:
        return
    low, high = axes.get_xlim()
    bottom, ceiling = axes.get_ylim()
    for exponent in range(0, 24, 2):
        # Along a line lies a constant share 2^-exponent of the prompt, or 2^exponent tokens where budgets are shares.
        start, end = (exponent - low, exponent - high) if scale.shares else (low - exponent, high - exponent)
        if max(start, end) < bottom or min(start, end) > ceiling:
            continue
        axes.plot(
            [low, high],
            [start, end],
            color=MUTED,
            linewidth=0.6,
            linestyle=(0, (4, 3)),
            alpha=0.7,
            zorder=0.6,
        )
        text = (
            f"{2**exponent} tokens"
            if scale.shares
            else ("whole prompt" if exponent == 0 else f"1/{2**exponent}")
        )
        leaves_at = ceiling + exponent
        if bottom + 0.2 < end < ceiling:
            place: dict[str, Any] = {"xy": (high, end), "xytext": (3, 0), "va": "center"}
        elif not scale.shares and (low + high) / 2 < leaves_at < high:
            place = {"xy": (leaves_at, ceiling), "xytext": (0, 2), "va": "bottom", "ha": "center"}
        else:
            continue
        axes.annotate(
            text, textcoords="offset points", fontsize=6.5, color=MUTED, annotation_clip=False, **place
        )
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, ceiling)


def _draw(axes: Axes, row: Row, style: Style, scale: _Scale) -> None:
    """One bin: its point, its interval, and arrows where a limit is beyond the tested budgets."""
    if not finite(row["token_len_median"]):
        return
    x = math.log2(float(row["token_len_median"]))
    if row["status"] != "ok":
        words = short_status(str(row["status"]))
        middle = (scale.low + scale.above) / 2
        axes.text(x, middle, words, rotation=90, fontsize=6.5, color=MUTED, ha="center", va="center")
        return
    point, lower, upper = (read_estimate(row[f"T_{name}"]) for name in ("point", "lower", "upper"))
    low, high = scale.place(lower), scale.place(upper)
    axes.plot(
        [x, x], [low, high], color=style.colour, linewidth=1.6, alpha=0.8, solid_capstyle="butt", zorder=2
    )
    for limit, y in ((lower, low), (upper, high)):
        if limit.side == "none":
            axes.plot([x], [y], marker="_", color=style.colour, markersize=7, markeredgewidth=1.4, zorder=2)
        else:
            _arrow(axes, x, y, style, down=limit.side == "left")
    hollow = point.side != "none" or "point_inactive" in str(row["flags"]).split(",")
    axes.plot(
        [x], [scale.place(point)], style.marker, color=style.colour, markerfacecolor="white" if hollow else style.colour,
        markersize=5.5, markeredgewidth=1.1, zorder=3,
    )  # fmt: skip


def _arrow(axes: Axes, x: float, y: float, style: Style, *, down: bool) -> None:
    tip: Any = {
        "arrowstyle": "-|>",
        "color": style.colour,
        "linewidth": 1.4,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 8,
    }
    axes.annotate("", (x, y - 0.45 if down else y + 0.45), xytext=(x, y), arrowprops=tip, zorder=2)


def _caption(
    task: str, rows: pd.DataFrame, scale: _Scale, context: FigureContext, laws: dict[str, LengthLaw]
) -> str:
    sizes = [
        LengthBin(
            int(str(key)),
            0.0,
            0.0,
            int(group["n_pairs"].max()),
            int(group["n_pairs"].max()),
            length_unit(rows),
        )
        for key, group in rows.groupby("bin_idx", sort=True)
    ]
    lines = f"Horizontal lines: the same {'share' if scale.shares else 'budget'} at every length (slope 0)"
    if length_unit(rows) == "tokens":
        other = (
            "the same number of tokens (slope -1)"
            if scale.shares
            else "the same share of the prompt (slope 1)"
        )
        lines += f"; dashed: {other}, named at their ends"
    return " ".join(
        [
            f"Transition budget on {task}: the smallest tested budget from which at least {context.tau:.0%} of the "
            "full-cache score is kept, at that budget and every larger one, against prompt length (both logarithmic).",
            f"Bars are {context.conf:.0%} fixed-sequence limits. An arrow: no limit could be shown inside the tested "
            "budgets. A hollow marker: the point lies outside them (at or below the smallest, or above the largest), or at a budget "
            "that most prompts of the bin did not exceed, so that little was compressed.",
            f"{lines}.",
            "Words in place of a bar say why there is no transition budget.",
            *_law_caption(laws, context),
            *_truncated_words(rows),
            *nothing_asked_words(rows),
            caption_tail(task, sizes, context),
        ]
    )


def _law_caption(laws: dict[str, LengthLaw], context: FigureContext) -> list[str]:
    """What the exponent above each panel is, and what it is not."""
    if not laws:
        return []
    return [
        f"α₁ is the exponent of the transition budget in the prompt length, with its {context.conf:.0%} bootstrap interval: 0 is "
        "the same budget, 1 the same share of the prompt, at every length. It comes from the collapse model of all scores, not "
        f"from a line through these points; each interval holds {context.conf:.0%} on its own, {looked_at(len(laws))}."
    ]


def _truncated_words(rows: pd.DataFrame) -> list[str]:
    """Which bins hold mostly prompts that were cut, and what that means."""
    cut = rows[rows["mostly_truncated"]]
    if cut.empty:
        return []
    lengths = sorted({float(value) for value in cut["token_len_median"] if finite(value)})
    return [
        f"Grey, at a median of {', '.join(f'{length:.0f}' for length in lengths)}: more than half of the prompts were cut, so "
        "full means the shortened document, uncompressed; left out of α₁."
    ]
