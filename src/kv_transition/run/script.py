"""What every workflow script shares: a log file, and one plain line for a user's mistake."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kv_transition.errors import UserError
from kv_transition.files import arrow_without_pandas


def set_up_logging(log_file: str | Path | None = None) -> None:
    """Log lines go to the terminal's error stream and, where given, to a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w", encoding="utf-8"))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def job(snakemake: Any, pandas: bool = True) -> Iterator[Any]:
    """Run a workflow script's body.

    Parameters
    ----------
    snakemake : the object Snakemake gives to scripts (input, output, params, log, wildcards).
    pandas : whether tables of pandas are read or written.

    A `UserError` ends the script with its one line on the terminal and in the log, any other error with a traceback;
    both fail the job, so Snakemake removes what it had begun to write. SIGTERM (a cluster's time limit, a cancelled job) ends
    it as an interruption does: answers that are there reach the journal first.
    """
    set_up_logging(snakemake.log[0] if snakemake.log else None)
    signal.signal(signal.SIGTERM, _leave)
    if not pandas:
        arrow_without_pandas()
    try:
        yield snakemake
    except UserError as error:
        logging.getLogger("kv_transition").error("error: %s", error)
        raise SystemExit(2) from None
    except Exception:
        logging.getLogger("kv_transition").exception("unexpected error")
        raise
