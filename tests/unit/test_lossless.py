"""Lossless claims: the walk down the budgets, what may carry a claim, all bins, several methods."""

from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG, bits, clusters_of, curve_table, example_rows, graded
from scipy.stats import binom

from kv_transition.analysis.aggregate import retention
from kv_transition.analysis.cells import POOLED
from kv_transition.analysis.intervals import equivalence_tests
from kv_transition.analysis.lossless import (
    KEYS,
    LOSSLESS,
    LosslessCell,
    contexts_needed,
    descend,
    examples_needed,
    in_every_bin,
    lossless,
    rare_loss_p,
)
from kv_transition.analysis.tables import write_table
from kv_transition.files import read_parquet


def claims(table, **changes):
    return lossless(table, clusters_of(table), CFG | changes)


def claim(table, method="snapkv", bin_idx=POOLED, policy="zero", **changes):
    frame = claims(table, **changes)
    keys = {"method": method, "bin_idx": bin_idx, "policy": policy}
    found = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(found) == 1
    return found.iloc[0]


def cells(*p, **more):
    """Cells at 64, 128, ... with these p-values."""
    return [LosslessCell(str(64 * 2**k), 64.0 * 2**k, value, **more) for k, value in enumerate(p)]


def near(full, loss=0.0, seed=0):
    """Scores that lose `loss` on average and differ a little from the reference."""
    noise = np.random.default_rng(seed).choice([-0.02, 0.02], len(full))
    return full - loss + noise


def study(losses, n=200, methods=("snapkv",), bins=(0, 1), token_len=4000, **more):
    """`full` and methods that lose the given amounts at 64, 128, ..."""
    parts = []
    for bin_idx in bins:
        full = graded(n, bin_idx, zeros=0) * 0.5 + 0.4
        parts.append(example_rows("full", None, full, bin_idx=bin_idx, token_len=token_len))
        for m, method in enumerate(methods):
            for k, loss in enumerate(losses):
                scores = near(full, loss, [m, k, bin_idx])
                parts.append(
                    example_rows(method, 64 * 2**k, scores, bin_idx=bin_idx, token_len=token_len, **more)
                )
    return pd.concat(parts, ignore_index=True)


class TestDescent:
    def test_it_goes_down_until_the_first_budget_that_is_not_shown(self):
        walk = descend(cells(0.001, 0.2, 0.01, 0.001))
        assert walk.shown.budget == "256"
        assert [cell.value for cell in walk.tested] == [512, 256, 128]
        assert walk.stopped_by == "p"

    def test_the_largest_budget_may_end_it(self):
        walk = descend(cells(0.001, 0.001, 0.06))
        assert walk.shown is None
        assert isnan(walk.p)

    def test_it_may_reach_the_smallest_budget(self):
        walk = descend(cells(0.01, 0.02, 0.001))
        assert (walk.shown.budget, walk.stopped_by, walk.p) == ("64", "", 0.02)

    def test_an_inactive_budget_is_neither_tested_nor_failed(self):
        small, large = cells(0.9, 0.01)[1:], [LosslessCell("2048", 2048.0, 0.9, inactive=True)]
        walk = descend([*large, *small])
        assert walk.shown.budget == "128"
        assert [cell.budget for cell in walk.tested] == ["128"]

    @pytest.mark.parametrize("reason", ["unreliable", "infeasible", "not_applicable"])
    def test_no_claim_rests_on_a_barred_cell(self, reason):
        walk = descend([LosslessCell("64", 64.0, 0.001, barred=reason), *cells(0, 0.001)[1:]])
        assert (walk.shown.budget, walk.stopped_by) == ("128", reason)

    def test_a_hole_ends_it(self):
        walk = descend(cells(0.001, nan, 0.001))
        assert (walk.shown.budget, walk.stopped_by) == ("256", "no_test")


class TestEveryBin:
    def test_the_worst_bin_decides(self):
        bins = [cells(0.2, 0.01, 0.001), cells(0.001, 0.03, 0.002)]
        assert [cell.p for cell in in_every_bin(bins)] == [0.2, 0.03, 0.002]

    def test_what_keeps_one_bin_from_a_claim_keeps_all(self):
        bins = [cells(0.01, barred="unreliable"), cells(0.01)]
        assert descend(in_every_bin(bins)).shown is None
        assert descend(in_every_bin([cells(nan), cells(0.01)])).shown is None
        assert descend(in_every_bin([cells(0.01), cells(0.01, inactive=True)])).tested == ()

    def test_the_pooled_row_names_the_smallest_budget_of_all_bins(self):
        table = study([0.3, 0.0, 0.0])
        worse = (table["budget"] == "128") & (table["bin_idx"] == 1)
        table.loc[worse, "score"] -= 0.06
        found = claim(table)
        assert (found["smallest_lossless"], found["all_bins"]) == ("128", "256")
        assert claim(table, bin_idx=0)["all_bins"] is None

    def test_a_bin_that_may_not_be_judged_forbids_it(self):
        table = study([0.0, 0.0])
        weak = pd.concat(
            [
                example_rows("full", None, np.zeros(20), bin_idx=2),
                *(example_rows("snapkv", b, np.zeros(20), bin_idx=2) for b in (64, 128)),
            ]
        )
        found = claim(pd.concat([table, weak], ignore_index=True))
        assert (found["status"], found["all_bins"]) == ("ok", None)

    def test_a_bin_without_examples_forbids_nothing(self):
        table = study([0.0, 0.0])
        frame = lossless(table, clusters_of(table) | {("d", 2): []}, CFG)
        pooled = frame[frame["bin_idx"] == POOLED]
        assert set(pooled["all_bins"]) == {"64"}
        assert set(frame.loc[frame["bin_idx"] == 2, "status"]) == {"no_reference"}


class TestStatus:
    def test_a_budget_that_is_shown(self):
        found = claim(study([0.3, 0.04, 0.0]))
        assert (found["status"], found["smallest_lossless"]) == ("ok", "128")
        assert found["smallest_lossless_value"] == 128
        assert found["tested"] == [256, 128, 64]
        assert found["stopped_by"] == "p"
        assert found["n_pairs_min"] == 400

    def test_no_difference_among_few_examples_is_not_demonstrated(self):
        full = graded(12, zeros=0)
        parts = [example_rows("full", None, full), example_rows("snapkv", 64, full)]
        found = claim(pd.concat(parts, ignore_index=True))
        assert (found["status"], found["smallest_lossless"]) == ("not_demonstrated", None)
        assert isnan(found["smallest_lossless_value"])
        assert found["mde"] > CFG["delta"]

    def test_where_nothing_was_compressed_nothing_is_tested(self):
        table = study([0.0, 0.0], token_len=60)
        found = claim(table)
        assert (found["status"], found["tested"], found["stopped_by"]) == ("not_tested", [], "")

    def test_a_budget_that_prompts_fit_into_is_passed_over(self):
        found = claim(study([0.3, 0.0, 0.3], token_len=200))
        assert (found["smallest_lossless"], found["tested"]) == ("128", [128, 64])

    def test_a_reference_that_may_not_be_judged_gives_its_gate(self):
        table = study([0.0, 0.0]).assign(score=0.0)
        found = claim(table)
        assert (found["status"], found["tested"], found["smallest_lossless"]) == (
            "reference_too_weak",
            [],
            None,
        )

    def test_a_task_that_needs_no_context_is_lossless_nowhere(self):
        table = study([0.0])
        guesses = table[table["method"] == "full"].assign(method="no_context")
        assert claim(pd.concat([table, guesses], ignore_index=True))["status"] == "context_not_needed"

    def test_an_unreliable_cell_carries_no_claim(self):
        failure = ["TIMEOUT"] * 11 + [None] * 189
        table = study([0.0, 0.0], failure=failure)
        for policy in CFG["policies"]:
            found = claim(table, policy=policy)
            assert (found["status"], found["stopped_by"]) == ("not_demonstrated", "unreliable")
        assert claim(table, policy="exclude", max_infrastructure_failures=0.06)["smallest_lossless"] == "64"

    @pytest.mark.parametrize("reason", ["infeasible", "not_applicable"])
    def test_where_nothing_was_asked_at_any_budget(self, reason):
        table = study([0.0, 0.0]).assign(status="ok")
        table.loc[table["method"] == "snapkv", ["status", "score"]] = [reason, np.nan]
        assert claim(table)["status"] == reason

    def test_without_pairs(self):
        table = study([0.0, 0.0])
        table.loc[table["method"] == "snapkv", "score"] = np.nan
        assert claim(table)["status"] == "no_pairs"


class TestExamplesNeeded:
    @pytest.mark.parametrize(
        ("sd_d", "delta", "n"), [(0.3, 0.02, 1392), (0.3, 0.05, 223), (0.2, 0.02, 619), (0.2, 0.05, 99)]
    )
    def test_it_follows_from_spread_and_margin(self, sd_d, delta, n):
        assert examples_needed(sd_d, delta) == n

    def test_identical_answers_do_not_say_how_many(self):
        assert isnan(examples_needed(0.0, 0.05))

    def test_the_spread_is_that_at_the_smallest_budget_tested(self):
        table = study([0.3, 0.0, 0.0])
        wide = table["budget"] == "64"
        table.loc[wide, "score"] *= np.tile([0.5, 1.0], wide.sum() // 2)
        found = claim(table)
        pairs = table.pivot(index="example_id", columns="budget", values="score")
        sd = (pairs["64"] - pairs["full"]).std()
        assert found["sd_d"] == pytest.approx(sd)
        assert found["mde"] == pytest.approx(2.486 * sd / np.sqrt(400))
        assert examples_needed(sd, CFG["delta"]) == 27
        assert found["n_needed"] == contexts_needed(CFG["delta"]), (
            "fewer could not show it against rare losses"
        )


class TestRareLosses:
    """One answer in twenty is lost whole: the mean loss is the margin itself, so a claim is an error."""

    @pytest.mark.parametrize("n", [25, 40, 60, 100])
    def test_they_are_taken_for_lossless_no_more_often_than_the_level(self, n):
        rng = np.random.default_rng(7)
        clusters = np.arange(n)
        by_test = claimed = 0
        for _ in range(1000):
            lost = -(rng.random(n) < 0.05).astype(float)
            cell = LosslessCell(
                "64", 64.0, equivalence_tests(lost, clusters, 0.05)[0], rare_loss_p(lost, clusters, 0.05)
            )
            by_test += descend([cell], exact=False).shown is not None
            claimed += descend([cell]).shown is not None
        assert claimed <= 65, "5 % and the error of 1,000 draws"
        assert by_test > (80 if n != 60 else 0), "which the t test alone does not keep"

    def test_whole_answers_are_counted_and_parts_of_answers_are_not(self):
        clusters = np.arange(100)
        one_in_ten = np.where(clusters % 10 == 0, -1.0, 0.0)
        assert rare_loss_p(one_in_ten, clusters, 0.05) == pytest.approx(binom.cdf(10, 100, 0.05))
        assert rare_loss_p(one_in_ten / 2, clusters, 0.05) == pytest.approx(0.95**100)
        assert isnan(rare_loss_p(np.array([]), np.array([], int), 0.05))

    def test_examples_of_one_context_count_once(self):
        clusters = np.repeat(np.arange(30), 4)
        assert rare_loss_p(np.zeros(120), clusters, 0.05) == pytest.approx(0.95**30)

    def test_too_few_contexts_end_the_sequence_and_are_told_how_many_it_takes(self):
        found = claim(study([0.0, 0.0], n=40), bin_idx=0)
        assert (found["status"], found["stopped_by"]) == ("not_demonstrated", "p_exact")
        assert found["smallest_by_test"] == "64"
        assert found["n_needed"] == contexts_needed(0.05) == 59


class TestSeveralMethods:
    def test_every_method_that_was_tested_counts(self):
        table = study([0.3, 0.038], methods=("snapkv", "tova"), n=60)
        poor = study([0.3, 0.3], methods=("knorm",), n=60)
        table = pd.concat([table, poor[poor["method"] == "knorm"]], ignore_index=True)
        frame = claims(table)
        pooled = frame[(frame["bin_idx"] == POOLED) & (frame["policy"] == "zero")].set_index("method")
        assert pooled["status"].to_dict() == {"knorm": "not_demonstrated", "snapkv": "ok", "tova": "ok"}
        smaller, larger = sorted(p[0] for p in pooled.loc[["snapkv", "tova"], "p"])
        adjusted = sorted(pooled.loc[["snapkv", "tova"], "p_holm_methods"])
        assert adjusted == pytest.approx([3 * smaller, max(3 * smaller, 2 * larger)])
        assert isnan(pooled.loc["knorm", "p_holm_methods"])

    def test_the_weakest_step_of_the_way_counts(self):
        found = claim(study([0.3, 0.0, 0.038], n=60))
        assert found["smallest_lossless"] == "128"
        assert found["p"][0] > found["p"][1]
        assert found["p_holm_methods"] == found["p"][0]

    def test_single_bins_have_none(self):
        assert isnan(claim(study([0.0]), bin_idx=0)["p_holm_methods"])


def test_no_claim_rests_on_a_reference_that_failed_too_often():
    table = study([0.0])
    failed = (table["method"] == "full") & table["example_id"].str.endswith(("0", "5"))
    table.loc[failed, "score"] = nan
    table.loc[failed, "failure"] = "ENGINE_ERROR"
    for policy in ("zero", "exclude"):
        row = claim(table, policy=policy)
        assert (row["status"], row["stopped_by"]) == ("not_demonstrated", "unreliable")


def test_p_values_are_those_of_the_retention_table():
    table = study([0.1, 0.04, 0.0], n=60)
    ni_p = retention(table, clusters_of(table), CFG).set_index(["bin_idx", "policy", "budget_value"])["ni_p"]
    for row in claims(table).to_dict("records"):
        assert row["p"] == [ni_p[row["bin_idx"], row["policy"], budget] for budget in row["tested"]]


def test_row_order_and_other_methods_change_nothing():
    table = study([0.1, 0.04, 0.0], n=60)
    other = curve_table("aaa", n=60)
    more = pd.concat([table, other[other["method"] != "full"]], ignore_index=True)
    shuffled = lossless(more.sample(frac=1, random_state=3), clusters_of(more), CFG)
    alone, among = (
        bits(frame.drop(columns="p_holm_methods").assign(budget="")) for frame in (claims(table), shuffled)
    )
    assert {key: among[key] for key in alone} == alone


def test_the_file_holds_the_lists_and_nulls(tmp_path):
    frame = claims(study([0.3, 0.0]))
    write_table(frame, LOSSLESS, list(KEYS), CFG, tmp_path / "lossless.parquet")
    back = read_parquet(tmp_path / "lossless.parquet")
    assert list(back) == list(LOSSLESS)
    assert back["all_bins"].tolist() == frame.sort_values(list(KEYS))["all_bins"].tolist()
    assert [list(budgets) for budgets in back["tested"]] == [[128, 64]] * len(back)
