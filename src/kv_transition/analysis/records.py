"""Rows of the analysis tables as JSON records: plain values, null for what is not known, budgets as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from kv_transition.budgets import budget_from_label
from kv_transition.files import float_round

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]

#: What stands once at the top of a document and not in its records.
_ONCE = ("dataset", "task", "policy")


def rows_of(table: pd.DataFrame, **keys: str) -> list[Record]:
    """The table's rows of a key, without the columns that stand once at the top."""
    for key, value in keys.items():
        table = table[table[key] == value]
    records = table.drop(columns=[name for name in _ONCE if name in table]).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in records]


def as_json(value: Any) -> Any:
    """A value as JSON can hold it: floats in 10 digits, null for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, float):
        # Adding 0 turns -0.0 into 0.0.
        return float_round(value) + 0.0 if isfinite(value) else None
    return value if isinstance(value, bool | int) else None


def budget_of(label: str | None) -> int | float | None:
    """A budget's label as a number; None for "full" and where there is none."""
    return None if not label else budget_from_label(label)


def whole_tokens(budgets: Iterable[float]) -> list[int | float]:
    """Values of budgets, those in tokens as integers."""
    return [int(value) if value >= 1 else value for value in budgets]


def count(value: float) -> int | None:
    """A count that may be missing."""
    return int(value) if isfinite(value) else None


def with_budget(row: Record) -> Record:
    """The row with its budget as a number in place of label and value."""
    kept = {key: value for key, value in row.items() if key != "budget_value"}
    return kept | {"budget": budget_of(row["budget"])} if "budget" in row else kept


def record(row: Record, named: Mapping[str, Any], leave_out: Iterable[str] = ()) -> Record:
    """Keys, then the values that the document names itself, then the other columns of the row."""
    keys = ("method", "bin_idx", "budget", "tau")
    first = {key: row[key] for key in keys if key in row}
    rest = {key: value for key, value in row.items() if key not in {*first, *named, *leave_out}}
    whole: Record = as_json(with_budget(first | dict(named) | rest))
    return whole
