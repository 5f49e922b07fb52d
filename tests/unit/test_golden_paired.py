"""Two worked tables with independently computed values: adjacent budgets, McNemar, lossless claims."""

import json
from math import isnan

import pytest
from golden_tables import CASES, CFG, golden_table, row_of

from kv_transition.analysis.lossless import lossless
from kv_transition.analysis.paired_tests import paired_tests

#: The worked claims know the tests alone: no rule about requests that failed.
ALL_RELIABLE = CFG | {"max_infrastructure_failures": 1.0}


@pytest.fixture(scope="module")
def worked(shared):
    """name -> (paired_tests, lossless), computed once for both policies."""
    cache = {}

    def of(name):
        if name not in cache:
            table = golden_table(shared, name)
            cache[name] = (paired_tests(*table, CFG), lossless(*table, ALL_RELIABLE))
        return cache[name]

    return of


@pytest.fixture(params=CASES)
def case(request, shared, worked):
    """(expected values, paired_tests, lossless) of one table under one policy."""
    name, policy = request.param.split(".")
    expected = json.loads((shared / "stats_golden" / f"{request.param}.expected.json").read_text())
    return expected, *(frame[frame["policy"] == policy] for frame in worked(name))


def test_adjacent_budgets_agree(case):
    expected, tests, _ = case
    frame = tests[tests["kind"] == "adjacent"].rename(columns={"method_a": "method"})
    assert len(frame[frame["bin_idx"] >= 0]) == len(expected["adjacent"])
    for pair in expected["adjacent"]:
        row = row_of(frame, pair, budget_a=pair["lower"], budget_b=pair["upper"])
        assert row["n_pairs"] == pair["n"]
        names = {"diff": "diff", "diff_se": "se", "p": "p", "p_adjusted": "p_holm"}
        for ours, theirs in names.items():
            assert row[ours] == pytest.approx(pair[theirs], abs=1e-8), ours
        assert row["adjustment"] == "holm"
        if pair.get("p_signflip_exact") is None:
            assert isnan(row["p_signflip"])
        else:
            assert row["p_signflip"] == pytest.approx(pair["p_signflip_exact"], abs=1e-8)


def test_mcnemar_is_for_scores_of_0_and_1_only(case, shared):
    expected, tests, _ = case
    assert expected["mcnemar"] == []
    table, _ = golden_table(shared, expected["dataset"])
    scores = table["score"].dropna()
    assert ((scores > 0) & (scores < 1)).any()
    for name in ("p_mcnemar", "n_only_a", "n_only_b"):
        assert tests[name].isna().all()


def test_lossless_budgets_by_the_tests_agree(case):
    """The worked claims know the non-inferiority tests alone; a claim asks for more, so it is never bolder."""
    expected, _, claims = case
    assert len(claims[claims["bin_idx"] >= 0]) == len(expected["lossless"])
    for claim in expected["lossless"]:
        row = row_of(claims, claim)
        assert row["delta"] == claim["delta"]
        by_test = None if claim["smallest_lossless"] is None else str(claim["smallest_lossless"])
        assert row["smallest_by_test"] == by_test
        if row["smallest_lossless"] is not None:
            assert by_test is not None
            assert row["smallest_lossless_value"] >= float(by_test)


def test_the_p_values_on_the_way_down_are_those_of_the_retention(case):
    expected, _, claims = case
    ni_p = {(c["method"], c["bin_idx"], float(c["budget"])): c["ni_p"] for c in expected["retention"]}
    for row in claims[claims["bin_idx"] >= 0].to_dict("records"):
        assert row["tested"] == sorted(row["tested"], reverse=True)
        found = [ni_p[row["method"], row["bin_idx"], budget] for budget in row["tested"]]
        assert row["p"] == pytest.approx(found, abs=1e-8)
