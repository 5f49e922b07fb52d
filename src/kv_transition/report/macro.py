"""Means over tasks: LongBench's kind of average, with the uncertainty it usually lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import budget_tick, finite
from kv_transition.budgets import UNCOMPRESSED, budget_from_label
from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Study
from kv_transition.report.tables import with_interval
from kv_transition.report.wording import join, percent

if TYPE_CHECKING:
    import pandas as pd


def _rows(study: Study) -> pd.DataFrame:
    return study.macro[study.macro["policy"] == study.policy]


def macro_table(study: Study, value: str = "mean") -> str:
    """Mean over tasks (`mean`) or retention of that mean (`R`): methods down, budgets across; empty with one task."""
    rows = _rows(study)
    if rows["mean"].notna().sum() == 0:
        return ""
    low, high = ("lo", "hi") if value == "mean" else ("R_lo", "R_hi")
    cells = {
        (row["method"], row["budget"]): with_interval(row[value], row[low], row[high]) + _marks(study, row)
        for _, row in rows.iterrows()
    }
    labels = sorted(
        {label for method, label in cells if method not in UNCOMPRESSED},
        key=lambda label: float(budget_from_label(label) or 0),
    )
    out = [
        [name_text(method), *(cells.get((method, label), "–") for label in labels)]
        for method in study.methods
        if any((method, label) in cells for label in labels)
    ]
    ticks = [budget_tick(budget) for label in labels if (budget := budget_from_label(label)) is not None]
    return table(["method", *ticks], out)


def macro_reference(study: Study) -> str:
    """The full cache's mean over tasks, in words; empty with one task."""
    rows = _rows(study)
    full = rows[(rows["method"] == "full") & rows["mean"].notna()]
    if full.empty:
        return ""
    row = full.iloc[0]
    return f"{with_interval(row['mean'], row['lo'], row['hi'])} over {int(row['n_tasks'])} tasks"


def macro_words(study: Study) -> str:
    """How much of the full cache's mean over tasks the largest and the smallest common budget retain; empty with one task."""
    rows = _rows(study)
    cells = rows[~rows["method"].isin(UNCOMPRESSED) & rows["R"].notna() & rows["budget_value"].notna()]
    if cells.empty:
        return ""
    clauses = []
    for method in study.methods:
        own = cells[cells["method"] == method].sort_values("budget_value")
        if own.empty:
            continue
        ends = [own.iloc[0], own.iloc[-1]] if len(own) > 1 else [own.iloc[0]]
        said = [f"{_share(row)} at {_tick(row['budget'])}{_marks(study, row)}" for row in ends]
        clauses.append(f"{name_text(method)} {join(said)}")
    tasks = int(cells["n_tasks"].max())
    return (
        f"How much of the full cache's mean score over {tasks} tasks is kept, at the ends of the tested budgets: "
        f"{'; '.join(clauses)}."
    )


def _marks(study: Study, row: pd.Series) -> str:
    """° where most prompts were not longer than the budget, † where too many requests failed."""
    inactive = finite(row["active_frac"]) and float(row["active_frac"]) < study.min_active_share
    return ("°" if inactive else "") + ("†" if row["unreliable"] else "")


def _share(row: pd.Series) -> str:
    shown = percent(round(float(row["R"]), 3))
    if finite(row["R_lo"]) and finite(row["R_hi"]):
        return f"{shown} [{percent(round(float(row['R_lo']), 3))}, {percent(round(float(row['R_hi']), 3))}]"
    return f"{shown} (no interval)"


def _tick(label: str) -> str:
    budget = budget_from_label(label)
    return label if budget is None else budget_tick(budget)
