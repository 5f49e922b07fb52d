"""Paired tests: the numbers, which cells meet, what is adjusted together, and what must not move."""

from itertools import product
from math import isnan

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG, bits, clusters_of, curve_table, example_rows, graded
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kv_transition.analysis.cells import POOLED
from kv_transition.analysis.exact_tests import MAX_FLIPS, mcnemar_test, sign_flip_test
from kv_transition.analysis.intervals import difference_interval, minimum_detectable_effect
from kv_transition.analysis.paired_tests import (
    PAIRED_TESTS,
    SORTED_BY,
    benjamini_hochberg,
    paired_differences,
    paired_tests,
)
from kv_transition.analysis.tables import write_table
from kv_transition.files import read_parquet


def paired(table, clusters=None, **changes):
    return paired_tests(table, clusters or clusters_of(table), CFG | changes)


def row(frame, kind, a, b, bin_idx=0, policy="zero"):
    """The test of cell b against cell a, each (method, budget)."""
    keys = {"kind": kind, "bin_idx": bin_idx, "policy": policy}
    keys |= {"method_a": a[0], "budget_a": str(a[1]), "method_b": b[0], "budget_b": str(b[1])}
    found = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(found) == 1, keys
    return found.iloc[0]


def pairs_of(frame, kind, bin_idx=0, policy="zero"):
    chosen = frame[(frame["kind"] == kind) & (frame["bin_idx"] == bin_idx) & (frame["policy"] == policy)]
    names = ["method_a", "budget_a", "method_b", "budget_b"]
    return [tuple(values) for values in chosen[names].itertuples(index=False)]


def against_full(scores, full, **more):
    parts = [example_rows("full", None, full, **more), example_rows("snapkv", 64, scores, **more)]
    return pd.concat(parts, ignore_index=True)


FULL, SNAP64 = ("full", "full"), ("snapkv", 64)
grades = st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan])


class TestNumbers:
    @given(st.lists(st.tuples(grades, grades, st.integers(0, 4)), max_size=12))
    @example([(0.25, 0.5, 0), (0.25, 0.5, 1), (0.25, 0.5, 1)])
    @example([(0.5, 0.5, 0), (1.0, 1.0, 1)])
    @settings(max_examples=60)
    def test_many_tests_at_once_give_what_each_gives_alone(self, examples):
        examples.sort(key=lambda example: example[2])
        a, b = (np.array([[e[i] for e in examples]]) for i in (0, 1))
        clusters = np.array([e[2] for e in examples], dtype=np.int64)
        # The same test stands between two others, which must not leak into it.
        a, b = np.concatenate([b, a, a * 0]), np.concatenate([a, b, b])
        found = {name: values[1] for name, values in paired_differences(a, b, clusters, 0.95).items()}
        there = ~np.isnan(a[1]) & ~np.isnan(b[1])
        alone = difference_interval(b[1][there], a[1][there], clusters[there])
        expected = {"diff": alone.point, "diff_se": alone.se, "p": alone.p, "status": alone.status}
        expected |= {"diff_lo": alone.lo, "diff_hi": alone.hi, "n_pairs": there.sum()}
        expected["n_clusters"] = len(set(clusters[there]))
        expected["mde"] = minimum_detectable_effect(alone, expected["n_clusters"])
        for name, value in expected.items():
            if isinstance(value, str):
                assert found[name] == value
            else:
                assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name

    def test_a_difference_is_b_minus_a(self):
        full = graded(20, zeros=0)
        frame = paired(against_full(full - 0.04 * (np.arange(20) % 2), full))
        assert row(frame, "full", FULL, SNAP64)["diff"] == pytest.approx(-0.02)
        assert row(frame, "adjacent", SNAP64, FULL)["diff"] == pytest.approx(0.02)

    def test_the_spread_is_that_of_the_differences(self):
        full, scores = graded(30, 1), graded(30, 2)
        found = row(paired(against_full(scores, full)), "full", FULL, SNAP64)
        assert found["sd_d"] == pytest.approx(np.std(scores - full, ddof=1))
        assert found["mde"] == pytest.approx(2.486 * found["sd_d"] / np.sqrt(30))

    def test_questions_about_one_context_count_as_one_observation(self):
        full, scores = np.tile(graded(15, 1), 2), np.tile(graded(15, 2), 2)
        alone = row(paired(against_full(scores, full)), "full", FULL, SNAP64)
        names = [f"c{i % 15:02d}" for i in range(30)]
        shared = row(paired(against_full(scores, full, clusters=names)), "full", FULL, SNAP64)
        assert shared["n_clusters"] == 15
        assert shared["diff_se"] > 1.3 * alone["diff_se"]
        assert shared["sd_d"] > 1.3 * alone["sd_d"]


class TestStatus:
    full = graded(20, zeros=0)

    def test_identical_answers_are_degenerate_and_keep_an_interval(self):
        found = row(paired(against_full(self.full, self.full)), "full", FULL, SNAP64)
        assert (found["status"], found["p"], found["p_signflip"]) == ("degenerate", 1.0, 1.0)
        assert found["diff_lo"] < 0 < found["diff_hi"]
        assert found["mde"] > 0

    def test_no_pairs_and_one_cluster_are_no_test(self):
        scores = np.full(20, np.nan)
        found = row(paired(against_full(scores, self.full)), "full", FULL, SNAP64)
        assert (found["status"], found["n_pairs"]) == ("no_pairs", 0)
        assert isnan(found["p"])
        assert isnan(found["p_adjusted"])
        scores[0] = 0.5
        found = row(paired(against_full(scores, self.full)), "full", FULL, SNAP64)
        assert found["status"] == "too_few"
        assert found["diff"] == pytest.approx(0.5 - self.full[0])
        assert all(isnan(found[name]) for name in ("p", "p_signflip", "diff_lo", "mde"))

    def test_a_weak_reference_is_told_and_the_test_kept(self):
        found = row(paired(against_full(self.full, np.zeros(20))), "full", FULL, SNAP64)
        assert (found["gate"], found["status"]) == ("reference_too_weak", "ok")
        assert found["p"] < 0.001

    def test_without_the_full_cache_budgets_are_still_compared(self):
        table = curve_table(bins=(0,))
        found = paired(table[table["method"] != "full"])
        assert set(found["kind"]) == {"adjacent"}
        assert set(found["gate"]) == {"no_reference"}
        assert found["p"].notna().all()

    @pytest.mark.parametrize("reason", ["infeasible", "not_applicable"])
    def test_where_nothing_was_asked_there_is_no_test_and_no_neighbour(self, reason):
        table = curve_table(bins=(0,)).assign(status="ok")
        nothing = table["budget"] == "128"
        table.loc[nothing, "status"], table.loc[nothing, "score"] = reason, np.nan
        frame = paired(table)
        found = row(frame, "full", FULL, ("snapkv", 128))
        assert found["status"] == reason
        assert isnan(found["diff"])
        assert ("snapkv", "64", "snapkv", "256") in pairs_of(frame, "adjacent")

    def test_a_cell_that_was_mostly_inactive_or_failed_is_marked(self):
        full = graded(40, 3, zeros=0)
        failure = ["TIMEOUT"] * 4 + [None] * 36
        parts = [
            example_rows("full", None, full, token_len=1000),
            example_rows("snapkv", 64, full * 0.5, token_len=1000),
            example_rows("snapkv", 128, full * 0.6, token_len=1000, failure=failure),
            example_rows("snapkv", 2048, full, token_len=1000),
        ]
        frame = paired(pd.concat(parts, ignore_index=True))
        marks = {
            (a, b): row(frame, "adjacent", a, b)[["inactive", "unreliable"]].tolist()
            for a, b in [
                (SNAP64, ("snapkv", 128)),
                (("snapkv", 128), ("snapkv", 2048)),
                (("snapkv", 2048), FULL),
            ]
        }
        assert list(marks.values()) == [[False, True], [True, True], [True, False]]


@pytest.fixture(scope="module")
def frame():
    first, second = (
        curve_table(),
        curve_table("tova", budgets=(64, 256, 1024), kept=(0.1, 0.6, 1.0), seed=3),
    )
    third = curve_table("knorm", budgets=(64,), kept=(0.1,), seed=4)
    only = [part[part["method"] != "full"] for part in (second, third)]
    return paired(pd.concat([first, *only], ignore_index=True))


class TestWhichCellsMeet:
    def test_adjacent_budgets_end_with_the_full_cache(self, frame):
        assert pairs_of(frame, "adjacent") == [
            ("knorm", "64", "full", "full"),
            ("snapkv", "64", "snapkv", "128"),
            ("snapkv", "128", "snapkv", "256"),
            ("snapkv", "256", "snapkv", "512"),
            ("snapkv", "512", "full", "full"),
            ("tova", "64", "tova", "256"),
            ("tova", "256", "tova", "1024"),
            ("tova", "1024", "full", "full"),
        ]

    def test_methods_meet_at_the_budgets_that_both_have(self, frame):
        assert pairs_of(frame, "method", POOLED) == [
            ("knorm", "64", "snapkv", "64"),
            ("knorm", "64", "tova", "64"),
            ("snapkv", "64", "tova", "64"),
            ("snapkv", "256", "tova", "256"),
        ]

    def test_every_cell_meets_the_full_cache(self, frame):
        assert len(pairs_of(frame, "full", 1)) == 8
        assert {pair[:2] for pair in pairs_of(frame, "full", 1)} == {("full", "full")}

    def test_each_family_is_adjusted_by_itself(self, frame):
        from statsmodels.stats.multitest import multipletests

        sizes = {"adjacent|snapkv|0": 4, "method|-1": 4, "method|0": 4, "full|-1": 8, "full|1": 8}
        for (policy, family), tests in frame.groupby(["policy", "family"]):
            how = "holm" if tests["kind"].iloc[0] == "adjacent" or family.endswith("|-1") else "bh"
            assert set(tests["adjustment"]) == {how}
            expected = multipletests(tests["p"], method={"holm": "holm", "bh": "fdr_bh"}[how])[1]
            assert tests["p_adjusted"].tolist() == pytest.approx(expected)
            assert sizes.get(family, len(tests)) == len(tests), (policy, family)

    def test_a_budget_without_a_score_in_the_bin_is_no_neighbour(self):
        table = curve_table()
        table.loc[(table["budget"] == "128") & (table["bin_idx"] == 0), "score"] = np.nan
        frame = paired(table, clusters_of(table))
        assert ("snapkv", "64", "snapkv", "256") in pairs_of(frame, "adjacent", 0)
        assert ("snapkv", "64", "snapkv", "128") in pairs_of(frame, "adjacent", 1)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), max_size=9))
def test_q_values_are_those_of_statsmodels(p):
    from statsmodels.stats.multitest import multipletests

    adjusted = benjamini_hochberg(p)
    tested = [i for i, value in enumerate(p) if not isnan(value)]
    expected = multipletests([p[i] for i in tested], method="fdr_bh")[1] if tested else []
    assert [adjusted[i] for i in tested] == pytest.approx(list(expected))
    assert all(isnan(adjusted[i]) for i in range(len(p)) if i not in tested)


class TestSignFlips:
    @given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
    def test_p_is_the_share_of_sign_patterns_as_far_from_zero(self, quarters):
        d = np.array(quarters) / 10
        patterns = np.array(list(product([1, -1], repeat=len(d)))) * d
        expected = np.mean(np.abs(patterns.sum(axis=1)) >= abs(d.sum()) - 1e-9)
        assert sign_flip_test(np.stack([d, d * 0, d]))[[0, 2]] == pytest.approx(expected)

    def test_it_takes_at_most_fourteen_differences(self):
        p = sign_flip_test(np.stack([np.r_[np.ones(MAX_FLIPS), 0, 0], np.r_[np.ones(MAX_FLIPS + 1), 0]]))
        assert MAX_FLIPS == 14
        assert p[0] == 2 / 2**14
        assert isnan(p[1])

    def test_a_context_is_flipped_as_a_whole(self):
        full = np.full(40, 0.5)
        scores = full + np.r_[np.full(20, 0.25), np.zeros(20)]
        alone = row(paired(against_full(scores, full)), "full", FULL, SNAP64)
        assert isnan(alone["p_signflip"])
        names = [f"c{i // 4:02d}" for i in range(40)]
        shared = row(paired(against_full(scores, full, clusters=names)), "full", FULL, SNAP64)
        assert shared["p_signflip"] == 2 / 2**5


class TestMcNemar:
    @given(st.integers(0, 30), st.integers(0, 30))
    def test_it_is_that_of_statsmodels(self, only_a, only_b):
        from statsmodels.stats.contingency_tables import mcnemar

        expected = mcnemar([[3, only_a], [only_b, 5]], exact=True).pvalue if only_a + only_b else 1.0
        assert mcnemar_test(np.array([only_a]), np.array([only_b]))[0] == pytest.approx(expected)

    def test_discordant_pairs_are_counted(self):
        full = np.r_[np.ones(15), np.zeros(5)]
        scores = np.r_[np.zeros(6), np.ones(9), np.zeros(4), 1.0]
        found = row(paired(against_full(scores, full)), "full", FULL, SNAP64)
        assert found[["n_only_a", "n_only_b"]].tolist() == [6, 1]
        assert found["p_mcnemar"] == pytest.approx(2 * (1 + 7) / 2**7)

    def test_no_discordant_pair_gives_one(self):
        full = np.r_[np.ones(15), np.zeros(5)]
        assert row(paired(against_full(full, full)), "full", FULL, SNAP64)["p_mcnemar"] == 1

    def test_it_is_not_for_graded_scores(self):
        full = np.r_[np.ones(15), np.zeros(4), 0.5]
        found = row(paired(against_full(np.ones(20), full)), "full", FULL, SNAP64)
        assert found[["n_only_a", "n_only_b", "p_mcnemar"]].isna().all()

    def test_it_is_not_for_shared_contexts(self):
        full, names = np.r_[np.ones(15), np.zeros(5)], ["c0", "c0", *(f"e{i:02d}" for i in range(18))]
        found = row(paired(against_full(1 - full, full, clusters=names)), "full", FULL, SNAP64)
        assert found[["n_only_a", "n_only_b"]].tolist() == [15, 5]
        assert isnan(found["p_mcnemar"])


class TestPolicies:
    full = graded(20, zeros=0)
    failure = ("TIMEOUT", *[None] * 19)

    def test_a_failed_request_is_zero_or_no_pair(self):
        parts = [
            example_rows("full", None, self.full),
            example_rows("snapkv", 64, self.full, failure=self.failure),
        ]
        frame = paired(pd.concat(parts, ignore_index=True))
        zero, exclude = (row(frame, "full", FULL, SNAP64, policy=p) for p in ("zero", "exclude"))
        assert zero["diff"] == pytest.approx(-self.full[0] / 20)
        assert (exclude["n_pairs"], exclude["diff"]) == (19, 0)

    def test_policies_with_equal_scores_have_equal_rows(self):
        frame = paired(curve_table())
        both = [
            frame[frame["policy"] == p].drop(columns="policy").reset_index(drop=True) for p in CFG["policies"]
        ]
        pd.testing.assert_frame_equal(*both)


class TestInvariance:
    @staticmethod
    def exact(frame, without=()):
        keys = [*SORTED_BY[:5], "method_a", "budget_a", "method_b", "budget_b"]
        return bits(
            frame.drop(columns=list(without)).assign(budget=frame[keys].astype(str).agg("|".join, axis=1))
        )

    def test_row_order_does_not_matter(self):
        table = curve_table()
        shuffled = table.sample(frac=1, random_state=1)
        clusters = clusters_of(table)
        assert self.exact(paired(shuffled, clusters)) == self.exact(paired(table, clusters))

    def test_other_methods_bins_and_tasks_change_nothing_but_the_adjusted_p(self):
        table = curve_table()
        extra = curve_table("aaa", seed=8)
        other = curve_table(seed=5).assign(dataset="c", task="other")
        more = pd.concat([table, extra[extra["method"] != "full"], other], ignore_index=True)
        longer = pd.concat([more, curve_table(bins=(2,))], ignore_index=True)
        alone, among, with_bin = (
            self.exact(paired(rows), without=["p_adjusted"]) for rows in (table, more, longer)
        )
        assert {key: among[key] for key in alone} == alone
        single = [key for key in alone if key[1] != POOLED]
        assert len(single) == 2 * len(alone) // 3
        assert all(with_bin[key] == alone[key] for key in single)

    def test_other_budgets_leave_the_tests_of_a_pair_as_they_were(self):
        table = curve_table()
        fewer = table[table["budget"] != "512"]
        alone, among = (self.exact(paired(rows), without=["p_adjusted"]) for rows in (fewer, table))
        shared = set(alone) & set(among)
        assert len(shared) == len(alone) - 6
        assert all(alone[key] == among[key] for key in shared)


def test_the_file_has_the_columns_of_the_table_in_order(tmp_path):
    table = curve_table()
    for name in ("a", "b"):
        write_table(paired(table), PAIRED_TESTS, SORTED_BY, CFG, tmp_path / name)
        table = table.iloc[::-1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = read_parquet(tmp_path / "a")
    assert list(back) == list(PAIRED_TESTS)
    assert len(back) == len(paired(table))


def test_two_equal_differences_are_no_proof_in_a_family():
    """The t test calls them p = 0, which no correction can change; their sign-flip p is 1/2."""
    full = example_rows("full", None, [1.0, 1.0])
    table = pd.concat([full, example_rows("snapkv", 64, [0.0, 0.0])], ignore_index=True)
    frame = paired_tests(table, clusters_of(table), CFG)
    rows = frame[(frame["kind"] == "full") & (frame["bin_idx"] == POOLED)]
    assert set(rows["status"]) == {"degenerate"}
    assert (rows["p"] == 0).all()
    assert (rows["p_adjusted"] == 0.5).all()
