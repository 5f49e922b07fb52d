"""The method card: what a reader has to know before a curve means anything."""

import pytest
from fake_tables import FakeStudy

from kv_transition.methods import KNOWN_METHODS
from kv_transition.report.method_card import method_card

FIELDS = (
    "paper", "what differs from it", "implementation", "hyper-parameters", "pooling of scores", "who chooses positions",
    "scope", "first token", "positions", "evicts while decoding", "what the budget counts", "memory freed",
    "extra cost of the prefill", "deterministic", "budget measured in the cache", "kept tokens",
)  # fmt: skip


def card_of(method, **changes):
    study = FakeStudy(n=4, edges=(60, 800), methods=("snapkv", "random"), **changes)
    stats = study.bin_stats()
    cells = stats[(stats["method"] == "snapkv") & (stats["policy"] == "zero") & (stats["bin_idx"] == -1)]
    return dict(method_card(method, study.settings(), cells))


@pytest.mark.parametrize("method", sorted(set(KNOWN_METHODS) - {"full"}))
def test_every_known_method_answers_every_question(method):
    card = card_of(method)
    assert tuple(card) == FIELDS
    assert all(card.values())


def test_hyper_parameters_are_the_resolved_ones():
    assert card_of("snapkv")["hyper-parameters"] == "kernel = 5, window = 8"
    assert "3 seeded draws" in card_of("random")["deterministic"]


def test_scope_and_first_token_are_those_of_the_run():
    card = card_of("snapkv", scope="context")
    assert card["scope"].startswith("context")
    assert card["what the budget counts"].startswith("context positions")
    assert card_of("snapkv", first_token="full")["first token"].startswith("full")


def test_what_is_not_known_is_called_so():
    card = card_of("somebodys_method")
    assert card["paper"] == card["deterministic"] == "not known for this method"


def test_kept_tokens_and_the_share_measured_come_from_the_answers():
    card = card_of("snapkv")
    assert card["budget measured in the cache"] == "100% of the answers"
    assert card["kept tokens"] == "16 to 512 positions over all its budgets"


@pytest.mark.parametrize("method", ["recent", "middle", "bm25"])
def test_a_text_method_is_not_described_as_one_that_evicts(method):
    card = card_of(method, scope="context", first_token="compressed")
    assert card["scope"].startswith("the text")
    assert card["what the budget counts"].startswith("all tokens of the prompt")
    assert "the prefill really is shorter" in card["memory freed"]
    assert ("passage_tokens = 128" in card["hyper-parameters"]) == (method == "bm25")
    assert ("Robertson" in card["paper"]) == (method == "bm25")
