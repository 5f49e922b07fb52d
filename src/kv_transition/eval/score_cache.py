"""Scores already computed, kept by content: a rescore after new budgets computes only the new answers.

An entry's key is a hash of everything that determines the score, so an entry is never out of date and the folder
may be deleted at any time. Each run adds one file with what it computed, whole or not at all; several runs may
read and write the same folder at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kv_transition.files import canonical_json, sha256_text, write_text

_log = logging.getLogger(__name__)

#: An entry: the computed columns of one answer.
Entry = dict[str, Any]


class ScoreCache:
    """Cached entries of one way of scoring.

    Parameters
    ----------
    cache_dir : folder shared by all tasks and experiments.
    scoring : everything but the answer that determines its score, code hash included.

    Attributes
    ----------
    computed, cached : number of look-ups that had to compute their entry, and that found it.
    """

    def __init__(self, cache_dir: str | Path, scoring: object) -> None:
        self._folder = Path(cache_dir) / "scores" / sha256_text(canonical_json(scoring))[:32]
        self._known: dict[str, Entry] = {}
        self._new: dict[str, Entry] = {}
        self._broken: list[Path] = []
        self.computed = 0
        self.cached = 0
        for path in sorted(self._folder.glob("*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            checksum, _, body = text.partition("\n")
            if checksum != sha256_text(body):
                raise ValueError("its content does not match its checksum")
            rows = [json.loads(line) for line in body.splitlines()]
            self._known.update((key, entry) for key, entry in rows)
        except FileNotFoundError:  # removed by another run since the folder was listed
            return
        except (OSError, ValueError, TypeError) as error:
            _log.warning("score cache: ignoring %s (%s); its answers are scored again", path, error)
            self._broken.append(path)

    def get(self, answer: object, compute: Callable[[], Entry]) -> Entry:
        """Entry of an answer, computed if it is not known.

        Parameters
        ----------
        answer : JSON value with everything of the answer and its example that determines the score.
        compute : gives the entry, a dict of JSON values.
        """
        key = sha256_text(canonical_json(answer))
        entry = self._known.get(key)
        if entry is not None:
            self.cached += 1
            return entry
        self.computed += 1
        entry = self._known[key] = self._new[key] = compute()
        return entry

    def save(self) -> None:
        """Write the computed entries to a file of their own and remove files found broken."""
        if self._new:
            body = "".join(canonical_json([key, self._new[key]]) + "\n" for key in sorted(self._new))
            checksum = sha256_text(body)
            # Named by content: two runs that computed the same entries write the same file.
            write_text(self._folder / f"{checksum[:32]}.jsonl", f"{checksum}\n{body}")
            self._broken = [path for path in self._broken if path.stem != checksum[:32]]
            self._new = {}
        for path in self._broken:
            path.unlink(missing_ok=True)
        self._broken = []
