"""bin_stats and retention: policies, gates, the floor, pooling, and what must not move when something else does."""

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG, bits, clusters_of, curve_table, example_rows, graded
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transition.analysis.aggregate import BIN_STATS, RETENTION, bin_stats, retention
from kv_transition.analysis.cells import POOLED
from kv_transition.errors import UserError


def cell(frame, method, budget=None, bin_idx=0, policy="zero"):
    budget = "full" if budget is None else str(budget)
    keys = {"method": method, "budget": budget, "bin_idx": bin_idx, "policy": policy}
    found = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(found) == 1
    return found.iloc[0]


def both(table, **changes):
    cfg = CFG | changes
    return bin_stats(table, clusters_of(table), cfg), retention(table, clusters_of(table), cfg)


def one_budget(scores, full, failure=None, no_context=None, **more):
    parts = [
        example_rows("full", None, full, **more),
        example_rows("snapkv", 64, scores, failure=failure, **more),
    ]
    if no_context is not None:
        parts.append(example_rows("no_context", None, no_context, **more))
    return pd.concat(parts, ignore_index=True)


class TestFailurePolicies:
    full = graded(20, zeros=0)
    failure = ("TIMEOUT", "ENGINE_ERROR", "EMPTY_OUTPUT", "TRUNCATED", *[None] * 16)
    scores = (None, None, 0.0, *full[3:])

    def test_a_request_that_got_no_answer_is_zero_or_missing(self):
        stats, _ = both(one_budget(self.scores, self.full, self.failure))
        zero, exclude = cell(stats, "snapkv", 64), cell(stats, "snapkv", 64, policy="exclude")
        assert (zero["n"], exclude["n"]) == (20, 18)
        assert zero["mean"] == pytest.approx(self.full[3:].sum() / 20)
        assert exclude["mean"] == pytest.approx(self.full[3:].sum() / 18)
        assert exclude["n_missing"] == 2

    def test_every_label_is_counted_under_both_policies(self):
        stats, _ = both(one_budget(self.scores, self.full, self.failure))
        for policy in ("zero", "exclude"):
            row = cell(stats, "snapkv", 64, policy=policy)
            counted = {
                name: row[f"n_{name}"] for name in ("timeout", "engine_error", "empty_output", "truncated")
            }
            assert set(counted.values()) == {1}
            assert row["n_refusal"] == 0

    def test_more_than_the_allowed_share_of_infrastructure_failures_makes_a_cell_unreliable(self):
        stats, ratios = both(one_budget(self.scores, self.full, self.failure))
        assert cell(stats, "snapkv", 64)["unreliable"]
        assert cell(ratios, "snapkv", 64)["unreliable"]
        assert not cell(stats, "full")["unreliable"]
        stats, _ = both(one_budget(self.scores, self.full, self.failure), max_infrastructure_failures=0.2)
        assert not cell(stats, "snapkv", 64)["unreliable"]

    def test_an_absent_row_is_missing_under_both_policies(self):
        table = one_budget(self.full, self.full)
        kept = table[(table["method"] == "full") | (table["example_id"] != "0-004")]
        stats = bin_stats(kept, clusters_of(table), CFG)
        for policy in ("zero", "exclude"):
            row = cell(stats, "snapkv", 64, policy=policy)
            assert (row["n"], row["n_missing"]) == (19, 1)
            assert row["mean"] == pytest.approx(np.delete(self.full, 4).mean())

    def test_only_examples_with_both_scores_are_paired(self):
        _, ratios = both(one_budget(self.scores, self.full, self.failure))
        assert cell(ratios, "snapkv", 64)["n_pairs"] == 20
        assert cell(ratios, "snapkv", 64, policy="exclude")["n_pairs"] == 18

    def test_a_partly_failed_average_counts_its_failed_replicates_as_zero_or_not_at_all(self):
        table = one_budget(self.full, self.full)
        at = table.index[(table["method"] == "snapkv") & (table["example_id"] == "0-000")]
        table["infrastructure_failed"] = 0.0
        table.loc[at, ["score", "infrastructure_failed", "failure"]] = [0.9, 1 / 3, "TIMEOUT"]
        stats, _ = both(table)
        rest = self.full[1:].sum()
        assert cell(stats, "snapkv", 64)["mean"] == pytest.approx((0.6 + rest) / 20)
        assert cell(stats, "snapkv", 64, policy="exclude")["mean"] == pytest.approx((0.9 + rest) / 20)

    def test_an_example_whose_reference_failed_leaves_every_cell_and_is_counted(self):
        table = one_budget(self.full, self.full, no_context=np.zeros(20))
        table["reference_failed"] = table["example_id"] == "0-004"
        stats, ratios = both(table)
        for method, budget in (("full", None), ("no_context", None), ("snapkv", 64)):
            row = cell(stats, method, budget)
            assert (row["n"], row["n_missing"], row["n_reference_failed"]) == (19, 0, 1)
        assert cell(ratios, "snapkv", 64)["n_pairs"] == 19
        assert cell(stats, "full", bin_idx=POOLED)["n_reference_failed"] == 1


class TestGates:
    @pytest.mark.parametrize(
        ("full", "gate"),
        [
            ([0.0] * 20, "reference_too_weak"),
            ([0.9] + [0.0] * 19, "reference_too_weak"),
            (list(graded(9, zeros=0)), "too_few"),
            ([None] * 20, "no_reference"),
            (list(graded(20, zeros=0)), "ok"),
            ([1.0] * 20, "ok"),
        ],
    )
    def test_a_reference_that_cannot_carry_a_claim_is_named(self, full, gate):
        failure = ["TIMEOUT" if y is None else None for y in full]
        table = pd.concat(
            [
                example_rows("full", None, full, failure=failure),
                example_rows("snapkv", 64, [0.5 if y is None else y for y in full]),
            ]
        )
        row = cell(both(table)[1], "snapkv", 64, policy="exclude")
        assert row["gate"] == gate
        if gate != "ok":
            assert row["status"] == gate
            assert row[["R_lo", "R_hi", "ni_p", "tost_p", "boot_lo", "boot_hi"]].isna().all()

    def test_a_run_without_its_reference_has_no_retention(self):
        row = cell(both(example_rows("snapkv", 64, graded(20)))[1], "snapkv", 64)
        assert row["status"] == "no_reference"
        assert np.isnan(row["R"])

    def test_a_task_that_is_answered_without_its_context_shows_no_retention(self):
        full = np.tile([1.0, 0.0], 15)
        guesses = np.tile([1.0, 0.0, 0.0, 1.0], 8)[:30]
        row = cell(both(one_budget(full, full, no_context=guesses))[1], "snapkv", 64)
        assert row["status"] == row["R0_status"] == "context_not_needed"
        assert row[["R_lo", "ni_p"]].isna().all()

    def test_identical_answers_are_degenerate_not_lossless(self):
        full = graded(20, zeros=0)
        row = cell(both(one_budget(full, full))[1], "snapkv", 64)
        assert row["status"] == "ok_degenerate"
        assert row["R"] == 1
        assert row["R_hi"] - row["R_lo"] > 0.1
        assert row["degenerate"]
        assert row["mde"] > 0.05

    def test_bootstrap_limits_are_not_shown_where_the_reference_is_often_zero(self):
        full = np.array([0.0] * 5 + [0.5] * 15)
        failure = [None] * 6 + ["TIMEOUT"] * 14
        row = cell(both(one_budget(full, full, failure))[1], "snapkv", 64, policy="exclude")
        assert row["boot_zero_den_frac"] > 0.1
        assert row[["boot_lo", "boot_hi"]].isna().all()

    def test_retention_above_a_measured_floor(self):
        full = np.tile([0.9, 0.7], 20)
        row = cell(both(one_budget(full - 0.3, full, no_context=full - 0.6))[1], "snapkv", 64)
        assert row["R"] == pytest.approx(0.5 / 0.8)
        assert row["R0"] == pytest.approx(0.5)
        assert row["R0_lo"] < 0.5 < row["R0_hi"]

    def test_without_a_run_without_context_the_floor_is_said_to_be_unmeasured(self):
        full = graded(20, zeros=0)
        assert cell(both(one_budget(full, full))[1], "snapkv", 64)["R0_status"] == "floor_not_measured"

    def test_compression_below_the_floor_is_shown_below_zero(self):
        rng = np.random.default_rng(3)
        full, floor = np.tile([0.9, 0.7], 20), np.tile([0.3, 0.4], 20)
        row = cell(both(one_budget(rng.uniform(0, 0.2, 40), full, no_context=floor))[1], "snapkv", 64)
        assert row["R0_lo"] <= row["R0"] < 0


class TestActivity:
    def test_budgets_that_exceed_the_prompt_are_counted_as_inactive(self):
        table = curve_table(budgets=(64, 8000), kept=(0.5, 1.0))
        stats, ratios = both(table)
        assert cell(stats, "snapkv", 64)["active_frac"] == 1
        assert cell(stats, "snapkv", 8000)["active_frac"] == 0
        assert cell(ratios, "snapkv", 8000)["active_frac"] == 0
        assert np.isnan(cell(stats, "full")["active_frac"])

    def test_what_the_responses_recorded_wins(self):
        table = curve_table(budgets=(64, 8000), kept=(0.5, 1.0))
        table["active"] = table["budget"] != "64"
        assert cell(both(table)[0], "snapkv", 64)["active_frac"] == 0

    def test_a_budget_in_tokens_is_not_compared_with_a_length_in_words(self):
        table = pd.concat(
            [example_rows("full", None, graded(20)), example_rows("snapkv", 8000, graded(20)), example_rows("snapkv", "f0.5", graded(20))]
        )  # fmt: skip
        stats = bin_stats(table.assign(length_unit="words"), clusters_of(table), CFG).query(
            "bin_idx == 0 and policy == 'zero'"
        )
        active = stats[stats["method"] == "snapkv"].set_index("budget")["active_frac"]
        assert np.isnan(active["8000"])
        assert active["f0.5"] == 1
        in_tokens = bin_stats(table, clusters_of(table), CFG).query("bin_idx == 0 and budget == '8000'")
        assert (in_tokens["active_frac"] == 0).all()

    def test_a_share_of_the_prompt_is_always_active(self):
        assert (
            cell(both(curve_table(budgets=("f0.25",), kept=(0.5,)))[0], "snapkv", "f0.25")["active_frac"] == 1
        )

    def test_only_measured_budgets_are_called_verified(self):
        table = one_budget(graded(20), graded(20))
        table["verified"] = ["measured"] * 20 + ["measured"] * 15 + ["reported"] * 3 + ["no", None]
        assert cell(both(table)[0], "snapkv", 64)["verified_frac"] == pytest.approx(0.75)


class TestPooling:
    def test_all_bins_together_weight_examples_equally(self):
        parts = [one_budget(graded(n, n), graded(n, n), bin_idx=i) for i, n in enumerate((12, 30))]
        row = cell(both(pd.concat(parts))[0], "full", bin_idx=POOLED)
        assert row["n"] == 42
        assert row["mean"] == pytest.approx((graded(12, 12).sum() + graded(30, 30).sum()) / 42)

    def test_a_context_in_two_bins_is_one_cluster_of_the_pool_and_is_counted(self):
        shared = ["doc"] + [f"c{i}" for i in range(19)]
        other = ["doc"] + [f"e{i}" for i in range(19)]
        parts = [
            one_budget(graded(20), graded(20), bin_idx=i, clusters=c) for i, c in ((0, shared), (1, other))
        ]
        stats, _ = both(pd.concat(parts))
        assert cell(stats, "full", bin_idx=POOLED)["n_clusters"] == 39
        assert cell(stats, "full", bin_idx=POOLED)["n_straddling_clusters"] == 1
        assert cell(stats, "full", bin_idx=0)["n_clusters"] == 20

    def test_a_bin_without_examples_keeps_its_rows(self):
        table = curve_table()
        clusters = clusters_of(table) | {("d", 2): []}
        row = cell(bin_stats(table, clusters, CFG), "full", bin_idx=2)
        assert (row["n"], row["status"]) == (0, "no_scores")
        assert cell(retention(table, clusters, CFG), "snapkv", 64, bin_idx=2)["status"] == "no_reference"


class TestNothingElseMoves:
    table = pd.concat([curve_table(n=15), example_rows("no_context", None, np.zeros(15))], ignore_index=True)

    def exact(self, table, clusters=None):
        clusters = clusters or clusters_of(table)
        return bits(bin_stats(table, clusters, CFG)) | bits(retention(table, clusters, CFG))

    def test_shuffled_rows_give_the_same_bits(self):
        shuffled = self.table.sample(frac=1, random_state=3)
        assert self.exact(shuffled) == self.exact(self.table)

    def test_another_method_changes_no_other_cell(self):
        before = self.exact(self.table)
        more = pd.concat([self.table, *(example_rows("aaa", b, graded(15, b), bin_idx=1) for b in (64, 100))])
        after = self.exact(more)
        assert {k: after[k] for k in before} == before

    def test_a_dropped_budget_changes_no_other_cell(self):
        before = self.exact(self.table)
        after = self.exact(self.table[self.table["budget"] != "128"])
        assert {k: before[k] for k in after} == after

    def test_another_bin_changes_no_cell_of_the_others(self):
        before = self.exact(self.table)
        after = self.exact(pd.concat([self.table, curve_table(n=15, bins=(2,))]))
        assert all(after[k] == v for k, v in before.items() if k[2] != POOLED)

    def test_a_methods_name_does_not_enter_its_numbers(self):
        renamed = self.table.replace({"method": {"snapkv": "a_name"}})
        after = self.exact(renamed)
        for key, values in self.exact(self.table).items():
            assert after[key[0], key[1].replace("snapkv", "a_name"), *key[2:]] == values

    def test_failures_of_one_cell_change_no_other_cell(self):
        before = self.exact(self.table)
        broken = self.table.copy()
        hit = (broken["budget"] == "128") & (broken["example_id"].str.endswith(("1", "2")))
        broken.loc[hit, ["score", "failure"]] = [np.nan, "TIMEOUT"]
        after = self.exact(broken)
        assert {k for k in before if after[k] != before[k]} <= {k for k in before if k[3] == "128"}
        assert any(after[k] != before[k] for k in before)


@st.composite
def tables(draw):
    """Any table: odd scores, labels anywhere, absent rows, one example, one context, no reference."""
    parts = []
    value = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 0.5, 1 / 3]))
    for bin_idx in range(draw(st.integers(1, 2))):
        n = draw(st.sampled_from([1, 2, 11, 12]))
        contexts = draw(st.sampled_from([None, ["one"] * n]))
        for method, budget in (("full", None), ("no_context", None), ("snapkv", 64), ("snapkv", 5000)):
            if draw(st.booleans()):
                kind = draw(st.sampled_from(["any", "zero", "one", "failed"]))
                fixed = {"zero": [0.0] * n, "one": [1.0] * n, "failed": [None] * n}
                scores = fixed.get(kind) or draw(st.lists(value, min_size=n, max_size=n))
                label = draw(st.sampled_from(["TIMEOUT", "ENGINE_ERROR", None]))
                failure = [label if y is None else None for y in scores]
                parts.append(
                    example_rows(method, budget, scores, bin_idx=bin_idx, failure=failure, clusters=contexts)
                )
    return pd.concat(parts, ignore_index=True) if parts else example_rows("full", None, [0.5])


@settings(max_examples=60, deadline=None)
@given(tables())
def test_no_table_crashes_and_every_interval_holds_its_point(table):
    stats, ratios = both(table, bootstrap_replicates=100)
    assert list(stats) == list(BIN_STATS)
    assert list(ratios) == list(RETENTION)
    known = stats.dropna(subset="lo")
    assert ((known["lo"] <= known["mean"]) & (known["mean"] <= known["hi"])).all()
    assert (known["hi"] > known["lo"]).all()
    for point, lo, hi in (("R", "R_lo", "R_hi"), ("R0", "R0_lo", "R0_hi"), ("diff", "diff_lo", "diff_hi")):
        known = ratios.dropna(subset=lo)
        assert (known[lo] <= known[point] + 1e-12).all()
        assert (known[point] <= known[hi] + 1e-12).all()
        assert (known[hi] > known[lo]).all()
    assert set(ratios.loc[ratios["gate"] != "ok", "ni_p"].dropna()) == set()


def test_failures_do_not_measure_what_was_not_measured():
    table = one_budget([1, None, 1, 0], [1, 1, 1, 1], failure=[None, "TIMEOUT", None, None])
    assert np.isnan(bin_stats(table, clusters_of(table), CFG)["em_mean"]).all()


def test_a_doubled_row_is_named():
    table = pd.concat([curve_table(n=3), example_rows("snapkv", 64, [0.5])])
    with pytest.raises(UserError, match="0-000 stands twice under snapkv 64"):
        both(table)


def test_a_cluster_outside_the_manifest_is_named():
    table = curve_table(n=3, bins=(0,))
    with pytest.raises(UserError, match="0-002 of bin 0 is not in the manifest"):
        bin_stats(table, {("d", 0): ["0-000", "0-001"]}, CFG)


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="'drop' is no failure policy"):
        both(curve_table(n=3), policies=["drop"])
