"""The collapse model: it finds the law that made the data, from every start, for every resample alike."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.special import expit

from kv_transition.analysis.collapse import ALPHA1_BOUNDS, CollapseCells, fit_collapse, law

BUDGETS = np.arange(6.0, 12.0)
LENGTHS = np.array([-1.4, -0.7, 0.0, 0.7, 1.4])
CELLS = CollapseCells(x=np.tile(BUDGETS, len(LENGTHS)), dz=np.repeat(LENGTHS, len(BUDGETS)))
N = np.full((1, len(CELLS.x)), 40.0)


def curve(midpoint, alpha1, width, floor, full=0.4, cells=CELLS):
    """Mean scores by the model's own formula, as sums over 40 pairs."""
    rise = expit(2 * log(19) / width * (cells.x - midpoint - alpha1 * cells.dz))
    return 40 * full * (floor + (1 - floor) * rise)[None, :]


def noisy(seed, rows=1, alpha1=0.5, width=3.0):
    """Sums of scores of 25 examples in each bin, resampled."""
    rng = np.random.default_rng(seed)
    y, f = [], []
    for dz in LENGTHS:
        full = np.where(rng.random(25) < 0.3, 0, rng.random(25))
        kept = 0.2 + 0.8 * expit(2 * log(19) / width * (BUDGETS - 8.5 - alpha1 * dz))
        scores = np.where(rng.random((25, len(BUDGETS))) < kept, full[:, None], 0)
        counts = rng.multinomial(25, np.ones(25) / 25, rows)
        y.append(counts @ scores)
        f.append(np.repeat((counts @ full)[:, None], len(BUDGETS), axis=1))
    y, f = np.hstack(y), np.hstack(f)
    return y, f, np.full_like(y, 25)


@settings(max_examples=40, deadline=None)
@given(
    midpoint=st.floats(7.5, 9.5),
    alpha1=st.floats(-1, 2),
    width=st.floats(1.5, 5),
    floor=st.floats(0, 0.6),
)
def test_the_law_that_made_the_data_is_found(midpoint, alpha1, width, floor):
    fit = fit_collapse(CELLS, curve(midpoint, alpha1, width, floor), np.full_like(N, 16.0), N)
    assert fit.alpha1[0] == pytest.approx(alpha1, abs=1e-3)
    assert fit.midpoint[0] == pytest.approx(midpoint, abs=1e-3)
    assert fit.width[0] == pytest.approx(width, abs=0.01)
    assert fit.floor_frac[0] == pytest.approx(floor, abs=2e-3)
    assert fit.rss[0] == pytest.approx(0, abs=1e-6)


def test_bins_may_differ_in_their_full_score():
    full = np.repeat([0.1, 0.9, 0.3, 0.5, 0.7], len(BUDGETS))
    fit = fit_collapse(CELLS, curve(8.5, 1, 3, 0.2, full), 40 * full[None, :], N)
    assert fit.alpha1[0] == pytest.approx(1, abs=1e-3)


def test_holding_alpha1_costs_what_the_data_say_against_it():
    sums = (curve(8.5, 1, 3, 0.2), np.full_like(N, 16.0), N)
    free, absolute, relative = (fit_collapse(CELLS, *sums, alpha1=a) for a in (None, 0.0, 1.0))
    assert absolute.alpha1[0] == 0
    assert relative.alpha1[0] == 1
    assert free.rss[0] == pytest.approx(relative.rss[0], abs=1e-6)
    assert absolute.rss[0] > 0.5


def test_the_sum_of_squares_is_weighted_by_pairs():
    y, f, n = noisy(3)
    fit, more = fit_collapse(CELLS, y, f, n), fit_collapse(CELLS, 3 * y, 3 * f, 3 * n)
    assert more.rss[0] == pytest.approx(3 * fit.rss[0], rel=1e-6)
    rise = expit(2 * log(19) / fit.width[0] * (CELLS.x - fit.midpoint[0] - fit.alpha1[0] * CELLS.dz))
    mean = f / n * (fit.floor_frac[0] + (1 - fit.floor_frac[0]) * rise)
    assert fit.rss[0] == pytest.approx(float((n * (y / n - mean) ** 2).sum()), rel=1e-6)


def test_a_cell_without_pairs_counts_for_nothing():
    y, f, n = noisy(4)
    gone = np.zeros(len(CELLS.x), bool)
    gone[[3, 17]] = True
    without = fit_collapse(
        CollapseCells(CELLS.x[~gone], CELLS.dz[~gone]), y[:, ~gone], f[:, ~gone], n[:, ~gone]
    )
    emptied = fit_collapse(CELLS, np.where(gone, 0, y), np.where(gone, 0, f), np.where(gone, 0, n))
    assert emptied.alpha1[0] == pytest.approx(without.alpha1[0], abs=1e-4)
    assert emptied.rss[0] == pytest.approx(without.rss[0], rel=1e-6)


def test_a_row_is_fitted_as_if_it_were_alone():
    y, f, n = noisy(5, rows=60)
    together = fit_collapse(CELLS, y, f, n)
    for row in (0, 17, 59):
        alone = fit_collapse(CELLS, y[[row]], f[[row]], n[[row]])
        for name in ("alpha1", "midpoint", "width", "floor_frac", "rss"):
            assert getattr(alone, name)[0] == getattr(together, name)[row], name


@pytest.mark.parametrize("seed", range(6))
def test_no_other_start_finds_a_better_fit(seed):
    y, f, n = noisy(seed, alpha1=0.2, width=1.5)
    fit = fit_collapse(CELLS, y, f, n)
    low, high = CELLS.bounds()

    def residuals(theta):
        rise = expit(2 * log(19) * np.exp(-theta[2]) * (CELLS.x - theta[0] - theta[1] * CELLS.dz))
        return (np.sqrt(n) * (y - f * (theta[3] + (1 - theta[3]) * rise)) / n)[0]

    rng = np.random.default_rng(seed)
    bounds = (np.append(low, 0), np.append(high, 1))
    others = [least_squares(residuals, rng.uniform(*bounds), bounds=bounds).cost * 2 for _ in range(20)]
    assert fit.rss[0] <= min(others) + 1e-5


def test_a_row_without_any_loss_has_no_parameters():
    fit = fit_collapse(CELLS, np.full_like(N, 16.0), np.full_like(N, 16.0), N)
    assert np.isnan([fit.alpha1[0], fit.midpoint[0], fit.width[0], fit.floor_frac[0]]).all()


def test_estimates_stay_within_their_bounds():
    y, f, n = noisy(9, rows=100, alpha1=0, width=0.4)
    fit = fit_collapse(CELLS, y[:, ::-1].copy(), f, n)
    low, high = CELLS.bounds()
    for values, a, b in zip((fit.midpoint, fit.alpha1, np.log(fit.width)), low, high, strict=True):
        assert ((values >= a - 1e-12) & (values <= b + 1e-12)).all()
    assert (low[1], high[1]) == ALPHA1_BOUNDS


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ((0.7, 1.2), "relative"),
        ((-0.2, 0.4), "absolute"),
        ((-0.1, 1.1), "not_distinguishable"),
        ((0.2, 0.8), "neither"),
        ((0.0, 1.0), "not_distinguishable"),
        ((1.2, 2.0), "neither"),
    ],
)
def test_only_an_interval_that_excludes_the_other_law_speaks_for_one(limits, says):
    assert law(*limits) == says
