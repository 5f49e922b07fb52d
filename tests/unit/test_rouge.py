"""ROUGE-L against a plain restatement of what the reference package computes."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.eval.rouge import rouge_l, split_sentences, walks_as_far

FEW_WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", ".", ". .", " "]), max_size=25).map(" ".join)


def walk(expected, predicted):
    """Words on the way back through the LCS table, and the number of steps: cell by cell."""
    table = [[0] * (len(predicted) + 1) for _ in range(len(expected) + 1)]
    for i in range(1, len(expected) + 1):
        for j in range(1, len(predicted) + 1):
            if expected[i - 1] == predicted[j - 1]:
                table[i][j] = table[i - 1][j - 1] + 1
            else:
                table[i][j] = max(table[i - 1][j], table[i][j - 1])
    i, j, met, steps = len(expected), len(predicted), [], 0
    while i > 0 and j > 0:
        steps += 1
        if expected[i - 1] == predicted[j - 1]:
            met.append(expected[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return met, steps


def plain_sentences(text):
    return [" ".join(piece.split()).split(" ") for piece in text.split(".") if len(piece) > 0]


def plain_rouge_l(prediction, reference):
    """F of ROUGE-L from the set of all words on the ways back, every pair of sentences in turn."""
    predicted, expected = plain_sentences(prediction), plain_sentences(reference)
    if not predicted or not expected:
        return 0.0
    union = {word for right in expected for left in predicted for word in walk(right, left)[0]}
    precision = len(union) / len({word for sentence in predicted for word in sentence})
    recall = len(union) / len({word for sentence in expected for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def score(prediction, reference):
    return rouge_l(split_sentences(prediction), split_sentences(reference))


def text_of_few_words(rng):
    words = rng.choices(["a", "b", "c", "d", "e", ".", ".", "  ", "b."], k=rng.choice([0, 2, 5, 12, 40]))
    return " ".join(words)


def test_thousands_of_texts_of_few_words_score_as_in_the_plain_restatement():
    rng = random.Random(0)
    for _ in range(4000):
        prediction, reference = text_of_few_words(rng), text_of_few_words(rng)
        assert score(prediction, reference) == plain_rouge_l(prediction, reference), (prediction, reference)


@given(st.text(st.characters() | st.sampled_from(". \n"), max_size=60), FEW_WORDS, FEW_WORDS)
def test_any_text_scores_as_in_the_plain_restatement(text, prediction, reference):
    assert score(text, text + reference) == plain_rouge_l(text, text + reference)
    assert score(prediction, reference) == plain_rouge_l(prediction, reference)


@given(FEW_WORDS, FEW_WORDS, st.integers(1, 60))
def test_the_longest_walk_has_as_many_steps_as_cell_by_cell(prediction, reference, steps):
    predicted, expected = plain_sentences(prediction), plain_sentences(reference)
    longest = max((walk(right, left)[1] for right in expected for left in predicted), default=0)
    assert walks_as_far(predicted, expected, steps) == (longest >= steps)


@pytest.mark.parametrize(("reference", "overlap"), [("a b", 1), ("a b. b", 1), ("a b. a", 2)])
def test_of_two_equally_long_common_sequences_the_one_ending_the_reference_counts(reference, overlap):
    """Both "a" and "b" are longest in "a b" and "b a": taken is "b", so that only another sentence can add "a"."""
    precision, recall = overlap / 2, overlap / 2
    assert score("b a", reference) == 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def test_only_a_full_stop_ends_a_sentence_and_an_empty_piece_is_none():
    assert split_sentences("a b! c\nd..e. .") == [["a", "b!", "c", "d"], ["e"], [""]]
    assert split_sentences("...") == []


@pytest.mark.parametrize("text", ["a b c", "a. b. c", "one\ttwo  three.", "Ä ö. ü", " "])
def test_equal_texts_score_a_little_less_than_1(text):
    assert score(text, text) == 2.0 * (1.0 / (2.0 + 1e-8)) == 0.999999995


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "a"), ("a", ""), ("..", "a"), ("a", "."), ("", "")]
)
def test_a_text_without_a_sentence_scores_0(prediction, reference):
    assert score(prediction, reference) == 0.0


def test_a_word_counts_once_however_often_it_stands():
    assert score("a a a a b", "a b b") == score("a b", "a b")


@pytest.mark.parametrize(
    ("prediction", "reference", "overlap", "predicted", "expected"),
    [
        ("a b " * 25_000, "b a c " * 1_667, 2, 2, 3),
        ("a " * 50_000, "b a " * 2_500, 1, 1, 2),
        (" ".join(f"w{i % 5000}" for i in range(16_000)), " ".join(f"w{i}" for i in range(5_000)), 5000, 5000, 5000),
        (". " * 50_000, ". " * 2_500, 1, 1, 1),
        (". ".join(f"v w {i}" for i in range(9_000)), ". ".join(f"w v x{i}" for i in range(1_000)), 1, 9002, 1002),
    ],
)  # fmt: skip
def test_100000_characters_against_5000_words_take_seconds(
    prediction, reference, overlap, predicted, expected
):
    start = time.process_time()
    precision, recall = overlap / predicted, overlap / expected
    assert score(prediction, reference) == 2.0 * ((precision * recall) / (precision + recall + 1e-8))
    assert time.process_time() - start < 10
