"""Exact match and token F1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.longbench_tasks import TASK_FACTS
from kv_transition.eval.metrics import METRICS, exact_match, f1, normalize_answer

#: Any text a model can emit, lone surrogates too.
TEXTS = st.text(st.characters())
WORDS = st.lists(st.sampled_from(["a", "b", "c", "Paris", "paris.", "--", ""]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  The  Quick\tbrown\n fox ", "the quick brown fox"),
        ("Paris.", "paris"),
        ("co-op", "coop"),
        ("$3.50 + <b>", "350 b"),
        ("“Paris” — ‘là’…", "paris là"),
        ("北京。", "北京"),
        ("¿Qué?", "qué"),
        ("a b\u3000c", "a b c"),
        ("an apple", "an apple"),
        ("€5", "€5"),
        ("?!.", ""),
        ("", ""),
    ],
)
def test_normalizing_lowers_case_deletes_punctuation_and_collapses_white_space(text, normalized):
    assert normalize_answer(text) == normalized


@given(TEXTS)
def test_a_normalized_text_stays_as_it_is(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1_value", "best"),
    [
        ("Paris!", ["london", "paris"], 1.0, 1.0, "paris"),
        ("the city of Paris", ["paris"], 0.0, 0.4, "paris"),
        ("a a b", ["a b b"], 0.0, 2 / 3, "a b b"),
        ("b a", ["a b"], 0.0, 1.0, "a b"),
        ("a b", ["a b c d", "b c", "a"], 0.0, 2 / 3, "a b c d"),
        ("", [""], 1.0, 1.0, ""),
        ("?!", ["  ", "x"], 1.0, 1.0, "  "),
        ("", ["paris"], 0.0, 0.0, "paris"),
        ("paris", [""], 0.0, 0.0, ""),
        ("paris", [], 0.0, 0.0, ""),
        ("x", ["y", "z"], 0.0, 0.0, "y"),
    ],
)
def test_the_best_reference_answer_counts(prediction, answers, em, f1_value, best):
    assert exact_match(prediction, answers) == em
    value, answer = f1(prediction, answers)
    assert value == pytest.approx(f1_value)
    assert answer == best


@given(TEXTS | WORDS, st.lists(TEXTS | WORDS, max_size=3))
def test_scores_lie_between_0_and_1_and_an_exact_match_has_f1_1(prediction, answers):
    em, (value, _) = exact_match(prediction, answers), f1(prediction, answers)
    assert em in (0.0, 1.0)
    assert 0.0 <= value <= 1.0
    if em:
        assert value == 1.0


@given(WORDS, WORDS)
def test_f1_does_not_change_when_prediction_and_answer_change_places(left, right):
    assert f1(left, [right])[0] == f1(right, [left])[0]


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_another_reference_answer_never_lowers_a_score(prediction, answers, another):
    assert f1(prediction, [*answers, another])[0] >= f1(prediction, answers)[0]
    assert exact_match(prediction, [*answers, another]) >= exact_match(prediction, answers)


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "a b " * 25_000, "?" * 100_000, "\n" * 100_000, "\ud800" * 100_000]
)
def test_an_answer_of_100000_characters_is_scored(text):
    assert f1(text, [text])[0] == 1.0
    assert exact_match(text, [text]) == 1.0
    assert f1(text, ["no such thing"])[0] == 0.0


@pytest.mark.parametrize(("name", "score"), [("em", 0.0), ("f1", 0.4), ("qa_f1", 0.5), ("count", 0.0)])
def test_every_metric_is_called_the_same_way(name, score):
    assert METRICS[name]("the city of Paris", ["paris"], []) == pytest.approx(score)


def test_every_official_metric_of_longbench_can_be_chosen():
    assert {facts.metric for facts in TASK_FACTS.values()} | {"em", "f1"} == set(METRICS)
