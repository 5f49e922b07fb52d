"""Costs: what a cell took and kept is what its responses say, and what nobody says stays unknown."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from example_tables import bits
from hypothesis import given, settings
from hypothesis import strategies as st
from task_files import TASK, failed, response, write_manifest, write_shard

from kv_transition.analysis.costs import COSTS, costs, mean_t, resampled_quantiles, write_costs
from kv_transition.data.manifest import read_manifest
from kv_transition.errors import UserError

CFG = {"conf": 0.95, "seed": 42, "bootstrap_replicates": 400}
POOLED = -1


def timed(example, seconds, method="snapkv", budget=16, **changes):
    """A request that a server answered."""
    more = {"timing_scope": "request", "latency_s": seconds, "ttfb_s": seconds / 4}
    return response(example, method, budget, **(more | changes))


@pytest.fixture
def manifest(tmp_path):
    """Four examples in two bins: e0 and e1, e2 and e3."""
    return read_manifest(write_manifest(tmp_path / "manifest.json"))


def cell(rows, manifest, bin_idx=POOLED, method="snapkv", budget="16", **cfg):
    table = costs(pd.DataFrame(rows), [manifest], CFG | cfg)
    chosen = table[(table["method"] == method) & (table["budget"] == budget) & (table["bin_idx"] == bin_idx)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_a_latency_is_the_quantile_of_the_timed_requests(manifest):
    rows = [timed(f"e{i}", seconds) for i, seconds in enumerate((1.0, 2.0, 3.0, 10.0))]
    found = cell(rows, manifest)
    assert found["latency_median"] == pytest.approx(2.5)
    assert found["latency_p95"] == pytest.approx(3 + 0.85 * 7)
    assert found["ttfb_median"] == pytest.approx(0.625)
    assert found["latency_median_lo"] <= 2.5 <= found["latency_median_hi"]
    assert 1 <= found["latency_median_lo"] < found["latency_median_hi"] <= 10
    assert (found["status"], found["timing_scope"], found["host"]) == ("ok", "request", "node1")
    assert found["engine"] == "ReferenceEngine"
    in_bin = cell(rows, manifest, bin_idx=0)
    assert (in_bin["n"], in_bin["latency_median"]) == (2, 1.5)


def test_limits_are_the_percentiles_of_resampled_clusters(manifest):
    """With two clusters a bin the resamples are few: 1/4, 1/2 and 1/4 of them."""
    rows = [timed("e0", 1.0), timed("e1", 3.0), timed("e2", 8.0), timed("e3", 8.0)]
    found = cell(rows, manifest, bin_idx=0, bootstrap_replicates=2000)
    assert (found["latency_median_lo"], found["latency_median_hi"]) == (1.0, 3.0)
    half = cell(rows, manifest, bin_idx=0, bootstrap_replicates=2000, conf=0.4)
    assert (half["latency_median_lo"], half["latency_median_hi"]) == (2.0, 2.0)


def test_failed_requests_are_counted_and_their_time_is_mixed_into_nothing(manifest):
    rows = [timed("e0", 1.0), timed("e1", 2.0), timed("e2", 3.0), failed(timed("e3", 600.0))]
    found = cell(rows, manifest)
    assert (found["n"], found["n_failed"], found["n_timed"]) == (4, 1, 3)
    assert found["latency_median"] == 2.0
    assert found["latency_p95"] < 3
    assert found["completion_tokens_mean"] == 3
    assert found["attempts_mean"] == pytest.approx((1 + 1 + 1 + 3) / 4)
    assert found["attempts_max"] == 3


def test_copied_answers_cost_nothing_of_their_own_but_keep_what_they_keep(manifest):
    copies = [
        response(
            f"e{i}",
            "snapkv",
            16,
            copied_from="full",
            attempts=9,
            host="elsewhere",
            bytes_kept=8192,
            latency_s=60.0,
        )
        for i in (2, 3)
    ]
    found = cell([timed("e0", 1.0), timed("e1", 2.0), *copies], manifest)
    assert (found["n"], found["n_copied"], found["n_timed"]) == (4, 2, 2)
    assert found["latency_median"] == 1.5
    assert (found["attempts_max"], found["host"], found["timing_scope"]) == (1, "node1", "request")
    assert found["bytes_kept_mean"] == (2 * 4096 + 2 * 8192) / 4


def test_tokens_per_second_are_those_after_the_first_text(manifest):
    rows = [
        timed("e0", 3.0, ttfb_s=1.0, completion_tokens=5),
        timed("e1", 3.0, ttfb_s=1.0, completion_tokens=9),
        timed("e2", 3.0, ttfb_s=1.0, completion_tokens=1),
        timed("e3", 3.0, ttfb_s=None, completion_tokens=5),
    ]
    assert cell(rows, manifest)["decode_tokens_per_s_median"] == pytest.approx((2 + 4) / 2)


def test_kept_bytes_have_a_t_interval_over_clusters(manifest):
    rows = [response(f"e{i}", "snapkv", 16, bytes_kept=size) for i, size in enumerate((10, 20, 30, 40))]
    found = cell(rows, manifest)
    half = 3.182446305 * math.sqrt(500 / 3) / 2  # t(.975, 3), s / sqrt(n)
    assert found["bytes_kept_mean"] == 25
    assert found["bytes_kept_hi"] == pytest.approx(25 + half)
    assert found["bytes_kept_lo"] == pytest.approx(25 - half)


def test_replicates_are_requests_of_one_cluster(manifest):
    rows = [
        timed(f"e{i}", 1.0 + i + r, "random", replicate=r, bytes_kept=10 * (i + 1))
        for i in range(4)
        for r in range(2)
    ]
    found = cell(rows, manifest, method="random")
    assert (found["n"], found["n_examples"], found["n_clusters"]) == (8, 4, 4)
    single = cell([row for row in rows if row["replicate"] == 0], manifest, method="random")
    assert found["bytes_kept_hi"] == pytest.approx(single["bytes_kept_hi"])


def test_examples_of_one_context_are_one_cluster_also_across_bins(manifest):
    """e1 and e2, of different bins, share a context: one cluster for closed formulas, one in each bin for resampling."""
    examples = [
        replace(example, cluster_id="c1" if example.example_id == "e2" else example.cluster_id)
        for example in manifest.examples
    ]
    shared = replace(manifest, examples=examples, clusters={"0": ["c0", "c1"], "1": ["c1", "c3"]})
    rows = [timed(f"e{i}", 1.0 + i, bytes_kept=100 * i) for i in range(4)]
    assert cell(rows, shared)["n_clusters"] == 3
    assert cell(rows, shared)["bytes_kept_hi"] != cell(rows, manifest)["bytes_kept_hi"]
    assert cell(rows, shared)["latency_p95_hi"] == cell(rows, manifest)["latency_p95_hi"]


def test_a_shared_sweep_times_no_request(manifest):
    found = cell([response(f"e{i}", "snapkv", 16) for i in range(4)], manifest)
    assert (found["status"], found["timing_scope"], found["n_timed"]) == ("not_timed", "sweep", 0)
    assert math.isnan(found["latency_median"])
    assert math.isnan(found["decode_tokens_per_s_median"])


def test_what_published_results_do_not_say_is_null(manifest):
    silent = dict.fromkeys(
        (
            *("prompt_tokens", "completion_tokens", "kept_mean", "bytes_kept", "peak_tokens", "attempts"),
            *("timing_scope", "host"),
        )
    )
    found = cell([response(f"e{i}", "snapkv", 16, **silent) for i in range(4)], manifest)
    numbers = [name for name, kind in COSTS.items() if kind == "float64" and name != "budget_value"]
    assert all(math.isnan(found[name]) for name in numbers)
    assert found["timing_scope"] is None
    assert found["host"] is None


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([failed(timed("e0", 1.0)), failed(timed("e1", 1.0))], "all_failed"),
        ([timed("e0", 1.0, copied_from="full", latency_s=None)], "all_copied"),
        ([timed("e0", 1.0)], "too_few"),
        ([timed("e2", 1.0)], "no_requests"),
        ([response(f"e{i}", "snapkv", 16, status="infeasible") for i in (0, 1)], "infeasible"),
        ([response(f"e{i}", "snapkv", 16, status="absent") for i in (0, 1)], "absent"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cell_without_limits_says_why(manifest, rows, status):
    found = cell(rows, manifest, bin_idx=0)
    assert found["status"] == status
    assert math.isnan(found["latency_median_lo"])
    in_bin = [row for row in rows if row["example_id"] in ("e0", "e1")]
    assert found["n"] + found["n_not_asked"] == len(in_bin)


def test_a_cells_numbers_do_not_depend_on_other_cells_or_the_order_of_rows(manifest):
    # Sums of these depend on their order.
    kept = (1e16, 1.0, 1.0, 1.0)
    own = [timed(f"e{i}", 0.1 + 0.7 * i, bytes_kept=100 + i, kept_mean=kept[i]) for i in range(4)]
    others = [timed(f"e{i}", 5.0 + i, "tova", 8) for i in range(4)] + [response(f"e{i}") for i in range(4)]
    alone = bits(costs(pd.DataFrame(own), [manifest], CFG))
    mixed = bits(costs(pd.DataFrame([*others, *reversed(own)]), [manifest], CFG))
    assert alone.items() <= mixed.items()
    in_first_bin = bits(costs(pd.DataFrame(own[:2]), [manifest], CFG))
    keys = [key for key in alone if key[2] == 0]
    assert keys
    assert all(in_first_bin[key] == alone[key] for key in keys)


def test_rows_that_belong_nowhere_are_the_users_to_mend(manifest):
    with pytest.raises(UserError, match=r"no manifest of task other"):
        costs(pd.DataFrame([timed("e0", 1.0, task="other")]), [manifest], CFG)
    with pytest.raises(UserError, match=r"example e9 is not in the manifest"):
        costs(pd.DataFrame([timed("e9", 1.0)]), [manifest], CFG)
    with pytest.raises(UserError, match=r"example e0 stands twice under snapkv 16"):
        costs(pd.DataFrame([timed("e0", 1.0), timed("e0", 1.0)]), [manifest], CFG)
    with pytest.raises(UserError, match=r"no responses"):
        write_costs([], [], CFG, "unused")


def test_files_in_and_the_table_out(tmp_path):
    manifest = write_manifest(tmp_path / "manifest.json")
    shards = [
        write_shard(tmp_path / "snapkv/16", [timed("e0", 1.0), timed("e2", 2.0)], "000"),
        write_shard(tmp_path / "snapkv/16", [timed("e1", 3.0), timed("e3", 4.0)], "001"),
        write_shard(tmp_path / "full/full", [response(f"e{i}") for i in range(4)], "000"),
        write_shard(tmp_path / "full/full", [], "001"),
    ]
    for name, paths in (("a", shards), ("b", shards[::-1])):
        write_costs(paths, [manifest], CFG, tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == list(COSTS)
    rows = table.to_pylist()
    assert [(row["method"], row["bin_idx"]) for row in rows] == [
        (method, bin_idx) for method in ("full", "snapkv") for bin_idx in (POOLED, 0, 1)
    ]
    assert rows[0]["latency_median"] is None
    assert rows[3]["latency_median"] == 2.5
    assert {row["task"] for row in rows} == {TASK}
    assert {row["length_unit"] for row in rows} == {"tokens"}


@given(st.data())
@settings(max_examples=60)
def test_resampled_quantiles_are_those_of_the_drawn_values(data):
    clusters = data.draw(st.integers(1, 5))
    n = data.draw(st.integers(1, 12))
    values = np.array(data.draw(st.lists(st.floats(0, 100), min_size=n, max_size=n)))
    places = np.array(data.draw(st.lists(st.integers(0, clusters - 1), min_size=n, max_size=n)))
    row = st.lists(st.integers(0, 3), min_size=clusters, max_size=clusters)
    counts = np.array(data.draw(st.lists(row, min_size=1, max_size=6)), dtype=np.int32)
    found = resampled_quantiles(values, places, counts, [0.5, 0.95])
    for replicate, drawn in enumerate(counts):
        repeated = np.repeat(values, drawn[places])
        if len(repeated):
            expected = np.quantile(repeated, [0.5, 0.95])
            assert found[:, replicate] == pytest.approx(expected, abs=1e-9)
        else:
            assert np.isnan(found[:, replicate]).all()


def test_more_replicates_than_a_block_are_the_same_replicates():
    values, places = np.array([1.0, 2.0, 4.0]), np.array([0, 1, 2])
    counts = np.tile(np.array([[1, 1, 1], [0, 0, 3], [3, 0, 0]], dtype=np.int32), (500, 1))
    found = resampled_quantiles(values, places, counts, [0.5])[0]
    assert found.tolist() == [2.0, 4.0, 1.0] * 500


def test_sizes_without_spread_have_limits_without_width():
    assert mean_t(np.full(5, 64.0), np.arange(5), 0.95) == (64.0, 64.0, 64.0)
    assert mean_t(np.array([64.0, np.nan]), np.arange(2), 0.95)[0] == 64.0
    assert np.isnan(mean_t(np.array([64.0, np.nan]), np.arange(2), 0.95)[1])
    assert mean_t(np.array([1.0, 99.0]), np.arange(2), 0.95)[1] == 0.0
