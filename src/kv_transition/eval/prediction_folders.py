"""Folders of predictions files, one a model and in it one a task: found, scored, averaged, compared with result.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from kv_transition.data.longbench_tasks import TASK_FACTS, base_name
from kv_transition.data.predictions import read_gold, read_predictions
from kv_transition.errors import UserError
from kv_transition.eval.completeness import Doubles, GoldCheck, check_against_gold, doubled_rows
from kv_transition.eval.longbench_e import e_bins
from kv_transition.eval.longbench_metrics import recursion_artefact
from kv_transition.eval.predictions import (
    check_answers,
    check_task,
    classes_differ,
    score_predictions,
    scored_text,
)
from kv_transition.eval.task_scores import ScoredRow, task_score

#: What the rows of a scored file are called; no predictions file has this ending.
ROWS_SUFFIX = ".rows.jsonl"
#: The official evaluation's name for a folder's scores.
RESULT = "result.json"
#: Bytes of predictions from which on a pool of processes pays for its start.
POOL_FROM_BYTES = 2_000_000

#: Scores of a folder: a number a task, or a number (None: no row) for each bin of LongBench-E.
Score = float | None | dict[str, float | None]


@dataclass(frozen=True)
class Job:
    """A file to score: its task, the file of its official records if known, and whether LongBench-E's bins are asked."""

    path: Path
    task: str
    gold: Path | None = None
    bins: bool = False


@dataclass(frozen=True)
class FileScore:
    """A scored file.

    Attributes
    ----------
    score : the task's score, 0 to 100, as LongBench writes it.
    bins : the scores of LongBench-E's bins, None where they were not asked for.
    rows : one for each line, in its order.
    doubles, gold : what is wrong with the rows; `gold` is None without official records.
    classes_differ : the lines name different classes.
    artefacts : rows that the official code scores lower because its recursion is too deep.
    """

    job: Job
    score: float
    bins: dict[str, float | None] | None
    rows: list[ScoredRow]
    doubles: Doubles
    gold: GoldCheck | None
    classes_differ: bool
    artefacts: int

    @property
    def result(self) -> Score:
        """What result.json holds for the task."""
        return self.score if self.bins is None else self.bins


@dataclass(frozen=True)
class Average:
    """A mean over task scores as published tables show it; `value` is None while one of its tasks is missing."""

    name: str
    value: float | None
    missing: tuple[str, ...] = ()


def score_file(job: Job) -> FileScore:
    """Read and score one file; UserError for broken input, naming file and line."""
    facts = check_task(job.task)
    predictions = read_predictions(job.path)
    check_answers(job.task, predictions, job.path)
    rows = score_predictions(job.task, predictions)
    try:
        bins = e_bins(rows) if job.bins else None
    except UserError as error:
        raise UserError(f"{job.path}, {error}") from None
    return FileScore(
        job=job,
        score=task_score(row.score for row in rows),
        bins=bins,
        rows=rows,
        doubles=doubled_rows(predictions),
        gold=check_against_gold(predictions, read_gold(job.gold)) if job.gold else None,
        classes_differ=classes_differ(predictions),
        artefacts=sum(
            recursion_artefact(facts.metric, scored_text(facts, row.pred), row.answers) for row in predictions
        ),
    )


def score_files(jobs: Sequence[Job]) -> Iterator[FileScore]:
    """Score files, in processes where that pays, and give each as it is done (in any order)."""
    size = sum(job.path.stat().st_size for job in jobs if job.path.exists())
    workers = min(os.cpu_count() or 1, len(jobs))
    if workers < 2 or size < POOL_FROM_BYTES:
        yield from map(score_file, jobs)
        return
    largest_first = sorted(jobs, key=lambda job: job.path.stat().st_size, reverse=True)
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(score_file, job) for job in largest_first]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def prediction_files(folder: str | Path) -> list[Path]:
    """The predictions files of a folder itself, by name; hidden ones, as macOS adds beside others, are left out."""
    return sorted(
        path
        for path in Path(folder).glob("*.jsonl")
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(ROWS_SUFFIX)
    )


def prediction_folders(root: str | Path) -> dict[Path, list[Path]]:
    """All folders at and below `root` that hold predictions files, with them; hidden folders are left out.

    Raises
    ------
    UserError
        When there is none.
    """
    folders = {}
    for name, below, _ in os.walk(root):
        below[:] = sorted(folder for folder in below if not folder.startswith("."))
        files = prediction_files(name)
        if files:
            folders[Path(name)] = files
    if not folders:
        raise UserError(f"{root}: no .jsonl file in this folder or below; name the folder of the predictions")
    return folders


def gold_file(gold: Path, task: str, bins: bool) -> Path | None:
    """The file of a task's official records: `gold` itself, or in the folder `gold` the one of :func:`records_name`."""
    if not gold.is_dir():
        return gold
    path = gold / records_name(task, bins)
    return path if path.is_file() else None


def records_name(task: str, bins: bool) -> str:
    """`<task>.jsonl`, with LongBench-E's bins `<task>_e.jsonl`: the namesake in LongBench v1 holds other records."""
    return f"{base_name(task)}_e.jsonl" if bins else f"{task}.jsonl"


def averages(scores: Mapping[str, float]) -> list[Average]:
    """The averages of published tables, from task scores (0 to 100), rounded to two places.

    LongBench's README averages, for English and for Chinese, the means of the six categories (code counts in both);
    the tables of the SnapKV and PyramidKV papers average the 16 English and code tasks.
    """
    tasks = {task: facts for task, facts in TASK_FACTS.items() if facts.category != "multiple choice"}
    found = []
    for name, language in (("English", "en"), ("Chinese", "zh")):
        wanted = [task for task, facts in tasks.items() if facts.language in (language, "code")]
        groups = [
            [task for task in wanted if tasks[task].category == category]
            for category in dict.fromkeys(tasks[task].category for task in wanted)
        ]
        found.append(_average(f"LongBench, {name} (mean of {len(groups)} category means)", groups, scores))
    both = [[task for task, facts in tasks.items() if facts.language in ("en", "code")]]
    found.append(_average(f"SnapKV and PyramidKV tables (mean of {len(both[0])} tasks)", both, scores))
    return found


def _average(name: str, groups: Sequence[Sequence[str]], scores: Mapping[str, float]) -> Average:
    missing = tuple(sorted(task for group in groups for task in group if task not in scores))
    if missing:
        return Average(name, None, missing)
    means = [sum(scores[task] for task in group) / len(group) for group in groups]
    return Average(name, round(sum(means) / len(means), 2))


def result_text(scores: Mapping[str, Score]) -> str:
    """The text of a result.json in the official shape; an empty bin is null, where the official code writes NaN."""
    return json.dumps(scores, ensure_ascii=False, indent=4)


def read_result(path: Path) -> dict[str, Score]:
    """An existing result.json, NaN as None; UserError if it is none."""
    try:
        scores = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove it or use --overwrite") from None
    if not isinstance(scores, dict):
        raise UserError(f"{path}: expected one JSON object of task scores; remove it or use --overwrite")
    return scores


def differences(
    there: Mapping[str, Score], computed: Mapping[str, Score]
) -> list[tuple[str, object, object]]:
    """(task or "task bin", value there, value computed) where they differ; "absent" where one has none."""
    old, new = _flat(there), _flat(computed)
    return [
        (key, old.get(key, "absent"), new.get(key, "absent"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def _flat(scores: Mapping[str, Score]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for task, value in scores.items():
        if isinstance(value, dict):
            flat |= {f"{task} {name}": part for name, part in value.items()}
        else:
            flat[task] = value
    return flat


def task_of(path: Path) -> str:
    """The task that a file's name names; UserError if it names none."""
    try:
        check_task(path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}; name the task with --task or the file <task>.jsonl") from None
    return path.stem
