"""Results kept by content: an entry's key is a hash of everything that determines it, so it is never out of date.

The folder may be deleted at any time. Each run adds one file with what it computed, whole or not at all; several runs
may read and write the same folder at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from kv_transition.files import canonical_json, sha256_text, write_text

_log = logging.getLogger(__name__)

#: An entry, a JSON value.
Entry = TypeVar("Entry")


class EntryCache(Generic[Entry]):
    """Cached entries of one way to compute them.

    Parameters
    ----------
    folder : the files of this way; a hash of all that the entries have in common is its name.
    about, remedy : for the log: what the cache is, and what happens to the entries of a broken file.

    Attributes
    ----------
    computed, cached : number of look-ups that had to compute their entry, and that found it.
    """

    def __init__(self, folder: Path, about: str, remedy: str) -> None:
        self._folder = folder
        self._about, self._remedy = about, remedy
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
            _log.warning("%s: ignoring %s (%s); %s", self._about, path, error, self._remedy)
            self._broken.append(path)

    def get(self, content: object, compute: Callable[[], Entry]) -> Entry:
        """The entry of a content, computed if it is not known.

        Parameters
        ----------
        content : JSON value with everything that determines the entry beside what all of them have in common.
        compute : gives the entry, a JSON value.
        """
        key = sha256_text(canonical_json(content))
        if key in self._known:
            self.cached += 1
            return self._known[key]
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
