"""Predictions in the files of LongBench's own evaluation: one JSON object a line, read and checked line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_transition.data.columns import check_row, optional_texts, optional_whole_number, texts
from kv_transition.data.excerpts import shown
from kv_transition.data.json_lines import read_json_lines
from kv_transition.errors import UserError

#: Reference answers and length: all that a predictions file tells of a record.
Gold = tuple[tuple[str, ...], int | None]


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file.

    Attributes
    ----------
    pred : the model's answer.
    answers : the reference answers.
    all_classes : class names of the task, () where the file has null or none.
    length : the record's length (words, in Chinese characters), None where the file does not say.
    row : number of the line, from 0.
    """

    pred: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...]
    length: int | None
    row: int

    @property
    def gold(self) -> Gold:
        """What tells which record the line belongs to."""
        return self.answers, self.length


def read_predictions(path: str | Path) -> list[Prediction]:
    """The lines of a predictions file, in file order, texts untouched.

    Columns besides `pred`, `answers`, `all_classes` and `length` are ignored; the last two may be absent.

    Raises
    ------
    UserError
        Naming file and line: blank, not UTF-8, broken JSON, no object, a missing column, a wrong type, a null `pred`;
        naming the file: missing, unreadable or empty.
    """
    return [prediction for prediction, _, _ in prediction_lines(path)]


def prediction_lines(path: str | Path) -> Iterator[tuple[Prediction, Mapping[str, Any], str]]:
    """Each prediction with all columns of its line, whatever else they hold, and the words that name file and line.

    Raises
    ------
    UserError
        As :func:`read_predictions`.
    """
    for row, (value, where) in enumerate(read_json_lines(path)):
        line = check_row(value, ("pred", "answers"), where)
        yield _prediction(line, row, where), line, where


def read_gold(path: str | Path) -> list[Gold]:
    """Reference answers and lengths of a task's records in their official order: any file with these two columns.

    Raises
    ------
    UserError
        As :func:`read_predictions`.
    """
    return [_gold(check_row(value, ("answers",), where), where) for value, where in read_json_lines(path)]


def _gold(line: Mapping[str, Any], where: str) -> Gold:
    return texts(line, "answers", where), optional_whole_number(line, "length", where)


def _prediction(line: Mapping[str, Any], row: int, where: str) -> Prediction:
    pred = line["pred"]
    if pred is None:
        raise UserError(
            f'{where}: pred is null, which cannot be scored; ask the model again, or write "" if its answer was empty'
        )
    if not isinstance(pred, str):
        raise UserError(f"{where}: pred must be a text, found {shown(pred)}")
    answers, length = _gold(line, where)
    return Prediction(pred, answers, optional_texts(line, "all_classes", where) or (), length, row)
