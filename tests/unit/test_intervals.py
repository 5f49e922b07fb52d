"""Intervals and tests: known values, and promises that hold for every input."""

from math import inf, isnan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kv_transition.analysis.intervals import (
    augmented_tests,
    clustered_variance,
    difference_interval,
    equivalence_tests,
    fieller_interval,
    mean_interval,
    minimum_detectable_effect,
    percentile_limits,
)

scores = st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0]), min_size=0, max_size=30)


@st.composite
def paired(draw):
    full = draw(scores)
    same = st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 1.0]), min_size=len(full), max_size=len(full))
    compressed = draw(st.one_of(same, st.just(full), st.just([0.5 * f for f in full])))
    clusters = draw(st.lists(st.integers(0, 8), min_size=len(full), max_size=len(full)))
    return np.array(compressed), np.array(full), np.array(clusters, dtype=int)


def is_wide(interval):
    return isnan(interval.lo) or interval.hi - interval.lo > 1e-6


class TestMean:
    def test_zero_one_scores_give_wilsons_interval_with_a_t_quantile(self):
        y = np.array([1.0] * 7 + [0.0] * 13)
        t = stats.t.ppf(0.975, 19)
        n, p = 20, 0.35
        phi = n / (n - 1)
        k = t * t * phi / n
        half = sqrt(k * p * (1 - p) + k * k / 4) / (1 + k)
        got = mean_interval(y, np.arange(20))
        assert (got.lo, got.hi) == pytest.approx(((p + k / 2) / (1 + k) - half, (p + k / 2) / (1 + k) + half))

    def test_singleton_clusters_have_the_usual_standard_error(self):
        y = np.array([0.1, 0.4, 0.4, 0.9, 0.0])
        assert mean_interval(y, np.arange(5)).se == pytest.approx(y.std(ddof=1) / sqrt(5))

    def test_questions_on_one_context_count_as_one(self):
        y = np.repeat([0.1, 0.4, 0.6, 0.9, 0.0, 0.3], 4)
        contexts = np.repeat(np.arange(6), 4)
        assert mean_interval(y, contexts).se == pytest.approx(np.std(y[::4], ddof=1) / sqrt(6))
        assert mean_interval(y, contexts).se > mean_interval(y, np.arange(24)).se

    @pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
    def test_equal_scores_do_not_give_a_zero_width_interval(self, value):
        got = mean_interval([value] * 12, np.arange(12))
        assert got.hi - got.lo > 0.1

    def test_nearly_equal_scores_do_not_give_a_nearly_zero_width(self):
        got = mean_interval([0.5] * 29 + [0.5001], np.arange(30))
        assert got.hi - got.lo > 0.05

    def test_one_example_or_one_context_has_a_mean_but_no_interval(self):
        for y, clusters in (([0.4], [0]), ([0.2, 0.6], ["a", "a"])):
            got = mean_interval(y, clusters)
            assert got.point == pytest.approx(0.4)
            assert isnan(got.lo)
            assert got.status == "too_few"
        assert mean_interval([], []).status == "no_scores"

    @given(paired())
    def test_every_interval_holds_its_mean_and_stays_within_the_scores(self, data):
        y, _, clusters = data
        got = mean_interval(y, clusters)
        assert is_wide(got)
        assert isnan(got.lo) or 0 <= got.lo <= got.point <= got.hi <= 1


class TestDifference:
    def test_it_is_the_paired_t_interval(self):
        d = np.array([0.1, -0.2, 0.0, 0.05, -0.3, 0.0])
        got = difference_interval(0.5 + d, np.full(6, 0.5), np.arange(6))
        t = stats.t.ppf(0.975, 5)
        half = t * d.std(ddof=1) / sqrt(6)
        assert (got.lo, got.hi) == pytest.approx((d.mean() - half, d.mean() + half))
        assert got.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)

    def test_identical_answers_are_no_proof_of_equality(self):
        y = np.linspace(0, 1, 12)
        got = difference_interval(y, y, np.arange(12))
        assert got.status == "degenerate"
        assert got.p == 1
        assert got.lo == pytest.approx(-got.hi)
        assert got.hi > 0.05

    def test_more_identical_answers_narrow_it_about_as_the_rule_of_three(self):
        widths = [difference_interval(np.ones(n), np.ones(n), np.arange(n)).hi for n in (20, 40, 80)]
        assert widths[0] > 1.8 * widths[1] > 3 * widths[2]

    def test_identical_answers_have_a_detectable_effect_above_zero(self):
        y = np.linspace(0, 1, 12)
        assert minimum_detectable_effect(difference_interval(y, y, np.arange(12)), 12) > 0.05

    def test_the_detectable_effect_is_the_documented_one(self):
        d = np.tile([0.3, -0.3], 20) * sqrt(39 / 40)  # standard deviation 0.3, n = 40
        got = minimum_detectable_effect(difference_interval(d, np.zeros(40), np.arange(40)), 40)
        assert got == pytest.approx(0.118, abs=5e-4)

    @given(paired())
    def test_every_interval_holds_its_difference_and_has_width(self, data):
        got = difference_interval(*data)
        assert is_wide(got)
        assert isnan(got.lo) or got.lo <= got.point <= got.hi


class TestRetention:
    def test_it_is_the_ratio_of_means_not_the_mean_of_ratios(self):
        got = fieller_interval([0.0, 0.5, 1.0, 0.2], [0.0, 1.0, 1.0, 0.0], np.arange(4))
        assert got.point == pytest.approx(1.7 / 2)

    def test_limits_are_the_ratios_that_a_t_test_does_not_reject(self):
        rng = np.random.default_rng(1)
        f = rng.uniform(0.3, 1, 25)
        y = np.clip(f * 0.8 + rng.normal(0, 0.1, 25), 0, 1)
        got = fieller_interval(y, f, np.arange(25))
        for limit in (got.lo, got.hi):
            d = y - limit * f
            assert abs(d.mean()) / (d.std(ddof=1) / 5) == pytest.approx(stats.t.ppf(0.975, 24))

    def test_a_reference_that_may_be_zero_gives_no_limits(self):
        got = fieller_interval([0.1] * 5, [0.0, 0.0, 0.0, 0.0, 1.0], np.arange(5))
        assert got.status == "unbounded_weak_reference"
        assert isnan(got.hi)

    def test_a_reference_of_zero_gives_no_retention(self):
        got = fieller_interval([0.1] * 5, [0.0] * 5, np.arange(5))
        assert got.status == "undefined_full_zero"
        assert isnan(got.point)

    @pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
    def test_a_constant_ratio_has_an_interval_of_some_width(self, factor):
        f = np.linspace(0.2, 1, 15)
        got = fieller_interval(factor * f, f, np.arange(15))
        assert got.status == "ok_degenerate"
        assert got.hi - got.lo > 0.1
        assert got.lo <= factor <= got.hi

    def test_retention_above_one_is_not_clipped(self):
        f = np.linspace(0.3, 0.5, 15)
        assert fieller_interval(f + 0.3 + 0.1 * f**2, f, np.arange(15)).point > 1

    @settings(max_examples=200)
    @given(paired(), st.sampled_from([0.0, -inf]))
    def test_every_interval_holds_its_ratio_and_has_width(self, data, bound):
        got = fieller_interval(*data, lower_bound=bound)
        assert is_wide(got)
        assert isnan(got.lo) or got.lo <= got.point * (1 + 1e-12) + 1e-12
        assert isnan(got.hi) or got.hi >= got.point * (1 - 1e-12) - 1e-12
        assert isnan(got.lo) or got.lo >= bound


class TestOneSidedTests:
    def test_identical_positive_values_prove_nothing_in_a_small_sample(self):
        assert augmented_tests([0.01] * 12, np.arange(12))[0] > 0.05

    def test_a_clear_mean_is_found(self):
        up, down = augmented_tests(np.full(30, 0.4), np.arange(30))
        assert up < 0.001
        assert down > 0.999

    def test_one_cluster_cannot_be_tested(self):
        assert all(isnan(p) for p in augmented_tests([0.4, 0.5], [1, 1]))
        assert all(isnan(p) for p in augmented_tests([], []))

    def test_non_inferior_is_not_yet_equivalent(self):
        better = np.full(60, 0.2)
        ni_p, tost_p = equivalence_tests(better, np.arange(60), 0.05)
        assert ni_p < 0.05 < tost_p

    @given(paired())
    def test_both_sides_are_complementary(self, data):
        y, f, clusters = data
        up, down = augmented_tests(y - f, clusters)
        mirrored = augmented_tests(f - y, clusters)
        assert (isnan(up) and isnan(down)) or up + down == pytest.approx(1)
        assert mirrored == pytest.approx((down, up), nan_ok=True)


def test_clustered_variance_needs_two_clusters():
    assert isnan(clustered_variance(np.array([0.1, 0.2]), np.array([0, 0]))[0])


def test_percentile_limits_leave_out_replicates_without_a_value():
    values = np.array([[1.0, 2.0, 3.0, np.nan], [np.nan] * 4])
    lo, hi = percentile_limits(values, 0.5)
    assert (lo[0], hi[0]) == (1.5, 2.5)
    assert isnan(lo[1])


@given(
    st.sampled_from([1, 2, 41, 511, 512, 513, 700, 2000, 10_000]),
    st.sampled_from([0.5, 0.683, 0.9, 0.95, 0.999]),
    st.sampled_from(["spread", "tied", "rising", "falling", "constant"]),
    st.integers(0, 100),
)
def test_percentile_limits_are_numpys_quantiles_to_the_bit(n, conf, kind, seed):
    rng = np.random.default_rng(seed)
    spread = rng.random(n)
    values = {
        "spread": spread,
        "tied": np.round(3 * spread),
        "rising": np.sort(spread),  # the first values say nothing of the upper end
        "falling": -np.sort(-spread),
        "constant": np.full(n, 0.3),
    }[kind]
    lo, hi = percentile_limits(np.stack([values, values[::-1]]), conf)
    expected = np.quantile(values, [(1 - conf) / 2, (1 + conf) / 2])
    assert [lo.tolist(), hi.tolist()] == [[value, value] for value in expected]
