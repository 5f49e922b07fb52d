"""Failure labels: what holds of an answer, and which finding gives the label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import (
    FORMATS,
    LABELS,
    compile_refusals,
    findings_of_answer,
    findings_of_failure,
    first_line,
    without_thinking,
)

REFUSALS = compile_refusals([r"i(?:'m| am) sorry", "i can(?:not|'t) answer", "as an ai", "抱歉"])


def label_of(text, *, finish_reason="stop", score=0.0, **rules):
    return findings_of_answer(
        text, finish_reason=finish_reason, score=score, refusals=REFUSALS, **rules
    ).label


@pytest.mark.parametrize(
    ("text", "finish_reason", "score", "rules", "label"),
    [
        # normal answers
        ("Paris", "stop", 1.0, {}, None),
        ("Paris", "stop", 0.0, {}, None),
        ("Paris", None, 0.0, {}, None),
        ("<think>Is it?</think>Paris", "stop", 0.0, {}, None),
        ("unanswerable", "stop", 0.0, {}, None),
        # nothing was said
        ("", "stop", 0.0, {}, "EMPTY_OUTPUT"),
        (" \n\t\u3000", "stop", 0.0, {}, "EMPTY_OUTPUT"),
        ("<think>Paris</think>\n", "stop", 0.0, {}, "EMPTY_OUTPUT"),
        ("<think>a</think> <think>b</think>", "stop", 0.0, {}, "EMPTY_OUTPUT"),
        ("?!", "stop", 0.0, {}, None),
        # refusals: at the start, and only where nothing was scored
        ("I'm sorry, I can't say.", "stop", 0.0, {}, "REFUSAL"),
        ("I’m sorry, I can’t say.", "stop", 0.0, {}, "REFUSAL"),
        ('\n "I cannot answer this question', "stop", 0.0, {}, "REFUSAL"),
        ("<think>Hm.</think> As an AI model, I have no view.", "stop", 0.0, {}, "REFUSAL"),
        ("抱歉，文中没有提到。", "stop", 0.0, {}, "REFUSAL"),
        ("I'm sorry, Paris.", "stop", 0.5, {}, None),
        ("He said: I'm sorry", "stop", 0.0, {}, None),
        ("I can see Paris", "stop", 0.0, {}, None),
        # cut off where it counts
        ("Paris is", "length", 0.5, {}, "TRUNCATED"),
        ("Paris\nQuestion:", "length", 1.0, {"first_line_only": True}, None),
        ("\n\nPar", "length", 0.0, {"first_line_only": True}, "TRUNCATED"),
        ("Paris\nQuestion:", "length", 1.0, {"first_line_only": False}, "TRUNCATED"),
        ("<think>Well, Paris", "stop", 0.0, {}, "TRUNCATED"),
        ("<think>Well\nParis", "stop", 0.0, {"first_line_only": True}, "TRUNCATED"),
        ("<think>a</think>Paris <think>b", "stop", 0.5, {}, "TRUNCATED"),
        # not in the form the task asks for
        ("seven", "stop", 0.0, {"answer_format": "number"}, "FORMAT_ERROR"),
        ("7", "stop", 0.0, {"answer_format": "number"}, None),
        ("seven\n7", "stop", 0.0, {"answer_format": "number", "first_line_only": True}, "FORMAT_ERROR"),
        ("a town", "stop", 0.0, {"answer_format": "class", "classes": ["City", "Food"]}, "FORMAT_ERROR"),
        ("a City", "stop", 1.0, {"answer_format": "class", "classes": ["City", "Food"]}, None),
        ("the second", "stop", 0.0, {"answer_format": "option"}, "FORMAT_ERROR"),
        ("ABBA", "stop", 0.0, {"answer_format": "option"}, "FORMAT_ERROR"),
        ("(B) the second", "stop", 1.0, {"answer_format": "option"}, None),
        ("选B。", "stop", 1.0, {"answer_format": "option"}, None),
        ("E", "stop", 1.0, {"answer_format": "option", "classes": ["E", "F"]}, None),
        ("seven", "stop", 0.0, {"answer_format": None}, None),
        # several hold: the first of LABELS wins
        ("", "length", 0.0, {"answer_format": "number"}, "EMPTY_OUTPUT"),
        ("I'm sorry, but", "length", 0.0, {"answer_format": "number"}, "REFUSAL"),
        ("seven and", "length", 0.0, {"answer_format": "number"}, "TRUNCATED"),
    ],
)
def test_the_label_of_an_answer(text, finish_reason, score, rules, label):
    assert label_of(text, finish_reason=finish_reason, score=score, **rules) == label


def test_every_finding_is_kept_beside_the_label():
    found = findings_of_answer(
        "I'm sorry, but", finish_reason="length", score=0.0, refusals=REFUSALS, answer_format="number"
    )
    assert found.label == "REFUSAL"
    assert (found.refusal, found.truncated, found.format_error, found.empty_output) == (
        True,
        True,
        True,
        False,
    )


@pytest.mark.parametrize("failure", ["TIMEOUT", "ENGINE_ERROR"])
def test_a_failed_request_has_its_own_label_and_no_other_finding(failure):
    found = findings_of_failure(failure)
    assert found.label == failure
    assert sum(getattr(found, label.lower()) for label in LABELS) == 1


def test_a_label_of_the_text_is_no_failure_of_a_request():
    with pytest.raises(ValueError, match="REFUSAL"):
        findings_of_failure("REFUSAL")


@given(
    st.text(st.characters())
    | st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "A", "7"])).map("".join),
    st.sampled_from(["stop", "length", None]),
    st.sampled_from([None, *FORMATS]),
    st.booleans(),
)
def test_any_text_gets_a_known_label_or_none(text, finish_reason, answer_format, first_line_only):
    label = label_of(
        text,
        finish_reason=finish_reason,
        answer_format=answer_format,
        classes=["A"],
        first_line_only=first_line_only,
    )
    assert label in (None, *LABELS)
    if not text.strip():
        assert label == "EMPTY_OUTPUT"
    if finish_reason == "length" and not first_line_only:
        assert label is not None


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", " ", "I'm ", "\n", "A"])
@pytest.mark.parametrize("answer_format", [None, *FORMATS])
def test_an_answer_of_100000_characters_is_labelled(piece, answer_format):
    text = piece * (100_000 // len(piece))
    label = label_of(text, finish_reason="length", answer_format=answer_format, classes=["no such class"])
    assert label in LABELS


@pytest.mark.parametrize(
    ("text", "rest", "unclosed"),
    [
        ("Paris", "Paris", False),
        ("<think>x</think>Paris", "Paris", False),
        ("a<think>x</think>b<think>y</think>c", "abc", False),
        ("a<think>x", "a<think>x", True),
        ("x</think>Paris", "x</think>Paris", False),
    ],
)
def test_closed_thinking_is_taken_out(text, rest, unclosed):
    assert without_thinking(text) == (rest, unclosed)


@pytest.mark.parametrize(
    ("text", "line"), [("\n\nParis\nLondon", "Paris"), (" \nParis", " "), ("", ""), ("a\r", "a\r")]
)
def test_the_first_line_follows_leading_line_feeds(text, line):
    assert first_line(text) == line


def test_a_faulty_refusal_pattern_is_named():
    with pytest.raises(UserError, match=r"scoring\.refusal_patterns: '\(oops' is no regular expression"):
        compile_refusals(["fine", "(oops"])


def test_without_refusal_patterns_nothing_is_a_refusal():
    found = findings_of_answer("I'm sorry", finish_reason="stop", score=0.0, refusals=compile_refusals([]))
    assert found.label is None
