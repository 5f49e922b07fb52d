"""Records in LongBench's format: read from a folder, a zip archive or a file, or fetched from the hub."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kv_transition.errors import UserError
from kv_transition.files import write_text

logger = logging.getLogger(__name__)

Record = dict[str, Any]

#: What every record must have; LongBench's other columns may be absent or null.
REQUIRED = ("input", "context", "answers")

#: Long enough for a slow line, short enough to notice a missing one.
CONNECTION_TIMEOUT_S = 5


@dataclass(frozen=True)
class TaskFile:
    """The file of a task: on disk, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        """The file's bytes."""
        try:
            if self.member is None:
                return self.path.read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        except (
            OSError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:  # RuntimeError: a password is set
            raise UserError(f"{self}: cannot be read ({error}); fetch the file again") from None


def _task_files(path: str | Path) -> dict[str, TaskFile]:
    source = Path(path)
    if source.is_dir():
        return {file.stem: TaskFile(file) for file in sorted(source.glob("*.jsonl")) if file.is_file()}
    if not source.exists():
        raise UserError(
            f"dataset.path: there is no {source}; give a folder with <task>.jsonl files, or a zip of them"
        )
    if not zipfile.is_zipfile(source):
        raise UserError(
            f"dataset.path: {source} is neither a folder nor a zip archive; give the folder of the task files"
        )
    files: dict[str, TaskFile] = {}
    with zipfile.ZipFile(source) as archive:
        for member in sorted(archive.namelist()):
            name = PurePosixPath(member)
            # macOS adds a "._<name>" beside every file it packs.
            if name.suffix != ".jsonl" or name.name.startswith("."):
                continue
            if name.stem in files:
                raise UserError(
                    f"{source}: {member} and {files[name.stem].member} are both files of task {name.stem}; keep one"
                )
            files[name.stem] = TaskFile(source, member)
    return files


def list_tasks(path: str | Path) -> list[str]:
    """Names of the tasks in a folder of `<task>.jsonl` files, or in a zip archive that holds them in any folder.

    Raises
    ------
    UserError
        When the path is missing or neither of these.
    """
    return sorted(_task_files(path))


def find_task(path: str | Path, task: str) -> TaskFile:
    """The file of a task, by its exact, case-sensitive name; a `path` that is its .jsonl file is taken as such.

    Raises
    ------
    UserError
        When there is no such task, naming those that there are.
    """
    if Path(path).name == f"{task}.jsonl" and Path(path).is_file():
        return TaskFile(Path(path))
    files = _task_files(path)
    if task not in files:
        there = ", ".join(sorted(files)) or "no .jsonl file at all"
        raise UserError(f"dataset.tasks: {path} has no {task}.jsonl (case counts); it has {there}")
    return files[task]


def read_records(path: str | Path, task: str) -> list[Record]:
    """Records of a task, in file order, texts untouched.

    Parameters
    ----------
    path : a folder or zip archive (see :func:`list_tasks`), or one .jsonl file.

    Returns
    -------
    One dict a line, with at least `input`, `context` and `answers`.

    Raises
    ------
    UserError
        Naming file and line: not UTF-8, broken JSON, no object, missing columns, wrong types, doubled `_id`; naming
        the file: missing or empty.
    """
    file = find_task(path, task)
    return _checked(_parsed(file.read(), str(file)), str(file))


def write_records(path: str | Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write records as :func:`read_records` reads them, one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _parsed(content: bytes, name: str) -> list[object]:
    # Split at newlines only: the texts hold other line separators, raw.
    lines = content.removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    if lines == [b""]:
        raise UserError(f"{name}: the file is empty; it should hold one JSON object a line")
    return [_parse_line(line, f"{name}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse_line(line: bytes, where: str) -> object:
    if not line.strip():
        raise UserError(
            f"{where}: the line is blank; remove it, or fetch the file again if a record is missing there"
        )
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({error}); one whole JSON object a line is expected") from None


def _checked(rows: Iterable[object], name: str) -> list[Record]:
    """The rows as records, every one of them checked."""
    records: list[Record] = []
    first_line: dict[str, int] = {}
    without_answers = 0
    for number, row in enumerate(rows, start=1):
        record = _check_record(row, f"{name}, line {number}")
        own_id = record.get("_id")
        if own_id and first_line.setdefault(own_id, number) != number:
            raise UserError(
                f"{name}: lines {first_line[own_id]} and {number} have the same _id {own_id!r}; keep one of them"
            )
        without_answers += not record["answers"]
        records.append(record)
    if without_answers:
        logger.warning(
            "%s: %d records have no answer; they score 0 whatever is replied", name, without_answers
        )
    return records


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_record(row: object, where: str) -> Record:
    """The row, if it is a record."""
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: expected a JSON object, found {type(row).__name__}; one object a line is expected"
        )
    missing = [column for column in REQUIRED if column not in row]
    if missing:
        raise UserError(
            f"{where}: missing {', '.join(missing)}; it has {', '.join(row) or 'no columns'}; rename or add them"
        )
    answers, length, classes = row["answers"], row.get("length"), row.get("all_classes")
    if isinstance(answers, str):
        raise UserError(f'{where}: answers is one text, expected a list of texts; write ["..."] around it')
    if not _is_text_list(answers):
        raise UserError(f"{where}: answers must be a list of texts, found {_shown(answers)}")
    for column in ("input", "context"):
        if not isinstance(row[column], str):
            raise UserError(
                f'{where}: {column} must be a text, found {_shown(row[column])}; write "" where there is none'
            )
    for column in ("_id", "dataset", "language"):
        if not isinstance(row.get(column), str | None):
            raise UserError(f"{where}: {column} must be a text or null, found {_shown(row[column])}")
    if not isinstance(length, int | None) or isinstance(length, bool):
        raise UserError(f"{where}: length must be a whole number or null, found {_shown(length)}")
    if classes is not None and not _is_text_list(classes):
        raise UserError(f"{where}: all_classes must be a list of texts or null, found {_shown(classes)}")
    _check_storable(row, where)
    return row


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_storable(record: Mapping[str, object], where: str) -> None:
    """Half of a surrogate pair is legal JSON and no text: nothing can store it."""
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: a \\ud800-\\udfff escape stands alone, which is no character; mend that text"
        ) from None


def fetch_from_hub(repo_id: str, task: str, revision: str | None, out_path: str | Path) -> None:
    """Write a task's records from the Hugging Face hub as one official-format .jsonl file, whole or not at all.

    The repository's data files are read with `datasets` (configuration `task`, split "test"). A repository that is
    still a loading script, which `datasets` no longer runs, is read from the archive data.zip beside the script.

    Raises
    ------
    UserError
        At once when the hub cannot be reached; when repository, revision or task are missing; for records that
        :func:`read_records` would refuse.
    """
    _check_connection()
    name = f"{repo_id} ({task}, revision {revision or 'newest'})"
    rows = _checked(_hub_rows(repo_id, task, revision, name), name)
    if not rows:
        raise UserError(f"{name}: no records; check dataset.hub_id and dataset.revision")
    write_records(out_path, rows)


def _check_connection() -> None:
    """Fail at once where the hub's client would retry for half a minute."""
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return  # nothing is sent: the client looks into its cache only
    try:
        requests.head(constants.ENDPOINT, timeout=CONNECTION_TIMEOUT_S)
    except requests.RequestException as error:
        raise UserError(
            f"dataset.hub_id: the hub cannot be reached ({type(error).__name__}); download the task files elsewhere and set "
            "dataset.path to their folder, or set HF_HUB_OFFLINE=1 to use what is already in the hub's cache"
        ) from None


def _hub_rows(repo_id: str, task: str, revision: str | None, name: str) -> list[Any]:
    import datasets

    try:
        try:
            return list(datasets.load_dataset(repo_id, name=task, split="test", revision=revision))
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return list(read_records(_hub_archive(repo_id, revision), task))
    except UserError:
        raise
    except (
        Exception
    ) as error:  # the hub's client raises dozens of types; all mean that these records cannot be had
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"dataset.hub_id: {name} cannot be loaded ({type(error).__name__}: {reason}); check dataset.hub_id, "
            "dataset.revision and dataset.tasks, or set dataset.path to a folder with the task files"
        ) from None


def _hub_archive(repo_id: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(repo_id, "data.zip", repo_type="dataset", revision=revision))
