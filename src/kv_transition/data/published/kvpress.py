"""Layout `kvpress`: result folders with predictions.csv and config.yaml."""

from __future__ import annotations

import ast
import csv
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from kv_transition.data.excerpts import shown
from kv_transition.data.published.rows import Cell, Row, cell_of, method_name
from kv_transition.errors import UserError

#: A Python text literal.
_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def files(root: Path, task: str, methods: Mapping[str, str]) -> dict[Cell, list[Path]]:
    """predictions.csv of each run of a task.

    The budget of a run is the share kept, 1 - compression_ratio, since compression_ratio is the share removed. A run that
    removes nothing and is not `no_press` is no run of its own; a run under a threshold has no budget that its config
    tells. Both are left out. The task is config.yaml's data_dir, or else the column `task` of the rows.
    """
    runs = [run for run in map(_run, sorted(root.rglob("config.yaml"))) if run]
    mine = [run for run in runs if run[1] == task] or [run for run in runs if task in _tasks(run[2], run[3])]
    found: dict[Cell, list[Path]] = defaultdict(list)
    for config_file, _, file, _ in mine:
        cell = _cell(_config(config_file, config_file.stat().st_mtime_ns), config_file, methods)
        if cell:
            found[cell].append(file)
    if not found:
        raise UserError(
            f"published.path: {root} has no folder with predictions.csv and config.yaml of task {task}; there are "
            f"{', '.join(sorted({name for _, name, _, _ in runs})) or 'no such folders'}"
        )
    return dict(found)


def _run(config_file: Path) -> tuple[Path, str, Path, int] | None:
    """A result folder: its config.yaml, the name of its data, its predictions.csv and when that was written."""
    config, file = (
        _config(config_file, config_file.stat().st_mtime_ns),
        config_file.parent / "predictions.csv",
    )
    if "press_name" not in config or not file.is_file():
        return None
    name = str(config.get("data_dir") or config.get("dataset") or "")
    return config_file, name, file, file.stat().st_mtime_ns


@lru_cache(maxsize=4096)
def _config(path: Path, modified_ns: int) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path}: not readable as YAML; restore the file") from None
    return config if isinstance(config, dict) else {}


@lru_cache(maxsize=4096)
def _tasks(path: Path, modified_ns: int) -> frozenset[str]:
    """The tasks in the column `task`."""
    return frozenset(str(values.get("task")) for _, values in _lines(path))


def _cell(config: Mapping[str, Any], path: Path, methods: Mapping[str, str]) -> Cell | None:
    method = method_name(str(config["press_name"]), methods)
    if method == "full":
        return method, "full"
    ratio = config.get("compression_ratio")
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 <= ratio <= 1:
        raise UserError(f"{path}: compression_ratio must be a number from 0 to 1, found {shown(ratio)}")
    if ratio in (0, 1) or config.get("threshold") is not None:
        return None
    # 1 - 0.7 is 0.30000000000000004; the file states the ratio in few digits, so the share kept has few, too.
    return cell_of(method, round(1 - ratio, 10), str(path))


def read_rows(path: Path, task: str) -> list[Row]:
    """Rows of a task: predicted_answer, answers (or answer), and if there are all_classes, length and _id."""
    rows = []
    for line, values in _lines(path):
        if values.get("task") not in (None, task) and not _is_of(path, task):
            continue
        where = f"{path}, line {line}"
        if values.get("predicted_answer") is None:
            raise UserError(f"{where}: missing predicted_answer; it has {', '.join(map(str, values))}")
        gold = values.get("answers", values.get("answer"))
        if gold is None:
            raise UserError(f"{where}: missing answers; it has {', '.join(values)}")
        classes, length = values.get("all_classes"), values.get("length")
        rows.append(
            Row(
                line=line,
                example_id=values.get("_id") or None,
                pred=values["predicted_answer"],
                answers=_texts(gold, where),
                all_classes=_texts(classes, where) if classes else None,
                length=int(length) if length and length.isdigit() else None,
            )
        )
    return rows


def _is_of(path: Path, task: str) -> bool:
    config = path.parent / "config.yaml"
    return _config(config, config.stat().st_mtime_ns).get("data_dir") == task


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number (of a row's last line) from 1 and values; a text may be longer than the csv module's usual limit."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return [(reader.line_num, values) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as csv in UTF-8 ({error}); check the file") from None


def _texts(text: str, where: str) -> tuple[str, ...]:
    """A list of texts as csv files hold it: `['a', 'b']`, or numpy's `['a' 'b']`; any other text stands for itself."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return (text,)
    inside = stripped[1:-1]
    if _LITERAL.sub("", inside).strip(" ,\n\t"):
        raise UserError(
            f"{where}: the list {shown(text)} cannot be read back from its text; give the records with dataset.path, or "
            "publish the rows as LongBench's .jsonl"
        )
    # Literal by literal: Python itself would join 'a' 'b' into one text.
    return tuple(str(ast.literal_eval(literal)) for literal in _LITERAL.findall(inside))
