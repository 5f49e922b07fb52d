"""`kv-transition compare`: two predictions files or folders, paired row by row, as a table and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

from kv_transition.analysis.compare import Comparison, Difference, check_pairs, compare_tasks
from kv_transition.commands.console import NONE, number, score_all, table, warn, write_out
from kv_transition.data.predictions import read_predictions
from kv_transition.errors import UserError
from kv_transition.eval.prediction_folders import Job, prediction_files, task_of
from kv_transition.eval.predictions import check_task

CLUSTERS = (
    "Every row counts as its own cluster, since the files do not tell which rows share a document; where rows do, the "
    "intervals are too narrow."
)


def compare(a: str, b: str, *, tasks: Sequence[str] = (), conf: float = 0.95, out: str | None = None) -> int:
    """Print the differences B - A of two predictions files or folders, with intervals and tests.

    Parameters
    ----------
    tasks : the tasks to compare, by default all that both have. conf : confidence level of the intervals.
    out : a JSON file for the same values in full precision.
    """
    if not 0 < conf < 1:
        raise UserError(f"--conf: {conf:g} is no confidence level; give one between 0 and 1, such as 0.95")
    if Path(a).is_dir() != Path(b).is_dir():
        raise UserError(f"{a} and {b}: one is a folder, the other is not; name two folders or two files")
    sides = (_files(Path(a), tasks), _files(Path(b), tasks))
    common = [task for task in sides[0] if task in sides[1]]
    if not common:
        raise UserError(
            f"{a} and {b} have no task in common; files pair by name, or name the task with --task"
        )
    for task in common:
        files = sides[0][task], sides[1][task]
        check_pairs(
            task, read_predictions(files[0]), read_predictions(files[1]), (str(files[0]), str(files[1]))
        )
    found = score_all([Job(side[task], task) for side in sides for task in common])
    for path, one in found.items():
        if one.doubles:
            warn(path, f"doubled rows, counted from 0: {one.doubles}; each counts as a row of its own")
    rows = {
        task: (
            [row.score for row in found[sides[0][task]].rows],
            [row.score for row in found[sides[1][task]].rows],
        )
        for task in common
    }
    comparison = compare_tasks(rows, conf)
    alone = [sorted(set(sides[0]) - set(common)), sorted(set(sides[1]) - set(common))]
    sys.stdout.write(f"A: {a}\nB: {b}\n{_table(comparison)}{_words(comparison)}")
    for name, missing in zip("AB", alone, strict=True):
        if missing:
            sys.stdout.write(f"Only in {name}, not compared: {', '.join(missing)}\n")
    if out is not None:
        write_out(Path(out), _json(a, b, comparison, alone))
    return 0


def _files(path: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """Task -> file, of a file or a folder."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a predictions file or a folder of them")
    if not path.is_dir():
        if len(tasks) > 1:
            raise UserError(f"--task: {path} is one file, of one task; name one task")
        task = tasks[0] if tasks else task_of(path)
        check_task(task)
        return {task: path}
    files = {file.stem: file for file in prediction_files(path)}
    if not files:
        raise UserError(f"{path}: no .jsonl file in this folder; name the folder of one model's predictions")
    absent = [task for task in tasks if task not in files]
    if absent:
        raise UserError(f"--task: {path} has no {absent[0]}.jsonl; it has {', '.join(files)}")
    return {task_of(file): file for task, file in files.items() if not tasks or task in tasks}


def _table(comparison: Comparison) -> str:
    header = (
        "task",
        "n",
        "A",
        "B",
        "B - A",
        f"{100 * comparison.conf:g} % interval",
        "p",
        "p (Holm)",
        "0 is",
    )
    return table(header, [_row(one) for one in (*comparison.tasks, comparison.macro) if one is not None])


def _row(one: Difference) -> tuple[str, ...]:
    limits = NONE if isnan(one.lo) else f"[{one.lo:+.2f}, {one.hi:+.2f}]"
    where = NONE if isnan(one.lo) else "outside" if one.excludes_zero else "inside"
    scores = (number(one.score_a), number(one.score_b))
    return (one.task, str(one.n), *scores, f"{one.difference:+.2f}", limits, _p(one.p), _p(one.p_holm), where)


def _p(p: float) -> str:
    return NONE if isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _words(comparison: Comparison) -> str:
    """What the table shows, and what it does not."""
    tasks, level = comparison.tasks, 1 - comparison.conf
    tested = [one for one in tasks if not isnan(one.p)]
    outside = [one.task for one in tested if one.excludes_zero]
    clear = [one.task for one in tested if one.p_holm <= level]
    lines = [
        "B - A in points of a score from 0 to 100, paired by row; paired t intervals and two-sided p values."
    ]
    lines.append(CLUSTERS)
    if len(tested) > 1:
        lines.append(
            f"0 is outside the interval in {len(outside)} of {len(tested)} tasks; each interval has its confidence on its "
            f"own. With Holm's adjustment over the tasks p is at most {level:.4g} in "
            f"{f'{len(clear)}: ' + ', '.join(clear) if clear else 'none'}."
        )
    if len(outside) < len(tested):
        lines.append("Where 0 is inside, the rows show no difference, and not that there is none.")
    if any(one.status == "degenerate" for one in tasks):
        same = ", ".join(one.task for one in tasks if one.status == "degenerate")
        lines.append(
            f"All rows differ by the same amount, so that there is no spread; limits and p are those with two "
            f"pseudo-values half a score above and below: {same}."
        )
    if comparison.macro is not None:
        lines.append(
            f"Macro mean: the mean of the {len(tasks)} differences; its standard error takes the tasks as independent, "
            f"sqrt(sum of se^2) / {len(tasks)}, Satterthwaite's degrees of freedom."
        )
    return "\n".join(lines) + "\n"


def _json(a: str, b: str, comparison: Comparison, alone: Sequence[Sequence[str]]) -> str:
    value = {
        "a": a,
        "b": b,
        "conf": comparison.conf,
        "unit": "points of a score from 0 to 100, B - A, paired by row",
        "clusters": "one a row",
        "tasks": [_values(one) for one in comparison.tasks],
        "macro_mean": _values(comparison.macro) if comparison.macro else None,
        "only_in_a": alone[0],
        "only_in_b": alone[1],
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _values(one: Difference) -> Mapping[str, Any]:
    """A difference for JSON, which has no nan."""
    values = asdict(one) | {"excludes_zero": None if isnan(one.lo) else one.excludes_zero}
    return {
        key: None if isinstance(value, float) and isnan(value) else value for key, value in values.items()
    }
