"""What became of the requests: a full stacked bar for every budget, one panel per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd

from kv_transition.analysis.figures.canvas import (
    FigureContext,
    budget_axis_title,
    budget_tick,
    house_style,
    panel_grid,
    save_figure,
    set_ticks,
    sorted_budgets,
    text_width,
)
from kv_transition.analysis.figures.cells import POOLED, caption_tail, each_row, length_bins, rows_of
from kv_transition.analysis.figures.palette import INK, MUTED, in_order
from kv_transition.budgets import UNCOMPRESSED, budget_label
from kv_transition.eval.failure_taxonomy import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["sound", "model", "infrastructure", "not asked"]
#: (method, budget label, outcome) -> number of examples, of how many.
Counts = Mapping[tuple[str, str, str], tuple[int, int]]

PANEL_HEIGHT, COLUMNS = 1.9, 3
#: Inches from bar to bar, at least and at most; inches that a printed count needs in height; share of the pitch that a bar
#: fills.
PITCH, MAX_PITCH, COUNT_HEIGHT, BAR = 0.32, 0.6, 0.115, 0.84
#: Inches of the panel with the uncompressed references, beside which the key stands; what is written under its bars.
REFERENCES_WIDTH = 1.1
REFERENCES = {"full": "full", "no_context": "no\ncontext"}


@dataclass(frozen=True)
class Outcome:
    """One kind of segment, as bars and key show it."""

    name: str
    words: str
    kind: Kind
    colour: str

    @property
    def look(self) -> dict[str, Any]:
        """Filled, or hatched in its colour where no answer came for the infrastructure's sake."""
        if self.kind == "infrastructure":
            return {"facecolor": "white", "edgecolor": self.colour, "hatch": "////", "linewidth": 0.6}
        if self.kind == "not asked":
            marks: dict[str, dict[str, Any]] = {
                "infeasible": {"hatch": "...."},
                "absent": {"linestyle": (0, (3, 2))},
            }
            return {"facecolor": "white", "edgecolor": MUTED, "linewidth": 0.6, **marks.get(self.name, {})}
        return {"facecolor": self.colour, "edgecolor": "white", "linewidth": 0.6}

    @property
    def text(self) -> dict[str, Any]:
        """How a number is written on it."""
        if "hatch" in self.look:
            return {"color": INK, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}}
        return {"color": "white" if self.colour == "#0072B2" else INK}


#: From the foot of a bar to its top.
OUTCOMES = (
    Outcome("scored", "answered, nothing amiss", "sound", "#DDDDDD"),
    Outcome("truncated", "cut off at the length limit", "model", "#56B4E9"),
    Outcome("format_error", "not in the form asked for", "model", "#E69F00"),
    Outcome("refusal", "refused", "model", "#009E73"),
    Outcome("empty_output", "empty answer", "model", "#0072B2"),
    Outcome("engine_error", "engine error", "infrastructure", "#D55E00"),
    Outcome("timeout", "timed out", "infrastructure", "#000000"),
    Outcome("infeasible", "did not fit the budget", "not asked", "#FFFFFF"),
    Outcome("not_applicable", "not applicable", "not asked", "#FFFFFF"),
    Outcome("absent", "no result on file", "not asked", "#FFFFFF"),
)
CSV_COLUMNS = ["task", "method", "budget", "outcome", "kind", "count", "share", "n_examples"]


def plot_failures(bin_stats: pd.DataFrame, task: str, out_stem: str | Path, context: FigureContext) -> str:
    """Draw what became of a task's requests, all lengths together, and return the caption.

    Parameters
    ----------
    bin_stats : the table of that name.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.

    Raises
    ------
    UserError
        When the table has no row for the task under the context's policy.
    """
    rows = rows_of(bin_stats, task, context, "bin_stats")
    bins = length_bins(rows[rows["bin_idx"] == POOLED])
    numbers = _numbers(_counted(bin_stats, rows, task))
    budgets = sorted_budgets(list(rows["budget"]))
    methods = in_order(set(rows["method"]) - set(UNCOMPRESSED))
    references = [name for name in REFERENCES if (rows["method"] == name).any()]
    shown = [one for one in OUTCOMES if (numbers.loc[numbers["outcome"] == one.name, "count"] > 0).any()]
    counts = {
        (row["method"], row["budget"], row["outcome"]): (row["count"], row["n_examples"])
        for row in each_row(numbers)
    }
    with house_style():
        ticks = [budget_tick(budget) for budget in budgets]
        pitch = max([PITCH, *(text_width(tick, 8.0) + 0.08 for tick in ticks)])
        title = budget_axis_title(budgets)
        longest = max(text_width(name, 9.0) for name in [*methods, title])
        key_width = 0.35 + max((text_width(outcome.words) for outcome in shown), default=0.0)
        width = max(pitch * (len(budgets) + 0.3), longest, REFERENCES_WIDTH + 0.15 + key_width)
        columns = max(1, min(COLUMNS, int(12.4 / (width + 0.9))))
        figure, panels = panel_grid(len(methods) + 1, width, PANEL_HEIGHT, columns, left=0.75)
        for index, (axes, method) in enumerate(zip(panels, methods, strict=False)):
            _panel(axes, counts, {(method, budget_label(one)): budget_tick(one) for one in budgets}, width)
            axes.set_title(method)
            if index % columns == 0:
                axes.set_ylabel("share of the examples")
            if index + columns >= len(methods):
                axes.set_xlabel(title)
        last = panels[-1].get_position()
        inch = last.width / width
        panels[-1].set_position((last.x0, last.y0, REFERENCES_WIDTH * inch, last.height))
        _panel(
            panels[-1], counts, {(name, "full"): REFERENCES[name] for name in references}, REFERENCES_WIDTH
        )
        panels[-1].set_title("references")
        key_left = last.x0 + (REFERENCES_WIDTH + 0.15) * inch
        _key(figure.add_axes((key_left, last.y0, key_width * inch, last.height)), shown, key_width)
        save_figure(figure, numbers.assign(protocol=context.protocol), out_stem, context.dpi)
    return f"{_caption(rows, shown, task, context)} {caption_tail(task, bins, context)}"


def _counted(bin_stats: pd.DataFrame, rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """The pooled rows whose counts are drawn.

    Counts of labels are the same under every policy; what is missing under "zero" was never on file, while "exclude" adds
    the failed requests to it.
    """
    chosen = bin_stats[(bin_stats["task"] == task) & (bin_stats["policy"] == "zero")]
    chosen = rows if chosen.empty else chosen
    return chosen[chosen["bin_idx"] == POOLED]


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each segment, those of no height included."""
    out: list[dict[str, Any]] = []
    order = {name: rank for rank, name in enumerate([*UNCOMPRESSED, *in_order(rows["method"])])}
    rows = rows.assign(_method=rows["method"].map(order))
    for row in each_row(rows.sort_values(["_method", "budget_value"], na_position="first")):
        total = int(row["n"] + row["n_missing"])
        counts = {label.lower(): int(row[f"n_{label.lower()}"]) for label in LABELS}
        counts |= {name: int(row[f"n_{name}"]) for name in ("infeasible", "not_applicable")}
        never = int(row["n_missing"]) - counts["infeasible"] - counts["not_applicable"]
        failed = counts["timeout"] + counts["engine_error"] if row["policy"] == "exclude" else 0
        counts["absent"] = max(never - failed, 0)
        counts["scored"] = total - sum(counts.values())
        for outcome in OUTCOMES:
            count = counts[outcome.name]
            out.append(
                {
                    "task": row["task"], "method": row["method"], "budget": row["budget"], "outcome": outcome.name,
                    "kind": outcome.kind, "count": count, "share": count / total if total else None, "n_examples": total,
                }
            )  # fmt: skip
    return pd.DataFrame(out, columns=CSV_COLUMNS)


class _Segment(NamedTuple):
    """A part of the bar at `x`: where it begins, its height, and the number on it."""

    x: int
    foot: float
    share: float
    number: str


def _panel(axes: Axes, counts: Counts, places: Mapping[tuple[str, str], str], width: float) -> None:
    """The bars of some cells (method, budget label), side by side; `places` says what is written under each."""
    slots = max(len(places), int(width / MAX_PITCH))
    feet = [0.0] * len(places)
    for outcome in OUTCOMES:
        segments = []
        for x, (method, budget) in enumerate(places):
            count, total = counts.get((method, budget, outcome.name), (0, 0))
            if count:
                segments.append(_Segment(x, feet[x], count / total, str(count)))
                feet[x] += count / total
        if segments:
            _draw(axes, segments, outcome, width / slots * BAR)
    for x, foot in enumerate(feet):
        if not foot:
            axes.text(x, 0.03, "–", ha="center", va="bottom", color=MUTED, fontsize=8)
    axes.set_xlim(-0.55, slots - 0.45)
    axes.set_ylim(0, 1)
    set_ticks(axes.xaxis, range(len(places)), list(places.values()))
    set_ticks(axes.yaxis, [0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.tick_params(axis="x", length=0)


def _draw(axes: Axes, segments: Sequence[_Segment], outcome: Outcome, bar_width: float) -> None:
    """An outcome's segments, with their numbers where they fit."""
    places, feet, shares, _ = zip(*segments, strict=True)
    axes.bar(places, shares, BAR, bottom=feet, **outcome.look)
    for x, foot, share, count in segments:
        if share * PANEL_HEIGHT >= COUNT_HEIGHT and text_width(count, 6.5) <= bar_width:
            middle = foot + share / 2
            axes.text(x, middle, count, ha="center", va="center_baseline", fontsize=6.5, **outcome.text)


def _key(axes: Axes, shown: Sequence[Outcome], width: float) -> None:
    """What the segments mean, in the order of the bars; coordinates are inches."""
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, PANEL_HEIGHT)
    for row, outcome in enumerate(reversed(shown)):
        y = PANEL_HEIGHT - 0.08 - 0.18 * row
        axes.add_patch(Rectangle((0.01, y - 0.06), 0.2, 0.12, **outcome.look))
        axes.text(0.28, y, outcome.words, fontsize=7.5, va="center_baseline")


def _caption(rows: pd.DataFrame, shown: Sequence[Outcome], task: str, context: FigureContext) -> str:
    parts = [
        f"What became of the examples of {task} at every KV budget, all prompt lengths together, one panel per method.",
        "Numbers in the bars are counts of examples, printed where they fit; of several repetitions of an example the first "
        "finding counts. They are counts and have no interval. Only one finding is shown for an answer, and an answer with a "
        "finding keeps its score, an empty one 0.",
        "Hatched: the infrastructure's failures (engine errors, timeouts), apart from what the model did.",
    ]
    if any(outcome.kind == "not asked" for outcome in shown):
        parts.append(
            "On white: nothing was asked, or there is no result, which is no failure and no score of 0."
        )
    pooled = rows[rows["bin_idx"] == POOLED]
    left_out = int(pooled["n_reference_failed"].max()) if "n_reference_failed" in pooled else 0
    if left_out:
        parts.append(
            f"Left out of every bar: {left_out} examples whose full-cache or no-context request failed."
        )
    parts.append("A dash: no such cell.")
    if bool(pooled["unreliable"].any()):
        parts.append(f"In some cells more than {context.max_failures:.0%} of the requests failed.")
    return " ".join(parts)
