"""Prompt lengths already counted, kept by content: no text is tokenised twice for the same tokenizer and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kv_transition.data.counters import TiktokenCounter, TokenCounter
from kv_transition.data.protocol import TaskProtocol
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.entry_cache import EntryCache
from kv_transition.files import canonical_json, sha256_text


class TokenCounts(EntryCache[int]):
    """Lengths of the prompts that one protocol makes, in tokens of one counter.

    Parameters
    ----------
    cache_dir : folder shared by all tasks and experiments.
    counter : what counts.
    protocol : makes the prompts, with `tokenizer` those that are too long.
    code : hash of the code that makes and counts prompts.
    """

    def __init__(
        self,
        cache_dir: str | Path,
        counter: TokenCounter,
        protocol: TaskProtocol,
        tokenizer: ModelTokenizer | None,
        code: str,
    ) -> None:
        identity = {
            "counter": _identity(counter),
            "protocol": asdict(protocol),
            "tokenizer": None if tokenizer is None else tokenizer.content_hash,
            "tokenizers": version("tokenizers"),
            "code": code,
        }
        folder = Path(cache_dir) / "token_counts" / sha256_text(canonical_json(identity))[:32]
        super().__init__(folder, "token counts", "its prompts are counted again")


def prompt_content(record: Mapping[str, Any]) -> list[Any]:
    """What of a record determines its prompt."""
    extra = record.get("extra")
    return [record["input"], record["context"], None if extra is None else dict(extra)]


def _identity(counter: TokenCounter) -> list[str]:
    if isinstance(counter, ModelTokenizer):
        return ["model", counter.content_hash]
    if isinstance(counter, TiktokenCounter):
        return [counter.name, version("tiktoken")]
    return [counter.name]
