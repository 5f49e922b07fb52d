"""Time per request against budget, one panel per measure; in words where no request was timed."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import fill
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
from kv_transition.analysis.figures.cells import POOLED, LengthBin, caption_tail, each_row, length_unit
from kv_transition.analysis.figures.palette import RULE, in_order, method_styles
from kv_transition.analysis.figures.score import COLUMNS
from kv_transition.budgets import UNCOMPRESSED
from kv_transition.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Column of the costs -> title and unit of its panel.
MEASURES = {
    "latency_median": ("latency, median", "seconds"),
    "latency_p95": ("latency, 95th percentile", "seconds"),
    "ttfb_median": ("time to first text, median", "seconds"),
    "ttfb_p95": ("time to first text, 95th percentile", "seconds"),
    "decode_tokens_per_s_median": ("answer tokens per second, median", "tokens per second"),
}
#: With fewer values than this a 95th percentile lies between the two largest.
FEWEST_FOR_P95 = 20
SCOPE_WORDS = {
    "request": "every request was timed on its own, by the client (timing_scope request)",
    "sweep": "all cells of an example share one run (timing_scope sweep)",
}
CSV_COLUMNS = [
    "task", "method", "budget", "n", "n_failed", "n_copied", "n_timed",
    *(f"{name}{end}" for name in MEASURES for end in ("", "_lo", "_hi")),
    "attempts_mean", "attempts_max", "timing_scope", "engine", "host", "status",
]  # fmt: skip


def plot_latency(
    costs: pd.DataFrame,
    task: str,
    out_stem: str | Path,
    context: FigureContext,
    *,
    concurrency: int | None = None,
) -> str:
    """Draw how long a task's requests took, all lengths together, and return the caption.

    Parameters
    ----------
    costs : the table of that name.
    out_stem : path without ending; `.svg`, `.png` and `.csv` are written beside each other.
    concurrency : requests that were in flight at the same time; None where that is not known.

    Raises
    ------
    UserError
        When the table has no row for the task.
    """
    rows = pooled_costs(costs, task)
    measures = [name for name in MEASURES if rows[name].map(finite).any()]
    numbers = rows[CSV_COLUMNS].assign(protocol=context.protocol)
    if not measures:
        with house_style():
            save_words(_no_times(rows), numbers, out_stem, context)
        return f"{_no_times(rows)} {costs_tail(rows, task, context)}"
    styles = method_styles(rows.loc[rows["n_timed"] > 0, "method"])
    axis = BudgetAxis(sorted_budgets(list(rows["budget"])))
    with house_style():
        height = max(2.0, LABEL_GAP * (len(styles) + 2))
        room = 0.45 + max(text_width(name) for name in [*styles, "no context"])
        columns = 2 if len(measures) in (2, 4) else COLUMNS
        figure, panels = panel_grid(len(measures), PANEL_WIDTH, height, columns, left=0.7, right=room)
        for index, (axes, name) in enumerate(zip(panels, measures, strict=True)):
            cells = each_row(_measured(rows, name, context))
            values = [cell[end] for cell in cells for end in ("mean", "hi")]
            top = 1.08 * max(float(value) for value in values if finite(value))
            _frame(axes, axis, name, top)
            if index + columns >= len(measures):
                axes.set_xlabel(budget_axis_title(axis.budgets))
            draw_references(axes, cells, axis)
            label_ends(axes, draw_methods(axes, cells, styles, axis), styles, axis, top, height)
        save_figure(figure, numbers, out_stem, context.dpi)
    what = _caption(rows, task, measures, context, concurrency, bands=len(styles) <= MAX_BANDS)
    return f"{what} {costs_tail(rows, task, context)}"


def pooled_costs(costs: pd.DataFrame, task: str) -> pd.DataFrame:
    """A task's costs over all its lengths, in the order of figures.

    Raises
    ------
    UserError
        When there are none.
    """
    rows = costs[(costs["task"] == task) & (costs["bin_idx"] == POOLED)]
    if rows.empty:
        known = ", ".join(sorted(costs["task"].unique())) or "none"
        raise UserError(
            f"costs: no rows for task {task!r}; its tasks are: {known}; run the analysis for this task first"
        )
    order = {name: rank for rank, name in enumerate([*UNCOMPRESSED, *in_order(rows["method"])])}
    keyed = rows.assign(_method=rows["method"].map(order))
    keyed = keyed.sort_values(["_method", "budget_value"], na_position="first", kind="stable")
    return keyed.drop(columns="_method").reset_index(drop=True)


def costs_tail(rows: pd.DataFrame, task: str, context: FigureContext) -> str:
    """What every caption ends with, for figures of pooled costs."""
    n, n_clusters = int(rows["n_examples"].max()), int(rows["n_clusters"].max())
    pooled = LengthBin(POOLED, math.nan, math.nan, n, n_clusters, length_unit(rows))
    return caption_tail(task, [pooled], context)


def save_words(words: str, numbers: pd.DataFrame, out_stem: str | Path, context: FigureContext) -> None:
    """A figure that says why there is nothing to draw. Call inside `house_style`."""
    figure, (axes,) = panel_grid(1, 6.0, 1.2, 1, left=0.2, right=0.2, bottom=0.2)
    axes.set_axis_off()
    axes.text(0, 0.95, fill(words, 84), transform=axes.transAxes, va="top", fontsize=9, linespacing=1.5)
    save_figure(figure, numbers, out_stem, context.dpi)


def _measured(rows: pd.DataFrame, name: str, context: FigureContext) -> pd.DataFrame:
    """The rows as curves take them: mean, lo, hi (here a quantile and its limits) and hollow."""
    asked = rows["n"].clip(lower=1)
    hollow = (rows["n_timed"] / asked < context.min_active_share) | (
        rows["n_failed"] / asked > context.max_failures
    )
    if name.endswith("_p95"):
        hollow |= rows["n_timed"] < FEWEST_FOR_P95
    return rows.assign(mean=rows[name], lo=rows[f"{name}_lo"], hi=rows[f"{name}_hi"], hollow=hollow)


def _frame(axes: Axes, axis: BudgetAxis, name: str, top: float) -> None:
    title, unit = MEASURES[name]
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlim(*axis.limits)
    axes.set_ylim(0, top)
    quiet_grid(axes)
    positions = [*(math.log2(budget) for budget in axis.budgets), axis.full]
    texts = [*(budget_tick(budget) for budget in axis.budgets), "full"]
    shown = legible(positions, texts, PANEL_WIDTH, *axis.limits)
    set_ticks(axes.xaxis, [positions[index] for index in shown], [texts[index] for index in shown])
    if axis.budgets:
        axes.axvline((axis.last + axis.full) / 2, color=RULE, linewidth=0.7, linestyle=(0, (2, 2)))


def _no_times(rows: pd.DataFrame) -> str:
    """Why there is no curve."""
    scopes = set(rows["timing_scope"].dropna())
    if rows["n"].sum() == rows["n_failed"].sum():
        why = "every request failed"
    elif scopes == {"sweep"}:
        why = (
            "all cells of an example were answered in one run that shares the prefill and the decoding "
            "(timing_scope sweep), so a cell has no latency of its own; a server (engine.kind openai_compat) times each request"
        )
    else:
        why = "the responses hold no times"
    return f"No request was timed: {why}."


def _spread(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def counted(rows: pd.DataFrame) -> list[str]:
    """Sentences on the requests without a time of their own: failed ones and copies."""
    total, failed, copied = (int(rows[name].sum()) for name in ("n", "n_failed", "n_copied"))
    words = [
        f"Failed requests have no latency: {failed:,} of {total:,}."
        if failed
        else f"None of the {total:,} requests failed."
    ]
    if copied:
        words.append(
            f"{copied:,} answers are copies of the full cache's, because the budget took nothing away; they cost nothing of "
            "their own, so that at large budgets only the longer prompts are timed: these times do not compare with those at "
            "small budgets or of the full cache."
        )
    return words


def _caption(
    rows: pd.DataFrame, task: str, measures: list[str], context: FigureContext, concurrency: int | None, *, bands: bool
) -> str:  # fmt: skip
    timed = rows[rows["n_timed"] > 0]
    scopes = sorted({scope for joined in timed["timing_scope"].dropna() for scope in str(joined).split("+")})
    hosts = sorted({host for joined in timed["host"].dropna() for host in str(joined).split("+")})
    parallel = (
        "how many requests were in flight at the same time is not known"
        if concurrency is None
        else f"up to {concurrency} requests of a job were in flight at the same time, so waiting for each other is in it (as "
        "configured now; answers out of the journal may have been asked otherwise)"
        if concurrency > 1
        else "one request of a job was in flight at a time"
    )
    parts = [
        f"Time per request against KV budget on {task}, all prompt lengths together; every panel has its own scale.",
        f"Points are quantiles over the {_spread(timed['n_timed'])} timed requests of a cell; {'bands' if bands else 'bars'} are "
        f"{context.conf:.0%} bootstrap percentile intervals (source contexts resampled within length bins), each for its own cell. "
        "The same examples are compared, so overlapping intervals are not a test of a difference.",
        "The dashed line and grey band are the full cache, drawn as a detached point at the right.",
        f"What is timed: {' and '.join(SCOPE_WORDS.get(scope, scope) for scope in scopes) or 'not known'}, from sending the "
        "attempt that was answered to its last token; failed attempts and the waits between them are not in it, the first "
        f"requests (warm-up) are; {parallel}.",
        f"The client ran on {', '.join(hosts)}." if hosts else "Where the client ran is not known.",
    ]
    if timed["attempts_mean"].map(finite).any():
        own = timed["n"] - timed["n_copied"]
        mean = float((timed["attempts_mean"] * own).sum() / own.sum())
        parts.append(
            f"Attempts per request: {mean:.3g} on average, {timed['attempts_max'].max():.0f} at most."
        )
    if "decode_tokens_per_s_median" in measures:
        parts.append("Tokens per second: those after the first, in the time from the first text to the end.")
    parts += counted(rows)
    hollow = (
        f"Hollow markers: fewer than {context.min_active_share:.0%} of the cell's requests were timed, more than "
        f"{context.max_failures:.0%} failed, or a 95th percentile of fewer than {FEWEST_FOR_P95}, which lies between the two "
        "slowest."
    )
    return " ".join([*parts, hollow])
