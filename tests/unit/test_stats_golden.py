"""Two worked tables with independently computed values: every cell, retention and transition has to agree."""

import json
from math import isnan

import numpy as np
import pytest
from golden_tables import CASES, CFG, golden_table, row_of

from kv_transition.analysis.aggregate import bin_stats, retention
from kv_transition.analysis.gates import reference_gate
from kv_transition.analysis.transition import transition


@pytest.fixture(scope="module")
def worked(shared):
    """name -> (bin_stats, retention, transition), computed once for both policies."""
    cache = {}

    def of(name):
        if name not in cache:
            table, clusters = golden_table(shared, name)
            cache[name] = [step(table, clusters, CFG) for step in (bin_stats, retention, transition)]
        return cache[name]

    return of


@pytest.fixture(params=CASES)
def case(request, shared, worked):
    """(expected values, bin_stats, retention, transition) of one table under one policy."""
    name, policy = request.param.split(".")
    expected = json.loads((shared / "stats_golden" / f"{request.param}.expected.json").read_text())
    return expected, *(frame[frame["policy"] == policy] for frame in worked(name))


def test_cells_agree(case):
    expected, stats, _, _ = case
    for cell in expected["cells"]:
        row = row_of(stats, cell)
        assert row["n"] == cell["n"]
        assert row["n_clusters"] == cell["n_clusters"]
        for name in ("mean", "se", "lo", "hi"):
            assert row[name] == pytest.approx(cell[name], abs=1e-8)
        assert row["boot_lo"] == pytest.approx(cell["boot_exact_lo"], abs=1e-9)
        assert row["boot_hi"] == pytest.approx(cell["boot_exact_hi"], abs=1e-9)
        if "active_frac" in cell:
            assert row["active_frac"] == pytest.approx(cell["active_frac"], abs=1e-8)
        counts = {label: row[f"n_{label.lower()}"] for label in cell["n_failed"]}
        assert counts == cell["n_failed"]


def test_missing_rows_are_counted_not_scored(case, shared):
    expected, stats, _, _ = case
    table, clusters = golden_table(shared, expected["dataset"])
    for cell in expected["cells"]:
        row = row_of(stats, cell)
        assert row["n"] + row["n_missing"] == len(clusters[expected["dataset"], cell["bin_idx"]])
        if expected["failure_policy"] == "zero":
            assert row["n"] == cell["n_rows"]
    assert len(stats) == (len(set(table["bin_idx"])) + 1) * len(expected["cells"]) // len(
        set(table["bin_idx"])
    )


def test_references_agree(case, shared):
    expected, stats, _, _ = case
    for reference in expected["reference"]:
        row = row_of(stats, {"method": "full", "budget": None, **reference})
        assert row["mean"] == pytest.approx(reference["mean"], abs=1e-8)
        assert row["n_clusters"] == reference["n_clusters"]
        table, _ = golden_table(shared, expected["dataset"])
        full = table[(table["method"] == "full") & (table["bin_idx"] == reference["bin_idx"])]
        scores = full["score"]
        if expected["failure_policy"] == "zero":
            scores = scores.fillna(0.0)
        assert reference_gate(scores.to_numpy(float), np.arange(len(full))) == reference["status"]


def test_retention_agrees(case):
    expected, _, ratios, _ = case
    for cell in expected["retention"]:
        row = row_of(ratios, cell)
        assert row["n_pairs"] == cell["n_pairs"]
        assert row["status"] == cell["status"]
        names = (
            "R",
            "R_lo",
            "R_hi",
            "diff",
            "diff_se",
            "diff_lo",
            "diff_hi",
            "diff_p",
            "ni_p",
            "tost_p",
            "delta",
        )
        for name in names:
            assert row[name] == pytest.approx(cell[name], abs=1e-8), name
        assert row["boot_zero_den_frac"] == pytest.approx(cell["boot_zero_den_frac"], abs=1e-9)
        assert row["boot_lo"] == pytest.approx(cell["boot_exact_lo"], abs=1e-9)
        assert row["boot_hi"] == pytest.approx(cell["boot_exact_hi"], abs=1e-9)


def test_transitions_agree(case):
    expected, _, _, curves = case
    for curve in expected["transition"]:
        row = row_of(curves, curve, tau=curve["tau"])
        assert row["status"] == curve["status"]
        for name in ("T_point", "T_lower", "T_upper"):
            assert row[name] == curve[name]
        for name in ("p_upper", "p_lower", "isotonic"):
            assert list(row[name]) == pytest.approx(curve[name], abs=1e-8)
        if curve["log2_T_interp"] is None:
            assert isnan(row["log2_T_interp"])
            assert row["interp_label"] == {">max": ">2048", "<=min": "<=64"}[curve["interp_status"]]
        else:
            assert row["log2_T_interp"] == pytest.approx(curve["log2_T_interp"], abs=1e-8)
        for side in ("lo", "hi"):
            limit = curve[f"interp_boot_{side}"]
            if isinstance(limit, str):
                assert row[f"interp_{side}_label"] == limit
                assert isnan(row[f"interp_{side}"])
            else:
                assert row[f"interp_{side}"] == pytest.approx(limit, abs=curve["interp_boot_tol"])
