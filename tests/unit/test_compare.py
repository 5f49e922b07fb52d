"""Two sets of predictions on the same rows: paired differences, their intervals and tests."""

from math import isnan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kv_transition.analysis.compare import check_pairs, compare_tasks, holm
from kv_transition.data.predictions import Prediction
from kv_transition.errors import UserError

RNG = np.random.default_rng(7)
A = RNG.random(60)
B = np.clip(A + RNG.normal(0.1, 0.2, 60), 0, 1)
C = RNG.random(60)


def prediction(row: int, answer: str = "Paris", length: int | None = 5) -> Prediction:
    return Prediction("x", (answer,), (), length, row)


def test_the_difference_is_the_paired_t_test_of_the_rows() -> None:
    one = compare_tasks({"qasper": (A, B)}).tasks[0]
    expected = stats.ttest_rel(B, A)
    limits = expected.confidence_interval(0.95)
    assert one.p == pytest.approx(expected.pvalue)
    assert (one.lo, one.hi) == pytest.approx((100 * limits.low, 100 * limits.high))
    assert one.difference == pytest.approx(100 * (B.mean() - A.mean()))
    assert (one.score_a, one.score_b) == (round(100 * A.mean(), 2), round(100 * B.mean(), 2))
    assert one.excludes_zero == (one.p < 0.05)


def test_swapping_the_sides_turns_the_sign() -> None:
    there, back = (compare_tasks({"qasper": pair}).tasks[0] for pair in ((A, B), (B, A)))
    assert (back.difference, back.lo, back.hi) == pytest.approx((-there.difference, -there.hi, -there.lo))
    assert back.p == pytest.approx(there.p)


def test_a_higher_confidence_gives_wider_limits() -> None:
    narrow, wide = (compare_tasks({"qasper": (A, B)}, conf).tasks[0] for conf in (0.9, 0.99))
    assert wide.lo < narrow.lo < narrow.hi < wide.hi


def test_equal_answers_are_no_proof_of_equality() -> None:
    one = compare_tasks({"qasper": (A, A)}).tasks[0]
    assert (one.status, one.difference, one.p) == ("degenerate", 0.0, 1.0)
    assert one.lo < 0 < one.hi


@given(st.integers(2, 40), st.floats(0.01, 0.9), st.sampled_from([0.8, 0.95]))
def test_without_spread_the_p_value_agrees_with_the_interval(n: int, shift: float, conf: float) -> None:
    one = compare_tasks({"qasper": (np.zeros(n), np.full(n, shift))}, conf).tasks[0]
    assert one.status == "degenerate"
    assert one.excludes_zero == (one.p < 1 - conf)
    with_pseudo_values = stats.ttest_1samp([*np.full(n, shift), shift - 0.5, shift + 0.5], 0)
    assert one.p == pytest.approx(with_pseudo_values.pvalue)


def test_one_row_gives_no_interval_and_is_no_part_of_the_adjustment() -> None:
    comparison = compare_tasks({"qasper": (A, B), "trec": ([0.0], [1.0])})
    alone = comparison.tasks[1]
    assert (alone.difference, alone.status) == (100.0, "too_few")
    assert isnan(alone.lo)
    assert isnan(alone.p_holm)
    assert not alone.excludes_zero
    assert comparison.tasks[0].p_holm == comparison.tasks[0].p
    assert comparison.macro is not None
    assert comparison.macro.status == "too_few"
    assert isnan(comparison.macro.lo)


def test_the_macro_mean_takes_the_tasks_as_independent() -> None:
    comparison = compare_tasks({"qasper": (A, B), "trec": (A[:30], C[:30])})
    first, second = comparison.tasks
    macro = comparison.macro
    assert macro is not None
    assert macro.difference == pytest.approx((first.difference + second.difference) / 2)
    assert macro.se == pytest.approx(sqrt(first.se**2 + second.se**2) / 2)
    # Two independent samples of means: Welch's test on the same differences has these degrees of freedom.
    welch = stats.ttest_ind(B - A, -(C[:30] - A[:30]), equal_var=False)
    assert macro.df == int(welch.df)
    assert macro.hi - macro.difference == pytest.approx(stats.t.ppf(0.975, macro.df) * macro.se)
    assert macro.p == pytest.approx(welch.pvalue, rel=0.02)


def test_a_single_task_has_no_macro_mean() -> None:
    assert compare_tasks({"qasper": (A, B)}).macro is None


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_rows_of_other_records_cannot_be_paired() -> None:
    a = [prediction(0), prediction(1)]
    names = ("a/trec.jsonl", "b/trec.jsonl")
    check_pairs("trec", a, [prediction(0), prediction(1, length=None)], names)
    with pytest.raises(UserError, match=r"trec: row 1 .* another list of reference answers in a/trec.jsonl"):
        check_pairs("trec", a, [prediction(0), prediction(1, "Rome")], names)
    with pytest.raises(UserError, match=r"trec: row 0 .* another length"):
        check_pairs("trec", a, [prediction(0, length=6), prediction(1)], names)
    with pytest.raises(UserError, match=r"trec: 2 rows in a/trec.jsonl, 1 in b/trec.jsonl"):
        check_pairs("trec", a, a[:1], names)
