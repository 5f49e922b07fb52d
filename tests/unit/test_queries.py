"""The example table: replicates averaged, everything laid out against the manifest."""

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG

from kv_transition.analysis.aggregate import write_bin_stats, write_retention
from kv_transition.analysis.queries import cluster_lists, example_table, read_examples
from kv_transition.analysis.transition import write_transition
from kv_transition.data.manifest import build_manifest, write_manifest
from kv_transition.data.normalize import CountedExample
from kv_transition.errors import UserError
from kv_transition.files import float_round, read_parquet, write_parquet

N = 12


def counted(i):
    return CountedExample(f"e{i:02d}", "q", f"context {i // 2}", ["a"], {}, f"c{i // 2}", token_len=100 + i)


@pytest.fixture
def manifest():
    return build_manifest(
        [counted(i) for i in range(N)],
        experiment="x",
        dataset="demo",
        task="qa",
        tokenizer="t",
        protocol="own-1",
        n_bins=2,
        n_per_bin=N,
        selection_seed=1,
    )


def score_rows(method, budget, replicates=1, score=0.5):
    return pd.DataFrame(
        {
            "task": "qa",
            "example_id": [f"e{i:02d}" for i in range(N) for _ in range(replicates)],
            "method": method,
            "budget": "full" if budget is None else str(budget),
            "budget_value": np.nan if budget is None else float(budget),
            "replicate": np.tile(np.arange(replicates), N),
            "score": score,
            "em": 0.0,
            "f1": 0.25,
            "failure": pd.Series([None] * N * replicates, dtype=object),
            "press_len": 90.0,
            "active": None if budget is None else budget < 90,
            "verified": "measured",
            "kept_min": 60.0,
            "kept_mean": 64.0,
            "kept_max": 70.0,
        }
    )


def of(table, method, example="e00"):
    found = table[(table["method"] == method) & (table["example_id"] == example)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture
def save(tmp_path):
    def saved(*parts, name="qa"):
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, pd.concat(parts, ignore_index=True))
        return path

    return saved


def test_bins_lengths_and_clusters_come_from_the_manifest(save, manifest):
    table = example_table([save(score_rows("full", None))], [manifest])
    row = of(table, "full", "e11")
    assert (row["dataset"], row["task"], row["bin_idx"], row["token_len"]) == ("demo__qa", "qa", 1, 111)
    assert row["cluster_id"] == "c5"
    assert cluster_lists([manifest]) == {
        ("demo__qa", 0): ["c0", "c1", "c2"],
        ("demo__qa", 1): ["c3", "c4", "c5"],
    }


def test_replicates_are_averaged_before_anything_else(save, manifest):
    rows = score_rows("random", 64, replicates=3)
    rows.loc[:2, "score"] = [0.0, 0.3, 0.9]
    row = of(example_table([save(rows)], [manifest]), "random")
    assert row["score"] == pytest.approx(0.4)
    assert (row["failure"], row["infrastructure_failed"]) == (None, 0)


def test_a_failed_replicate_is_left_out_of_the_average_and_counted(save, manifest):
    rows = score_rows("random", 64, replicates=3)
    rows.loc[:2, "score"] = [0.0, 0.3, 0.9]
    rows.loc[0, "failure"] = "TIMEOUT"
    rows.loc[1, "failure"] = "TRUNCATED"
    row = of(example_table([save(rows)], [manifest]), "random")
    assert row["score"] == pytest.approx(0.6)
    assert row["failure"] == "TIMEOUT"
    assert row["infrastructure_failed"] == pytest.approx(1 / 3)


def test_an_empty_answer_counts_zero_whatever_its_score(save, manifest):
    rows = score_rows("snapkv", 64)
    rows.loc[0, ["score", "failure"]] = [1.0, "EMPTY_OUTPUT"]
    row = of(example_table([save(rows)], [manifest]), "snapkv")
    assert (row["score"], row["f1"]) == (0, 0)


def test_an_unanswered_request_has_no_score_whatever_the_file_says(save, manifest):
    rows = score_rows("snapkv", 64)
    rows.loc[0, ["score", "failure"]] = [0.0, "ENGINE_ERROR"]
    assert np.isnan(of(example_table([save(rows)], [manifest]), "snapkv")["score"])


def test_an_absent_row_stands_without_a_score(save, manifest):
    table = example_table([save(score_rows("full", None), score_rows("snapkv", 64)[1:])], [manifest])
    assert len(table) == 2 * N
    row = of(table, "snapkv")
    assert np.isnan(row["score"])
    assert row["failure"] is None
    assert row["infrastructure_failed"] == 0


@pytest.mark.parametrize("method", ["full", "no_context"])
def test_a_failed_reference_marks_the_example_everywhere(save, manifest, method):
    rows = score_rows(method, None)
    rows.loc[3, ["score", "failure"]] = [np.nan, "TIMEOUT"]
    table = example_table([save(rows, score_rows("snapkv", 64))], [manifest])
    assert set(table.loc[table["reference_failed"], "example_id"]) == {"e03"}
    assert table["reference_failed"].sum() == 2


def test_the_weakest_proof_of_a_budget_stands_for_all_replicates(save, manifest):
    rows = score_rows("random", 64, replicates=2)
    rows.loc[0, "verified"] = "reported"
    table = example_table([save(rows)], [manifest])
    assert [of(table, "random", e)["verified"] for e in ("e00", "e01")] == ["reported", "measured"]


def test_row_order_and_the_number_of_files_do_not_matter(save, manifest):
    parts = [score_rows("full", None), score_rows("random", 64, replicates=3)]
    whole = pd.concat(parts, ignore_index=True)
    one = example_table([save(whole.sample(frac=1, random_state=2))], [manifest])
    two = example_table([save(parts[1], name="b"), save(parts[0], name="a")], [manifest])
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.assign(task="other"), "no manifest of task other"),
        (
            lambda rows: rows.assign(example_id="stranger", replicate=range(N)),
            "stranger is not in the manifest of qa",
        ),
        (lambda rows: rows.drop(columns="score"), "column score is missing"),
        (lambda rows: pd.concat([rows, rows[:1]]), "e00 stands twice under full full"),
    ],
)
def test_faulty_scores_are_named(save, manifest, change, message):
    with pytest.raises(UserError, match=message):
        example_table([save(change(score_rows("full", None)))], [manifest])


def test_no_scores_at_all_is_an_error_in_one_line(manifest):
    with pytest.raises(UserError, match="no scores to analyse"):
        example_table([], [manifest])


@pytest.mark.parametrize("write", [write_bin_stats, write_retention, write_transition])
def test_the_same_scores_in_any_order_give_the_same_bytes(save, manifest, tmp_path, write):
    write_manifest(tmp_path / "manifest.json", manifest)
    rows = pd.concat([score_rows("full", None), *(score_rows("snapkv", b, score=b / 300) for b in (64, 128))])
    written = []
    for order in (rows, rows.sample(frac=1, random_state=5)):
        out = tmp_path / "out.parquet"
        write([save(order)], [tmp_path / "manifest.json"], CFG, out)
        written.append(out.read_bytes())
    assert written[0] == written[1]
    table = read_parquet(out)
    assert set(table["bin_idx"]) == {-1, 0, 1}
    assert set(table["policy"]) == {"zero", "exclude"}
    for name in table.select_dtypes("float64"):
        assert np.array_equal(table[name], float_round(table[name].to_numpy()), equal_nan=True)


@pytest.mark.parametrize("write", [write_bin_stats, write_retention, write_transition])
def test_a_run_without_compressed_cells_gives_a_table_with_the_same_columns(save, manifest, tmp_path, write):
    write_manifest(tmp_path / "manifest.json", manifest)
    columns = []
    for parts in ([score_rows("full", None)], [score_rows("full", None), score_rows("snapkv", 64)]):
        write([save(*parts)], [tmp_path / "manifest.json"], CFG, tmp_path / "out.parquet")
        columns.append(list(read_parquet(tmp_path / "out.parquet")))
    assert columns[0] == columns[1]
    table, clusters = read_examples([save(*parts)], [tmp_path / "manifest.json"])
    assert len(table) == 2 * N
    assert len(clusters) == 2
