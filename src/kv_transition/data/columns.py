"""Columns of a row of JSON: there and of their type, or a UserError with the words that name the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kv_transition.data.excerpts import shown
from kv_transition.errors import UserError


def check_row(value: object, columns: Sequence[str], where: str) -> dict[str, Any]:
    """The value, if it is a JSON object with these columns."""
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: expected a JSON object, found {type(value).__name__}; every record is one object"
        )
    missing = [column for column in columns if column not in value]
    if missing:
        raise UserError(
            f"{where}: missing {', '.join(missing)}; it has {', '.join(value) or 'no columns'}; rename or add them"
        )
    return value


def texts(row: Mapping[str, Any], column: str, where: str) -> tuple[str, ...]:
    """A column that holds a list of texts."""
    return _texts(row[column], column, where, "a list of texts")


def optional_texts(row: Mapping[str, Any], column: str, where: str) -> tuple[str, ...] | None:
    """A column that holds a list of texts, None where it is null or absent."""
    value = row.get(column)
    return None if value is None else _texts(value, column, where, "a list of texts or null")


def _texts(value: object, column: str, where: str, expected: str) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UserError(f'{where}: {column} is one text, expected a list of texts; write ["..."] around it')
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: {column} must be {expected}, found {shown(value)}")
    return tuple(value)


def optional_text(row: Mapping[str, Any], column: str, where: str) -> str | None:
    """A column that holds a text, None where it is null or absent."""
    value = row.get(column)
    if not isinstance(value, str | None):
        raise UserError(f"{where}: {column} must be a text or null, found {shown(value)}")
    return value


def optional_whole_number(row: Mapping[str, Any], column: str, where: str) -> int | None:
    """A column that holds a whole number, None where it is null or absent."""
    value = row.get(column)
    if not isinstance(value, int | None) or isinstance(value, bool):
        raise UserError(f"{where}: {column} must be a whole number or null, found {shown(value)}")
    return value
