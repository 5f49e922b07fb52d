"""Keys and references of rows that were inserted unchecked: proved at once, and blamed on the file that breaks them."""

from __future__ import annotations

import re
import sqlite3
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kv_transition.db.connect import index_statements
from kv_transition.db.dao import quoted
from kv_transition.errors import UserError

_UNIQUE = re.compile(r"CREATE UNIQUE INDEX \w+ ON (?P<table>\w+) \((?P<columns>.+)\)")


class Sources:
    """Which file a row came from: a table's rows are numbered in the order in which they were inserted."""

    def __init__(self) -> None:
        self._ends: dict[str, list[int]] = defaultdict(list)
        self._paths: dict[str, list[Path]] = defaultdict(list)

    def add(self, table: str, rows: int, path: Path) -> None:
        """Note that the next rows of a table are those of a file."""
        self._ends[table].append(rows + (self._ends[table][-1] if self._ends[table] else 0))
        self._paths[table].append(path)

    def of(self, table: str, row: int) -> Path:
        """The file of a row, counted from 1."""
        return self._paths[table][bisect_left(self._ends[table], row)]


def misfit(path: Path, error: object) -> UserError:
    """What is said of a file whose rows contradict others."""
    return UserError(
        f"{path}: does not fit the manifests and responses beside it ({error}); delete it and build it again"
    )


def make_indexes(connection: sqlite3.Connection, sources: Sources) -> None:
    """Make all indexes of the schema; UserError where a unique one finds two rows with one key."""
    for statement in index_statements():
        try:
            connection.execute(statement)
        except sqlite3.IntegrityError as error:
            found = _UNIQUE.match(statement)
            assert found
            table = found["table"]
            (row,) = connection.execute(
                f"SELECT max(rowid) FROM {table} GROUP BY {found['columns']} HAVING count(*) > 1"
            ).fetchone()
            raise misfit(sources.of(table, row), error) from None


def check_references(connection: sqlite3.Connection, tables: Sequence[str], sources: Sources) -> None:
    """Every foreign key of the tables has its row, or UserError.

    The parents are looked up in the order of an index and each once, which `PRAGMA foreign_key_check` does not do.
    """
    for table in tables:
        keys: dict[int, list[sqlite3.Row]] = defaultdict(list)
        for row in connection.execute(f"PRAGMA foreign_key_list({quoted(table)})"):
            keys[row["id"]].append(row)
        for parts in keys.values():
            columns = ", ".join(quoted(part["from"]) for part in parts)
            equal = " AND ".join(
                f"parent.{quoted(part['to'])} = child.{quoted(part['from'])}" for part in parts
            )
            orphan = connection.execute(
                f"""SELECT 1 FROM (SELECT DISTINCT {columns} FROM {quoted(table)}) AS child
                    WHERE NOT EXISTS (SELECT 1 FROM {quoted(parts[0]["table"])} AS parent WHERE {equal}) LIMIT 1"""
            ).fetchone()
            if orphan:
                found = connection.execute(f"PRAGMA foreign_key_check({quoted(table)})").fetchone()
                raise misfit(
                    sources.of(table, found["rowid"]),
                    f"FOREIGN KEY constraint failed: a row of {table} has no row of {found['parent']}",
                )
