"""The append-only record of every answer: what has been computed or paid for once is never asked for again.

One folder per model, one file per writer, one JSON line per answer. A writer makes a new file and only ever appends to
it, so a killed process can leave no more than one torn line, at the end of its own file.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kv_transition.errors import UserError
from kv_transition.files import canonical_json

log = logging.getLogger(__name__)

#: Every line begins with its key, so that a reader parses only the lines it wants.
LINE_START = b'{"key":"'
KEY_LENGTH = 64


def has_answer(row: Mapping[str, Any]) -> bool:
    """Whether a row holds an answer and no failure."""
    return not row["result"]["failure"]


class Rows(Mapping[str, dict[str, Any]]):
    """Journal rows by key. Each is held as its line and read when it is asked for: parsed, it takes five times the memory."""

    def __init__(self) -> None:
        self._lines: dict[str, bytes] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row in, instead of any other of its key."""
        self._lines[row["key"]] = line_of(row)

    def add_line(self, key: str, line: bytes) -> None:
        """The same for a line that was read."""
        self._lines[key] = line

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Leave out the rows that are not wanted."""
        for key in [key for key, row in self.items() if not wanted(row)]:
            del self._lines[key]

    def __getitem__(self, key: str) -> dict[str, Any]:
        return parsed(self._lines[key])

    def __contains__(self, key: object) -> bool:
        return key in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as a line of the journal."""
    rest = canonical_json({name: value for name, value in row.items() if name != "key"})
    return LINE_START + str(row["key"]).encode() + b'",' + rest[1:].encode("utf-8", "surrogatepass") + b"\n"


def parsed(line: bytes) -> dict[str, Any]:
    """The row of a line; ValueError where it is torn."""
    row: dict[str, Any] = json.loads(line.decode("utf-8", "surrogatepass"))
    return row


class Journal:
    """The journal of one model, read by key and appended to.

    Parameters
    ----------
    folder : the model's folder inside the journal; made at the first append.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: int | None = None
        self._path: Path | None = None
        #: Bytes of this writer's file that are whole rows; nobody else writes to it.
        self._size = 0

    def read(self, keys: Collection[str], wanted: Callable[[Mapping[str, Any]], bool] = has_answer) -> Rows:
        """Rows of these keys; where a key was answered more than once, the first wanted row counts.

        Parameters
        ----------
        wanted : says of a row whether it is good; where none of a key is, its first row is returned.

        Raises
        ------
        UserError
            When the folder or a file in it cannot be read.
        """
        encoded = {key.encode() for key in keys}
        found = Rows()
        try:
            files = sorted(self.folder.glob("*.jsonl"))
            for path in files:
                with path.open("rb") as lines:
                    for number, line in enumerate(lines, 1):
                        self._take(line, encoded, wanted, found, path, number)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot read the journal ({error.strerror}); nothing was computed"
            ) from None
        return found

    @staticmethod
    def _take(
        line: bytes,
        keys: set[bytes],
        wanted: Callable[[Mapping[str, Any]], bool],
        found: Rows,
        path: Path,
        number: int,
    ) -> None:
        start = len(LINE_START)
        complete = line.startswith(LINE_START) and line.endswith(b"}\n")
        if complete and line[start : start + KEY_LENGTH] not in keys:
            return
        try:
            if not complete:
                raise ValueError
            row = parsed(line)
            key, good = row["key"], wanted(row)
        except (ValueError, KeyError, TypeError):
            log.warning(
                "%s, line %d: dropped a torn journal line; its answer is computed again", path, number
            )
            return
        if key not in found or (good and not wanted(found[key])):
            found.add_line(key, line)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and wait until they are on the disk: all of them or, on an error, none.

        Parameters
        ----------
        rows : mappings with `key` (64 hex digits) and `result`.

        Raises
        ------
        UserError
            When the disk is full or the journal may not be written. What was appended before is safe.
        """
        text = b"".join(line_of(row) for row in rows)
        try:
            descriptor = self._open()
            try:
                view = memoryview(text)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, self._size)
                raise
            self._size += len(text)
        except OSError as error:
            raise UserError(
                f"{self._path or self.folder}: cannot write the journal ({error.strerror}); what was answered before is "
                "safe, run the same command again when the cause is gone"
            ) from None

    def _open(self) -> int:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            name = f"{stamp}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            self._path, self._size = self.folder / name, 0
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return self._file

    def close(self) -> None:
        """Close this writer's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BackgroundWriter:
    """Appends to a journal while the next rows are computed: one append is under way, at most one more waits.

    However the `with` block is left, by an interruption too, it ends when everything handed over has been written.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._last: Future[None] | None = None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Hand over rows, then wait for those before them.

        Raises
        ------
        UserError
            As `Journal.append` does, of the rows handed over before.
        """
        # In this order, because an interrupted wait must not lose the rows at hand.
        before, self._last = self._last, self._thread.submit(self._journal.append, rows)
        if before is not None:
            before.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None and self._last is not None:
            self._last.result()
