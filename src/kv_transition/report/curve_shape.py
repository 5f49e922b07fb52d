"""Midpoint and width of the fall of a score, from the logistic curve, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import budget_tick, finite
from kv_transition.analysis.figures.cells import POOLED
from kv_transition.budgets import parse_budget
from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Study
from kv_transition.report.wording import percent

if TYPE_CHECKING:
    import pandas as pd


def shape_table(study: Study, task: str) -> str:
    """Midpoint and width of every method in every bin; empty where no curve could be fitted."""
    rows = study.curve_rows(task, study.taus[0])
    bins = [
        one for one in study.bins(task) if one.n and (one.bin_idx != POOLED or len(study.bins(task)) == 1)
    ]
    cells = {(row["method"], int(row["bin_idx"])): _cell(row) for _, row in rows.iterrows()}
    out = [
        [name_text(method), *(cells.get((method, one.bin_idx), "–") for one in bins)]
        for method in study.methods_on(task)
    ]
    if all(cell == "–" for row in out for cell in row[1:]):
        return ""
    return table(["method", *(one.lengths for one in bins)], out)


def _cell(row: pd.Series) -> str:
    """ "187 [150, 230]; 2.1 [0.5, 3.9]", a bound of the midpoint, or a dash."""
    status = str(row["logistic_status"])
    if status not in ("ok", "outside_grid"):
        return "–"
    mark = "§" if "shape_rejected" in str(row["logistic_flags"] or "") else ""
    shares = str(row["m_label"]).lstrip("<>=").startswith("f")
    if status == "ok" and "width_at_bound" in str(row["logistic_flags"]) and row["width"] < row["width_hi"]:
        # Steeper than the budgets resolve: no point between two of them is better than another.
        edges = [row[name] for name in ("m", "m_lo", "m_hi") if finite(row[name])]
        return f"{_tokens(min(edges), shares)}–{_tokens(max(edges), shares)}¶{mark}"
    if status == "outside_grid":
        return f"{_bound(str(row['m_label']))}{mark}"
    middle = (
        f"{_tokens(row['m'], shares)}{mark} [{_tokens(row['m_lo'], shares)}, {_tokens(row['m_hi'], shares)}]"
    )
    if not (finite(row["width_lo"]) and finite(row["width_hi"])):
        return middle
    return f"{middle}; {row['width']:.1f} [{row['width_lo']:.1f}, {row['width_hi']:.1f}]"


def _tokens(log2_budget: object, shares: bool) -> str:
    if not finite(log2_budget):
        return "?"
    value = 2.0 ** float(log2_budget)  # type: ignore[arg-type]
    return percent(value) if shares else f"{value:.0f}"


def _bound(label: str) -> str:
    """ "<64" or ">f0.5" for a table cell: "&lt;64", "&gt;50%"."""
    sign, rest = label[0], label[1:].removeprefix("=")
    budget = parse_budget(rest)
    return {"<": "&lt;", ">": "&gt;"}[sign] + budget_tick(budget)
