"""The coverage benchmark: its made-up scores are what they say, and it reports an interval that does not hold."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SETS = 300


@pytest.fixture(scope="module")
def bench():
    """The benchmark as a module, under another name than that of the package `coverage`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("coverage_bench", BENCHMARKS / "coverage.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "coverage_bench", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def scores(bench):
    """The module of made-up scores."""
    return sys.modules["made_up_scores"]


def test_profiles_have_the_mean_the_zeros_and_the_ones_that_they_say(bench, scores):
    for profile in scores.PROFILES:
        drawn = profile.draw(np.random.default_rng(1), (400, 100))
        assert drawn.mean() == pytest.approx(profile.mean, abs=0.012)
        assert (drawn == 0).mean() == pytest.approx(profile.zeros, abs=0.012)
        assert (drawn == 1).mean() == pytest.approx(profile.ones, abs=0.012)
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_profiles_reach_from_few_zeros_to_nearly_only_zeros(scores):
    shares = [profile.zeros for profile in scores.PROFILES if profile.name.startswith("F1")]
    assert (min(shares), max(shares)) == (0.08, 0.88)
    assert len(scores.PROFILES) == 7


def test_pairs_retain_and_differ_as_they_say(scores):
    for scenario in scores.SCENARIOS:
        compressed, full = scenario.draw(np.random.default_rng(2), (400, 100))
        assert compressed.mean() / full.mean() == pytest.approx(scenario.retention, abs=0.03)
        assert (compressed - full).mean() == pytest.approx(scenario.difference, abs=0.012)
        if scenario.retention == 1:
            assert (compressed == full).mean() > 0.84


def test_curves_have_the_retention_of_their_shape(scores):
    for shape in scores.shapes(0.9).values():
        compressed, full = scores.draw_curves(np.random.default_rng(3), scores.EM_50, shape, (400, 100))
        assert compressed.mean(axis=(0, 2)) / full.mean() == pytest.approx(shape, abs=0.03)


def test_examples_of_a_cluster_are_correlated_and_keep_their_distribution(scores):
    rng = np.random.default_rng(4)
    clusters = scores.in_fours(10)
    assert np.bincount(clusters).tolist() == [1, 2, 3, 4]
    [drawn] = scores.alike(rng, clusters, scores.F1_35.draw(rng, (20_000, 20)))
    correlation = np.corrcoef(drawn.T)
    assert correlation[1, 2] == pytest.approx(scores.ICC, abs=0.03)
    assert correlation[6, 9] == pytest.approx(scores.ICC, abs=0.03)
    assert correlation[0, 1] == pytest.approx(0, abs=0.03)
    assert drawn.mean() == pytest.approx(scores.F1_35.mean, abs=0.01)


def test_a_broken_interval_is_reported_as_missed(bench, scores):
    def too_narrow(clusters, values):
        lo, hi = bench.MEANS["quasi-Wilson (reported)"](clusters, values)
        return lo + 0.25 * (hi - lo), hi - 0.25 * (hi - lo)

    def bars(method):
        cells = list(bench.mean_cells({"reported": method, "CLT z": bench.normal_mean}, SETS, 25))
        return bench.interval_bars("mean", cells, (0.93, 0.97), 0.88)

    missed = [str(bar) for bar in bars(too_narrow)]
    assert all(line.endswith("MISSED") for line in missed)
    assert len(missed) == 2

    def all_of_it(clusters, values):
        return np.zeros(len(values)), np.ones(len(values))

    assert [bar.reached for bar in bars(all_of_it)] == [False, True]


def test_the_reported_interval_reaches_its_average_in_a_small_run(bench):
    cells = list(bench.mean_cells({"reported": bench.MEANS["quasi-Wilson (reported)"]}, SETS, 40))
    assert bench.interval_bars("mean", cells, (0.93, 0.97), 0.88)[0].reached


def test_an_upper_limit_that_comes_too_early_is_reported_as_missed(bench, monkeypatch):
    monkeypatch.setattr(bench, "CURVE_PROFILES", bench.CURVE_PROFILES[:1])
    monkeypatch.setattr(bench, "TAUS", (0.9,))

    def hasty(e, clusters):
        up, down = bench.normal_tests(e, clusters)
        return [p / 20 for p in up], down

    [upper, _] = bench.transition_bars(list(bench.transition_cells({"reported": hasty}, 60, 25)))
    assert upper.word == "MISSED"


def test_data_sets_without_limits_are_counted_and_not_covered_or_missed(bench):
    lo, hi = np.array([0.0, np.nan, 0.6, 0.1]), np.array([1.0, np.nan, 0.9, 0.5])
    cell = bench.Cell.of("kind", 25, "reported", (lo, hi), 0.5)
    assert cell.covered == pytest.approx(2 / 3)
    assert cell.without == pytest.approx(1 / 4)
