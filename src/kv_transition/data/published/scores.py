"""Layout `scores`: one table with a score per method, budget, task and record."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kv_transition.data.columns import check_row
from kv_transition.data.excerpts import shown
from kv_transition.data.json_lines import parse_json_lines
from kv_transition.data.published.rows import Cell, Row, Run, cell_of, method_name
from kv_transition.errors import UserError

SUFFIXES = (".csv", ".parquet", ".jsonl")
REQUIRED = ("method", "budget", "task", "score")
#: What a row may name instead of having a score.
FAILURES = ("TIMEOUT", "ENGINE_ERROR")


def read_runs(path: Path, task: str, methods: Mapping[str, str]) -> dict[Cell, Run]:
    """The runs of a task.

    The table has the columns method, budget (empty for full), task, score (0 to 1), and idx (number of the official record,
    from 0) or example_id. It may have length (as the records state it: words, in Chinese characters) and failure (TIMEOUT or
    ENGINE_ERROR, then the score may be empty). Other columns are ignored, token_len too: tokens are no words.

    Raises
    ------
    UserError
        Naming file and line: a missing or wrong value; naming the file: a missing column, or no row of the task.
    """
    rows: dict[Cell, list[Row]] = defaultdict(list)
    tasks: set[str] = set()
    for line, values in _table(path):
        if values["task"] != task:
            tasks.add(str(values["task"]))
            continue
        where = f"{path}, {_unit(path)} {line}"
        method = method_name(str(_present(values, "method", where)), methods)
        rows[cell_of(method, values["budget"], where)].append(_row(values, line, where))
    if not rows:
        raise UserError(
            f"{path}: no row of task {task} (case counts); it has {', '.join(sorted(tasks)) or 'no row'}"
        )
    return {cell: Run(path, found) for cell, found in rows.items()}


def check_columns(path: Path) -> None:
    """Fail unless the table can be read and has the columns that are needed. Reads its head only."""
    next(_table(path), None)


def _unit(path: Path) -> str:
    return "row" if path.suffix == ".parquet" else "line"


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (of a parquet file: row number) from 1 and values of each row; empty cells are None."""
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"published.path: {path} is no table that can be read; give a file with one of the endings {', '.join(SUFFIXES)}"
        )
    try:
        readers = {".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl}
        yield from readers[path.suffix](path)
    except OSError as error:
        raise UserError(f"published.path: {path} cannot be read ({error.strerror or error})") from None


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            _check_names(path, reader.fieldnames or ())
            for values in reader:
                if None in values:
                    raise UserError(
                        f"{path}, line {reader.line_num}: more values than columns; quote texts with commas"
                    )
                yield reader.line_num, {key: value or None for key, value in values.items()}
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{path}, line {reader.line_num + 1}: not readable as csv in UTF-8 ({error})"
            ) from None


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _check_names(path, file.schema_arrow.names)
        line = 0
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                line += 1
                yield (
                    line,
                    {
                        key: None if value in ("", None) or value != value else value
                        for key, value in values.items()
                    },
                )
    except pa.ArrowException as error:
        raise UserError(f"{path}: not readable as parquet ({str(error).splitlines()[0]})") from None


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, (value, where) in enumerate(parse_json_lines(path.read_bytes(), str(path)), start=1):
        values = check_row(value, (), where)
        _check_names(where, [*values, "budget"])
        yield line, {"budget": None} | {key: None if value == "" else value for key, value in values.items()}


def _check_names(where: Path | str, names: Any) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if "idx" not in names and "example_id" not in names:
        missing.append("idx (or example_id)")
    if missing:
        raise UserError(
            f"{where}: missing the columns {', '.join(missing)}; it has {', '.join(names) or 'none'}"
        )


def _present(values: Mapping[str, Any], column: str, where: str) -> Any:
    if values.get(column) is None:
        raise UserError(f"{where}: {column} is empty; every row needs one")
    return values[column]


def _row(values: Mapping[str, Any], line: int, where: str) -> Row:
    failure = values.get("failure")
    if failure not in (None, *FAILURES):
        raise UserError(
            f"{where}: failure is {shown(failure)}; leave it empty, or write {' or '.join(FAILURES)}"
        )
    own_id = values.get("example_id")
    if own_id is None:
        _present(values, "idx", where)
    length = values.get("length")
    return Row(
        line=line,
        index=None if values.get("idx") is None else _whole(values["idx"], "idx", where),
        example_id=None if own_id is None else str(own_id),
        score=None if failure else _score(_present(values, "score", where), where),
        length=None if length is None else _whole(length, "length", where),
        failure=failure,
    )


def _whole(value: object, column: str, where: str) -> int:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not number.is_integer() or number < 0:
        raise UserError(f"{where}: {column} must be a whole number from 0 up, found {shown(value)}")
    return int(number)


def _score(value: object, where: str) -> float:
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.nan
    if 1 < score <= 100:
        raise UserError(f"{where}: score is {json.dumps(score)}, expected 0 to 1; divide the column by 100")
    if isinstance(value, bool) or not 0 <= score <= 1:
        raise UserError(
            f"{where}: score must be a number from 0 to 1, found {shown(value)}; for a request that failed name its "
            f"failure ({', '.join(FAILURES)})"
        )
    return score
