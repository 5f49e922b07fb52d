"""The worked tables' logistic curves: midpoint, width, asymptotes, their limits and the test of the shape."""

import json

import pytest
from golden_tables import CASES, CFG, golden_table, row_of

from kv_transition.analysis.transition import transition


@pytest.fixture(scope="module")
def worked(shared):
    """name -> transition table of both policies, computed once."""
    names = {case.split(".")[0] for case in CASES}
    return {name: transition(*golden_table(shared, name), CFG | {"tau": [0.9]}) for name in names}


@pytest.fixture(params=CASES)
def pairs(request, shared, worked):
    """(expected curve, row) of every curve of one table under one policy."""
    name, policy = request.param.split(".")
    expected = json.loads((shared / "stats_golden" / f"{request.param}.expected.json").read_text())
    frame = worked[name][worked[name]["policy"] == policy]
    return [(curve, row_of(frame, curve)) for curve in expected["logistic"]]


def test_every_curve_is_fitted_as_closely(pairs):
    for curve, row in pairs:
        assert row["logistic_status"] == curve["status"]
        assert row["logistic_rss"] <= curve["rss"] + 0.02
        assert row["logistic_rss"] < curve["flat_rss"]


def test_midpoints_and_asymptotes_agree(pairs):
    for curve, row in pairs:
        if not (curve["m_at_bound"] or curve["width_at_bound"]):
            assert row["m"] == pytest.approx(curve["m"], abs=curve["m_tol"])
            assert row["width"] == pytest.approx(curve["width"], rel=0.01)
        assert row["floor"] == pytest.approx(curve["floor"], abs=0.005)
        assert row["ceil"] == pytest.approx(curve["ceil"], abs=0.005)


def test_bounds_are_flagged(pairs):
    for curve, row in pairs:
        flags = row["logistic_flags"].split(",")
        for name in ("m_at_bound", "width_at_bound"):
            assert (name in flags) == curve[name]


def test_tests_agree(pairs):
    for curve, row in pairs:
        assert row["drop_p"] == pytest.approx(curve["drop_p"], abs=1e-8)
        assert row["gof_p"] == pytest.approx(curve["gof_p"], abs=curve["gof_tol"])


def test_limits_agree(pairs):
    for curve, row in pairs:
        for side in ("lo", "hi"):
            assert row[f"m_{side}"] == pytest.approx(curve[f"m_boot_{side}"], abs=curve["m_boot_tol"])
