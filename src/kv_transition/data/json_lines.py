"""JSON from files of one value a line: every error names file and line, and says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kv_transition.errors import UserError

#: What some editors write before the first character of a UTF-8 file.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json_lines(path: str | Path) -> Iterator[tuple[Any, str]]:
    """The value of each line of a file, with the words "file, line N" (from 1) for errors about it.

    Raises
    ------
    UserError
        Naming the file when it cannot be read; and as :func:`parse_json_lines`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a .jsonl file") from None
    return parse_json_lines(content, str(path))


def parse_json_lines(content: bytes, name: str) -> Iterator[tuple[Any, str]]:
    """The value of each line of a file's content, with the words "name, line N" (from 1) for errors about it.

    A byte order mark at the start, blank lines at the end and the kind of line ends do not matter.

    Raises
    ------
    UserError
        Naming the line: blank, not UTF-8, broken JSON; naming the file: empty.
    """
    # Split at line feeds only: texts may hold other line separators, raw.
    lines = content.removeprefix(BYTE_ORDER_MARK).rstrip().split(b"\n")
    if lines == [b""]:
        raise UserError(f"{name}: the file is empty; it should hold one JSON object a line")
    for number, line in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        if not line.strip():
            raise UserError(
                f"{where}: the line is blank; remove it, or fetch the file again if a record is missing there"
            )
        yield parse_json(line, where, "one whole JSON object a line is expected"), where


def parse_json(content: bytes, where: str, expected: str) -> Any:
    """The value of a JSON text; UserError for other encodings than UTF-8 and for broken JSON, which says `expected`."""
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({error}); {expected}") from None
