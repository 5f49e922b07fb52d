"""The transition budget: the rule, its limits, its labels, and that nothing is claimed without evidence."""

from itertools import pairwise
from math import inf, isnan

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG, bits, clusters_of, curve_table, example_rows, graded
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transition.analysis.cells import POOLED
from kv_transition.analysis.thresholds import (
    crossing,
    fixed_sequence_limits,
    isotonic,
    order_limits,
    sustained_point,
)
from kv_transition.analysis.transition import TRANSITION, transition

X = np.log2([64, 128, 256, 512])


def curves(table, clusters=None, **changes):
    return transition(table, clusters or clusters_of(table), CFG | changes)


def curve(table, tau=0.9, bin_idx=0, policy="zero", method="snapkv", **changes):
    frame = curves(table, **changes)
    keys = {"method": method, "bin_idx": bin_idx, "policy": policy, "tau": tau}
    found = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(found) == 1
    return found.iloc[0]


class TestPoint:
    @pytest.mark.parametrize(
        ("retention", "expected"),
        [
            ([0.2, 0.5, 0.95, 1.0], 2.0),
            ([0.2, 0.95, 0.5, 1.0], 3.0),
            ([0.9, 0.95, 1.0, 1.1], -inf),
            ([0.2, 0.95, 1.0, 0.8], inf),
            ([np.nan, 0.95, 1.0, 1.0], 1.0),
            ([0.95], -inf),
            ([0.5], inf),
        ],
    )
    def test_it_is_the_smallest_budget_from_which_retention_stays(self, retention, expected):
        assert sustained_point(np.array(retention), 0.9) == expected

    def test_rounding_noise_does_not_decide(self):
        assert sustained_point(np.array([0.9 - 1e-15, 1.0]), 0.9) == -inf


class TestLimits:
    def test_upper_goes_down_until_the_first_test_that_does_not_reject(self):
        assert fixed_sequence_limits([0.9, 0.001, 0.2, 0.01], [0.5] * 4) == (-inf, 3.0)
        assert fixed_sequence_limits([0.9, 0.001, 0.01, 0.2], [0.5] * 4) == (-inf, inf)
        assert fixed_sequence_limits([0.01] * 4, [0.99] * 4) == (-inf, 0.0)

    def test_lower_goes_up_until_the_first_test_that_does_not_reject(self):
        assert fixed_sequence_limits([0.9] * 4, [0.01, 0.01, 0.2, 0.01]) == (2.0, inf)
        assert fixed_sequence_limits([0.99] * 4, [0.01] * 4) == (inf, inf)

    def test_a_test_that_was_not_possible_stops_the_sequence(self):
        assert fixed_sequence_limits([0.01, np.nan, 0.01], [np.nan, 0.01, 0.01]) == (-inf, 2.0)


values = st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=7)


class TestInterpolation:
    def test_violators_are_pooled_with_their_weights(self):
        fit = isotonic(np.array([0.1, 0.6, 0.3, 0.9]), np.array([1.0, 2.0, 1.0, 1.0]))
        assert fit == pytest.approx([0.1, 0.5, 0.5, 0.9])

    @given(values, st.data())
    def test_the_fit_is_the_closest_non_decreasing_one(self, y, data):
        w = np.array(data.draw(st.lists(st.integers(1, 40), min_size=len(y), max_size=len(y))), dtype=float)
        y = np.array(y)
        fit = isotonic(y, w)
        assert all(a <= b + 1e-9 for a, b in pairwise(fit))
        other = np.sort(data.draw(st.permutations(list(y))))
        assert (w * (y - fit) ** 2).sum() <= (w * (y - other) ** 2).sum() + 1e-9
        assert (w * fit).sum() == pytest.approx((w * y).sum())

    @given(values)
    def test_a_non_decreasing_curve_is_its_own_fit(self, y):
        assert isotonic(np.sort(y), np.ones(len(y))) == pytest.approx(np.sort(y), abs=1e-9)

    def test_it_is_linear_in_log_budget(self):
        assert crossing(np.array([0.5, 0.8, 1.0, 1.0]), X, 0.9) == pytest.approx(7.5)

    def test_the_ends_of_the_grid_are_censored(self):
        many = np.array([[0.95, 1, 1, 1], [0.1, 0.2, 0.3, 0.4], [0.0, 0.9, 0.9, 1.0]])
        assert crossing(many, X, 0.9).tolist() == [-inf, inf, 7.0]
        assert crossing(np.array([0.5]), X[:1], 0.9) == inf

    @given(values, st.sampled_from([0.5, 0.9, 1.0]))
    def test_the_crossing_lies_on_the_grid_or_is_censored(self, y, tau):
        x = np.arange(float(len(y)))
        position = crossing(np.sort(y), x, tau)
        assert not np.isfinite(position) or 0 <= position <= len(y) - 1

    def test_limits_are_order_statistics_and_may_be_infinite(self):
        replicates = np.concatenate([[-inf] * 60, np.arange(1880.0), [inf] * 60])
        assert order_limits(replicates) == (-inf, inf)
        assert order_limits(np.arange(2000.0)) == (50, 1949)
        assert order_limits(np.array([np.nan, 3.0])) == (3.0, 3.0)
        assert all(isnan(limit) for limit in order_limits(np.array([np.nan])))


class TestLabels:
    def test_a_transition_inside_the_grid_is_named_by_its_budget(self):
        row = curve(curve_table(kept=(0.1, 0.4, 1.0, 1.0), n=60))
        assert (row["status"], row["T_point"], row["T_point_tokens"], row["censored_point"]) == (
            "ok",
            "256",
            256,
            "none",
        )
        assert 128 < row["T_interp"] < 256
        assert row["interp_label"] == f"{row['T_interp']:.0f}"
        assert 2 ** row["interp_lo"] < row["T_interp"] < 2 ** row["interp_hi"]

    def test_a_method_that_never_recovers_is_censored_right(self):
        row = curve(curve_table(kept=(0.1, 0.1, 0.2, 0.2), n=60))
        for name in ("point", "lower", "upper"):
            assert (row[f"T_{name}"], row[f"censored_{name}"]) == (">512", "right")
            assert isnan(row[f"T_{name}_tokens"])
        assert row["interp_label"] == row["interp_hi_label"] == ">512"
        assert isnan(row["log2_T_interp"])

    def test_a_method_that_loses_little_is_censored_left_only_as_far_as_the_data_go(self):
        few = curve(curve_table(kept=(0.98, 0.98, 0.98, 0.98), n=30, seed=2))
        assert (few["T_point"], few["T_lower"], few["T_upper"]) == ("<=64", "<=64", ">512")
        many = curve(curve_table(kept=(0.99, 0.99, 0.99, 0.99), n=400, seed=2))
        assert (many["T_point"], many["T_upper"], many["censored_upper"]) == ("<=64", "64", "none")

    def test_shares_of_the_prompt_have_their_own_labels(self):
        row = curve(curve_table(budgets=("f0.1", "f0.2", "f0.4"), kept=(0.1, 0.3, 1.0), n=60))
        assert row["T_point"] == "f0.4"
        assert row["T_point_tokens"] == pytest.approx(0.4 * 4000)
        assert row["interp_label"].startswith("f0.")
        assert row["log2_T_interp"] < 0
        low = curve(curve_table(budgets=("f0.1", "f0.2"), kept=(1.0, 1.0), n=60))
        assert low["T_point"] == "<=f0.1"

    def test_budgets_are_ordered_as_numbers(self):
        row = curve(curve_table(budgets=(64, 128, 1024, 9), kept=(0.5, 0.6, 1.0, 0.0)))
        assert list(row["budgets"]) == [9, 64, 128, 1024]


class TestEvidence:
    def test_identical_answers_leave_the_upper_limit_open(self):
        row = curve(curve_table(kept=(1.0, 1.0, 1.0, 1.0), n=20))
        assert (row["T_point"], row["T_upper"]) == ("<=64", ">512")
        assert "interp_degenerate" in row["flags"]
        assert row["interp_hi_label"] is None

    @pytest.mark.parametrize(
        ("full", "status"),
        [(np.zeros(20), "reference_too_weak"), (graded(6), "too_few"), (np.eye(20)[0], "reference_too_weak")],
    )
    def test_without_a_sound_reference_every_label_is_the_reason(self, full, status):
        table = pd.concat([example_rows("full", None, full), example_rows("snapkv", 64, full)])
        row = curve(table)
        labels = ["T_point", "T_lower", "T_upper", "interp_label", "interp_lo_label", "interp_hi_label"]
        assert set(row[labels]) == {row["status"]} == {status}
        assert row[["T_point_tokens", "T_interp", "interp_lo", "interp_hi"]].isna().all()
        assert row["censored_point"] is None

    def test_no_reference_at_all(self):
        assert curve(example_rows("snapkv", 64, graded(20)))["status"] == "no_reference"

    def test_budgets_that_compress_nothing_are_not_tested(self):
        row = curve(curve_table(budgets=(5000, 8000), kept=(1.0, 1.0)))
        assert row["status"] == row["T_point"] == "not_tested"

    def test_a_transition_at_a_budget_that_compresses_nothing_is_flagged(self):
        row = curve(curve_table(budgets=(64, 128, 5000), kept=(0.1, 0.2, 1.0), n=100))
        assert row["T_point"] == "5000"
        assert {"inactive_budgets", "point_inactive"} <= set(row["flags"].split(","))
        assert "point_inactive" not in curve(curve_table(n=100))["flags"]

    def test_a_dip_is_reported(self):
        row = curve(curve_table(kept=(0.9, 0.2, 0.9, 1.0), n=60))
        assert row["T_point"] in ("256", "512")
        assert row["max_decrease"] > 0.4

    def test_a_budget_without_answers_leaves_the_grid_and_is_flagged(self):
        table = curve_table(n=30)
        failed = table["budget"] == "512"
        table.loc[failed, ["score", "failure"]] = [np.nan, "ENGINE_ERROR"]
        row = curve(table, policy="exclude")
        assert list(row["budgets"]) == [64, 128, 256]
        assert "missing_budget" in row["flags"]
        assert curve(table)["T_point"] == ">512"
        assert "unreliable" in curve(table)["flags"]

    def test_a_method_of_which_nothing_answered_has_no_pairs(self):
        table = curve_table(n=30)
        table.loc[table["method"] == "snapkv", ["score", "failure"]] = [np.nan, "TIMEOUT"]
        assert curve(table, policy="exclude")["T_point"] == "no_pairs"

    def test_a_task_that_needs_no_context_has_no_transition(self):
        table = curve_table(n=30)
        guess = table[table["method"] == "full"].assign(method="no_context")
        assert curve(pd.concat([table, guess]))["status"] == "context_not_needed"


class TestNothingElseMoves:
    table = curve_table(n=15)

    def test_shuffled_rows_give_the_same_bits(self):
        assert bits(curves(self.table.sample(frac=1, random_state=1))) == bits(curves(self.table))

    def test_other_methods_and_bins_change_no_other_curve(self):
        before = bits(curves(self.table))
        more = [
            self.table,
            curve_table("aaa", budgets=(64, 100), kept=(0.3, 0.4), n=15).query("method == 'aaa'"),
        ]
        assert before.items() <= bits(curves(pd.concat(more))).items()
        after = bits(curves(pd.concat([self.table, curve_table(n=15, bins=(2,))])))
        assert {k: v for k, v in before.items() if k[2] != POOLED}.items() <= after.items()

    def test_a_methods_name_does_not_enter_its_numbers(self):
        after = bits(curves(self.table.replace({"method": {"snapkv": "a"}})))
        assert {(d, "snapkv", *rest): v for (d, _, *rest), v in after.items()} == bits(curves(self.table))


def rank(label, tokens, censored):
    return {"left": -inf, "right": inf}.get(censored, tokens)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.3, 0.8, 0.95, 1.0]), min_size=1, max_size=5),
    st.sampled_from([1, 2, 9, 12, 40]),
    st.integers(0, 50),
    st.sampled_from([None, "TIMEOUT"]),
)
def test_no_curve_crashes_and_the_limits_hold_the_point(kept, n, seed, label):
    table = curve_table(budgets=[64 * 2**k for k in range(len(kept))], kept=kept, n=n, seed=seed)
    if label:
        hit = (table["method"] == "snapkv") & (np.arange(len(table)) % 3 == seed % 3)
        table.loc[hit, ["score", "failure"]] = [np.nan, label]
    frame = curves(table, transition_replicates=50)
    assert list(frame) == list(TRANSITION)
    for row in frame[frame["status"] == "ok"].to_dict("records"):
        lower, point, upper = (
            rank(row[f"T_{name}"], row[f"T_{name}_tokens"], row[f"censored_{name}"])
            for name in ("lower", "point", "upper")
        )
        assert lower <= point <= upper
        assert isnan(row["interp_lo"]) or isnan(row["interp_hi"]) or row["interp_lo"] < row["interp_hi"]
