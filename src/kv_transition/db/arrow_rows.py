"""Arrow tables as rows of the database, a bounded number at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from kv_transition.db.dao import insert_many, sql_value

#: Rows held as Python values at once.
BATCH_ROWS = 50_000
#: Below it a float that is a whole number is written with all its digits.
MOST_EXACT = 2**53


@dataclass(frozen=True)
class Same:
    """The one value that a column has in all its rows."""

    value: Any


#: A column's values, or the only one.
Stored = Same | list[Any]


def sql_type(kind: pa.DataType) -> str:
    """The declared type of a column for values of an Arrow type."""
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_integer(kind):
        return "INTEGER"
    if pa.types.is_floating(kind):
        return "REAL"
    return "JSON TEXT" if pa.types.is_list(kind) else "TEXT"


def insert_columns(connection: sqlite3.Connection, name: str, table: pa.Table) -> None:
    """Insert an Arrow table into the database table, a bounded number of rows at a time."""
    for batch in table.combine_chunks().to_batches(BATCH_ROWS):
        insert_stored(connection, name, stored_columns(batch), batch.num_rows)


def insert_stored(
    connection: sqlite3.Connection, name: str, columns: Mapping[str, Stored], n_rows: int
) -> None:
    """Insert stored columns.

    Most columns of a run say the same in every row. Such a value is given once for many rows, which is several times faster.
    """
    same = {column: stored.value for column, stored in columns.items() if isinstance(stored, Same)}
    varying = {column: stored for column, stored in columns.items() if not isinstance(stored, Same)}
    rows = zip(*varying.values(), strict=True) if varying else iter([()] * n_rows)
    insert_many(connection, name, list(varying), rows, same)


def stored_columns(batch: pa.RecordBatch) -> dict[str, Stored]:
    """The columns of a batch as SQLite stores them."""
    return {name: stored_values(batch.column(name)) for name in batch.schema.names}


def stored_rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Rows of a table of plain values, nulls as None."""
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def stored_values(column: pa.Array) -> Stored:
    """The values of a column, at least one, as SQLite stores them: lists as JSON; null as None or nan, both its NULL."""
    if column.null_count == len(column):
        return Same(None)
    if pa.types.is_list(column.type):
        return _stored_lists(column)
    if pa.types.is_floating(column.type) or (pa.types.is_integer(column.type) and not column.null_count):
        numbers = _numbers(column)
        whole = float(numbers[0]).is_integer() and abs(numbers[0]) < MOST_EXACT
        return Same(numbers[0].item()) if whole and (numbers == numbers[0]).all() else numbers.tolist()
    first = column[0].as_py()
    if column.null_count or first != column[-1].as_py() or len(column.unique()) > 1:
        return list(column.to_pylist())
    return Same(first)


def _numbers(column: pa.Array) -> Any:
    """(n,) array of numbers, null as nan. Arrow's own `to_numpy` would import pandas for it, which takes half a second."""
    if not column.null_count:
        return np.from_dlpack(column)
    valid, values = column.buffers()
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
    inside = slice(column.offset, column.offset + len(column))
    numbers = np.frombuffer(values, column.type.to_pandas_dtype())[inside].copy()
    numbers[bits[inside] == 0] = np.nan
    return numbers


def _stored_lists(column: pa.ListArray) -> Stored:
    """Lists of numbers or text as JSON. Most rows repeat another's kept tokens, so each list is written out once."""
    texts: dict[Any, str] = {}
    if not pa.types.is_floating(column.type.value_type) or column.values.null_count:
        return [
            None
            if value is None
            else texts.get(key := tuple(value)) or texts.setdefault(key, sql_value(value))
            for value in column.to_pylist()
        ]
    numbers, ends = _numbers(column.values), _numbers(column.offsets)
    lengths = np.diff(ends)
    if not column.null_count and (lengths == lengths[0]).all():
        table = numbers[ends[0] : ends[-1]].reshape(len(column), lengths[0])
        if (table == table[0]).all():
            return Same(sql_value(table[0].tolist()))
    found: list[str | None] = []
    limits = ends.tolist()
    for start, end, valid in zip(limits, limits[1:], column.is_valid().to_pylist(), strict=False):
        key = numbers[start:end].tobytes()
        if valid and key not in texts:
            texts[key] = sql_value(numbers[start:end].tolist())
        found.append(texts[key] if valid else None)
    return found
