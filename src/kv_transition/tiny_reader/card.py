"""The tiny reader's model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kv_transition.files import sha256_file, write_text
from kv_transition.tiny_reader.accuracy import LENGTH_BINS


@dataclass(frozen=True)
class TrainingFacts:
    """What a training was, as told on the card."""

    seed: int
    steps: int
    tokens: int
    minutes: float
    threads: int
    torch_version: str
    parameters: int
    documents_per_bin: int
    exact_match: Mapping[str, Sequence[float]]


def write_card(folder: str | Path, facts: TrainingFacts) -> None:
    """Write README.md into a model folder whose weights are already there."""
    digest = sha256_file(Path(folder) / "model.safetensors")
    write_text(Path(folder) / "README.md", _CARD.format(facts=facts, digest=digest, table=_table(facts)))


def _table(facts: TrainingFacts) -> str:
    lines = ["| task | " + " | ".join(f"{low}-{high}" for low, high in LENGTH_BINS) + " |"]
    lines.append("|---|" + "---|" * len(LENGTH_BINS))
    for task, values in facts.exact_match.items():
        lines.append(f"| {task} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


_CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Tiny reader

A Llama that reads phrasebooks and nothing else: small enough to answer thousands of prompts a minute on a laptop, real
enough (rotary positions, grouped-query attention, a chat template) that evicting its KV cache does to it what it does
to a large model. The default experiment runs it.

- {facts.parameters} parameters, float32: 3 layers, hidden size 128, 4 query heads on 2 KV heads, feed-forward 128,
  rotary base 5e5, tied embeddings, biases in attention. Loads as LlamaForCausalLM in transformers, and in the numpy
  reference engine.
- Tokenizer: 339 words, one token a word or punctuation mark; any other word is `<unk>`.
- model.safetensors sha256: {digest}
- Licence: MIT. The texts are made up by a program; no outside data was used.

## What it can do

Documents hold facts such as "The badge phrase of Maria is amber river stone." among filler sentences. It answers
"What is the badge phrase of Maria?" (phrasebook_qa), or asks for two people at once, answered by both phrases joined by
"and" (phrasebook_multi_qa), in three question forms and up to 1,024 prompt tokens.

Exact match at the full cache, by prompt length in tokens ({facts.documents_per_bin} documents each, none of them a
training context: a context's hash decides which side it is on):

{table}

Exact match and F1 under a budget, method by method, and the bar the model has to meet: RESULTS.md, made by
`python benchmarks/tiny_reader_bar.py`.

## How it was trained

From scratch by `snakemake train_tiny_reader`: seed {facts.seed}, {facts.steps} steps, {facts.tokens:,} packed tokens,
{facts.minutes:.0f} minutes of wall time on {facts.threads} processor cores that were shared with other work
(torch {facts.torch_version}). Muon for the matrices, AdamW for the rest; context lengths grow from 24-48 to 60-1060
tokens as look-ups come out right; many questions on each context; loss on the answers only, four times heavier on words
that have to be looked up. One loss is added: at a person's name in the question the model is to name the first word of
the phrase, which makes the question itself attend to the fact. Eviction methods that watch the end of the prompt profit
from that. Training does not start from nothing: some heads begin by looking a fixed number of tokens back, others by
copying.

## Limits

- It knows 339 words. Ordinary text is mostly unknown to it; engines refuse such prompts.
- It was trained on prompts of up to 1,060 tokens. Longer ones run (32,768 positions) and mean little.
- Its keys are ruled by biases, those of the first layer wholly. The norm of a key says little then, and eviction by key
  norm (knorm) does hardly better than random eviction: a property of this toy, not of the method.
- Names, attributes and phrases are fixed lists, a person has one fact and a value word stands once in a document.
  Where its transition lies says nothing about any other model; how to measure a transition is what it is for.
"""
