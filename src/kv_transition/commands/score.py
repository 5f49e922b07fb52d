"""`kv-transition score` on predictions files: LongBench's scores of a file, a folder, or a folder of folders.

Results go to stdout, warnings and progress to stderr. The exit code is 1 where a check found a difference: a result.json
that has other scores, or rows that are not those of the official records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kv_transition.commands.console import number, score_all, table, warn, write_out
from kv_transition.errors import UserError
from kv_transition.eval.prediction_folders import (
    RESULT,
    ROWS_SUFFIX,
    FileScore,
    Job,
    averages,
    differences,
    gold_file,
    prediction_folders,
    read_result,
    records_name,
    result_text,
    task_of,
)
from kv_transition.eval.predictions import check_task


def score(
    predictions: str,
    *,
    task: str | None = None,
    out: str | None = None,
    bins: bool = False,
    gold: str | None = None,
    overwrite: bool = False,
) -> int:
    """Score a predictions file, or every one in a folder and the folders below.

    Parameters
    ----------
    task : the file's task, by default its name.
    out : where the rows go: a file for one file, a folder (for result.json too) for a folder.
    bins : score the three length bins of LongBench-E as well.
    gold : file or folder of the official records, to check the rows against.
    overwrite : replace a result.json that has other scores.
    """
    path, target, records = Path(predictions), Path(out) if out else None, Path(gold) if gold else None
    if records is not None and not records.exists():
        raise UserError(
            f"--gold: there is no {gold}; name a file of official records, or a folder of <task>.jsonl"
        )
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a predictions file or a folder of them")
    if not path.is_dir():
        return _score_file(path, task, target, bins, records)
    if task is not None:
        raise UserError(
            f"--task: the files in the folder {path} name their tasks; leave --task out or name one file"
        )
    return _score_folders(path, target, bins, records, overwrite)


def _score_file(path: Path, task: str | None, out: Path | None, bins: bool, gold: Path | None) -> int:
    if task is None:
        task = task_of(path)
    check_task(task)
    if out is not None and (out.is_dir() or out.resolve() == path.resolve()):
        raise UserError(
            f"--out: {out} is {'a folder' if out.is_dir() else 'the input'}; name a new .jsonl file"
        )
    found = score_all([_job(path, task, bins, gold)])[path]
    _warn(found, gold)
    if out is not None:
        write_out(out, _rows_text(found))
    sys.stdout.write(f"{task}: {number(found.score)}{_marks(found)}\n")
    if found.bins is not None:
        shown = ", ".join(f"{name} {number(value)}" for name, value in found.bins.items())
        sys.stdout.write(f"{task}, LongBench-E: {shown}\n")
    return int(_fails_gold(found))


def _score_folders(root: Path, out: Path | None, bins: bool, gold: Path | None, overwrite: bool) -> int:
    folders = prediction_folders(root)
    jobs = [_job(file, task_of(file), bins, gold) for files in folders.values() for file in files]
    found = score_all(jobs)
    sound = True
    for folder, files in folders.items():
        scores = [found[file] for file in files]
        target = folder if out is None else out / folder.relative_to(root)
        sys.stdout.write(f"{folder}\n{_score_table(scores)}")
        for one in scores:
            _warn(one, gold)
            sound = sound and not _fails_gold(one)
            if out is not None:
                write_out(target / f"{one.job.task}{ROWS_SUFFIX}", _rows_text(one))
        sound = _write_result(target / RESULT, scores, overwrite) and sound
    return 0 if sound else 1


def _job(path: Path, task: str, bins: bool, gold: Path | None) -> Job:
    return Job(path, task, gold_file(gold, task, bins) if gold else None, bins)


def _write_result(path: Path, scores: Sequence[FileScore], overwrite: bool) -> bool:
    """Write result.json, or compare with the one that is there; False if that differs and stays."""
    computed = {one.job.task: one.result for one in scores}
    if path.exists() and not overwrite:
        found = differences(read_result(path), computed)
        if not found:
            sys.stdout.write(
                f"equal to the {RESULT} that is there ({len(computed)} task{'s' * (len(computed) > 1)})\n\n"
            )
            return True
        rows = [(task, number(there), number(value)) for task, there, value in found]
        sys.stdout.write(f"{path} has other scores and stays as it is (--overwrite replaces it):\n")
        sys.stdout.write(table(("task", "there", "computed"), rows) + "\n")
        return False
    write_out(path, result_text(computed))
    sys.stdout.write(f"written: {path}\n\n")
    return True


def _rows_text(found: FileScore) -> str:
    return "".join(json.dumps(asdict(row)) + "\n" for row in found.rows)


def _fails_gold(found: FileScore) -> bool:
    return found.gold is not None and not found.gold.complete


def _warn(found: FileScore, gold: Path | None) -> None:
    """Say what a reader of the score has to know."""
    path = found.job.path
    if found.doubles:
        warn(path, f"doubled rows, counted from 0: {found.doubles}; the score includes them")
    if found.gold is not None and (found.gold.moved or not found.gold.complete):
        warn(path, f"rows counted from 0, against {found.job.gold}: {found.gold}")
    if gold is not None and found.job.gold is None:
        name = records_name(found.job.task, found.job.bins)
        what = "no LongBench-E records there, not checked" if found.job.bins else "the rows are not checked"
        warn(path, f"{gold} has no {name}: {what}")
    if found.classes_differ:
        warn(
            path,
            "all_classes differ between lines; those of the last line are used, as in the official evaluation",
        )
    if found.artefacts:
        warn(
            path,
            f"{found.artefacts} rows hold a text so long that the official code meets its recursion limit and scores them "
            "lower; here they have their ROUGE value",
        )


def _marks(found: FileScore) -> str:
    marks = [f"doubled rows: {found.doubles}"] if found.doubles else []
    if found.gold is not None:
        marks.append(f"rows: {found.gold}")
    return "".join(f" ({mark})" for mark in marks)


def _score_table(scores: Sequence[FileScore]) -> str:
    """The folder's scores and their averages; no averages for LongBench-E, which has none."""
    names = tuple(scores[0].bins or ())
    rows = [
        (
            one.job.task,
            str(len(one.rows)),
            number(one.score),
            *(number(value) for value in (one.bins or {}).values()),
            _marks(one).strip(),
        )
        for one in scores
    ]
    header = ("task", "rows", "score", *names, "")
    text = table(header, rows, left=(0, len(header) - 1))
    if names:
        return text
    for mean in averages({one.job.task: one.score for one in scores}):
        missing = f"not computed without {', '.join(mean.missing)}"
        text += f"{mean.name}: {missing if mean.missing else number(mean.value)}\n"
    return text
