"""Reading and writing rows of the database. JSON columns take and give Python values."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from kv_transition.files import canonical_json

Row = dict[str, Any]

#: Rows of one statement at most, which takes half the time of as many statements.
ROWS_AT_ONCE = 50
#: Variables of one statement: the least that SQLite is built for.
MOST_VARIABLES = 999


def quoted(name: str) -> str:
    """A table or column name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def sql_value(value: Any) -> Any:
    """A value as it is stored: lists and mappings as JSON, in which SQL's rule holds too that nan is null."""
    return canonical_json(_without_nan(value)) if isinstance(value, list | tuple | dict) else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


# Writing


def insert_many(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    same: Mapping[str, Any] | None = None,
) -> int:
    """Insert rows of stored values (see :func:`sql_value`) and return how many; rows that exist are an error.

    Parameters
    ----------
    columns, rows : names, and a value for each in every row.
    same : further columns, each with its value in all rows.
    """
    fixed = same or {}
    at_once = min(ROWS_AT_ONCE, (MOST_VARIABLES - len(fixed)) // max(len(columns), 1))
    shape = table, tuple(columns), tuple(fixed)
    waiting, rest = iter(rows), list[Sequence[Any]]()

    def values(some: Iterable[Sequence[Any]]) -> list[Any]:
        return [*fixed.values(), *chain.from_iterable(some)]

    def together() -> Iterator[list[Any]]:
        while len(some := list(islice(waiting, at_once))) == at_once:
            yield values(some)
        rest.extend(some)

    count = max(connection.executemany(_insertion(*shape, at_once), together()).rowcount, 0)
    if rest:
        connection.execute(_insertion(*shape, len(rest)), values(rest))
    return count + len(rest)


@lru_cache(maxsize=512)
def _insertion(table: str, columns: tuple[str, ...], same: tuple[str, ...], rows: int) -> str:
    """The statement that inserts so many rows; its first variables are the values that all of them have.

    Equal statements are read by SQLite once for each connection, which costs as much as inserting some hundred rows.
    """
    names = ", ".join(quoted(name) for name in (*same, *columns))
    fixed = [f"?{number + 1}" for number in range(len(same))]
    each = [
        ", ".join([*fixed, *(f"?{len(same) + row * len(columns) + at + 1}" for at in range(len(columns)))])
        for row in range(rows)
    ]
    return f"INSERT INTO {quoted(table)} ({names}) VALUES {', '.join(f'({one})' for one in each)}"


def _insert(
    connection: sqlite3.Connection, table: str, row: Mapping[str, Any], key: str | None = None
) -> None:
    """Insert a row; with `key` (its primary key) replace the given columns of a row that exists."""
    names = ", ".join(quoted(name) for name in row)
    statement = f"INSERT INTO {quoted(table)} ({names}) VALUES ({', '.join('?' * len(row))})"
    if key is not None:
        changes = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in row if name != key)
        statement += f" ON CONFLICT ({quoted(key)}) DO " + (f"UPDATE SET {changes}" if changes else "NOTHING")
    connection.execute(statement, [sql_value(value) for value in row.values()])


def upsert_run(connection: sqlite3.Connection, row: Mapping[str, Any]) -> None:
    """Insert a run, or change the given columns of the run with this run_id."""
    _insert(connection, "runs", row, key="run_id")


def insert_request(connection: sqlite3.Connection, row: Mapping[str, Any]) -> None:
    """Insert a request; sqlite3.IntegrityError if its run or example is unknown or it is there already."""
    _insert(connection, "requests", row)


def insert_response(connection: sqlite3.Connection, row: Mapping[str, Any]) -> None:
    """Insert the response to a request; sqlite3.IntegrityError if there is one already."""
    _insert(connection, "responses", row)


def upsert_telemetry(connection: sqlite3.Connection, row: Mapping[str, Any]) -> None:
    """Insert a request's telemetry, or change the given columns of it."""
    _insert(connection, "telemetry", row, key="request_id")


def upsert_failure(connection: sqlite3.Connection, row: Mapping[str, Any]) -> None:
    """Insert a request's failure, or change the given columns of it."""
    _insert(connection, "failures", row, key="request_id")


# Reading


def run_exists(connection: sqlite3.Connection, run_id: str) -> bool:
    """Whether the run is in the database."""
    return connection.execute("SELECT 1 FROM runs WHERE run_id = ?", [run_id]).fetchone() is not None


def count_requests_for_run(connection: sqlite3.Connection, run_id: str) -> int:
    """Number of requests of a run, replicates counted; 0 for an unknown run."""
    (count,) = connection.execute("SELECT count(*) FROM requests WHERE run_id = ?", [run_id]).fetchone()
    return int(count)


def manifest_entries_with_examples(connection: sqlite3.Connection, dataset_id: str) -> Iterator[Row]:
    """The selected examples of a dataset in manifest order, one at a time.

    Yields
    ------
    Rows with example_id, bin_idx, token_len, question, context, answers (list), meta (dict) and cluster_id.
    """
    found = connection.execute(
        """SELECT example_id, bin_idx, token_len, question, context, answers, meta, cluster_id
           FROM manifest_entries JOIN examples USING (dataset_id, example_id)
           WHERE dataset_id = ? ORDER BY position""",
        [dataset_id],
    )
    return (dict(row) for row in found)


def read_scored_answers(
    connection: sqlite3.Connection, *, run_id: str | None = None, task: str | None = None
) -> Iterator[Row]:
    """Rows of the view scored_answers, of one run or task if given, one at a time."""
    return _select(connection, "scored_answers", run_id=run_id, task=task)


def read_bin_stats(
    connection: sqlite3.Connection,
    *,
    dataset: str | None = None,
    method: str | None = None,
    policy: str | None = None,
) -> list[Row]:
    """Scores per bin, method and budget; None takes all."""
    return list(_select(connection, "bin_stats", dataset=dataset, method=method, policy=policy))


def read_retention(
    connection: sqlite3.Connection,
    *,
    dataset: str | None = None,
    method: str | None = None,
    policy: str | None = None,
) -> list[Row]:
    """Retention per bin, method and budget; None takes all."""
    return list(_select(connection, "retention", dataset=dataset, method=method, policy=policy))


def read_transitions(
    connection: sqlite3.Connection,
    *,
    dataset: str | None = None,
    method: str | None = None,
    policy: str | None = None,
    tau: float | None = None,
) -> list[Row]:
    """Transition budgets per bin, method and tau; None takes all."""
    return list(
        _select(connection, "transition_summary", dataset=dataset, method=method, policy=policy, tau=tau)
    )


def _select(connection: sqlite3.Connection, table: str, **equal: Any) -> Iterator[Row]:
    """Rows in stored order whose columns have the given values; None means any."""
    wanted = {name: value for name, value in equal.items() if value is not None}
    where = " AND ".join(f"{quoted(name)} = ?" for name in wanted) or "1"
    found = connection.execute(f"SELECT * FROM {quoted(table)} WHERE {where}", list(wanted.values()))
    return (dict(row) for row in found)
