"""Differences between methods and between budgets that are shown after correction for how many were tested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import budget_tick
from kv_transition.budgets import budget_from_label
from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Study
from kv_transition.report.wording import range_words

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Shown:
    """A difference between two methods that is shown: `better` scores higher than `worse` at these budgets, by `smallest` to
    `largest`."""

    better: str
    worse: str
    budgets: tuple[str, ...]
    smallest: float
    largest: float


def shown_differences(study: Study, task: str) -> list[Shown]:
    """Pairs of methods with a shown difference, all lengths together; cells with too many failed requests show nothing."""
    rows = study.comparisons(task, "method")
    rows = rows[(rows["p_adjusted"] <= 1 - study.conf) & ~rows["unreliable"].astype(bool)]
    rows = rows.sort_values("budget_value_a", kind="stable")
    found: list[Shown] = []
    for first in study.methods_on(task):
        for second in study.methods_on(task):
            if first != second:
                found += _one_way(rows, first, second)
    return found


def _one_way(rows: pd.DataFrame, better: str, worse: str) -> Iterator[Shown]:
    ahead = rows[(rows["method_b"] == better) & (rows["method_a"] == worse) & (rows["diff"] > 0)]
    behind = rows[(rows["method_a"] == better) & (rows["method_b"] == worse) & (rows["diff"] < 0)]
    cells = ahead if len(ahead) else behind
    if len(cells):
        sizes = cells["diff"].abs()
        yield Shown(better, worse, tuple(cells["budget_a"]), float(sizes.min()), float(sizes.max()))


def comparison_table(study: Study, task: str) -> str:
    """Which method scores higher than which, and at which budgets; empty where fewer than two methods were compared."""
    if study.comparisons(task, "method").empty:
        return ""
    shown = {(one.better, one.worse): one for one in shown_differences(study, task)}
    methods = study.methods_on(task)
    rows = [
        [name_text(better), *(_cell(shown.get((better, worse)), better == worse) for worse in methods)]
        for better in methods
    ]
    return table(["scores higher than →", *(name_text(method) for method in methods)], rows)


def _cell(shown: Shown | None, same: bool) -> str:
    if same:
        return ""
    if shown is None:
        return "–"
    return f"{', '.join(_ticks(shown.budgets))} (by {range_words(shown.smallest, shown.largest)})"


def _ticks(labels: tuple[str, ...]) -> list[str]:
    return [label if (one := budget_from_label(label)) is None else budget_tick(one) for label in labels]


def comparison_words(study: Study, task: str) -> str:
    """Which method is nowhere shown to be worse and somewhere better than each other one; empty where there is none."""
    tests = len(study.comparisons(task, "method"))
    methods = study.methods_on(task)
    if not tests or len(methods) < 2:
        return ""
    shown = {(one.better, one.worse) for one in shown_differences(study, task)}
    ahead = [
        method
        for method in methods
        if all(
            (method, other) in shown and (other, method) not in shown for other in methods if other != method
        )
    ]
    correction = f"Holm's correction over {tests} comparisons of methods at equal budgets"
    if ahead:
        others = "the other method" if len(methods) == 2 else "each of the other methods"
        return (
            f"{name_text(ahead[0])} is shown to score higher than {others} at one budget or more, and lower at none, all "
            f"lengths together ({correction})."
        )
    if shown:
        return (
            f"No method is shown to score higher than all others ({correction}; the table of task {name_text(task)} has the "
            "pairs)."
        )
    seen = unseen(study, task)
    size = f": one under {seen} (it depends on the cells) would often not be seen" if seen else ""
    return (
        f"No difference between methods could be shown ({correction}), which does not make them equal{size}."
    )


def steps_table(study: Study, task: str) -> str:
    """Between which neighbouring budgets a method's score falls, all lengths together; empty where nothing was tested."""
    rows = study.comparisons(task, "adjacent").sort_values("budget_value_a", kind="stable", ascending=False)
    if rows.empty:
        return ""
    shown = rows[(rows["p_adjusted"] <= 1 - study.conf) & ~rows["unreliable"].astype(bool)]
    out = []
    for method in study.methods_on(task):
        own = shown[shown["method_a"] == method]
        falls, rises = (
            [_step(row) for _, row in own[mask].iterrows()] for mask in (own["diff"] > 0, own["diff"] < 0)
        )
        tested = int((rows["method_a"] == method).sum())
        if tested:
            sizes = rows.loc[(rows["method_a"] == method) & (rows["status"] == "ok"), "mde"].dropna()
            seen = range_words(float(sizes.min()), float(sizes.max())) if len(sizes) else "–"
            falls, rises = falls or ["none shown"], rises or ["none shown"]
            out.append([name_text(method), "; ".join(falls), "; ".join(rises), str(tested), seen])
    header = ["method", "the score falls from one budget to the next smaller", "rises", "steps tested", "MDE"]
    return table(header, out, 3)


def _step(row: pd.Series) -> str:
    larger, smaller = _ticks((row["budget_b"], row["budget_a"]))
    return f"{larger} → {smaller} ({-row['diff']:+.2f})"


def unseen(study: Study, task: str) -> str:
    """The smallest difference between two methods that the sample would find, for a sentence; empty without any."""
    rows = study.comparisons(task, "method")
    values = rows.loc[rows["status"] == "ok", "mde"].dropna()
    return range_words(float(values.min()), float(values.max())) if len(values) else ""
