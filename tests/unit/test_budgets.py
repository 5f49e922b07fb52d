"""What a budget may be and what it keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.budgets import budget_from_label, budget_label, kept_tokens, parse_budget
from kv_transition.errors import ConfigError


@given(st.integers(2, 10**6) | st.sampled_from([0.01, 0.05, 0.25, 1 / 3, 0.1234561, 0.875]))
def test_a_label_reads_back_as_its_budget(budget: float) -> None:
    assert budget_from_label(budget_label(budget)) == budget
    assert parse_budget(str(budget)) == budget


def test_no_budget_is_the_full_cache() -> None:
    assert budget_label(None) == "full"
    assert budget_from_label("full") is None


@pytest.mark.parametrize(
    "wrong", [0, 1, -3, 1.0, 2.5, 0.0, "many", None, True, float("nan"), float("inf"), [16]]
)
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"kv\.budgets"):
        parse_budget(wrong)


def test_a_share_keeps_whole_tokens_and_at_least_one() -> None:
    assert kept_tokens(0.25, 400) == 100
    assert kept_tokens(0.1, 30) == 3
    assert kept_tokens(0.01, 10) == 1
    assert kept_tokens(64, 10_000) == 64
