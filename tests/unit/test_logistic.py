"""Logistic midpoint and width: the fit is the best one in its bounds, and says when it says nothing."""

from math import log

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG, bits, clusters_of, curve_table, example_rows, graded
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transition.analysis.logistic import (
    MIN_WIDTH,
    Box,
    complement,
    fit_curve,
    fit_logistic,
    fit_on_grid,
    moments,
    project,
)
from kv_transition.analysis.logistic_columns import LOGISTIC
from kv_transition.analysis.transition import transition

X = np.log2([64, 128, 256, 512, 1024, 2048])
WEIGHTS = np.full(7, 40.0)
NUMBERS = [name for name, kind in LOGISTIC.items() if kind == "float64"]


def sigmoid(x, m, width):
    return np.append(1 / (1 + np.exp(-2 * log(19) / width * (x - m))), 1.0)


def logistic(x, m, width, floor, ceil):
    return floor + (ceil - floor) * sigmoid(x, m, width)


def rss(x, means, weights, *parameters):
    return (weights * (means - logistic(x, *parameters)) ** 2).sum()


unit = st.floats(0, 1, allow_nan=False)
means_of = st.lists(unit, min_size=4, max_size=8).map(np.array)


class TestFit:
    @pytest.mark.parametrize("m", [7.0, 8.0, 9.7])
    @pytest.mark.parametrize("width", [1.0, 2.5, 6.0])
    @pytest.mark.parametrize(("floor", "ceil"), [(0.1, 0.6), (0.0, 0.4), (0.2, 1.0)])
    def test_a_logistic_curve_is_found_again(self, m, width, floor, ceil):
        fit = fit_curve(X, logistic(X, m, width, floor, ceil), WEIGHTS)
        assert fit.m[0] == pytest.approx(m, abs=0.01)
        assert fit.width[0] == pytest.approx(width, rel=0.01)
        assert (fit.floor[0], fit.ceil[0]) == pytest.approx((floor, ceil), abs=0.005)
        assert fit.rss[0] == pytest.approx(0, abs=1e-5)

    def test_width_is_the_distance_from_5_to_95_percent(self):
        assert sigmoid(np.array([7.0, 8.0, 9.0]), 8.0, 2.0)[:3] == pytest.approx([0.05, 0.5, 0.95])
        fitted = 1 - complement(np.array([7.0, 8.0, 9.0]), np.array([8.0]), np.log([2.0]))
        assert fitted[:, 0] == pytest.approx([0.05, 0.5, 0.95])

    @settings(max_examples=60, deadline=None)
    @given(means_of, st.data())
    def test_no_other_curve_in_the_bounds_fits_better(self, means, data):
        x = np.arange(len(means) - 1.0) + 6
        weights = np.array(
            data.draw(st.lists(st.integers(1, 60), min_size=len(means), max_size=len(means))), float
        )
        fit = fit_curve(x, means, weights)
        box = Box.of(x)
        assert box.low[0] <= fit.m[0] <= box.high[0]
        assert MIN_WIDTH - 1e-9 <= fit.width[0] <= 2 * (x[-1] - x[0]) + 1e-9
        assert -1e-9 <= fit.floor[0] <= fit.ceil[0] + 1e-9 <= 1 + 2e-9
        own = rss(x, means, weights, fit.m[0], fit.width[0], fit.floor[0], fit.ceil[0])
        assert fit.rss[0] == pytest.approx(own, abs=1e-9 * weights.sum())
        assert fit.rss[0] <= fit.flat_rss[0] + 1e-9
        tolerance = 1e-5 * fit.flat_rss[0] + 1e-9
        for m in np.linspace(box.low[0], box.high[0], 15):
            for width in np.exp(np.linspace(box.low[1], box.high[1], 9)):
                low, high = sorted(
                    data.draw(st.tuples(unit, unit)) if width == MIN_WIDTH else (0.0, means[-1])
                )
                assert fit.rss[0] <= rss(x, means, weights, m, width, low, high) + tolerance

    @given(means_of, st.floats(5, 12), st.floats(0.5, 8))
    def test_floor_and_ceiling_are_the_best_in_their_bounds(self, means, m, width):
        x = np.arange(len(means) - 1.0) + 6
        share = np.full(len(means), 1 / len(means))
        mean, variance = moments(complement(x, np.array([m]), np.log([width])), share)
        shape, level = sigmoid(x, m, width), means.mean()
        covariance = (share * (means - level) * (shape - shape.mean())).sum()
        gain, floor, rise = project(np.array([covariance]), mean, variance, np.array([level]))
        error = means.var() - gain[0]
        assert error == pytest.approx(((means - floor[0] - rise[0] * shape) ** 2).mean(), abs=1e-9)
        for low in np.linspace(0, 1, 11):
            for high in np.linspace(low, 1, 11):
                assert error <= ((means - low - (high - low) * shape) ** 2).mean() + 1e-9

    @pytest.mark.parametrize("top", [0.2, 0.9, 1.0])
    def test_the_grid_of_the_goodness_of_fit_is_searched_whole(self, top):
        rng = np.random.default_rng(5)
        means = top * np.sort(rng.beta(0.4, 0.2, (7, 40)), axis=0)
        found, box = fit_on_grid(X, means, WEIGHTS), Box.of(X)
        m = np.linspace(box.low[0], box.high[0], 61)
        width = np.linspace(box.low[1], box.high[1], 17)
        m, width = (axis.ravel() for axis in np.meshgrid(m, width))
        mean, variance = moments(complement(X, m, width), WEIGHTS / WEIGHTS.sum())
        shape = 1 - np.vstack([complement(X, m, width), np.zeros(len(m))])
        for i, curve in enumerate(means.T):
            covariance = ((curve - curve.mean())[:, None] * shape).mean(axis=0)
            gain, _, _ = project(covariance, mean, variance, np.full(len(m), curve.mean()))
            assert found.rss[i] == pytest.approx(280 * (curve.var() - gain.max()), abs=1e-4)

    def test_a_curve_does_not_depend_on_the_others_in_its_batch(self):
        rng = np.random.default_rng(1)
        means = rng.random((7, 150))
        for fitted in (fit_logistic, fit_on_grid):
            together = fitted(X, means, WEIGHTS)
            for i in (0, 31, 32, 149):
                alone = fitted(X, means[:, [i]], WEIGHTS)
                assert (alone.m[0], alone.width[0], alone.rss[0]) == (
                    together.m[i],
                    together.width[i],
                    together.rss[i],
                )

    def test_replicates_are_placed_within_a_twenty_fifth_of_an_octave(self):
        rng = np.random.default_rng(2)
        positions = rng.uniform(7, 10, 200)
        means = np.array([logistic(X, m, 2.5, 0.1, 0.5) for m in positions]).T
        assert np.abs(fit_logistic(X, means, WEIGHTS).m - positions).max() < 0.04

    def test_larger_budgets_move_the_midpoint_with_them(self):
        means = np.array([0.1, 0.12, 0.3, 0.38, 0.42, 0.4, 0.41])
        here, there = fit_curve(X, means, WEIGHTS), fit_curve(X + 2.5, means, WEIGHTS)
        assert there.m[0] - here.m[0] == pytest.approx(2.5, abs=1e-3)
        assert there.width[0] == pytest.approx(here.width[0], rel=1e-3)

    def test_a_step_has_the_smallest_width(self):
        fit = fit_curve(X, np.array([0.1, 0.1, 0.1, 0.6, 0.6, 0.6, 0.6]), WEIGHTS)
        assert fit.width[0] == pytest.approx(MIN_WIDTH)
        assert 8 < fit.m[0] < 9

    def test_a_falling_curve_is_a_constant(self):
        fit = fit_curve(X, np.array([0.6, 0.5, 0.4, 0.4, 0.3, 0.3, 0.2]), WEIGHTS)
        assert fit.floor[0] == pytest.approx(fit.ceil[0]) == pytest.approx(0.3857, abs=1e-4)
        assert fit.rss[0] == pytest.approx(fit.flat_rss[0])


def curves(table, **changes):
    return transition(table, clusters_of(table), CFG | changes)


def curve(table, bin_idx=0, policy="zero", **changes):
    frame = curves(table, **changes)
    found = frame[(frame["bin_idx"] == bin_idx) & (frame["policy"] == policy) & (frame["tau"] == 0.9)]
    assert len(found) == 1
    return found.iloc[0]


def flags(row):
    return set(row["logistic_flags"].split(",")) - {""}


FIVE = (64, 128, 256, 512, 1024)


class TestColumns:
    def test_a_transition_inside_the_grid_has_a_midpoint_with_limits(self):
        shape = logistic(np.log2(FIVE), 7.9, 3.0, 0.1, 1.0)[:-1]
        row = curve(curve_table(budgets=FIVE, kept=shape, n=200, seed=1))
        assert row["logistic_status"] == "ok"
        assert 7 < row["m_lo"] < row["m"] < row["m_hi"] < 9
        assert row["m_label"] == f"{2 ** row['m']:.0f}"
        assert row["floor"] < 0.25 * row["ceil"]
        assert row["slope_per_octave"] == pytest.approx(
            (row["ceil"] - row["floor"]) * log(19) / (2 * row["width"])
        )
        assert row["drop_p"] < 0.001
        assert row["gof_p"] > 0.05
        assert flags(row) == set()

    def test_a_midpoint_beyond_the_budgets_is_named_by_the_end_it_lies_beyond(self):
        low = curve(curve_table(budgets=FIVE, kept=(0.75, 0.93, 0.99, 1.0, 1.0), n=300))
        assert (low["logistic_status"], low["m_label"]) == ("outside_grid", "<64")
        assert low["m"] < 6
        high = curve(curve_table(budgets=FIVE, kept=(0.1, 0.1, 0.12, 0.14, 0.2), n=300))
        assert (high["logistic_status"], high["m_label"]) == ("outside_grid", ">1024")
        assert high["m"] > 10

    def test_a_limit_that_the_data_do_not_give_is_null(self):
        row = curve(curve_table(budgets=FIVE, kept=(0.1, 0.1, 0.11, 0.13, 0.17), n=300))
        assert row["m"] == pytest.approx(11)
        assert np.isnan(row["m_hi"])
        assert 9 < row["m_lo"] < 11
        assert {"m_at_bound", "interval_unbounded"} <= flags(row)

    def test_shares_of_the_prompt_are_on_their_own_scale(self):
        row = curve(curve_table(budgets=("f0.1", "f0.2", "f0.4", "f0.8"), kept=(0.1, 0.4, 0.9, 1.0), n=100))
        assert row["logistic_status"] == "ok"
        assert row["m_label"] == f"f{2 ** row['m']:.3g}"
        assert -3.3 < row["m"] < -0.4

    @pytest.mark.parametrize("kept", [(0.2,), (0.2, 0.9)])
    def test_under_three_budgets_there_is_no_curve(self, kept):
        row = curve(curve_table(budgets=FIVE[: len(kept)], kept=kept))
        assert row["logistic_status"] == row["m_label"] == "too_few_budgets"
        assert row[[n for n in NUMBERS if n != "drop_p"]].isna().all()

    @pytest.mark.parametrize("kept", [(1.0,) * 5, (0.98, 0.99, 1.0, 0.98, 1.0)])
    def test_where_nothing_is_lost_no_transition_is_detected(self, kept):
        row = curve(curve_table(budgets=FIVE, kept=kept, n=30))
        assert row["status"] == "ok"
        assert row["logistic_status"] == row["m_label"] == "no_transition_detected"
        assert row["drop_p"] > 0.05
        assert row[[n for n in NUMBERS if n != "drop_p"]].isna().all()

    def test_answers_that_resampling_cannot_move_give_no_limits(self):
        parts = [example_rows("full", None, np.full(20, 0.5))]
        for budget, score in zip(FIVE, (0.1, 0.1, 0.3, 0.5, 0.5), strict=True):
            parts.append(example_rows("snapkv", budget, np.full(20, score)))
        row = curve(pd.concat(parts))
        assert row["logistic_status"] == "ok"
        assert row[["m_lo", "m_hi", "width_lo", "width_hi", "gof_p"]].isna().all()
        assert "interval_unbounded" in flags(row)

    def test_a_step_says_that_its_width_is_not_known(self):
        row = curve(curve_table(budgets=FIVE, kept=(0.0, 0.0, 1.0, 1.0, 1.0), n=100))
        assert "width_at_bound" in flags(row)
        assert np.isnan(row["width_lo"])

    def test_a_dip_rejects_the_shape_and_a_logistic_curve_does_not(self):
        shape = logistic(np.log2(FIVE), 7.5, 2.0, 0.1, 1.0)[:-1]
        sound = curve(curve_table(budgets=FIVE, kept=shape, n=200))
        assert "shape_rejected" not in flags(sound)
        dip = curve(curve_table(budgets=FIVE, kept=(0.1, 0.6, 0.95, 0.4, 1.0), n=200))
        assert dip["gof_p"] < 0.05
        assert "shape_rejected" in flags(dip)

    def test_without_a_sound_reference_there_is_only_the_reason(self):
        parts = [example_rows("full", None, graded(6))]
        parts += [example_rows("snapkv", budget, graded(6, seed=1)) for budget in FIVE]
        row = curve(pd.concat(parts))
        assert row["logistic_status"] == row["m_label"] == row["status"] == "too_few"
        assert row[NUMBERS].isna().all()

    def test_every_tau_has_the_same_curve(self):
        frame = curves(curve_table(budgets=FIVE, kept=(0.1, 0.2, 0.5, 0.9, 1.0)))
        by_curve = frame.groupby(["bin_idx", "policy"])
        assert (by_curve[list(LOGISTIC)].nunique(dropna=False) == 1).all(axis=None)
        assert (by_curve["tau"].nunique() == 2).all()

    def test_more_replicates_for_the_transition_leave_the_fit_as_it_was(self):
        table = curve_table(budgets=FIVE, kept=(0.1, 0.2, 0.5, 0.9, 1.0))
        few, many = (
            curves(table, fit_replicates=100, transition_replicates=b)[list(LOGISTIC)] for b in (100, 300)
        )
        assert bits(few) == bits(many)

    def test_failed_requests_count_by_the_policy(self):
        table = curve_table(budgets=FIVE, kept=(0.1, 0.2, 0.5, 0.9, 1.0), n=100)
        hit = (table["budget"] == "1024") & (np.arange(len(table)) % 3 == 0)
        table.loc[hit, ["score", "failure"]] = [np.nan, "TIMEOUT"]
        zero, exclude = curve(table, policy="zero"), curve(table, policy="exclude")
        assert zero["logistic_rss"] > exclude["logistic_rss"]
        full = table.query("method == 'full' and bin_idx == 0")["score"].mean()
        assert exclude["ceil"] == pytest.approx(full, abs=0.03)

    def test_resamples_in_which_a_cell_has_no_answer_are_left_out(self):
        table = curve_table(budgets=FIVE, kept=(0.0, 0.2, 0.5, 0.9, 1.0), n=60, bins=(0,))
        others = (table["budget"] == "256") & (table["example_id"] > "0-001")
        table.loc[others, ["score", "failure"]] = [np.nan, "ENGINE_ERROR"]
        row = curve(table, policy="exclude")
        assert row["logistic_status"] == "ok"
        assert row["m_lo"] < row["m_hi"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.3, 0.8, 0.95, 1.0]), min_size=3, max_size=5),
    st.sampled_from([10, 15, 40]),
    st.integers(0, 50),
)
def test_whatever_the_answers_limits_are_in_order_and_labels_there(kept, n, seed):
    table = curve_table(budgets=FIVE[: len(kept)], kept=kept, n=n, seed=seed, bins=(0,))
    for row in curves(table, transition_replicates=50, fit_replicates=50).to_dict("records"):
        assert row["m_label"]
        fitted = row["logistic_status"] in ("ok", "outside_grid")
        assert fitted == (not np.isnan(row["m"])) == (not np.isnan(row["logistic_rss"]))
        for name in ("m", "width"):
            lo, hi = row[f"{name}_lo"], row[f"{name}_hi"]
            assert np.isnan(lo) or np.isnan(hi) or lo < hi
        unbounded = fitted and (np.isnan(row["m_lo"]) or np.isnan(row["m_hi"]))
        assert ("interval_unbounded" in row["logistic_flags"]) == unbounded
