"""What all layouts come down to: the rows of a run, and the names by which runs go here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kv_transition.budgets import UNCOMPRESSED, budget_label, parse_budget
from kv_transition.data.columns import optional_text
from kv_transition.data.predictions import prediction_lines
from kv_transition.errors import ConfigError, UserError
from kv_transition.files import canonical_json, sha256_text

#: (method, budget label) of a run, as tables and folders name it.
Cell = tuple[str, str]

#: Names by which known harnesses call the run without compression (in lower case).
FULL_NAMES = ("fullkv", "no_press")


@dataclass(frozen=True)
class Row:
    """One published answer or score.

    Attributes
    ----------
    line : where it stands in its file, from 1.
    index : number of its record, from 0, where the source states it.
    example_id : id of its record, where the source states it.
    pred : the answer; score : its score in [0, 1]; a row has one of them, or a failure (TIMEOUT, ENGINE_ERROR).
    answers : the reference answers; None where the source holds none, like all_classes and length.
    """

    line: int
    index: int | None = None
    example_id: str | None = None
    pred: str | None = None
    score: float | None = None
    answers: tuple[str, ...] | None = None
    all_classes: tuple[str, ...] | None = None
    length: int | None = None
    failure: str | None = None

    @property
    def content_hash(self) -> str:
        """Hash of what the row says, wherever it stands."""
        return sha256_text(canonical_json({**asdict(self), "line": None}))


@dataclass(frozen=True)
class Run:
    """The rows of one run of a task, in the order of its file."""

    file: Path
    rows: list[Row]


def cell_words(cell: Cell) -> str:
    """A cell as messages name it: "full", "snapkv at 256"."""
    method, budget = cell
    return method if budget == "full" else f"{method} at {budget}"


def method_name(name: str, methods: Mapping[str, str]) -> str:
    """The name of a source's method here: what `published.methods` says, else its own in lower case and safe characters."""
    for given, own in methods.items():
        if given.lower() == name.lower():
            return own
    safe = re.sub(r"[^a-z0-9._-]+", "_", name.lower()).strip("._-")
    return "full" if safe in FULL_NAMES else safe


def cell_of(method: str, budget: object, where: str) -> Cell:
    """The cell of a method and the budget that a source states; UserError if they do not go together."""
    empty = budget is None or (isinstance(budget, str) and budget.strip().lower() in ("", "full"))
    if method in UNCOMPRESSED:
        if not empty:
            raise UserError(
                f"{where}: {method} has a budget ({budget}); leave it empty, or rename the method"
            )
        return method, "full"
    if empty:
        raise UserError(
            f"{where}: {method} has no budget; give one, or map the method to full with published.methods"
        )
    try:
        return method, budget_label(parse_budget(budget))
    except ConfigError:
        raise UserError(
            f"{where}: {budget!r} is no budget; give whole tokens from 2 up (256) or the share kept (0.25)"
        ) from None


def json_rows(path: Path) -> list[Row]:
    """Rows of a file with one JSON object a line: `pred`, `answers`, and if there are `all_classes`, `length`, `_id`.

    Raises
    ------
    UserError
        As :func:`kv_transition.data.predictions.read_predictions`, and for an `_id` that is no text.
    """
    return [
        Row(
            line=prediction.row + 1,
            example_id=optional_text(line, "_id", where) or None,
            pred=prediction.pred,
            answers=prediction.answers,
            all_classes=None if line.get("all_classes") is None else prediction.all_classes,
            length=prediction.length,
        )
        for prediction, line, where in prediction_lines(path)
    ]
