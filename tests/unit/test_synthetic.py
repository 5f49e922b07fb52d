"""Synthetic tasks: LongBench records of known length whose answers stand in the context."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transition.data.synthetic import (
    INSTRUCTIONS,
    TASKS,
    VOCABULARY,
    draw_document,
    make_records,
    question_words,
    split_of,
)
from kv_transition.errors import UserError

FIELDS = ["_id", "input", "context", "answers", "length", "dataset", "language", "all_classes"]


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def prompt_tokens(record: dict) -> int:
    instruction = INSTRUCTIONS[record["dataset"]]
    # <s>, <user> and <assistant> are the three tokens that are in no text.
    return 3 + len(tokens(f"{instruction} {record['context']} {record['input']}"))


@pytest.mark.parametrize("task", TASKS)
def test_records_have_longbench_fields_and_unique_ids(task):
    records = make_records(task, 20, 64, 256, seed=3)
    assert all(list(record) == FIELDS for record in records)
    assert len({record["_id"] for record in records}) == 20
    assert {record["dataset"] for record in records} == {task}
    assert all(record["length"] == len(record["context"].split()) for record in records)


@given(
    task=st.sampled_from(TASKS),
    low=st.integers(48, 700),
    extra=st.integers(0, 400),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_finished_prompts_lie_within_the_bounds(task, low, extra, seed):
    for record in make_records(task, 3, low, low + extra, seed):
        assert low <= prompt_tokens(record) <= low + extra


def test_lengths_are_spread_evenly_on_a_log_scale():
    lengths = [prompt_tokens(record) for record in make_records("phrasebook_qa", 400, 64, 1024, seed=1)]
    share_below_256 = sum(length <= 256 for length in lengths) / len(lengths)
    assert 0.4 < share_below_256 < 0.6


@pytest.mark.parametrize("task", TASKS)
def test_equal_arguments_give_equal_records_and_another_seed_gives_others(task):
    assert make_records(task, 5, 64, 128, seed=1) == make_records(task, 5, 64, 128, seed=1)
    first, second = (make_records(task, 5, 64, 128, seed=seed) for seed in (1, 2))
    assert not {record["context"] for record in first} & {record["context"] for record in second}


def test_a_larger_set_begins_with_the_smaller_one():
    assert make_records("phrasebook_qa", 8, 64, 128, seed=1)[:5] == make_records(
        "phrasebook_qa", 5, 64, 128, seed=1
    )


def test_the_answer_is_the_phrase_of_the_person_asked_for():
    for record in make_records("phrasebook_qa", 30, 64, 512, seed=9):
        question = record["input"]
        (name,) = [word for word in tokens(question) if f"of {word} is" in record["context"]]
        phrase = re.search(rf"phrase of {name} is ([\w ]+)\.", record["context"]).group(1)
        assert record["answers"] == [phrase]
        assert 3 <= len(phrase.split()) <= 5


def test_the_multi_task_asks_for_two_phrases_joined_by_and_in_the_order_of_the_question():
    for record in make_records("phrasebook_multi_qa", 30, 64, 512, seed=9):
        names = [word for word in tokens(record["input"]) if f"of {word} is" in record["context"]]
        assert len(names) == 2
        phrases = [
            re.search(rf"phrase of {name} is ([\w ]+)\.", record["context"]).group(1) for name in names
        ]
        assert record["answers"] == [" and ".join(phrases)]


@pytest.mark.parametrize("task", TASKS)
def test_there_are_three_question_forms(task):
    starts = {" ".join(record["input"].split()[:2]) for record in make_records(task, 60, 64, 128, seed=2)}
    assert len({start if start.startswith(("What is", "Tell")) else "What" for start in starts}) == 3


def test_every_word_is_in_the_vocabulary():
    known = set(VOCABULARY)
    assert len(known) == len(VOCABULARY)
    for task in TASKS:
        for record in make_records(task, 20, 64, 1024, seed=4):
            texts = (record["context"], record["input"], *record["answers"], INSTRUCTIONS[task])
            assert {token for text in texts for token in tokens(text)} <= known


def test_a_person_has_one_fact_and_a_value_word_stands_once_in_a_document():
    document = draw_document(random.Random(1), 1000, "training")
    names = [fact.name for fact in document.facts]
    values = [word for fact in document.facts for word in fact.phrase]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)


@given(seed=st.integers(0, 2**31), n_tokens=st.integers(24, 1060))
@settings(max_examples=60, deadline=None)
def test_no_training_context_can_be_an_evaluation_context(seed, n_tokens):
    training = draw_document(random.Random(seed), n_tokens, "training").text
    evaluation = draw_document(random.Random(seed), n_tokens, "evaluation").text
    assert split_of(training) == "training"
    assert split_of(evaluation) == "evaluation"


@pytest.mark.parametrize("task", TASKS)
def test_records_are_drawn_from_the_evaluation_split(task):
    assert {split_of(record["context"]) for record in make_records(task, 40, 64, 512, seed=6)} == {
        "evaluation"
    }


def test_impossible_lengths_and_unknown_tasks_are_the_users_error():
    with pytest.raises(UserError, match="min_tokens"):
        make_records("phrasebook_qa", 1, 10, 20, seed=1)
    with pytest.raises(UserError, match="min_tokens"):
        make_records("phrasebook_qa", 1, 200, 100, seed=1)
    with pytest.raises(UserError, match="phrasebook_multi_qa"):
        make_records("hotpotqa", 1, 64, 128, seed=1)


def test_question_forms_differ_in_wording_only():
    facts = draw_document(random.Random(2), 60, "training").facts[:1]
    questions = [question_words("phrasebook_qa", facts, form) for form in range(3)]
    assert len({tuple(question) for question in questions}) == 3
    assert all(facts[0].name in question and facts[0].attribute in question for question in questions)
