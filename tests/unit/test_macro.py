"""Means over tasks: each task counts the same, nothing is averaged over fewer tasks than the experiment has."""

from math import isnan

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG, bits, clusters_of, curve_table, example_rows

from kv_transition.analysis.aggregate import bin_stats, retention
from kv_transition.analysis.cells import POOLED
from kv_transition.analysis.macro import KEYS, MACRO, macro
from kv_transition.analysis.tables import write_table
from kv_transition.files import read_parquet


def task(name, **more):
    table = curve_table(**more)
    return table.assign(
        dataset=f"set-{name}", task=name, metric=f"metric-{name}", protocol="p", length_unit="tokens"
    )


def tasks(*tables):
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def two():
    return tasks(task("a", seed=1, n=60), task("b", seed=2, n=20, kept=(0.1, 0.2, 0.5, 0.9)))


def means(table, **changes):
    return macro(table, clusters_of(table), CFG | changes)


def cell(frame, method="snapkv", budget="256", policy="zero"):
    keys = {"method": method, "budget": budget, "policy": policy}
    found = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(found) == 1
    return found.iloc[0]


class TestMean:
    def test_each_task_counts_the_same(self, two):
        stats = bin_stats(two, clusters_of(two), CFG)
        pooled = stats[(stats["bin_idx"] == POOLED) & (stats["policy"] == "zero")]
        frame = means(two)
        for method, budget in (("snapkv", "256"), ("full", "full")):
            each = pooled[(pooled["method"] == method) & (pooled["budget"] == budget)]
            found = cell(frame, method, budget)
            assert found["n_tasks"] == 2
            assert found["mean"] == pytest.approx(each["mean"].mean())
            assert found["se"] == pytest.approx(np.sqrt((each["se"] ** 2).sum()) / 2)
            half = 1.959963984540054 * found["se"]
            assert [found["lo"], found["hi"]] == pytest.approx([found["mean"] - half, found["mean"] + half])

    def test_limits_stay_within_the_scores(self):
        parts = []
        for name in ("a", "b"):
            full = np.r_[np.ones(29), 0.0]
            rows = [example_rows("full", None, full), example_rows("snapkv", 64, 1 - full)]
            parts.append(pd.concat(rows).assign(dataset=name, task=name))
        frame = means(tasks(*parts))
        assert cell(frame, "full", "full")["hi"] == 1
        assert cell(frame, "snapkv", "64")["lo"] == 0

    def test_scores_without_any_spread_have_no_limits(self):
        nothing = [
            example_rows("no_context", None, np.zeros(40), bin_idx=b).assign(dataset=f"set-{t}", task=t)
            for t in ("a", "b")
            for b in (0, 1)
        ]
        found = cell(means(tasks(task("a"), task("b", seed=2), *nothing)), "no_context", "full")
        assert (found["status"], found["mean"], found["se"]) == ("degenerate", 0, 0)
        assert isnan(found["lo"])
        assert isnan(found["R_lo"])


class TestRetention:
    def test_it_is_the_ratio_of_macro_means_not_the_mean_of_ratios(self, two):
        frame = means(two)
        found, full = cell(frame), cell(frame, "full", "full")
        assert found["R"] == pytest.approx(found["mean"] / full["mean"])
        assert found["R_lo"] < found["R"] < found["R_hi"]

    def test_the_full_cache_is_the_reference_of_itself(self, two):
        full = cell(means(two), "full", "full")
        assert full["R"] == 1
        assert isnan(full["R_lo"])
        assert isnan(full["R_hi"])

    def test_it_is_paired_by_example(self):
        table = tasks(task("a"), task("b", seed=2))
        # The best half of task b's references has no answer under the budget.
        full = table[(table["task"] == "b") & (table["method"] == "full")]
        gone = full.loc[full["score"] > full["score"].median(), "example_id"]
        chosen = (table["task"] == "b") & (table["budget"] == "512") & table["example_id"].isin(gone)
        table.loc[chosen, "score"] = np.nan
        assert cell(means(table), budget="512")["R"] == pytest.approx(1)

    def test_equal_tasks_resampled_by_themselves_have_the_width_of_their_mean(self):
        """Two tasks with the same scores are two independent samples: half the variance of one."""
        alone = task("a", n=80)
        ratios = retention(alone, clusters_of(alone), CFG | {"bootstrap_replicates": 2000})
        row = ratios[(ratios["bin_idx"] == POOLED) & (ratios["budget"] == "256")].iloc[0]
        twice = cell(means(tasks(alone, task("b", n=80)), bootstrap_replicates=2000))
        assert twice["R"] == pytest.approx(row["R"])
        narrower = (twice["R_hi"] - twice["R_lo"]) / (row["boot_hi"] - row["boot_lo"])
        assert narrower == pytest.approx(np.sqrt(0.5), abs=0.07)


class TestMissingTasks:
    def test_a_cell_that_a_task_lacks_has_no_numbers(self, two):
        table = two[(two["task"] != "b") | (two["budget"] != "256")]
        found = macro(table, clusters_of(two), CFG)
        missing = cell(found)
        assert (missing["status"], missing["tasks_missing"], missing["n_tasks"]) == ("tasks_missing", "b", 1)
        assert missing[["mean", "se", "lo", "hi", "R", "R_lo", "R_hi"]].isna().all()
        assert cell(found, budget="128")["status"] == "ok"

    def test_a_cell_without_a_score_is_missing(self, two):
        table = two.copy()
        table.loc[(table["task"] == "a") & (table["budget"] == "256"), "score"] = np.nan
        assert cell(means(table))["tasks_missing"] == "a"

    @pytest.mark.parametrize("reason", ["infeasible", "not_applicable"])
    def test_a_cell_that_was_not_asked_is_missing(self, two, reason):
        table = two.assign(status="ok")
        chosen = table.index[(table["task"] == "a") & (table["budget"] == "256")]
        # Of the infeasible ones 6 % are too many: those that fit are no fair sample.
        chosen = chosen[:8] if reason == "infeasible" else chosen
        table.loc[chosen, ["status", "score"]] = [reason, np.nan]
        assert cell(means(table))["tasks_missing"] == "a"

    def test_one_task_is_no_mean_over_tasks(self, tmp_path):
        frame = means(task("a"))
        assert len(frame) == 0
        write_table(frame, MACRO, list(KEYS), CFG, tmp_path / "macro.parquet")
        assert list(read_parquet(tmp_path / "macro.parquet")) == list(MACRO)


class TestWhatIsSaidOfTheTasks:
    def test_a_task_with_one_cluster_leaves_the_mean_without_limits(self, two):
        single = [example_rows("full", None, [0.5]), example_rows("snapkv", 256, [0.4])]
        table = tasks(two, *(part.assign(dataset="set-c", task="c") for part in single))
        found = cell(means(table))
        assert found["status"] == "too_few"
        assert not isnan(found["mean"])
        assert found[["se", "lo", "hi", "R_lo", "R_hi"]].isna().all()
        assert found["tasks_not_judged"] == "c"

    def test_prompts_metrics_and_units_are_named(self, two):
        found = cell(means(two))
        assert found[["protocol", "metric", "length_unit"]].tolist() == ["p", "metric-a+metric-b", "tokens"]

    def test_inactive_and_unreliable_cells_show(self, two):
        table = two.copy()
        table.loc[table["task"] == "a", "token_len"] = 200
        chosen = table.index[(table["task"] == "b") & (table["budget"] == "64")][:3]
        table.loc[chosen, "failure"] = "TIMEOUT"
        frame = means(table)
        assert cell(frame)["active_frac"] == 0.5
        assert isnan(cell(frame, "full", "full")["active_frac"])
        assert [cell(frame, budget=b)["unreliable"] for b in ("64", "128")] == [True, False]

    def test_policies_differ_only_where_a_request_failed(self, two):
        table = two.copy()
        chosen = table.index[(table["task"] == "b") & (table["budget"] == "64")][:3]
        table.loc[chosen, "failure"] = "TIMEOUT"
        frame = means(table)
        zero, exclude = (cell(frame, budget="64", policy=p) for p in CFG["policies"])
        assert zero["mean"] < exclude["mean"]
        same = [cell(frame, policy=p).drop("policy").tolist() for p in CFG["policies"]]
        assert same[0] == same[1]


class TestInvariance:
    def test_row_order_and_other_cells_change_nothing(self, two):
        other = [
            rows.assign(
                dataset=f"set-{name}", task=name, metric=f"metric-{name}", protocol="p", length_unit="tokens"
            )
            for name, n in (("a", 60), ("b", 20))
            for rows in [curve_table("aaa", n=n, seed=7).query("method != 'full'")]
        ]
        more = tasks(*other, two)
        shuffled = macro(more.sample(frac=1, random_state=2), clusters_of(more), CFG)
        alone, among = (bits(frame) for frame in (means(two), shuffled))
        assert {key: among[key] for key in alone} == alone

    def test_each_task_is_resampled_from_its_own_stream(self, two):
        renamed = two.assign(dataset=two["dataset"].replace("set-b", "set-x"))
        first, second = cell(means(two)), cell(means(renamed))
        assert first["R"] == second["R"]
        assert first["R_lo"] != second["R_lo"]
