"""Midpoint and width of a score curve: a logistic function of the log2 budget, fitted by variable projection.

    mu(x) = floor + (ceil - floor) S(x),    S(x) = 1 / (1 + exp(-(2 ln 19 / w) (x - m)))

m is where S is one half and w = x(S = .95) - x(S = .05) the width in octaves; the full cache enters with S = 1. For a
given (m, w) the best floor and ceil are the solution of a small least-squares problem in the triangle
0 <= floor <= ceil <= 1, so only m and w are searched for: over a grid of the whole range, then by steps that shrink.
There are no starting values, no fit can fail to converge, and all replicates of a bootstrap are fitted together.

References
----------
Golub and Pereyra (1973), SIAM J. Numer. Anal. 10:413 (variable projection).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Budgets below which a curve with four parameters is not fitted.
MIN_BUDGETS = 3
#: Smallest width, octaves; the largest is twice the range of the budgets.
MIN_WIDTH = 0.5
#: How far m may lie beyond the budgets, octaves.
MARGIN = 1.0
#: Steps of the search grid: of m in octaves at the smallest width (in proportion to the width, up to MARGIN), and of
#: log width. Each refinement divides them by 3.
STEP = np.array([0.25, 0.3])
#: Refinements of replicates, to a step of m below 0.03 octave; and of the curve itself.
REFINEMENTS, POLISH = 2, 8
#: Steps of m and of log width in the grid on which goodness of fit is judged.
GOODNESS_GRID = (60, 16)
#: Share of a curve's sum of squares that counts as nothing.
TIE = 1e-6
#: Moves on one level after which a search goes on with the next.
MAX_MOVES = 40
#: Entries of a block of the grid search: what a block needs stays in the processor's cache.
BLOCK_ENTRIES = 65_536
#: Far more than rounding moves a gain, and far less than a gain that matters.
ROUNDING = 1e-12
#: The eight directions from a position: (2, 8).
NEIGHBOURS = np.array(
    [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)], dtype=np.float64
).T


@dataclass(frozen=True)
class LogisticFits:
    """Fits of R curves over the same budgets; every array is (R,).

    `rss` is the weighted sum of squares sum_k n_k (mean_k - mu_k)^2, `flat_rss` that of a constant; `m` is in log2 budget,
    `width` in octaves.
    """

    m: Array
    width: Array
    floor: Array
    ceil: Array
    rss: Array
    flat_rss: Array

    def curve(self, x: Array) -> Array:
        """(K + 1, R) fitted means at the K budgets and the full cache."""
        rest = complement(x, self.m, np.log(self.width))
        return np.vstack([self.ceil - (self.ceil - self.floor) * rest, self.ceil])


@dataclass(frozen=True)
class Box:
    """The range of (m, log width) for a set of budgets; `low` and `high` are (2,)."""

    low: Array
    high: Array

    @classmethod
    def of(cls, x: Array) -> Box:
        """The box of budgets at log2 positions x, ascending."""
        widest = max(2 * (x[-1] - x[0]), MIN_WIDTH)
        return cls(np.array([x[0] - MARGIN, log(MIN_WIDTH)]), np.array([x[-1] + MARGIN, log(widest)]))

    def grid(self, step: Array) -> Array:
        """(2, P) the points of the search grid, by width and m, for a step of (m, log width)."""
        points = []
        for width in _positions(self.low[1], self.high[1], step[1]):
            wide = min(step[0] * exp(width) / MIN_WIDTH, MARGIN)
            points += [(m, width) for m in _positions(self.low[0], self.high[0], wide)]
        return np.array(points).T


@dataclass(frozen=True)
class Curves:
    """What a search needs of R curves: deviations (K + 1, R) from their weighted means `level` (R,), weights (K + 1,)."""

    x: Array
    deviation: Array
    level: Array
    share: Array
    box: Box

    @classmethod
    def of(cls, x: Array, means: Array, weights: Array) -> Curves:
        """Curves of (K + 1, R) means at log2 budgets x, the full cache last."""
        share = weights / weights.sum()
        level = np.zeros(means.shape[1])
        for weight, values in zip(share, means, strict=True):
            level += weight * values
        return cls(x, means - level, level, share, Box.of(x))

    def some(self, rows: NDArray[np.int64]) -> Curves:
        """The same for some of the curves."""
        return Curves(self.x, self.deviation[:, rows], self.level[rows], self.share, self.box)

    def gain(self, position: Array) -> tuple[Array, Array, Array]:
        """Gain, floor and rise, (..., R), of each curve at its own positions, (2, ..., R); see `project`."""
        rest = complement(self.x, *position)
        mean, variance = moments(rest, self.share)
        covariance = np.zeros_like(mean)
        for weight, values, deviation in zip(self.share, rest, self.deviation, strict=False):
            covariance -= values * (weight * deviation)
        return project(covariance, mean, variance, self.level)


def _positions(low: float, high: float, step: float) -> Array:
    """Evenly spaced from low to high, `step` apart or less."""
    return np.linspace(low, high, 1 + ceil((high - low) / step))


def complement(x: Array, m: Array, log_width: Array) -> Array:
    """1 - S at the K budgets, (K, ...) for positions of shape (...); for the full cache it is 0."""
    slope = 2 * log(19) * np.exp(-log_width)
    rest = np.empty((len(x), *slope.shape))
    for part, budget in zip(rest, x, strict=True):
        # 1 / (1 + exp((budget - m) slope)), in place
        np.subtract(budget, m, out=part)
        part *= slope
        np.exp(part, out=part)
        part += 1
        np.divide(1, part, out=part)
    return rest


def moments(rest: Array, share: Array) -> tuple[Array, Array]:
    """Weighted mean and variance of a sigmoid over the budgets and the full cache, added in the order of the budgets.

    As the complement is 0 for the full cache, the variance is no small difference of large numbers.
    """
    mean, square = np.zeros(rest.shape[1:]), np.zeros(rest.shape[1:])
    for weight, values in zip(share, rest, strict=False):
        weighted = weight * values
        mean += weighted
        square += weighted * values
    return 1 - mean, square - mean**2


def project(covariance: Array, mean: Array, variance: Array, level: Array) -> tuple[Array, Array, Array]:
    """Best floor and rise (ceil - floor) of curves on given sigmoids, and what they explain.

    Parameters
    ----------
    covariance : weighted, of curve and sigmoid; mean, variance : of the sigmoid; level : weighted mean of the curve.

    Returns
    -------
    gain, floor, rise: gain is the fall of the mean square below that of the constant `level`.

    Notes
    -----
    The sum of squares is convex: where the free solution breaks a bound, the best solution on that bound is the best of
    all, unless it breaks another one in its turn.
    """
    positive = np.maximum(covariance, 0.0)
    rise = positive / variance
    floor = level - rise * mean
    gain = positive * rise
    low = floor < 0
    if low.any():
        moment = np.maximum(covariance + level * mean, 0.0)
        height = moment / (variance + mean**2)
        gain = np.where(low, moment * height - level**2, gain)
        floor, rise = np.where(low, 0.0, floor), np.where(low, height, rise)
    high = floor + rise > 1
    if high.any():
        cov, s, var, at = (np.broadcast_to(v, gain.shape)[high] for v in (covariance, mean, variance, level))
        moment, square = cov + (1 - at) * (1 - s), var + (1 - s) ** 2
        depth = np.clip(moment / square, 0.0, 1.0)
        gain[high] = depth * (2 * moment - depth * square) - (1 - at) ** 2
        floor[high], rise[high] = 1 - depth, depth
    return gain, floor, rise


def fit_logistic(x: Array, means: Array, weights: Array) -> LogisticFits:
    """Weighted least-squares logistic curves, to the step that replicates need.

    Parameters
    ----------
    x : (K,) log2 budgets, ascending, K >= 1.
    means : (K + 1, R) mean scores, the full cache last.
    weights : (K + 1,) examples behind each mean, positive; the same for all R curves.

    Notes
    -----
    A curve that no rise fits better than a constant has floor = ceil, the lowest m and the smallest width. Each result
    depends on its curve alone, whatever the number of threads.
    """
    curves = Curves.of(x, means, weights)
    points = curves.box.grid(STEP)
    position = points[:, _best_points(curves, points)]
    _descend(curves, position, [STEP / 3**i for i in range(1, 1 + REFINEMENTS)])
    return _fits(curves, position, float(weights.sum()))


def fit_curve(x: Array, means: Array, weights: Array) -> LogisticFits:
    """The fit of one curve, (K + 1,) means, to a step of m below 1e-4 octave.

    Where the smallest width fits as well (to TIE of the sum of squares), that is the fit: the data do not tell how
    steep the curve is.
    """
    curves = Curves.of(x, means[:, None], weights)
    points = curves.box.grid(STEP / 3)
    steepest = points[:, points[1] == curves.box.low[1]]
    free, steep = (at[:, _best_points(curves, at)] for at in (points, steepest))
    steps = [STEP / 3**i for i in range(2, 1 + POLISH)]
    _descend(curves, free, steps)
    _descend(curves, steep, [step * [1, 0] for step in steps])
    fits = [_fits(curves, position, float(weights.sum())) for position in (free, steep)]
    return fits[int(fits[1].rss[0] <= fits[0].rss[0] + TIE * fits[0].flat_rss[0])]


def fit_on_grid(x: Array, means: Array, weights: Array) -> LogisticFits:
    """The best fits of GOODNESS_GRID, to compare sums of squares of curves all of which are searched alike.

    On a fixed grid the data and their replicates miss their true minimum by as much; a search that follows each curve
    would end closer for some than for others, which decides the comparison where the data fit almost perfectly.
    """
    curves = Curves.of(x, means, weights)
    m, width = (
        np.linspace(low, high, 1 + steps)
        for low, high, steps in zip(curves.box.low, curves.box.high, GOODNESS_GRID, strict=True)
    )
    points = np.stack([np.tile(m, len(width)), np.repeat(width, len(m))])
    return _fits(curves, points[:, _best_points(curves, points)], float(weights.sum()))


def _fits(curves: Curves, position: Array, total: float) -> LogisticFits:
    gain, floor, rise = curves.gain(position)
    spread = np.zeros_like(curves.level)
    for weight, values in zip(curves.share, curves.deviation, strict=True):
        spread += weight * values**2
    rss = total * np.maximum(spread - gain, 0.0)
    return LogisticFits(position[0], np.exp(position[1]), floor, floor + rise, rss, total * spread)


def _best_points(curves: Curves, points: Array) -> NDArray[np.int64]:
    """(R,) which of the (2, P) points is best for each curve; of equal ones the first."""
    rest = complement(curves.x, *points)
    mean, variance = moments(rest, curves.share)
    # On these binary grids no product or sum rounds, so the matrix product is the same for every number of threads.
    left = np.round(curves.deviation[:-1].T * 2.0**23) / 2.0**23
    right = np.round(-curves.share[:-1, None] * rest * 2.0**26) / 2.0**26
    best = np.empty(len(left), dtype=np.int64)
    size = max(1, BLOCK_ENTRIES // points.shape[1])
    for start in range(0, len(left), size):
        rows = slice(start, start + size)
        best[rows] = _largest_gain(left[rows] @ right, mean, variance, curves.level[rows])
    return best


def _largest_gain(covariance: Array, mean: Array, variance: Array, level: Array) -> NDArray[np.int64]:
    """(R,) the point, of P, with the largest gain for each of R curves, from their covariances, (R, P).

    The bounds of floor and ceil can only lower a gain. So the points are few that gain as much without them as the best of
    these points keeps within them, and no other has to be put within the bounds.
    """
    gain = np.maximum(covariance, 0.0)
    gain *= gain
    gain *= 1 / variance
    likely = gain.argmax(axis=1)
    kept = _gain_only(covariance[np.arange(len(likely)), likely], mean[likely], variance[likely], level)
    near = np.flatnonzero(gain >= kept[:, None] - ROUNDING)
    row, point = np.divmod(near, gain.shape[1])
    gain.fill(-np.inf)
    gain[row, point] = _gain_only(covariance[row, point], mean[point], variance[point], level[row])
    best: NDArray[np.int64] = gain.argmax(axis=1)
    return best


def _gain_only(covariance: Array, mean: Array, variance: Array, level: Array) -> Array:
    """The gain of `project`, (n,) for n pairs of a curve and a point."""
    rise = np.maximum(covariance, 0.0)
    gain = rise * rise
    gain *= 1 / variance
    rise *= 1 / variance
    top = rise * (1 - mean)
    top += level
    rise *= mean
    low = rise > level
    if low.any():
        moment = level * mean
        moment += covariance
        np.maximum(moment, 0.0, out=moment)
        height = moment * (1 / (variance + mean**2))
        np.copyto(top, height, where=low)
        moment *= height
        moment -= level**2
        np.copyto(gain, moment, where=low)
    high = top > 1
    if high.any():
        square = variance + (1 - mean) ** 2
        moment = (1 - level) * (1 - mean)
        moment += covariance
        depth = moment * (1 / square)
        np.clip(depth, 0.0, 1.0, out=depth)
        moment *= 2
        moment -= depth * square
        moment *= depth
        moment -= (1 - level) ** 2
        np.copyto(gain, moment, where=high)
    return gain


def _descend(curves: Curves, position: Array, steps: Sequence[Array]) -> None:
    """For each step, move every position, in place, to the best of its eight neighbours until none is better."""
    here = curves.gain(position)[0]
    low, high = (bound[:, None, None] for bound in (curves.box.low, curves.box.high))
    for step in steps:
        moving = np.arange(position.shape[1])
        directions = (NEIGHBOURS * step[:, None])[:, :, None]
        for _ in range(MAX_MOVES):
            around = np.clip(position[:, None, moving] + directions, low, high)
            gain = curves.some(moving).gain(around)[0]
            best = gain.argmax(axis=0)
            row = np.flatnonzero(gain[best, np.arange(len(moving))] > here[moving])
            moving, best = moving[row], best[row]
            if not len(moving):
                break
            position[:, moving], here[moving] = around[:, best, row], gain[best, row]
