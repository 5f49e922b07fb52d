"""Scores already computed, kept by content: a rescore after new budgets computes only the new answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kv_transition.entry_cache import EntryCache
from kv_transition.files import canonical_json, sha256_text

#: An entry: the computed columns of one answer.
Entry = dict[str, Any]


class ScoreCache(EntryCache[Entry]):
    """Cached scores of one way of scoring; `get` takes everything of an answer and its example that determines its score.

    Parameters
    ----------
    cache_dir : folder shared by all tasks and experiments.
    scoring : everything but the answer that determines its score, code hash included.
    """

    def __init__(self, cache_dir: str | Path, scoring: object) -> None:
        folder = Path(cache_dir) / "scores" / sha256_text(canonical_json(scoring))[:32]
        super().__init__(folder, "score cache", "its answers are scored again")
