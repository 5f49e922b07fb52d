"""Greedy answers of many cells of one prompt, in one batch, from what each cell's cache still holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kv_transition.engines.attention import CacheGroup
from kv_transition.engines.llama import Llama

Array = NDArray[np.float32]

#: Tokens behind the compressed part that are read at once.
TAIL_TOKENS = 64


@dataclass
class Answer:
    """Generated tokens of one cell, the end token included, and their text without the model's end token."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


@dataclass(frozen=True)
class Ending:
    """When an answer is over.

    Attributes
    ----------
    min_new_tokens : tokens before which neither an end token nor one of `stop_ids` is taken.
    stop_ids : tokens that end an answer and stay in its text. LongBench stops some answers at a newline token, which is
        part of its predictions and cut off by its scoring.
    observe : told the tokens of an answer that goes on, after each of them; True ends it there ("cancelled").
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    eos_ids: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    min_new_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    observe: Callable[[Sequence[int]], bool] | None = None

    def choose(self, logits: Array, generated: int) -> list[int]:
        """The best next token of every row of `logits` (rows, vocabulary), after `generated` tokens."""
        if banned := self.banned(generated, logits.shape[1]):
            logits = logits.copy()
            logits[:, banned] = -np.inf
        best: list[int] = logits.argmax(axis=1).tolist()
        return best

    def banned(self, generated: int, vocabulary: int) -> list[int]:
        """Tokens that may not come after `generated` tokens."""
        if generated >= self.min_new_tokens:
            return []
        return [token for token in self.eos_ids | self.stop_ids if token < vocabulary]

    def append(self, answer: Answer, token: int) -> bool:
        """Add a token to an answer; True when that ends it. Text from a stop string on is cut off."""
        answer.tokens.append(token)
        ended, stopped = token in self.eos_ids, token in self.stop_ids
        full = len(answer.tokens) >= self.max_new_tokens
        if ended or stopped or full or self.stop:
            answer.text = self.decode(answer.tokens[:-1] if ended else answer.tokens)
            met = [at for stop in self.stop if (at := answer.text.find(stop)) >= 0]
            if met:
                answer.text = answer.text[: min(met)]
            if ended or stopped or met:
                answer.finish_reason = "stop"
            elif full:
                answer.finish_reason = "length"
        if answer.finish_reason is None and self.observe is not None and self.observe(answer.tokens):
            answer.text, answer.finish_reason = self.decode(answer.tokens), "cancelled"
        return answer.finish_reason is not None


def decode_cells(
    model: Llama,
    caches: Mapping[int, Sequence[tuple[Array, Array]]],
    tail: Sequence[int],
    position: int,
    first_logits: Array,
    ending: Ending,
    on_first_token: Callable[[], None] = lambda: None,
) -> dict[int, Answer]:
    """Greedy answers of many cells of one prompt, in one batch.

    Parameters
    ----------
    caches : cell -> per layer (keys, values), each (K, kept, d).
    tail : prompt tokens that are still to be read, from the caches; `position` is the true position of the first.
    first_logits : (vocabulary,) logits for the first answer token where the tail is empty.
    on_first_token : called when the logits of the first answer token are known.

    Returns
    -------
    The answer of every cell; none for no cells.
    """
    if not caches:
        return {}
    by_kept: dict[int, dict[int, Sequence[tuple[Array, Array]]]] = defaultdict(dict)
    for cell, cache in caches.items():
        by_kept[cache[0][0].shape[1]][cell] = cache
    room = len(tail) + ending.max_new_tokens
    groups = [CacheGroup(by_kept[kept], room) for kept in sorted(by_kept)]
    logits = np.tile(first_logits, (len(caches), 1))
    for start in range(0, len(tail), TAIL_TOKENS):
        chunk = np.asarray(tail[start : start + TAIL_TOKENS], dtype=np.int64)
        logits = model.extend(groups, np.tile(chunk, (len(caches), 1)), position + start)
    position += len(tail)
    on_first_token()
    answers = {cell: Answer() for cell in caches}
    generated = 0
    while groups:
        rows = [cell for group in groups for cell in group.rows]
        tokens = dict(zip(rows, ending.choose(logits, generated), strict=True))
        finished = {cell for cell, token in tokens.items() if ending.append(answers[cell], token)}
        for group in groups:
            for cell in finished.intersection(group.rows):
                group.drop(cell)
        groups = [group for group in groups if len(group)]
        if groups:
            going = [[tokens[cell]] for group in groups for cell in group.rows]
            logits = model.extend(groups, np.asarray(going, dtype=np.int64), position)
            position += 1
        generated += 1
    return answers
