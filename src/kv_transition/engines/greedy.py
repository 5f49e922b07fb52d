"""Greedy answers of many cells, of one prompt or several, in one batch, from what each cell's cache still holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kv_transition.engines.attention import CacheGroup
from kv_transition.engines.llama import Llama

Array = NDArray[np.float32]

#: A cell of one of the prompts that are decoded together.
_Row = tuple[int, int]

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


@dataclass(frozen=True)
class PrunedPrompt:
    """A prompt that was read, and what its cells kept of it.

    Attributes
    ----------
    caches : cell -> per layer (keys, values), each (K, kept, d).
    tail : prompt tokens that are still to be read, from the caches; `position` is the true position of the first.
    logits : (vocabulary,) logits for the first answer token where the tail is empty.
    """

    caches: Mapping[int, Sequence[tuple[Array, Array]]]
    tail: Sequence[int]
    position: int
    logits: Array


def decode_cells(
    model: Llama,
    prompts: Sequence[PrunedPrompt],
    ending: Ending,
    on_first_token: Callable[[], None] = lambda: None,
) -> list[dict[int, Answer]]:
    """Greedy answers of the cells of one prompt or of several, all in one batch.

    Cells that kept equally many positions attend together, whichever prompts they are of.

    Parameters
    ----------
    prompts : with tails of the same length.
    on_first_token : called when the logits of the first answer tokens are known.

    Returns
    -------
    The answer of every cell, prompt by prompt.
    """
    answers: list[dict[int, Answer]] = [{cell: Answer() for cell in prompt.caches} for prompt in prompts]
    by_kept: dict[int, dict[_Row, Sequence[tuple[Array, Array]]]] = defaultdict(dict)
    for number, prompt in enumerate(prompts):
        for cell, cache in prompt.caches.items():
            by_kept[cache[0][0].shape[1]][number, cell] = cache
    if not by_kept:
        return answers
    (new,) = {len(prompt.tail) for prompt in prompts}
    groups = [CacheGroup(by_kept[kept], new + ending.max_new_tokens) for kept in sorted(by_kept)]

    def extend(tokens: Mapping[_Row, Sequence[int]], offset: int) -> Array:
        """Append to every cell's cache; `offset` tokens of the tail and the answer are there already."""
        rows = [row for group in groups for row in group.rows]
        positions = [prompts[number].position + offset for number, _ in rows]
        return model.extend(groups, np.asarray([tokens[row] for row in rows]), np.asarray(positions))

    rows = [row for group in groups for row in group.rows]
    logits = np.stack([prompts[number].logits for number, _ in rows])
    for start in range(0, new, TAIL_TOKENS):
        chunk = slice(start, start + TAIL_TOKENS)
        logits = extend({row: prompts[row[0]].tail[chunk] for row in rows}, start)
    on_first_token()
    generated = 0
    while groups:
        rows = [row for group in groups for row in group.rows]
        chosen = dict(zip(rows, ending.choose(logits, generated), strict=True))
        ended = {(n, cell) for (n, cell), token in chosen.items() if ending.append(answers[n][cell], token)}
        for group in groups:
            for row in ended.intersection(group.rows):
                group.drop(row)
        groups = [group for group in groups if len(group)]
        if groups:
            logits = extend({row: [token] for row, token in chosen.items()}, new + generated)
        generated += 1
    return answers
