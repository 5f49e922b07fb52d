"""What answers took and kept, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import budget_tick, bytes_words, finite
from kv_transition.budgets import budget_from_label
from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Study

if TYPE_CHECKING:
    import pandas as pd


def timed(study: Study, task: str) -> bool:
    """Whether single requests of a task were timed."""
    return bool(study.costs.loc[study.costs["task"] == task, "latency_median"].notna().any())


def cost_table(study: Study, task: str) -> str:
    """Cache bytes and, where requests were timed, their median time: methods down, budgets across; empty without either."""
    rows = study.pooled(study.costs[study.costs["task"] == task])
    if not (rows["bytes_kept_mean"].notna().any() or rows["latency_median"].notna().any()):
        return ""
    cells = {(row["method"], row["budget"]): _cell(row) for _, row in rows.iterrows()}
    labels = [
        label
        for label in rows.sort_values("budget_value", kind="stable")["budget"].unique()
        if budget_from_label(label) is not None
    ]
    out = [
        [
            name_text(method),
            *(cells.get((method, label), "–") for label in labels),
            cells.get(("full", "full"), "–"),
        ]
        for method in study.methods_on(task)
    ]
    ticks = [budget_tick(budget) for label in labels if (budget := budget_from_label(label)) is not None]
    return table(["method", *ticks, "full cache"], out)


def _cell(row: pd.Series) -> str:
    parts = []
    if finite(row["bytes_kept_mean"]):
        parts.append(bytes_words(float(row["bytes_kept_mean"])))
    if finite(row["latency_median"]):
        parts.append(f"{float(row['latency_median']):.3g} s")
    return ", ".join(parts) or "–"
