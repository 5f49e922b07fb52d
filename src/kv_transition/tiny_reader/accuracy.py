"""Exact match at the full cache, measured without decoding."""

from __future__ import annotations

import torch

from kv_transition.data.synthetic import INSTRUCTIONS, TASKS, make_records, split_words
from kv_transition.tiny_reader.batches import TOKEN_IDS
from kv_transition.tiny_reader.model import TinyReader

#: Prompt lengths in tokens over which exact match is told apart.
LENGTH_BINS = ((64, 128), (129, 256), (257, 512), (513, 1024))

_BATCH = 10


def full_cache_exact_match(reader: TinyReader, n_documents: int, seed: int) -> dict[str, list[float]]:
    """Share of evaluation documents answered exactly, per task and length bin.

    Greedy decoding gives the gold answer if and only if each of its tokens, the end token included, is the most likely
    one after the tokens before it, so that one pass over prompt and answer decides.
    """
    return {
        task: [
            _exact_match(
                reader, [_ids(record) for record in make_records(task, n_documents, low, high, seed)]
            )
            for low, high in LENGTH_BINS
        ]
        for task in TASKS
    }


def _ids(record: dict[str, object]) -> tuple[list[int], int]:
    """Token ids of prompt and answer, and how many of them are to be predicted."""
    answer = [*str(record["answers"][0]).split(), "</s>"]  # type: ignore[index]
    instruction = split_words(INSTRUCTIONS[str(record["dataset"])])
    body = split_words(f"{record['context']} {record['input']}")
    words = ["<s>", *instruction, "<user>", *body, "<assistant>", *answer]
    return [TOKEN_IDS[word] for word in words], len(answer)


@torch.no_grad()
def _exact_match(reader: TinyReader, sequences: list[tuple[list[int], int]]) -> float:
    right = 0
    for start in range(0, len(sequences), _BATCH):
        part = sequences[start : start + _BATCH]
        length = max(len(ids) for ids, _ in part)
        table = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in part])
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        hidden = reader.hidden(table, torch.arange(length)[None], mask)
        for i, (ids, answer) in enumerate(part):
            predicted = reader.logits(hidden[i, len(ids) - answer - 1 : len(ids) - 1]).argmax(-1)
            right += predicted.tolist() == ids[-answer:]
    return right / len(sequences)
