"""`kv-transition analyze --scores`: what it accepts, what it refuses and how it says so, and what it writes."""

import json
import os
import subprocess
import sys
from math import nan

import numpy as np
import pandas as pd
import pytest
from example_tables import curve_table, example_rows
from golden_tables import CASES

from kv_transition.cli import main
from kv_transition.commands import analyze as command
from kv_transition.files import read_parquet

TABLES = ["bin_stats", "effect_models", "lossless", "macro", "paired_tests", "retention", "transition"]
FILES = ["analysis.json", *(f"{name}.parquet" for name in TABLES)]
COLUMNS = ["example_id", "cluster_id", "bin_idx", "token_len", "method", "budget", "score", "failure"]


def scores(**changes):
    """A small table as a user has it: budgets as numbers, empty for the reference."""
    table = curve_table(**({"n": 12, "budgets": (64, 256), "kept": (0.4, 0.9)} | changes))
    table["budget"] = table["budget_value"].astype("Int64")
    return table[COLUMNS]


@pytest.fixture
def run(tmp_path, capsys):
    """run(table, *options) -> (exit code, stdout, stderr, folder of the results)."""

    def of(table, *options, name="demo.parquet"):
        path = tmp_path / name
        if isinstance(table, bytes):
            path.write_bytes(table)
        elif table is not None and path.suffix == ".csv":
            table.to_csv(path, index=False)
        elif table is not None:
            table.to_parquet(path, index=False)
        out = tmp_path / "out"
        few = ["--replicates", "100"]
        code = main(["analyze", "--scores", str(path), "--out", str(out), *few, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err, out

    return of


def document(folder):
    return json.loads((folder / "analysis.json").read_text(), parse_constant=pytest.fail)


# The worked tables


@pytest.fixture(scope="module", params=CASES)
def worked(request, shared, tmp_path_factory):
    """(expected, the command's document) of one table under one policy."""
    name, policy = request.param.split(".")
    out = tmp_path_factory.mktemp("analysis")
    table = shared / "stats_golden" / f"{name}.parquet"
    words = ["analyze", "--scores", str(table), "--out", str(out), "--policy", policy]
    done = subprocess.run(
        [sys.executable, "-m", "kv_transition", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Warning" in done.stderr, "Traceback" in done.stderr) == (0, False, False), (
        done.stderr
    )
    assert sorted(file.name for file in out.iterdir()) == FILES
    return json.loads(table.with_suffix(f".{policy}.expected.json").read_text()), document(out)


KEYS = ("method", "bin_idx", "budget", "tau", "lower", "upper")


def pairs(worked, section):
    """The expected records of a section, each with the one of the document that has its keys."""
    expected, found = (
        {tuple(record.get(key) for key in KEYS): record for record in side[section]} for side in worked
    )
    assert set(expected) <= set(found)
    return [(record, found[key]) for key, record in expected.items()]


def assert_equal(expected, found, names, tolerance=1e-8):
    for name in names:
        if expected.get(name) is None or isinstance(expected[name], str | dict | bool):
            assert found[name] == expected.get(name), name
        else:
            assert found[name] == pytest.approx(expected[name], abs=tolerance), name


def test_the_top_of_the_document(worked):
    expected, found = worked
    assert [found[key] for key in ("dataset", "failure_policy")] == [
        expected[key] for key in ("dataset", "failure_policy")
    ]
    same = set(expected["settings"]) - {"collapse_B"}
    assert {key: found["settings"][key] for key in same} == {key: expected["settings"][key] for key in same}
    assert set(expected) - {"truth", "tol_v2"} <= set(found)


def test_cells(worked):
    for expected, found in pairs(worked, "cells"):
        assert_equal(expected, found, ("n_rows", "n_failed", "n", "n_clusters", "mean", "se", "lo", "hi"))
        if "active_frac" in expected:
            assert_equal(expected, found, ["active_frac"])
        assert_equal(expected, found, ("boot_exact_lo", "boot_exact_hi"), 1e-9)
        for side in ("lo", "hi"):
            assert found[f"boot_{side}"] == pytest.approx(
                expected[f"boot_{side}"], abs=expected[f"boot_tol_{side}"]
            )


def test_references(worked):
    for expected, found in pairs(worked, "reference"):
        assert_equal(expected, found, ("status", "mean", "n_clusters"))


def test_retention(worked):
    for expected, found in pairs(worked, "retention"):
        own = [name for name in expected if not name.startswith("boot")]
        assert_equal(expected, found, own)
        assert_equal(expected, found, ("boot_exact_lo", "boot_exact_hi", "boot_zero_den_frac"), 1e-9)
        for side in ("lo", "hi"):
            assert found[f"boot_{side}"] == pytest.approx(
                expected[f"boot_{side}"], abs=expected[f"boot_tol_{side}"]
            )


def test_transition(worked):
    for expected, found in pairs(worked, "transition"):
        names = ["status", "T_point", "T_lower", "T_upper", "log2_T_interp", "interp_status"]
        assert_equal(expected, found, [*names, "p_upper", "p_lower", "isotonic"])
        assert_equal(expected, found, ("interp_boot_lo", "interp_boot_hi"), expected["interp_boot_tol"])


def test_logistic(worked):
    for expected, found in pairs(worked, "logistic"):
        assert_equal(expected, found, ("status", "drop_p", "flat_rss"))
        assert found["rss"] <= expected["rss"] + 0.02
        if not (expected["m_at_bound"] or expected["width_at_bound"]):
            assert_equal(expected, found, ["m"], expected["m_tol"])
            assert_equal(expected, found, ["width"], 0.25 * expected["width"])
        assert_equal(expected, found, ["gof_p"], expected["gof_tol"])
        assert_equal(expected, found, ("m_boot_lo", "m_boot_hi"), expected["m_boot_tol"])


def test_adjacent_and_mcnemar(worked):
    for expected, found in pairs(worked, "adjacent"):
        assert_equal(expected, found, ("n", "diff", "se", "p", "p_signflip_exact", "p_holm"))
    assert worked[0]["mcnemar"] == worked[1]["mcnemar"] == []


def test_lossless(worked):
    for expected, found in pairs(worked, "lossless"):
        assert_equal(expected, found, ("status", "delta", "alpha", "smallest_lossless"))
        if found["smallest_claimed"] is not None:
            assert found["smallest_claimed"] >= found["smallest_lossless"], (
                "a claim asks for more than the test"
            )


def test_collapse(worked):
    if "collapse" not in worked[0]:
        return
    for record, own in pairs(worked, "collapse"):
        assert_equal(record, own, ["z_center"])
        assert_equal(record, own, ["alpha1"], record["tol"]["alpha1"])
        assert_equal(record, own, ["midpoint_at_center"], record["tol"]["midpoint"])
        assert_equal(record, own, ("alpha1_boot_lo", "alpha1_boot_hi"), record["tol"]["boot"])
        assert_equal(record, own, ("rss", "rss_alpha1_0", "rss_alpha1_1", "floor_frac"), 0.02)
        assert_equal(record, own, ["width"], 0.1)


def test_gee(worked):
    expected, found = (side["gee"] for side in worked)
    assert_equal(expected, found, ("formula", "n_obs", "n_clusters", "x_center", "z_center"))
    for name in ("params", "se_bias_reduced"):
        assert set(found[name]) == set(expected[name])
        assert_equal(expected[name], found[name], expected[name], expected["tol"])
    ratio = expected["alpha1"]
    assert_equal(ratio, found["alpha1"], ("method", "formula"))
    assert_equal(ratio, found["alpha1"], ("estimate", "se_delta", "lo", "hi"), 1e-3)


# What a table may look like


def test_csv_and_parquet_give_the_same_files(run, tmp_path):
    table = scores()
    table.loc[5, ["score", "failure"]] = [nan, "TIMEOUT"]
    assert run(table)[0] == 0
    first = {file: (tmp_path / "out" / file).read_bytes() for file in FILES}
    assert run(table, name="demo.csv")[0] == 0
    assert first == {file: (tmp_path / "out" / file).read_bytes() for file in FILES}


@pytest.mark.parametrize(
    ("first", "second"), [(lambda b: str(b), lambda b: float(b)), (lambda b: f" {b}", lambda b: b)]
)
def test_a_budget_is_a_number_or_its_text(run, first, second):
    found = []
    for form in (first, second):
        table = scores()
        table["budget"] = [None if pd.isna(b) else form(int(b)) for b in table["budget"]]
        code, _, _, out = run(table)
        found.append((code, document(out)))
    assert found[0] == found[1]
    assert {cell["budget"] for cell in found[0][1]["cells"]} == {None, 64, 256}


@pytest.mark.parametrize("form", [float, lambda share: f"f{share}"])
def test_shares_are_budgets_too(run, form):
    table = curve_table(n=12, budgets=("f0.25", "f0.5"), kept=(0.4, 0.9))[COLUMNS]
    table["budget"] = [None if b == "full" else form(str(b).removeprefix("f")) for b in table["budget"]]
    code, _, _, out = run(table)
    assert code == 0
    assert {cell["budget"] for cell in document(out)["cells"]} == {None, 0.25, 0.5}
    assert "f0.5" in set(read_parquet(out / "bin_stats.parquet")["budget"])


def test_the_reference_may_be_called_full_in_the_budget_column(run):
    table = scores()
    table["budget"] = ["full" if pd.isna(b) else str(b) for b in table["budget"]]
    assert run(table)[0] == 0


def test_the_dataset_is_the_files_name_unless_a_column_says_it(run):
    assert document(run(scores(), name="mine.csv")[3])["dataset"] == "mine"
    _, out, _, folder = run(scores().assign(dataset="qasper"), name="mine.csv")
    assert document(folder)["dataset"] == "qasper"
    assert out.startswith("qasper: 72 rows, 24 examples, 2 bins; failure policy zero\n")


def test_several_datasets_have_a_document_each_and_a_macro_mean(run):
    two = pd.concat([scores().assign(dataset="a"), scores(seed=1).assign(dataset="b")])
    whole = document(run(two)[3])
    alone = document(run(scores(seed=1).assign(dataset="b"))[3])
    assert list(whole["datasets"]) == ["a", "b"]
    assert whole["datasets"]["b"] == alone
    assert {row["n_tasks"] for row in whole["macro"]} == {2}


def test_a_row_without_score_and_failure_is_absent_and_counted(run, tmp_path):
    table = scores()
    absent = table.drop(index=[30, 31])
    table.loc[[30, 31], "score"] = nan
    _, _, err, out = run(table)
    assert (
        err
        == f"warning: {tmp_path}/demo.parquet: 2 rows have neither score nor failure; they count as absent\n"
    )
    found = document(out)
    assert {cell["n_missing"] for cell in found["cells"]} == {0, 2}
    assert found == document(run(absent)[3])


def test_a_failed_reference_is_pointed_out(run):
    table = scores()
    table.loc[0, ["score", "failure"]] = [nan, "ENGINE_ERROR"]
    assert "1 full or no_context rows failed; counted as 0 they raise the retention" in run(table)[2]
    assert run(table, "--policy", "exclude")[2] == ""


def test_an_empty_output_scores_0(run):
    table = scores()
    table.loc[:11, "failure"] = "EMPTY_OUTPUT"
    cells = document(run(table)[3])["cells"]
    assert [(c["mean"], c["n_failed"]) for c in cells if c["method"] == "full" and c["bin_idx"] == 0] == [
        (0.0, {"EMPTY_OUTPUT": 12})
    ]


def test_recorded_activity_and_measures_are_used(run):
    table = scores().assign(active=False, f1=0.25, metric="f1", protocol="mine", length_unit="tokens")
    _, _, _, out = run(table)
    frame = read_parquet(out / "bin_stats.parquet")
    assert set(frame["active_frac"].dropna()) == {0.0}
    assert set(frame["f1_mean"]) == {0.25}
    assert set(frame["protocol"]) == {"mine"}
    assert {row["status"] for row in document(out)["transition"]} == {"not_tested"}


# What is written


def test_options_reach_the_results(run):
    options = ["--seed", "7", "--tau", "0.8", "--delta", "0.1", "--conf", "0.9", "--policy", "exclude"]
    code, out, _, folder = run(scores(), *options)
    found = document(folder)
    settings = {key: found["settings"][key] for key in ("root_seed", "taus", "delta", "conf", "B")}
    assert (code, settings) == (0, {"root_seed": 7, "taus": [0.8], "delta": 0.1, "conf": 0.9, "B": 100})
    assert found["failure_policy"] == "exclude"
    assert {row["tau"] for row in found["transition"]} == {0.8}
    assert {row["delta"] for row in found["lossless"]} == {0.1}
    assert "(90 % limits" in out


def test_the_tables_do_not_depend_on_the_chosen_policy(run):
    table = scores()
    table.loc[40:44, ["score", "failure"]] = [nan, "TIMEOUT"]
    found = []
    for policy in ("zero", "exclude"):
        _, _, _, out = run(table, "--policy", policy)
        found.append([(out / f"{name}.parquet").read_bytes() for name in TABLES])
        assert set(read_parquet(out / "retention.parquet")["policy"]) == {"zero", "exclude"}
    assert found[0] == found[1]


def test_labels_that_hang_on_the_policy_are_listed(run):
    kept = np.full(40, 0.6)
    table = pd.concat(
        [
            example_rows("full", None, kept),
            example_rows("snapkv", 64, [nan] * 12 + [0.6] * 28, failure=["TIMEOUT"] * 12 + [None] * 28),
            example_rows("snapkv", 128, kept),
        ]
    )[COLUMNS]
    found = document(run(table)[3])["sensitivity"]
    assert {
        "method": "snapkv",
        "bin_idx": 0,
        "tau": 0.9,
        "label": "T_point",
        "zero": "128",
        "exclude": "<=64",
    } in found
    assert document(run(scores())[3])["sensitivity"] == []


def test_0_1_scores_have_exact_tests(run):
    right = np.arange(24) % 4 > 0
    table = pd.concat(
        [
            example_rows("full", None, np.ones(24)),
            example_rows("snapkv", 64, right.astype(float)),
            example_rows("snapkv", 128, np.ones(24)),
        ]
    )[COLUMNS]
    lower, upper = (record for record in document(run(table)[3])["mcnemar"] if record["bin_idx"] == 0)
    assert (lower["lower"], lower["upper"], upper["lower"], upper["upper"]) == ("64", "128", "128", "full")
    assert (lower["n_only_lower"], lower["n_only_upper"], lower["n"]) == (0, 6, 24)
    assert lower["p"] == pytest.approx(2 * 0.5**6)
    assert upper["p"] == 1


def test_other_comparisons_are_in_the_document_too(run):
    two = pd.concat([scores(), scores(method="random", kept=(0.1, 0.5)).query("method == 'random'")])
    found = document(run(two)[3])
    between = [record for record in found["between_methods"] if record["bin_idx"] == -1]
    assert [(r["method_a"], r["method_b"], r["budget"]) for r in between] == [
        ("random", "snapkv", 64),
        ("random", "snapkv", 256),
    ]
    assert all("p_holm" in record for record in between)
    assert {"p_bh"} <= set(next(r for r in found["against_full"] if r["bin_idx"] == 0))
    assert {(r["method"], r["budget"]) for r in found["against_full"]} == {
        (m, b) for m in ("random", "snapkv") for b in (64, 256)
    }
    assert [record["method"] for record in found["collapse"]] == ["random", "snapkv"]
    assert "C(method, Treatment(reference='random'))" in found["gee"]["formula"]


def test_a_lossless_budget_is_no_claim_where_too_many_requests_failed(run):
    table = scores(n=150, kept=(0.4, 1.0), bins=(0,))
    rows = table.index[table["budget"] == 256][:15]
    table.loc[rows, ["score", "failure"]] = [nan, "TIMEOUT"]
    (claim,) = (r for r in document(run(table, "--policy", "exclude")[3])["lossless"] if r["bin_idx"] == 0)
    assert (claim["status"], claim["smallest_lossless"]) == ("ok", 256)
    assert (claim["claim"], claim["smallest_claimed"]) == ("not_demonstrated", None)


def test_the_headline_is_the_pooled_transition_of_every_method(run):
    code, out, _, folder = run(scores(), "--tau", "0.5")
    (row,) = [row for row in document(folder)["transition"] if row["bin_idx"] == -1]
    headline = f"  snapkv, all bins: T at 0.5 is {row['T_point']} (95 % limits {row['T_lower']} to {row['T_upper']})\n"
    assert (code, headline in out) == (0, True)
    assert out.splitlines()[-1].startswith(f"written to {folder}: bin_stats.parquet, ")


def test_a_failure_while_writing_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_json", full)
    code, out, err, folder = run(scores())
    assert (code, out, os.listdir(folder)) == (2, "", [])
    assert (
        err
        == f"error: {folder}: cannot be written (No space left on device); name another folder with --out\n"
    )


def test_a_second_run_replaces_the_first_with_the_same_bytes(run):
    first = run(scores())[3]
    before = {file: (first / file).read_bytes() for file in FILES}
    run(scores())
    assert before == {file: (first / file).read_bytes() for file in FILES}
    assert sorted(os.listdir(first)) == FILES


# What is refused: one line that names file, column, row and remedy


def changed(row, **values):
    table = scores().astype({"budget": object, "failure": object, "score": object, "bin_idx": object})
    for name, value in values.items():
        table.at[row, name] = value
    return table


REFUSED = [
    (changed(3, score=1.5), "row 4 (example 0-003): column score is 1.5; give a number from 0 to 1"),
    (changed(3, score=-0.1), "row 4 (example 0-003): column score is -0.1; give"),
    (changed(3, score="good"), "row 4 (example 0-003): column score is 'good'; give"),
    (changed(3, score="inf"), "row 4 (example 0-003): column score is inf; give"),
    (changed(3, failure="OOM"), "row 4 (example 0-003): column failure is 'OOM'; give one of TIMEOUT, "),
    (changed(30, failure="TIMEOUT"), "row 31 (example 0-006): TIMEOUT with the score"),
    (changed(30, failure="TRUNCATED", score=None), "row 31 (example 0-006): column score is empty with failure TRUNCATED"),
    (changed(0, budget=64), "row 1 (example 0-000): method full has the budget"),
    (changed(30, budget=None), "row 31 (example 0-006): column budget is empty for method snapkv; give"),
    (changed(30, budget="lots"), "row 31 (example 0-006): column budget is 'lots'; give whole tokens"),
    (changed(30, budget=1), "row 31 (example 0-006): column budget is"),
    (changed(30, budget="f0.5"), "row 31 (example 0-006): budget f0.5: tokens and shares are mixed"),
    (changed(30, bin_idx=1), "row 31 (example 0-006): column bin_idx is 1, but 0 in row 7 of the same example; give"),
    (scores().assign(bin_idx=2**32 - 1), "row 1 (example 0-000): column bin_idx is 4.29497e+09; give the number"),
    (changed(30, bin_idx="x"), "row 31 (example 0-006): column bin_idx is 'x'; give the number of the length bin"),
    (changed(30, token_len=9), "row 31 (example 0-006): column token_len is 9, but 4000 in row 7"),
    (changed(30, token_len=0), "row 31 (example 0-006): column token_len is 0; give"),
    (changed(30, cluster_id="c"), "row 31 (example 0-006): column cluster_id is 'c', but '0-006' in row 7"),
    (changed(30, cluster_id=None), "row 31 (example 0-006): column cluster_id is empty; give"),
    (changed(30, method=None), "row 31 (example 0-006): column method is empty; give"),
    (changed(30, example_id="0-007"), "already in row"),
    (scores().assign(metric=["f1"] * 71 + ["em"]), "row 72 (example 1-011): column metric is 'em', but 'f1' in row 1 of the same dataset"),
    (scores().query("method == 'full'"), "dataset demo has no row with a budget; add compressed runs"),
    (scores()[:0], "the table has no rows; give one row for each request"),
    (b"", "the file is empty"),
    (",".join(COLUMNS).encode(), "the table has no rows"),
    (",".join(COLUMNS).encode() + b"\n1,2,3\n", "row 1 has 3 values, the header 8; quote values that hold a comma"),
    (b"example_id,example_id\n", "column example_id stands twice; keep one"),
    ("example_id,méthode\n".encode("latin-1"), "not UTF-8 (byte 12"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_a_faulty_row_is_named_in_one_line(run, tmp_path, table, problem):
    code, out, err, folder = run(table, name="demo.csv")
    assert (code, out, folder.exists()) == (2, "", False)
    assert err.startswith(f"error: {tmp_path}/demo.csv: ")
    assert (problem in err, err.count("\n")) == (True, 1), err


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_column_is_named(run, name, suffix):
    code, _, err, _ = run(scores().drop(columns=name), name=f"demo.{suffix}")
    assert (code, f"demo.{suffix}: column {name} is missing; a table of scores has example_id, " in err) == (
        2,
        True,
    )


def test_files_that_are_no_table_are_refused(run, tmp_path):
    assert "demo.parquet: not a Parquet table (" in run(b"PAR1 but not really")[2]
    assert "demo.parquet: not a Parquet table (" in run((tmp_path / "demo.parquet").read_bytes() * 3)[2]
    assert "demo.xlsx: neither .parquet nor .csv" in run(b"x", name="demo.xlsx")[2]
    assert "nothing.csv: no such file" in run(None, name="nothing.csv")[2]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--tau", "1.2"], "--tau: each level must be above 0 and at most 1"),
        (["--tau", "0.9", "0.9"], "--tau: a level is named twice"),
        (["--delta", "0"], "--delta: "),
        (["--conf", "95"], "--conf: "),
        (["--seed", "-1"], "--seed: "),
        (["--replicates", "5"], "--replicates: "),
    ],
)
def test_an_option_out_of_range_is_named(run, options, problem):
    code, _, err, folder = run(scores(), *options)
    assert (code, err.startswith(f"error: {problem}"), err.count("\n")) == (2, True, 1), err
    assert not folder.exists()


def test_the_folder_for_the_results_must_not_be_a_file(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file; name a folder" in run(scores())[2]
    assert (tmp_path / "out").read_text() == "mine"


# Which of its two forms the command takes


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--scores", "t.csv"], "name the folder for the results with --out"),
        (["--out", "x"], "name the table of scores with --scores"),
        (["--tau", "0.8"], "name the table of scores with --scores"),
        (["--scores", "t.csv", "--out", "x", "-c", "e.yaml"], "without -c and --override"),
        (["--scores", "t.csv", "--out", "x", "--override", "a.b=1"], "without -c and --override"),
        (["--scores", "t.csv", "--out", "x", "--cores", "2"], "unrecognized arguments: --cores 2"),
        (["--scores", "t.csv", "--out", "x", "--policy", "drop"], "invalid choice: 'drop'"),
    ],
)
def test_the_forms_do_not_mix(words, problem, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", *words])
    assert (ended.value.code, problem in capsys.readouterr().err) == (2, True)


def test_without_scores_the_stage_is_built(monkeypatch):
    called = []
    monkeypatch.setattr("kv_transition.cli._build", lambda *given: called.append(given) or 0)
    assert main(["analyze", "--cores", "2"]) == 0
    assert called[0][0] == "all_analysis"
    assert called[0][3] == ["--cores", "2"]
