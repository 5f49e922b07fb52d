"""Records made from the published rows themselves, where nothing but the results is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kv_transition.data.normalize import Example
from kv_transition.data.published.matching import Record, check_reference
from kv_transition.data.published.rows import Row, Run
from kv_transition.errors import UserError

#: In `extra.answers` of a record whose source holds no reference answers; it is scored already.
NOT_PUBLISHED = "not published"


def make_records(task: str, run: Run, allow_incomplete: bool) -> tuple[list[dict[str, Any]], str]:
    """Records of a task from the rows of `full`, in LongBench's columns, and what was passed over ("" if nothing was).

    Questions and contexts are empty: nobody can ask these records again. `_id` is the source's id, or `<task>-<row>` with
    the row's number from 0; `length` is what the source states.

    Raises
    ------
    UserError
        For rows that are doubled, missing or out of order, and for rows without a length, which bins need.
    """
    rows, notes = check_reference(task, run, allow_incomplete)
    return [_record(task, run, row, place) for place, row in enumerate(rows)], notes


def record_id(task: str, row: Row, place: int) -> str:
    """The id of a row's record."""
    return row.example_id or f"{task}-{place if row.index is None else row.index:04d}"


def as_record(example: Example, own: bool) -> Record:
    """An example as rows are compared with it; `own` says that its record was made by :func:`make_records`."""
    meta = example.meta
    fields = {"_id": meta.get("source_id"), "answers": example.answers}
    fields |= {"length": meta.get("length"), "extra": meta.get("extra")}
    return comparable(fields, example.example_id, meta["position"], own)


def comparable(record: Mapping[str, Any], example_id: str, position: int, own: bool) -> Record:
    """A record as rows are compared with it.

    Parameters
    ----------
    record : in LongBench's columns.
    position : its row in its file, from 0.
    own : it was made by :func:`make_records`, and says itself which row it was made of.
    """
    extra = record.get("extra") or {}
    return Record(
        example_id=example_id,
        id=record.get("_id") or example_id,
        index=extra["row"] if own else position,
        answers=None if extra.get("answers") == NOT_PUBLISHED else tuple(record["answers"]),
        length=record.get("length"),
    )


def _record(task: str, run: Run, row: Row, place: int) -> dict[str, Any]:
    if row.length is None:
        raise UserError(
            f"{run.file}, line {row.line}: no length, which length bins need; add the column length (words, in Chinese "
            "characters; token_len counts tokens and does not stand for it), or give the records with dataset.path"
        )
    return {
        "_id": record_id(task, row, place),
        "input": "",
        "context": "",
        "answers": list(row.answers or ()),
        "all_classes": None if row.all_classes is None else list(row.all_classes),
        "length": row.length,
        "dataset": task,
        "language": None,
        "extra": {"row": place if row.index is None else row.index}
        | ({} if row.answers is not None else {"answers": NOT_PUBLISHED}),
    }
