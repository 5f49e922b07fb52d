"""What the commands have in common: tables and numbers as text, progress, and files with an error in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kv_transition.errors import UserError
from kv_transition.eval.prediction_folders import FileScore, Job, score_files
from kv_transition.files import write_text

#: Seconds between two lines of progress; a command that is done sooner prints none.
PROGRESS_EVERY_S = 4.0
#: Stands where there is no value.
NONE = "–"


def score_all(jobs: Sequence[Job]) -> dict[Path, FileScore]:
    """Score files, by their paths; tells on stderr how far it is while it takes long."""
    done: dict[Path, FileScore] = {}
    last = time.monotonic()
    for one in score_files(jobs):
        done[one.job.path] = one
        if time.monotonic() - last > PROGRESS_EVERY_S and len(done) < len(jobs):
            last = time.monotonic()
            sys.stderr.write(f"{len(done)} of {len(jobs)} files scored\n")
    return done


def write_out(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; UserError where that is not allowed."""
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); name another place with --out"
        ) from None


def warn(path: Path, note: str) -> None:
    """One warning on stderr."""
    sys.stderr.write(f"warning: {path}: {note}\n")


def number(value: object) -> str:
    """A score as JSON has it, or the dash."""
    return NONE if value is None else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns under their header, aligned to the right but for those in `left`."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )
