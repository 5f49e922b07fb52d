"""The worked tables' collapse model and marginal effects: independently computed values have to agree."""

import json

import pytest
from golden_tables import CASES, CFG, golden_table

from kv_transition.analysis.effect_models import effect_models

READABLE = {
    "C(method, Treatment(reference='snapkv'))[T.streaming_llm]": "method[streaming_llm]",
}


@pytest.fixture(scope="module")
def worked(shared):
    """name -> effect_models, computed once for both policies."""
    cache = {}

    def of(name):
        if name not in cache:
            cache[name] = effect_models(*golden_table(shared, name), CFG)
        return cache[name]

    return of


@pytest.fixture(params=CASES)
def case(request, shared, worked):
    """(expected values, term -> row lookup) of one table under one policy."""
    name, policy = request.param.split(".")
    expected = json.loads((shared / "stats_golden" / f"{request.param}.expected.json").read_text())
    assert expected["settings"]["collapse_B"] == CFG["collapse_replicates"]
    rows = worked(name)
    rows = rows[rows["policy"] == policy].set_index(["model", "method", "term"], verify_integrity=True)
    return expected, rows


def test_collapse_agrees(case):
    expected, rows = case
    for curve in expected.get("collapse", []):
        found = rows.loc["collapse", curve["method"]]
        tol, estimate = curve["tol"], found["estimate"]
        assert set(found["status"]) == {"ok"}
        assert estimate["alpha1"] == pytest.approx(curve["alpha1"], abs=tol["alpha1"])
        assert estimate["midpoint"] == pytest.approx(curve["midpoint_at_center"], abs=tol["midpoint"])
        assert found["z_center"]["alpha1"] == pytest.approx(curve["z_center"], abs=1e-8)
        assert found["lo"]["alpha1"] == pytest.approx(curve["alpha1_boot_lo"], abs=tol["boot"])
        assert found["hi"]["alpha1"] == pytest.approx(curve["alpha1_boot_hi"], abs=tol["boot"])
        assert estimate["width"] == pytest.approx(curve["width"], abs=0.05)
        assert estimate["floor_frac"] == pytest.approx(curve["floor_frac"], abs=0.01)
        for name in ("rss", "rss_alpha1_0", "rss_alpha1_1"):
            assert estimate[name] == pytest.approx(curve[name], abs=1e-4)


def test_a_relative_law_is_recognised(case):
    expected, rows = case
    if "alpha1_true" not in expected["truth"]:
        return
    labels = {rows.loc[("collapse", curve["method"], "alpha1"), "label"] for curve in expected["collapse"]}
    assert labels == {"relative"}


def test_marginal_effects_agree(case):
    expected, rows = case
    gee = expected["gee"]
    for name, value in gee["params"].items():
        for long, short in READABLE.items():
            name = name.replace(long, short)
        row = rows.loc[("gee", "", name)]
        assert row["estimate"] == pytest.approx(value, abs=gee["tol"])
    for name, value in gee["se_bias_reduced"].items():
        for long, short in READABLE.items():
            name = name.replace(long, short)
        row = rows.loc[("gee", "", name)]
        assert row["se"] == pytest.approx(value, abs=gee["tol"])
        assert (row["n_obs"], row["n_clusters"]) == (gee["n_obs"], gee["n_clusters"])
        assert row["x_center"] == pytest.approx(gee["x_center"], abs=1e-8)
        assert row["z_center"] == pytest.approx(gee["z_center"], abs=1e-8)
    assert len(rows.loc["gee"]) == len(gee["params"])


def test_length_ratio_agrees(case):
    expected, rows = case
    ratio = expected["gee"]["alpha1"]
    row = rows.loc[("gee_length_ratio", ratio["method"], "length_ratio")]
    for ours, theirs in (("estimate", "estimate"), ("se", "se_delta"), ("lo", "lo"), ("hi", "hi")):
        assert row[ours] == pytest.approx(ratio[theirs], abs=expected["gee"]["tol"])
