"""Records in LongBench's format: read from a folder, a zip archive or a file, or fetched from the hub."""

from __future__ import annotations

import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kv_transition.data import longbench_v2
from kv_transition.data.columns import check_row, optional_text, optional_texts, optional_whole_number, texts
from kv_transition.data.excerpts import shown
from kv_transition.data.hub import HubRepository
from kv_transition.data.json_lines import BYTE_ORDER_MARK, parse_json, parse_json_lines
from kv_transition.errors import UserError
from kv_transition.files import atomic_path

logger = logging.getLogger(__name__)

Record = dict[str, Any]

#: What every record must have; LongBench's other columns may be absent or null.
REQUIRED = ("input", "context", "answers")

#: A file of one record a line, or of one array of records.
SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class TaskFile:
    """The file of a task: on disk, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def task(self) -> str:
        """The task that the file belongs to: its name says it, or it is LongBench v2 under the name data.json."""
        name = PurePosixPath(self.member or self.path.as_posix())
        if name.name == "data.json" and self._holds(b'"choice_A"'):
            return longbench_v2.TASK
        return name.stem

    def is_array(self) -> bool:
        """Whether the file holds one JSON array."""
        with self._open() as file:
            return file.read(1024).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")

    def read(self) -> bytes:
        """The file's bytes."""
        with self._open() as file:
            return file.read()

    def _holds(self, text: bytes) -> bool:
        with self._open() as file:
            tail = b""
            while block := file.read(1 << 20):
                if text in tail + block:
                    return True
                tail = block[-len(text) :]
        return False

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            if self.member is None:
                with self.path.open("rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                    yield member
        except (
            OSError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:  # RuntimeError: a password is set
            raise UserError(f"{self}: cannot be read ({error}); fetch the file again") from None


def _task_files(path: str | Path) -> dict[str, TaskFile]:
    """Files by their tasks: of a folder, of a zip archive, or one file itself."""
    source = Path(path)
    files: dict[str, TaskFile] = {}
    for file in _candidates(source):
        task = file.task
        if task in files:
            first = files[task]
            raise UserError(
                f"{source}: {file.member or file.path.name} and {first.member or first.path.name} are both files of "
                f"task {task}; keep one"
            )
        files[task] = file
    return files


def _candidates(source: Path) -> list[TaskFile]:
    if source.is_dir():
        files = [TaskFile(path) for path in sorted(source.iterdir()) if path.is_file()]
    elif not source.exists():
        raise UserError(
            f"dataset.path: there is no {source}; give a folder with <task>.jsonl files, or a zip of them"
        )
    elif source.suffix in SUFFIXES:
        return [TaskFile(source)]
    elif not zipfile.is_zipfile(source):
        raise UserError(
            f"dataset.path: {source} is neither a folder nor a zip archive; give the folder of the task files"
        )
    else:
        with zipfile.ZipFile(source) as archive:
            files = [TaskFile(source, member) for member in sorted(archive.namelist())]
    return [file for file in files if _may_be_task(file)]


def _may_be_task(file: TaskFile) -> bool:
    name = PurePosixPath(file.member or file.path.as_posix())
    # macOS adds a "._<name>" beside every file it packs; a .json file without an array is somebody's settings.
    return not name.name.startswith(".") and (
        name.suffix == ".jsonl" or (name.suffix == ".json" and file.is_array())
    )


def list_longbench_tasks(source: str | Path, revision: str | None = None) -> list[str]:
    """Names of the tasks that a source holds, as the source itself tells them.

    Parameters
    ----------
    source : a folder of `<task>.jsonl` or `<task>.json` files, a zip archive that holds them in any folder, one such
        file, or, when no such path exists, a dataset on the Hugging Face hub (owner/name).
    revision : commit, branch or tag of a dataset on the hub.

    Raises
    ------
    UserError
        When the source is missing, out of reach or none of these, or holds no task.
    """
    if isinstance(source, str) and not Path(source).exists() and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        repository = HubRepository(source, revision)
        files = _hub_files(repository)
        tasks = sorted(repository.configurations() if files is None else files)
    else:
        tasks = sorted(_task_files(source))
    if not tasks:
        raise UserError(
            f"{source}: no task in it; name a folder whose own files (not those of folders in it) are <task>.jsonl or "
            "<task>.json with one array, a zip of such files, or a dataset on the hub"
        )
    return tasks


def find_task(path: str | Path, task: str) -> TaskFile:
    """The file of a task in a folder, an archive or a file, by the task's exact, case-sensitive name.

    Raises
    ------
    UserError
        When there is no such task, naming those that there are.
    """
    other = Path(path) / f"{task}.json"
    files = _task_files(path)
    if task not in files and other.is_file():
        raise UserError(
            f"{other}: expected one JSON array of records; write [...] around them, or one record a line into "
            f"{task}.jsonl"
        )
    return _task_file(files, task, str(path))


def _task_file(files: Mapping[str, TaskFile], task: str, source: str) -> TaskFile:
    if task not in files:
        there = ", ".join(sorted(files)) or "no .jsonl file at all"
        raise UserError(f"dataset.tasks: {source} has no {task}.jsonl (case counts); it has {there}")
    return files[task]


def read_records(path: str | Path, task: str) -> list[Record]:
    """Records of a task, in file order, texts untouched; those of LongBench v2 in the columns of all others.

    Parameters
    ----------
    path : a folder, a zip archive or a file (see :func:`list_longbench_tasks`).

    Returns
    -------
    One dict a record, with at least `input`, `context` and `answers`.

    Raises
    ------
    UserError
        Naming file and line, or row of an array: not UTF-8, broken JSON, no object, missing columns, wrong types,
        doubled `_id`; naming the file: missing or empty.
    """
    return _records(find_task(path, task))


def _records(file: TaskFile) -> list[Record]:
    name = str(file)
    if name.endswith(".json"):
        return _checked(_parsed_array(file.read(), name), name, "row")
    return _checked([value for value, _ in parse_json_lines(file.read(), name)], name, "line")


def write_records(path: str | Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write records as :func:`read_records` reads them, one JSON object a line, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _parsed_array(content: bytes, name: str) -> list[object]:
    expected = "one whole JSON array of objects is expected; fetch the file again"
    rows = parse_json(content.removeprefix(BYTE_ORDER_MARK), name, expected)
    if not isinstance(rows, list):
        raise UserError(f"{name}: expected a JSON array of objects, found {type(rows).__name__}")
    return rows


def _checked(rows: Iterable[object], name: str, unit: str) -> list[Record]:
    """The rows as records, every one of them checked; errors count them by the unit, "line" or "row"."""
    records: list[Record] = []
    first_line: dict[str, int] = {}
    without_answers = 0
    for number, row in enumerate(rows, start=1):
        where = f"{name}, {unit} {number}"
        record = _check_record(longbench_v2.to_record(row, where) if longbench_v2.is_v2(row) else row, where)
        own_id = record.get("_id")
        if own_id and first_line.setdefault(own_id, number) != number:
            raise UserError(
                f"{name}: {unit}s {first_line[own_id]} and {number} have the same _id {own_id!r}; keep one of them"
            )
        # Published scores may come without the reference answers behind them.
        without_answers += not (record["answers"] or (record.get("extra") or {}).get("answers"))
        records.append(record)
    if not records:
        raise UserError(f"{name}: no records; check dataset.tasks and where the records come from")
    if without_answers:
        logger.warning(
            "%s: %d records have no answer; they score 0 whatever is replied", name, without_answers
        )
    return records


def _check_record(value: object, where: str) -> Record:
    """The value, if it is a record."""
    row = check_row(value, REQUIRED, where)
    texts(row, "answers", where)
    for column in ("input", "context"):
        if not isinstance(row[column], str):
            raise UserError(
                f'{where}: {column} must be a text, found {shown(row[column])}; write "" where there is none'
            )
    for column in ("_id", "dataset", "language"):
        optional_text(row, column, where)
    optional_whole_number(row, "length", where)
    optional_texts(row, "all_classes", where)
    if not isinstance(row.get("extra"), dict | None):
        raise UserError(f"{where}: extra must be a JSON object or null, found {shown(row['extra'])}")
    _check_storable(row, where)
    return row


def _check_storable(record: Mapping[str, object], where: str) -> None:
    """Half of a surrogate pair is legal JSON and no text: nothing can store it."""
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: a \\ud800-\\udfff escape stands alone, which is no character; mend that text"
        ) from None


def fetch_from_hub(
    repo_id: str, task: str, revision: str | None, out_path: str | Path, sha256: str | None = None
) -> None:
    """Write a task's records from the Hugging Face hub as one official-format .jsonl file, whole or not at all.

    They come from the repository's data.zip, else from its data.json if that is LongBench v2, else from the
    configuration `task` of its data files.

    Parameters
    ----------
    sha256 : what data.zip or data.json must have; None if only the hub's own value counts.

    Raises
    ------
    UserError
        At once when the hub cannot be reached; when repository, revision or task are missing; when the download
        breaks off for good or has another checksum; for records that :func:`read_records` would refuse.
    """
    repository = HubRepository(repo_id, revision)
    files = _hub_files(repository, sha256)
    if files is not None:
        records = _records(_task_file(files, task, str(repository)))
    elif sha256 is not None:
        raise UserError(
            f"dataset.sha256: {repository} has neither data.zip nor a data.json of LongBench v2, so there is no one file "
            "to compare; remove the key and pin dataset.revision"
        )
    else:
        records = _checked(repository.rows(task), f"{repository}, {task}", "row")
    write_records(out_path, records)


def _hub_files(repository: HubRepository, sha256: str | None = None) -> dict[str, TaskFile] | None:
    """Files of the tasks in the repository's data.zip or data.json; None for a dataset of another layout."""
    archive = repository.file("data.zip", sha256)
    if archive is not None:
        return _task_files(archive)
    path = repository.file("data.json", sha256)
    if path is not None and TaskFile(path).task == longbench_v2.TASK:
        return {longbench_v2.TASK: TaskFile(path)}
    return None
