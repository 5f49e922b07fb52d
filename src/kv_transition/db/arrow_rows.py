"""Arrow tables as rows of the database, a bounded number at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from kv_transition.db.dao import insert_many, sql_value

#: Rows held as Python values at once.
BATCH_ROWS = 50_000


def sql_type(kind: pa.DataType) -> str:
    """The declared type of a column for values of an Arrow type."""
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_integer(kind):
        return "INTEGER"
    if pa.types.is_floating(kind):
        return "REAL"
    return "JSON TEXT" if pa.types.is_list(kind) else "TEXT"


def insert_columns(
    connection: sqlite3.Connection, name: str, table: pa.Table, columns: Sequence[str] | None = None
) -> None:
    """Insert columns of an Arrow table (default: all) into the database table, a bounded number of rows at a time."""
    selected = table.select(columns or table.column_names)
    for batch in selected.to_batches(BATCH_ROWS):
        insert_many(connection, name, selected.column_names, stored_rows(batch))


def stored_rows(table: pa.Table | pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """Rows of a table with values as SQLite stores them: lists as JSON, nan and null as NULL."""
    columns = []
    for field in table.schema:
        values = table.column(field.name).to_pylist()
        columns.append(_texts_of_lists(values) if pa.types.is_list(field.type) else values)
    return zip(*columns, strict=True)


def _texts_of_lists(values: Sequence[list[Any] | None]) -> list[str | None]:
    """Lists of numbers or text as JSON. Most rows repeat another's kept tokens, so each list is written out once."""
    texts: dict[tuple[Any, ...], str] = {}
    return [
        None if value is None else texts.get(key := tuple(value)) or texts.setdefault(key, sql_value(value))
        for value in values
    ]
