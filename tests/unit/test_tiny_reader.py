"""The tracked tiny reader: its folder loads, its card is true, it reads, and it can be trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kv_transition.data.prompts import build_prompt
from kv_transition.data.synthetic import TASKS, VOCABULARY, make_records
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.engines.base import BaseEngine, Cell, Decoding
from kv_transition.engines.endpoints import build_engine
from kv_transition.errors import UserError
from kv_transition.eval.metrics import exact_match
from kv_transition.files import sha256_file

DECODING = Decoding(max_new_tokens=16)
ENGLISH = (
    "The committee published its annual report on fisheries last week. According to the authors, catches in the "
    "northern districts fell by nearly a third, while prices at auction rose sharply for most species."
)


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "resources" / "tiny-reader"


@pytest.fixture(scope="module")
def engine(folder: Path) -> BaseEngine:
    kv = {"scope": "prompt", "first_token": "compressed", "methods": {"snapkv": {"window": 8, "kernel": 5}}}
    return build_engine(
        {
            "engine": {"kind": "reference", "dtype": "float32", "unknown_token_limit": 0.2},
            "model": {"name": "tiny-reader", "path": str(folder)},
            "kv": kv,
        }
    )


def answers(engine: BaseEngine, records: list[dict], cell: Cell) -> list[float]:
    scores = []
    for record in records:
        prompt = build_prompt(record["dataset"], record["input"], record["context"])
        result = engine.generate(prompt, cell, DECODING, record["_id"])
        assert result.failure is None, result.error
        scores.append(exact_match(result.text, record["answers"]))
    return scores


def test_the_cards_checksum_and_number_of_parameters_are_true(folder):
    from safetensors.numpy import load_file

    card = (folder / "README.md").read_text(encoding="utf-8")
    assert re.search(r"sha256: ([0-9a-f]{64})", card).group(1) == sha256_file(folder / "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    assert int(re.search(r"(\d+) parameters", card).group(1)) == sum(array.size for array in weights.values())
    assert {str(array.dtype) for array in weights.values()} == {"float32"}


def test_the_folder_is_a_hugging_face_llama(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["attention_bias"] is True
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == len(VOCABULARY)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_have_the_token_length_that_was_asked_for(folder, task):
    tokenizer = ModelTokenizer(folder)
    for record in make_records(task, 10, 100, 200, seed=8):
        ids = tokenizer.prompt_ids(build_prompt(task, record["input"], record["context"])).ids
        assert 100 <= len(ids) <= 200
        assert tokenizer.unknown_share(ids) == 0


@pytest.mark.parametrize("task", TASKS)
def test_it_answers_with_the_full_cache(engine, task):
    records = make_records(task, 10, 64, 512, seed=5)
    assert sum(answers(engine, records, Cell("full"))) >= 9


@pytest.mark.parametrize("task", TASKS)
def test_it_cannot_answer_without_the_context(engine, task):
    records = [record | {"context": ""} for record in make_records(task, 10, 64, 128, seed=5)]
    assert sum(answers(engine, records, Cell("full"))) == 0


def test_snapkv_reads_what_streaming_llm_has_forgotten(engine):
    records = make_records("phrasebook_multi_qa", 12, 300, 600, seed=5)
    snapkv, streaming = (
        answers(engine, records, Cell(method, 128)) for method in ("snapkv", "streaming_llm")
    )
    assert sum(snapkv) >= sum(streaming) + 3


def test_ordinary_english_is_mostly_unknown_and_refused(folder, engine):
    tokenizer = ModelTokenizer(folder)
    assert tokenizer.unknown_share(tokenizer.encode(ENGLISH)) > 0.5
    with pytest.raises(UserError, match="unknown_token_limit"):
        engine.generate(build_prompt("qasper", "Who fell?", ENGLISH), Cell("full"), DECODING, "1")


def test_answers_decode_to_words_separated_by_single_spaces(folder):
    tokenizer = ModelTokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("amber river stone and maple silver</s>")) == (
        "amber river stone and maple silver"
    )


@pytest.mark.kvpress
def test_transformers_gives_the_same_text_and_the_same_tokens(folder, engine):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"
    theirs, ours = AutoTokenizer.from_pretrained(folder), ModelTokenizer(folder)
    for record in make_records("phrasebook_multi_qa", 3, 64, 256, seed=12):
        prompt = build_prompt(record["dataset"], record["input"], record["context"])
        ids = theirs.apply_chat_template(
            list(prompt.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        assert ids[0].tolist() == ours.prompt_ids(prompt).ids
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=2
        )
        text = theirs.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == engine.generate(prompt, Cell("full"), DECODING, record["_id"]).text


@pytest.mark.kvpress
def test_packed_questions_get_the_logits_they_would_get_alone():
    import random

    import torch

    from kv_transition.data.synthetic import draw_document
    from kv_transition.tiny_reader.batches import collate, pack
    from kv_transition.tiny_reader.model import TinyReader

    torch.manual_seed(0)
    reader = TinyReader()
    document = draw_document(random.Random(3), 60, "training")
    questions = [([fact], form) for fact, form in zip(document.facts, (0, 1, 2), strict=False)]

    def answer_logits(asked):
        batch = collate([pack("phrasebook_qa", document, asked)])
        hidden = reader.hidden(batch.ids, batch.positions, batch.mask)
        return reader.logits(hidden)[batch.kinds > 0]

    together = answer_logits(questions)
    alone = torch.cat([answer_logits([question]) for question in questions])
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.kvpress
def test_a_short_training_learns_and_writes_a_folder_the_engine_can_load(tmp_path, monkeypatch):
    from kv_transition.tiny_reader import training

    monkeypatch.setattr(training, "CARD_DOCUMENTS", 1)
    recipe = training.Recipe(steps=4, stages=((24, 30),))
    first, second = (training.train(tmp_path / name, seed=3, recipe=recipe, threads=1) for name in ("a", "b"))
    assert all((a == b).all() for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert sha256_file(tmp_path / "a" / "model.safetensors") in (tmp_path / "a" / "README.md").read_text()
    assert len(ModelTokenizer(tmp_path / "a").encode("The badge.")) == 3
