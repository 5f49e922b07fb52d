"""Opening the database: read-only for questions, writable and with the schema for its making."""

from __future__ import annotations

import json
import sqlite3
from importlib import resources
from pathlib import Path

from kv_transition.errors import UserError

#: Stored in the file (`PRAGMA user_version`); raised when a change of the schema breaks queries.
SCHEMA_VERSION = 1

# The declared types of schema.sql that SQLite itself stores as text and as 0 and 1.
sqlite3.register_converter("JSON", json.loads)
sqlite3.register_converter("BOOLEAN", lambda stored: stored != b"0")


def connect(path: str | Path, read_only: bool = False) -> sqlite3.Connection:
    """Open a database: foreign keys enforced, columns by name, JSON and BOOLEAN columns as Python values.

    Parameters
    ----------
    path : the SQLite file; with `read_only` it has to exist, otherwise an absent one is made.
    read_only : refuse every change.

    Raises
    ------
    UserError
        When there is no such file, or it is no SQLite database.
    """
    file = Path(path).resolve()
    if read_only and not file.is_file():
        raise UserError(f"{path}: no such database; build it first (the workflow's last step)")
    try:
        connection = sqlite3.connect(
            f"{file.as_uri()}?mode={'ro' if read_only else 'rwc'}",
            uri=True,
            detect_types=sqlite3.PARSE_DECLTYPES,
            cached_statements=512,
        )
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: cannot be opened ({error}); check the folder and its permissions") from None
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(f"{path}: not a usable SQLite database ({error})") from None
    return connection


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables and the view of schema.sql in an empty database."""
    connection.executescript(_sql("schema.sql"))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def index_statements() -> list[str]:
    """The statements of indexes.sql, which complete what create_tables begins."""
    lines = (line for line in _sql("indexes.sql").splitlines() if not line.startswith("--"))
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]


def create_schema(connection: sqlite3.Connection) -> None:
    """Create the tables, indexes and the view in an empty database."""
    create_tables(connection)
    for statement in index_statements():
        connection.execute(statement)


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
