"""Records of LongBench v2, questions with four choices each, in the columns that every other record has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from kv_transition.errors import UserError

#: Name of the one task of LongBench v2.
TASK = "longbench_v2"

LETTERS = ("A", "B", "C", "D")
CHOICES = tuple(f"choice_{letter}" for letter in LETTERS)

#: What LongBench v2 says of a record's length instead of a number.
LENGTH_GROUPS = ("short", "medium", "long")

TEXTS = ("domain", "sub_domain", "difficulty", "length", "question", *CHOICES, "answer", "context")


def is_v2(row: object) -> TypeGuard[dict[str, Any]]:
    """Whether a row has the columns of LongBench v2 rather than those of a record."""
    return isinstance(row, dict) and "input" not in row and any(choice in row for choice in CHOICES)


def to_record(row: Mapping[str, Any], where: str = "LongBench v2 record") -> dict[str, Any]:
    """A row of LongBench v2 as a record.

    Parameters
    ----------
    row : `_id` and the columns `TEXTS`.
    where : how errors name the row.

    Returns
    -------
    `input` holds the question and a line for every choice; the texts themselves, untouched, are in `extra`: domain,
    sub_domain, difficulty, length_group, question, choices (of A, B, C, D).

    Raises
    ------
    UserError
        Naming the column that is missing, no text, or none of the values that LongBench v2 has.
    """
    missing = [column for column in TEXTS if column not in row]
    if missing:
        raise UserError(
            f"{where}: missing {', '.join(missing)} of LongBench v2; it has {', '.join(row)}; rename or add them"
        )
    for column in TEXTS:
        if not isinstance(row[column], str):
            raise UserError(f"{where}: {column} must be a text, found {type(row[column]).__name__}; mend it")
    for column, known in (("answer", LETTERS), ("length", LENGTH_GROUPS)):
        if row[column] not in known:
            raise UserError(
                f"{where}: {column} must be one of {', '.join(known)}, found {row[column][:40]!r}; mend it"
            )
    lines = [f"{letter}) {row[choice].strip()}" for letter, choice in zip(LETTERS, CHOICES, strict=True)]
    return {
        "input": "\n".join([row["question"].strip(), *lines]),
        "context": row["context"],
        "answers": [row["answer"]],
        "length": None,
        "dataset": TASK,
        "language": None,
        "all_classes": list(LETTERS),
        "_id": row.get("_id"),
        "extra": {
            "domain": row["domain"],
            "sub_domain": row["sub_domain"],
            "difficulty": row["difficulty"],
            "length_group": row["length"],
            "question": row["question"],
            "choices": [row[choice] for choice in CHOICES],
        },
    }
