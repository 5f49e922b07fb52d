"""The first screen of the report: what was tested, where it breaks, how that moves with length, and how sure it is."""

from __future__ import annotations

from dataclasses import replace

from kv_transition.analysis.figures.canvas import budget_tick, finite
from kv_transition.analysis.figures.cells import POOLED, LengthBin
from kv_transition.analysis.figures.labels import read_estimate
from kv_transition.report.claims import claim_words
from kv_transition.report.comparisons import comparison_words
from kv_transition.report.length_law import length_laws
from kv_transition.report.macro import macro_words
from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Study
from kv_transition.report.tables import overview_table, with_interval
from kv_transition.report.wording import (
    Curve,
    answer_on_task,
    answer_over_tasks,
    join,
    length_sentence,
    looked_at,
    percent,
    range_words,
)

#: Up to this many tasks the answer names each of them; beyond it counts.
MAX_NAMED_TASKS = 3


def answer(study: Study) -> str:
    """The answer as Markdown: an opening sentence, then each task with a table and sentences, or counts over many tasks."""
    tau = study.taus[0]
    if len(study.tasks) <= MAX_NAMED_TASKS:
        parts = [part for task in study.tasks for part in _on_task(study, task, tau)]
    else:
        pooled = [_named(curve) for task in study.tasks for curve in study.pooled_curves(task, tau)]
        protocols = join(sorted({study.protocol(task) for task in study.tasks}))
        heading = (
            f"**Budget that keeps at least {percent(tau)}, all lengths together** (protocol {protocols})"
        )
        parts = [answer_over_tasks(pooled, tau), heading, overview_table(study, tau)] if pooled else []
    curves = sum(len(study.curves(task, tau)) for task in study.tasks)
    over = macro_words(study)
    text = "\n\n".join([opening(study), *parts, *([over] if over else [])])
    legend = " ".join([looked_at(curves, study.conf), *_legend(study, text)])
    return f"{text}\n\n{legend}"


def _legend(study: Study, text: str) -> list[str]:
    """What the marks and terms of the answer mean, those that it uses."""
    words = {
        "°": f"°: fewer than {percent(study.min_active_share)} of the prompts were longer than that budget, so little was "
        "compressed.",
        "†": f"†: more than {percent(study.max_failures)} of the requests of a cell failed.",
        "‡": "‡: a tested budget has no answers there.",
        f"loses less than {study.delta:g}": f"Loses less than {study.delta:g}: an absolute difference of scores; each claim is for one "
        "method and task, its p-value over all methods stands in the task's section.",
        "MDE": "MDE: the smallest loss that a sample of this size would find four times out of five.",
        "exponent of prompt length": "Exponent of prompt length: by how many doublings the needed budget moves when prompts "
        "double; 0 is a fixed number of tokens, 1 a fixed share of the prompt; what the interval holds fits, and is not proved.",
    }
    return [said for sign, said in words.items() if sign in text]


def opening(study: Study) -> str:
    """What was tested, in one sentence."""
    budgets = [budget_tick(budget) for budget in study.budgets]
    each = "each " if len(study.methods) > 1 else ""
    spread = (
        f"{len(budgets)} budgets from {budgets[0]} to {budgets[-1]}" if len(budgets) > 1 else "a budget of "
    )
    if len(budgets) == 1:
        spread += budgets[0]
    bins = [one for task in study.tasks for one in study.bins(task) if one.n]
    lengths = ""
    if bins and len({one.unit for one in bins}) == 1:
        low, high = min(one.token_len_min for one in bins), max(one.token_len_max for one in bins)
        lengths = f" of {low:,.0f} to {high:,.0f} {bins[0].unit}"
    references = [study.reference(task, "full") for task in study.tasks]
    number = sum(int(row["n"]) for row in references if row is not None and finite(row["n"]))
    tasks = f"{len(study.tasks)} tasks" if len(study.tasks) > 1 else f"task {name_text(study.tasks[0])}"
    methods = [name_text(method) for method in study.methods]
    named = f"{len(methods)} methods" if len(methods) > 5 else join(methods)
    return (
        f"**{name_text(study.settings['model']['name'])}** answered {number:,} prompts{lengths} ({tasks}) with its full cache "
        f"and with {named}, {each}at {spread} {study.budget_unit}."
    )


def _on_task(study: Study, task: str, tau: float) -> list[str]:
    """Heading, table and sentences of one task."""
    bins = [one for one in study.bins(task) if one.bin_idx != POOLED and one.n]
    heading = f"**{name_text(task)}** ({reference_words(study, task)}): from which budget on {percent(tau)} of the full-cache score is kept"
    where = ""
    curves = study.pooled_curves(task, tau)
    if len(bins) > 1:
        curves = [curve for curve in study.curves(task, tau) if curve.bin_idx == bins[-1].bin_idx]
        where = f", prompts of {bins[-1].lengths}"
    sentences = [
        answer_on_task(f"{name_text(task)}{where}", [_named(curve) for curve in curves], tau),
        *length_findings(study, task, tau),
        comparison_words(study, task),
        _open(study, task, tau),
    ]
    points = "\n".join(f"- {sentence}" for sentence in sentences if sentence)
    return [heading, _table(study, task, tau, bins), points]


def _table(study: Study, task: str, tau: float, bins: list[LengthBin]) -> str:
    """Transition budgets at the shortest, the longest and all lengths, what is shown lossless, and the length law."""
    curves = {(curve.method, curve.bin_idx): curve for curve in study.curves(task, tau)}
    ends = [bins[0], bins[-1]] if len(bins) > 1 else []
    columns = [(one.bin_idx, one.lengths) for one in ends] + [(POOLED, "all lengths")]
    if not any(key[1] == POOLED for key in curves):
        columns = [(one.bin_idx, one.lengths) for one in bins]
    laws = {law.method: law for law in length_laws(study, task) if law.ok}
    header = ["method", *(title for _, title in columns), f"loses less than {study.delta:g} from"]
    if laws:
        header.append("exponent of prompt length")
    rows = []
    for method in study.methods_on(task):
        cells = [curves.get((method, bin_idx)) for bin_idx, _ in columns]
        row = [name_text(method), *("–" if curve is None else curve.cell() for curve in cells)]
        row.append(claim_words(study.claim(task, method)))
        if laws:
            row.append(laws[method].brief() if method in laws else "–")
        rows.append(row)
    return table(header, rows)


def _open(study: Study, task: str, tau: float) -> str:
    """What the sample leaves open: intervals without an end, and losses it could not have seen."""
    ok = [curve for curve in study.curves(task, tau) if curve.ok]
    ends = sum(read_estimate(curve.upper).side == "right" for curve in ok)
    losses = study.pooled(study.sized(task))["mde"]
    parts = []
    if ends:
        have = "has" if ends == 1 else "have"
        parts.append(f"{ends} of {len(ok)} intervals {have} no upper limit among the tested budgets")
    if len(losses):
        size = range_words(losses.min(), losses.max())
        cell = " (it depends on the cell)" if " to " in size else ""
        parts.append(f"a true loss under {size}{cell} would often not be seen, all lengths together")
    return f"Not shown: {'; '.join(parts)}." if parts else ""


def _named(curve: Curve) -> Curve:
    return replace(curve, method=name_text(curve.method))


def reference_words(study: Study, task: str) -> str:
    """How many examples, and what the full cache and no context score."""
    full, floor = study.reference(task, "full"), study.reference(task, "no_context")
    metric = study.metric(task)
    if full is None:
        return f"{metric}; the full cache was not run"
    shown = with_interval(full["mean"], full["lo"], full["hi"])
    parts = [f"n = {int(full['n'])} examples", f"{metric} {shown} with the full cache"]
    if floor is not None:
        parts.append(f"{with_interval(floor['mean'], floor['lo'], floor['hi'])} without context")
    return ", ".join(parts)


def length_findings(study: Study, task: str, tau: float) -> list[str]:
    """Whether transition budgets move from the shortest to the longest bin with results; empty for one bin."""
    bins = [one for one in study.bins(task) if one.bin_idx != POOLED and one.n]
    if len(bins) < 2:
        return []
    short, long = bins[0], bins[-1]
    curves = {(curve.method, curve.bin_idx): curve for curve in study.curves(task, tau) if curve.ok}
    pairs = {
        name_text(method): (curves[method, short.bin_idx], curves[method, long.bin_idx])
        for method in study.methods
        if (method, short.bin_idx) in curves and (method, long.bin_idx) in curves
    }
    if not pairs:
        return []
    return [length_sentence(pairs, f"prompts of {short.lengths}", long.lengths)]
