"""Methods that shorten the text: how long the finished prompt is, what is left of the context, and what is not asked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kv_transition.data.prompts import Prompt, build_prompt
from kv_transition.data.protocol import TaskProtocol, own_protocol
from kv_transition.data.synthetic import make_records
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.data.words import search_words
from kv_transition.engines.text_level import (
    JOIN,
    TEXT_METHODS,
    Shortened,
    TextShortener,
    bm25_scores,
    shorten,
)
from kv_transition.methods import KNOWN_METHODS

READER = Path(__file__).resolve().parents[2] / "resources" / "tiny-reader"
TOKENIZER = ModelTokenizer(READER)
PASSAGE = 24
RECORDS = make_records("phrasebook_qa", 12, 300, 900, 5)


def of_record(
    record: Any, tokenizer: ModelTokenizer = TOKENIZER, passage: int = PASSAGE, **changes: Any
) -> TextShortener:
    record = {**record, **changes}
    return TextShortener(
        record["input"],
        record["context"],
        lambda context: build_prompt("phrasebook_qa", record["input"], context),
        tokenizer,
        passage,
    )


def text_of(made: Shortened, question: str) -> str:
    """What is left of the context."""
    assert made.prompt is not None
    content = made.prompt.messages[-1]["content"]
    assert content.endswith(question), "the question stays whole"
    return content.removesuffix(question).removesuffix("\n\n")


def test_the_methods_are_those_whose_card_says_that_they_shorten_the_text() -> None:
    assert TEXT_METHODS == ("recent", "middle", "bm25")
    assert set(TEXT_METHODS) == {name for name, card in KNOWN_METHODS.items() if card.shortens_text}


# The budget


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RECORDS), st.integers(18, 1000))
def test_recent_and_middle_fill_the_budget_exactly(record: Any, budget: int) -> None:
    texts = of_record(record)
    for method in ("recent", "middle"):
        made = texts.shorten(method, budget)
        assert made.prompt is not None
        assert TOKENIZER.count(made.prompt) == made.kept_tokens == min(budget, texts.full_tokens)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RECORDS), st.integers(18, 1000))
def test_bm25_leaves_less_than_a_passage_of_the_budget_unused(record: Any, budget: int) -> None:
    made = of_record(record).shorten("bm25", budget)
    assert made.prompt is not None
    assert TOKENIZER.count(made.prompt) == made.kept_tokens <= budget
    full = of_record(record).full_tokens
    assert made.kept_tokens > min(budget, full) - PASSAGE


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(RECORDS), st.floats(0.1, 0.99))
def test_a_share_is_one_of_the_full_prompts_tokens(record: Any, share: float) -> None:
    texts = of_record(record)
    assert texts.shorten("recent", share).kept_tokens == int(share * texts.full_tokens + 1e-9)


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """A byte-level tokenizer, whose tokens change where a text is cut, and split characters."""
    folder = tmp_path_factory.mktemp("subwords")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [record["context"] for record in RECORDS]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ModelTokenizer(folder)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    method=st.sampled_from(TEXT_METHODS),
    characters=st.sampled_from(["abe é", "词语。 ", "🙂a\n"]),
)
def test_no_prompt_exceeds_its_budget_whatever_the_tokenizer_makes_of_a_cut(
    subwords: ModelTokenizer, data: st.DataObject, method: str, characters: str
) -> None:
    context = data.draw(st.text(characters, min_size=1, max_size=300))
    budget = data.draw(st.integers(2, 400))
    texts = of_record({"input": "abe?", "context": context}, subwords)
    made = texts.shorten(method, budget)
    if made.prompt is None:
        assert made.status == "infeasible"
        assert subwords.count(build_prompt("phrasebook_qa", "abe?", "")) >= budget
    else:
        assert subwords.count(made.prompt) == made.kept_tokens <= budget
        if method != "bm25" and texts.full_tokens > budget:
            assert made.kept_tokens >= budget - 4, "as long as the tokens of one character allow"


# What is left of the context


def test_recent_keeps_the_end_of_the_context() -> None:
    record = RECORDS[0]
    left = text_of(of_record(record).shorten("recent", 64), record["input"])
    assert left
    assert record["context"].endswith(left)


def test_middle_keeps_both_ends_of_the_context_and_glues_no_words() -> None:
    for record in RECORDS:
        for budget in (63, 64):
            left = text_of(of_record(record).shorten("middle", budget), record["input"])
            head, tail = left.split(JOIN)
            assert record["context"].startswith(head)
            assert record["context"].endswith(tail)
            lengths = len(TOKENIZER.encode(head)), len(TOKENIZER.encode(tail))
            assert lengths[0] - lengths[1] in (0, 1)


def test_passages_stand_in_the_order_of_the_document() -> None:
    for record in RECORDS:
        passages = text_of(of_record(record).shorten("bm25", 128), record["input"]).split(JOIN)
        assert len(passages) > 2
        rest = record["context"]
        for passage in passages:
            assert passage in rest, "behind the one before it"
            rest = rest[rest.index(passage) + len(passage) :]


def test_bm25_finds_the_passage_with_the_answer_far_more_often_than_recent_text_has_it() -> None:
    records = make_records("phrasebook_qa", 20, 800, 1000, 9)
    found = dict.fromkeys(TEXT_METHODS, 0)
    for record in records:
        for method in TEXT_METHODS:
            left = text_of(of_record(record, passage=64).shorten(method, 160), record["input"])
            found[method] += any(answer in left for answer in record["answers"])
    assert found["bm25"] >= 17, "a fact may be cut in two between passages"
    assert found["recent"] <= 6


def test_passages_of_equal_rank_count_from_the_front() -> None:
    context = " ".join(["The baker watched ."] * 60)
    made = of_record({"input": "Who is Maria ?", "context": context}).shorten("bm25", 64)
    assert set(bm25_scores("Maria", ["The baker", "The baker", ""])) == {0.0}
    assert context.startswith(text_of(made, "Who is Maria ?").split(JOIN)[0])


def test_a_rare_word_counts_more_than_one_that_stands_everywhere() -> None:
    scores = bm25_scores(
        "the key of Ada", ["the the the door", "Ada left", "the of the of", "the of key Ada"]
    )
    assert max(scores) == scores[3]
    assert scores[1] > scores[0]


def test_words_are_compared_without_case_and_punctuation_and_chinese_as_jieba_cuts_it() -> None:
    assert search_words("Who's Ada_B-2? ÉTÉ") == ["who", "s", "ada", "b", "2", "été"]
    assert search_words("我来到北京清华大学，GPT4很好。") == [
        "我",
        "来到",
        "北京",
        "清华大学",
        "gpt4",
        "很",
        "好",
    ]
    scores = bm25_scores("清华大学在哪里？", ["我喜欢苹果。", "他去年考上了清华大学。", "天气很好。"])
    assert scores[1] > max(scores[0], scores[2])


# What is not asked, and what is not shortened


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_a_budget_that_the_fixed_part_fills_is_infeasible(method: str) -> None:
    record = RECORDS[0]
    fixed = TOKENIZER.count(build_prompt("phrasebook_qa", record["input"], ""))
    texts = of_record(record)
    assert texts.shorten(method, fixed) == Shortened(None, "infeasible", 0)
    assert texts.shorten(method, fixed + 1).status == "ok"


def test_bm25_without_a_question_is_not_applicable_at_any_budget() -> None:
    texts = of_record(RECORDS[0], input="  \n")
    for budget in (2, 64, 100_000):
        assert texts.shorten("bm25", budget) == Shortened(None, "not_applicable", 0)
    assert texts.shorten("recent", 64).status == "ok"


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_a_prompt_within_the_budget_is_the_full_prompt(method: str) -> None:
    texts = of_record(RECORDS[0])
    assert texts.shorten(method, texts.full_tokens) == Shortened(texts.full, "ok", texts.full_tokens)
    assert texts.shorten(method, texts.full_tokens - 1).kept_tokens < texts.full_tokens


def test_without_any_context_there_is_nothing_to_shorten() -> None:
    texts = of_record(RECORDS[0], context="")
    assert texts.shorten("bm25", 100).prompt == texts.full
    assert texts.shorten("recent", texts.full_tokens - 1).status == "infeasible"


def test_passages_as_long_as_the_setting_says() -> None:
    record = RECORDS[0]
    for size in (8, 60):
        texts = of_record(record, passage=size)
        left = text_of(texts.shorten("bm25", 200), record["input"]).split(JOIN)
        lengths = {len(TOKENIZER.encode(passage)) for passage in left}
        assert max(lengths) == size
        assert len(lengths) <= 2, "only the last passage of a text may be shorter"


# Prompts that a protocol shortens too


@pytest.mark.parametrize(
    "protocol",
    [
        own_protocol("phrasebook_qa", 120),
        TaskProtocol(
            "phrasebook_qa", "official", "o", template="The {context} What {input}", max_length_tokens=120
        ),
    ],
    ids=["own", "official"],
)
def test_a_shortened_context_comes_from_the_whole_record_and_not_from_the_truncated_prompt(
    protocol: TaskProtocol,
) -> None:
    record = RECORDS[1]

    def make_prompt(context: str) -> Prompt:
        return protocol.prompt(record["input"], context, TOKENIZER)

    words = record["context"].split()
    texts = TextShortener(record["input"], record["context"], make_prompt, TOKENIZER, PASSAGE)
    assert texts.full.dropped_tokens > 0
    made = texts.shorten("recent", 100)
    assert made.prompt is not None
    assert made.kept_tokens == 100
    assert made.prompt.dropped_tokens == 0
    assert " ".join(words[-60:]) in " ".join(made.prompt.messages[-1]["content"].split())
    assert texts.shorten("recent", 100_000).prompt == texts.full, "the protocol's own limit still holds"


def test_just_below_the_protocols_limit_no_prompt_loses_its_middle() -> None:
    """A truncated prompt may come out a token shorter than another truncated one, and so within the budget."""
    protocol = TaskProtocol(
        "phrasebook_qa", "official", "o", template="The {context} What {input}", max_length_tokens=120
    )
    for record in RECORDS:

        def make_prompt(context: str, question: str = record["input"]) -> Prompt:
            return protocol.prompt(question, context, TOKENIZER)

        texts = TextShortener(record["input"], record["context"], make_prompt, TOKENIZER, PASSAGE)
        for method in TEXT_METHODS:
            made = texts.shorten(method, texts.full_tokens - 1)
            assert made.prompt is not None
            assert made.prompt.dropped_tokens == 0


def test_one_call_makes_one_prompt() -> None:
    record, rng = RECORDS[2], random.Random(0)
    for method in TEXT_METHODS:
        budget = rng.randint(32, 256)
        made = shorten(
            method,
            budget,
            record["input"],
            record["context"],
            lambda context: build_prompt("phrasebook_qa", record["input"], context),
            TOKENIZER,
            PASSAGE,
        )
        assert made == of_record(record).shorten(method, budget)
