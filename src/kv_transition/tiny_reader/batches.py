"""Training batches: one context with many questions behind it, packed so that no question sees another.

Each question block continues the context as if it stood alone: its positions start where the context ends and its
mask hides the other blocks. One pass over a context thus trains as many look-ups as there are questions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kv_transition.data.synthetic import (
    INSTRUCTIONS,
    QUESTION_FORMS,
    TASKS,
    VOCABULARY,
    Document,
    Fact,
    answer_words,
    draw_document,
    facts_asked,
    question_words,
    split_words,
)

TOKEN_IDS = {word: i for i, word in enumerate(VOCABULARY)}
#: Share of contexts whose questions ask for two phrases.
MULTI_SHARE = 0.65
#: Loss weight of a word that has to be looked up (the first of a phrase); the others follow by copying on.
LOOK_UP_WEIGHT = 4.0
#: Loss weight of naming the phrase's first word already at the person's name in the question. It makes the question
#: itself attend to the fact, which is what eviction methods that watch the end of the prompt rely on.
NAME_WEIGHT = 1.0

_IGNORE, _PLAIN, _LOOK_UP, _NAME = 0, 1, 2, 3
_WEIGHTS = torch.tensor([0.0, 1.0, LOOK_UP_WEIGHT, NAME_WEIGHT])


@dataclass(frozen=True)
class Batch:
    """Packed questions; every tensor is (batch, length) but `mask`, which is (batch, 1, length, length)."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    kinds: Tensor

    @property
    def weights(self) -> Tensor:
        """Loss weight of each target; 0 where there is none."""
        return _WEIGHTS[self.kinds]

    @property
    def look_ups(self) -> Tensor:
        """True where the target is the first word of a phrase within an answer."""
        return self.kinds == _LOOK_UP


#: One context and its questions: int64 rows (id, position, block, target, kind of target).
PackedDocument = NDArray[np.int64]


def training_batch(rng: random.Random, n_tokens: int) -> Batch:
    """Draw contexts of `n_tokens` tokens with their questions; contexts of the training split only."""
    width = 60 + int(0.3 * n_tokens)
    documents = []
    for _ in range(batch_tokens(n_tokens) // (n_tokens + width)):
        document = draw_document(rng, n_tokens, "training")
        task = TASKS[1] if rng.random() < MULTI_SHARE else TASKS[0]
        documents.append(pack(task, document, _draw_questions(rng, task, document, width)))
    return collate(documents)


def batch_tokens(n_tokens: int) -> int:
    """Packed tokens of a batch: few while contexts are short and steps count, more when few contexts would fit."""
    return min(8192, 4096 + 8 * n_tokens)


def pack(task: str, document: Document, questions: Sequence[tuple[Sequence[Fact], int]]) -> PackedDocument:
    """Lay out a context and its questions, each given as (facts asked for, question form)."""
    prefix = ["<s>", *split_words(INSTRUCTIONS[task]), "<user>", *document.words]
    rows = [(TOKEN_IDS[word], i, 0, 0, _IGNORE) for i, word in enumerate(prefix)]
    for block, (facts, form) in enumerate(questions, 1):
        question, answer = question_words(task, facts, form), answer_words(facts)
        words = [*question, "<assistant>", *answer]
        following: list[tuple[str, int]] = [("", _IGNORE)] * len(question)
        first_words = {fact.name: fact.phrase[0] for fact in facts}
        for i, word in enumerate(question):
            if word in first_words:
                following[i] = (first_words[word], _NAME)
        following += [
            (word, _LOOK_UP if before in ("<assistant>", "and") else _PLAIN)
            for before, word in zip(words[len(question) :], [*answer, "</s>"], strict=True)
        ]
        for i, (word, (target, kind)) in enumerate(zip(words, following, strict=True)):
            rows.append((TOKEN_IDS[word], len(prefix) + i, block, TOKEN_IDS.get(target, 0), kind))
    return np.array(rows, dtype=np.int64)


def collate(documents: Sequence[PackedDocument]) -> Batch:
    """Pad to a common length on the right; the padding is a block that sees only itself."""
    length = max(len(document) for document in documents)
    table = np.zeros((len(documents), length, 5), dtype=np.int64)
    table[:, :, 2] = -1
    for i, document in enumerate(documents):
        table[i, : len(document)] = document
    ids, positions, blocks, targets, kinds = torch.from_numpy(table).unbind(-1)
    same = blocks[:, :, None] == blocks[:, None, :]
    visible = (same | (blocks[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))[:, None]
    return Batch(ids, positions, mask, targets, kinds)


def _draw_questions(
    rng: random.Random, task: str, document: Document, width: int
) -> list[tuple[Sequence[Fact], int]]:
    questions: list[tuple[Sequence[Fact], int]] = []
    used = 0
    while used < width:
        facts = rng.sample(document.facts, facts_asked(task))
        form = rng.randrange(QUESTION_FORMS)
        questions.append((facts, form))
        used += len(question_words(task, facts, form)) + 1 + len(answer_words(facts))
    return questions
