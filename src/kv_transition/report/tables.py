"""The tables of the report, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import budget_tick, finite
from kv_transition.analysis.figures.cells import POOLED
from kv_transition.budgets import UNCOMPRESSED, budget_label
from kv_transition.report.claims import claim_words
from kv_transition.report.markdown import escape_text, name_text, table
from kv_transition.report.study import Claim, Study
from kv_transition.report.wording import Curve, percent

if TYPE_CHECKING:
    import pandas as pd

FAILURES = {
    "n_timeout": "timeout",
    "n_engine_error": "engine error",
    "n_empty_output": "empty",
    "n_refusal": "refusal",
    "n_truncated": "cut off",
    "n_format_error": "wrong form",
    "n_missing": "missing",
}
#: Longest table of failures; the files have the rest.
MAX_ROWS = 40
MAX_TEXT = 120


def with_interval(value: object, low: object, high: object) -> str:
    """A number and its interval for a table cell; a dash where there is none."""
    if not finite(value):
        return "–"
    if not (finite(low) and finite(high)):
        return _two_places(value)
    return f"{_two_places(value)} [{_two_places(low)}, {_two_places(high)}]"


def _two_places(value: object) -> str:
    """Rounded to two places; what rounds to zero has no sign."""
    return f"{round(float(value), 2) + 0.0:.2f}"  # type: ignore[arg-type]


def overview_table(study: Study, tau: float) -> str:
    """Transition budgets with their intervals, all lengths together: tasks down, methods across."""
    rows = []
    for task in study.tasks:
        curves = {curve.method: curve.cell() for curve in study.pooled_curves(task, tau)}
        rows.append([name_text(task), *(curves.get(method, "–") for method in study.methods)])
    return table(["task", *(name_text(method) for method in study.methods)], rows)


def transition_table(study: Study, task: str, tau: float) -> str:
    """Transition budget with its interval: methods down, all lengths and each bin across."""
    bins = study.bins(task)
    curves = {(curve.method, curve.bin_idx): curve for curve in study.curves(task, tau)}
    columns = [(POOLED, "all lengths")] if any(key[1] == POOLED for key in curves) else []
    columns += [
        (one.bin_idx, f"{one.lengths}, {one.size}")
        for one in bins
        if one.bin_idx != POOLED and one.n and any(key[1] == one.bin_idx for key in curves)
    ]
    rows = []
    for method in study.methods:
        cells = [curves.get((method, bin_idx)) for bin_idx, _ in columns]
        if any(cells):
            rows.append([name_text(method), *("–" if cell is None else cell.cell() for cell in cells)])
    return table(["method", *(title for _, title in columns)], rows)


def _grid(
    study: Study, rows: pd.DataFrame, columns: tuple[str, str, str], unreliable: set[tuple[str, str]]
) -> str:
    value, low, high = columns
    cells = {}
    for _, row in rows[rows["status"] != "not_applicable"].iterrows():
        text = with_interval(row[value], row[low], row[high])
        inactive = finite(row["active_frac"]) and float(row["active_frac"]) < study.min_active_share
        marks = ("°" if inactive else "") + ("†" if (row["method"], row["budget"]) in unreliable else "")
        head, space, rest = text.partition(" ")
        cells[row["method"], row["budget"]] = head + marks + space + rest
    labels = [budget_label(budget) for budget in study.budgets]
    out = [
        [name_text(method), *(cells.get((method, label), "–") for label in labels)]
        for method in study.methods
        if any((method, label) in cells for label in labels)
    ]
    return table(["method", *(budget_tick(budget) for budget in study.budgets)], out)


def _unreliable(stats: pd.DataFrame) -> set[tuple[str, str]]:
    return {(row["method"], row["budget"]) for _, row in stats[stats["unreliable"].astype(bool)].iterrows()}


def score_table(study: Study, task: str) -> str:
    """Mean score with its interval, all lengths pooled: methods down, budgets across."""
    rows = study.pooled(study.stats(task))
    rows = rows[~rows["method"].isin(UNCOMPRESSED)]
    return _grid(study, rows, ("mean", "lo", "hi"), _unreliable(rows))


def retention_table(study: Study, task: str) -> str:
    """Retention with its interval, all lengths pooled: methods down, budgets across."""
    stats = study.pooled(study.stats(task))
    return _grid(study, study.pooled(study.ratios(task)), ("R", "R_lo", "R_hi"), _unreliable(stats))


def floor_retention_table(study: Study, task: str) -> str:
    """Retention of what the context adds: (score - floor) / (full - floor), all lengths pooled; empty without a floor."""
    rows = study.pooled(study.ratios(task))
    if rows["R0"].notna().sum() == 0:
        return ""
    return _grid(study, rows, ("R0", "R0_lo", "R0_hi"), _unreliable(study.pooled(study.stats(task))))


def failure_table(study: Study) -> str:
    """Failure labels by task, method and budget, the rows that have any; empty text where there is none."""
    names = [name for name in FAILURES if name in study.bin_stats]
    rows = []
    for task in study.tasks:
        stats = study.pooled(study.stats(task, "zero"))
        for _, row in stats.sort_values(["method", "budget_value"], na_position="first").iterrows():
            counts = [int(row[name]) if finite(row[name]) else 0 for name in names]
            if "n_missing" in names:  # nothing was asked of these, so nothing failed
                counts[names.index("n_missing")] -= int(row["n_infeasible"] + row["n_not_applicable"])
            if any(counts):
                shown = [str(count) if count else "" for count in counts]
                rows.append(
                    [name_text(task), name_text(row["method"]), row["budget"], str(int(row["n"])), *shown]
                )
    if not rows:
        return ""
    text = table(["task", "method", "budget", "n", *(FAILURES[name] for name in names)], rows[:MAX_ROWS], 3)
    hidden = len(rows) - MAX_ROWS
    return text if hidden <= 0 else f"{text}\n\n{hidden} more rows are in `analysis/bin_stats.parquet`."


def failure_examples(study: Study, count: int) -> str:
    """Some answers that failed or scored 0 although the full cache scored 1, as a table; empty where there is none."""
    scores = study.scores
    failed = scores["failure"].notna() & (scores["method"] != "no_context")
    # A published score without its text has no answer to show.
    shown = failed | scores["pred_norm"].notna()
    scores, failed = scores[shown], failed[shown]
    reference = study.scores[(study.scores["method"] == "full") & (study.scores["score"] == 1)]
    solved = set(zip(reference["task"], reference["example_id"], strict=True))
    columns = (scores[name] for name in ("task", "example_id", "method", "score"))
    lost = [
        (task, example) in solved and score == 0 and method not in UNCOMPRESSED
        for task, example, method, score in zip(*columns, strict=True)
    ]
    kinds = scores["failure"].astype(object).where(failed, None)
    scores = scores.assign(
        kind=["lost" if kind is None and gone else kind for kind, gone in zip(kinds, lost, strict=True)]
    )
    chosen = _round_robin(scores.dropna(subset=["kind"]), count)
    questions = {
        (task, example["example_id"]): example["question"]
        for task, manifest in study.manifests.items()
        for example in manifest["examples"]
    }
    rows = [
        [
            name_text(row["task"]), f"{name_text(row['method'])} {row['budget']}", name_text(row["kind"]),
            _quoted(questions.get((row["task"], row["example_id"])) or f"example {row['example_id']}"), _quoted(row["gold_norm"]), _quoted(row["pred_norm"]),
        ]
        for row in chosen
    ]  # fmt: skip
    return (
        table(["task", "method, budget", "kind", "question", "expected", "answer"], rows, 6) if rows else ""
    )


def _round_robin(rows: pd.DataFrame, count: int) -> list[pd.Series]:
    """Rows of every kind in turn, in an order that depends on nothing but their keys."""
    ordered = rows.sort_values(["kind", "task", "example_id", "method", "budget", "replicate"], kind="stable")
    turn = ordered.groupby("kind", sort=True).cumcount()
    ordered = ordered.assign(turn=turn).sort_values(["turn", "kind"], kind="stable").head(count)
    return [row for _, row in ordered.iterrows()]


def _quoted(text: object) -> str:
    if text is None or (isinstance(text, float) and not finite(text)):
        return "–"
    shown = escape_text(text, MAX_TEXT)
    return shown if shown else "(empty)"


def kept_table(study: Study) -> str:
    """Requested against kept positions, over all tasks: proof that the budgets were applied."""
    rows = []
    everything = study.bin_stats[study.bin_stats["policy"] == study.policy]
    for method in study.methods:
        for budget in study.budgets:
            label = budget_label(budget)
            cells = study.pooled(
                everything[(everything["method"] == method) & (everything["budget"] == label)]
            )
            cells = cells[cells["kept_mean"].notna()]
            if cells.empty:
                continue
            weights = cells["n"].clip(lower=1)
            mean = float((cells["kept_mean"] * weights).sum() / weights.sum())
            active = float((cells["active_frac"] * weights).sum() / weights.sum())
            measured = float((cells["verified_frac"] * weights).sum() / weights.sum())
            rows.append(
                [
                    name_text(method), budget_tick(budget), f"{cells['kept_min'].min():g}", f"{mean:.1f}",
                    f"{cells['kept_max'].max():g}", percent(active), percent(measured),
                ]
            )  # fmt: skip
    header = [
        "method",
        "requested",
        "kept, min",
        "mean",
        "max",
        "prompts longer than the budget",
        "measured in the cache",
    ]
    return table(header, rows) if rows else ""


def sensitivity_table(study: Study) -> str:
    """Headline labels that differ between the failure policies; empty text where none does."""
    rows: list[Sequence[str]] = []
    for task in study.tasks:
        for tau in study.taus:
            zero = {curve.method: curve for curve in study.pooled_curves(task, tau, "zero")}
            exclude = {curve.method: curve for curve in study.pooled_curves(task, tau, "exclude")}
            for method in study.methods:
                if method in zero and method in exclude and _labels(zero[method]) != _labels(exclude[method]):
                    what = f"budget keeping {percent(tau)}"
                    rows.append(
                        [
                            name_text(task),
                            name_text(method),
                            what,
                            zero[method].cell(),
                            exclude[method].cell(),
                        ]
                    )
        for method in study.methods_on(task):
            first, second = (study.claim(task, method, policy) for policy in ("zero", "exclude"))
            if _claimed(first) != _claimed(second):
                what = f"loses less than {study.delta:g} from"
                rows.append(
                    [name_text(task), name_text(method), what, claim_words(first), claim_words(second)]
                )
    return (
        table(["task", "method", "label", "failures score 0", "failures left out"], rows, 3) if rows else ""
    )


def _labels(curve: Curve) -> tuple[str, ...]:
    return (curve.status, curve.point, curve.lower, curve.upper) if curve.ok else (curve.status,)


def _claimed(claim: Claim | None) -> tuple[str | None, ...]:
    """A claim without its MDE, which may move although the claim does not."""
    return (None,) if claim is None else (claim.status, claim.budget)


def bounds_table(study: Study, task: str) -> str:
    """Means with the missing scores set to 0 and to 1, for cells that miss some; empty where none does."""
    stats = study.pooled(study.stats(task))
    rows = stats[(stats["n_missing"] > 0) & stats["mean"].notna()]
    rows = rows.sort_values(["method", "budget_value"], na_position="first", kind="stable")
    out = [
        [
            name_text(row["method"]),
            row["budget"],
            f"{int(row['n_missing'])} of {int(row['n'] + row['n_missing'])}",
            *(_two_places(row[name]) for name in ("mean", "mean_missing_0", "mean_missing_1")),
        ]
        for _, row in rows.head(MAX_ROWS).iterrows()
    ]
    header = ["method", "budget", "missing", "mean of the others", "all missing 0", "all missing 1"]
    return table(header, out) if out else ""
