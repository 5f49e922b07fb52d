"""Does the transition follow the budget or the budget's share of the prompt? One curve for all length bins.

In bin g, of mean log2 length z_g, the mean score at budget x_k (log2) is modelled as

    mu_gk = A_g (phi + (1 - phi) S(x_k)),   S(x) = 1 / (1 + exp(-(2 ln 19 / w) (x - m_g))),   m_g = a0 + alpha1 (z_g - z)

with A_g the full cache's mean, phi the floor as a fraction of it, w the width in octaves between S = 0.05 and S = 0.95,
and m_g the midpoint. alpha1 = 0 says that the midpoint is a number of tokens, the same at every length (an absolute
law); alpha1 = 1 that it is a share of the prompt (a relative law).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, exp, log

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from kv_transition.analysis.cells import Array, Indices

Bools = NDArray[np.bool_]

#: Where alpha1 is looked for. Replicates that end at a limit are kept.
ALPHA1_BOUNDS = (-2.0, 3.0)
#: How far beyond the smallest and the largest budget the midpoint is looked for, in octaves.
BEYOND_GRID = 1.0
#: Smallest width in octaves; the largest is twice the range of the budgets.
MIN_WIDTH = 0.5
#: Steps of the global search: of any bin's midpoint, as a fraction of the width and at most, and of the width (ratio).
MIDPOINT_STEP, MAX_MIDPOINT_STEP, WIDTH_STEP = 0.25, 0.35, 1.6
#: Entries of a block of the global search: what a block needs stays in the processor's cache.
BLOCK_ENTRIES = 65_536
#: Rounds of the local refinement, and the step in (midpoint, alpha1, log width) at which a fit is done.
MAX_ROUNDS = 80
#: Widths of the grid from which the refinement of a row begins.
STARTS = 4
SMALL_STEP = np.array([1e-5, 1e-5, 1e-4])
#: Distance up to which two values of a parameter are the same: the precision of a fit.
RESOLUTION = 1e-3
#: Relative difference of sums of squares below which two fits are the same, and the first one is kept.
SAME_FIT = 1e-7
#: Keeps divisions by sums that can be 0 finite.
TINY = 1e-300

_TWO_LN19 = 2 * log(19)


@dataclass(frozen=True)
class CollapseCells:
    """Where the cells of a fit stand: log2 budget and centred mean log2 length of each, (cells,)."""

    x: Array
    dz: Array

    def bounds(self, alpha1: float | None = None) -> tuple[Array, Array]:
        """Lower and upper bounds of (midpoint, alpha1, log width); alpha1 may be held at a value."""
        low, high = float(self.x.min()), float(self.x.max())
        slopes = ALPHA1_BOUNDS if alpha1 is None else (alpha1, alpha1)
        widest = max(2 * (high - low), 2 * MIN_WIDTH)
        return (
            np.array([low - BEYOND_GRID, slopes[0], log(MIN_WIDTH)]),
            np.array([high + BEYOND_GRID, slopes[1], log(widest)]),
        )


@dataclass(frozen=True)
class CollapseFit:
    """Fitted parameters of each row of the data, (rows,); nan where a row shows no loss at all."""

    midpoint: Array
    alpha1: Array
    width: Array
    floor_frac: Array
    rss: Array


@dataclass(frozen=True)
class _Losses:
    """The sums of squares that a fit needs, (rows, cells): weight times A^2, A d, d^2 with d = A - y."""

    aa: Array
    ad: Array
    dd: Array

    def of(self, rows: Indices) -> _Losses:
        return _Losses(self.aa[rows], self.ad[rows], self.dd[rows])


@dataclass(frozen=True)
class _Place:
    """Where a search stands in every row, with the floor at its best.

    `theta` is (midpoint, alpha1, log width), `loss` 1 - phi, `square` the sum of aa times the lost part's square; `position`
    on the sigmoid and the part `lost` there, 1 - S, are (rows, cells).
    """

    theta: Array
    rss: Array
    loss: Array
    square: Array
    position: Array
    lost: Array

    def of(self, rows: Indices) -> _Place:
        return _Place(*(values[rows] for values in vars(self).values()))

    def where(self, better: Bools, other: _Place) -> _Place:
        """The other place in the rows in which it is better."""
        pairs = zip(vars(other).values(), vars(self).values(), strict=True)
        return _Place(*(np.where(better if a.ndim == 1 else better[:, None], a, b) for a, b in pairs))


def fit_collapse(
    cells: CollapseCells, compressed: Array, full: Array, n_pairs: Array, alpha1: float | None = None
) -> CollapseFit:
    """Least squares over all cells, weighted by the pairs of each, for many rows of data at once.

    With midpoint, alpha1 and width given the model is linear in the floor, which is therefore eliminated (variable
    projection). A grid over the three others gives every row its own start; Levenberg-Marquardt refines it.

    Parameters
    ----------
    cells : places of the cells.
    compressed, full, n_pairs : (rows, cells) sums of the compressed and of the full cache's scores over the pairs of the
        cell, and the number of pairs; a cell without pairs counts for nothing. A row is the sample or one resample.
    alpha1 : hold alpha1 at this value; None estimates it within ALPHA1_BOUNDS.

    References
    ----------
    Golub and Pereyra (1973), SIAM J. Numer. Anal. 10:413; Kaufman (1975), BIT 15:49 (the Jacobian that is used).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        per_pair = np.where(n_pairs > 0, 1 / n_pairs, 0.0)
    # Rows contiguous: every sum over cells then adds in the same order, however many rows there are.
    compressed, full, n_pairs = (np.ascontiguousarray(a) for a in (compressed, full, n_pairs))
    drop = full - compressed
    losses = _Losses(full * full * per_pair, full * drop * per_pair, drop * drop * per_pair)
    theta, rss, loss = np.zeros((len(drop), 3)), np.full(len(drop), np.inf), np.zeros(len(drop))
    for start in _starts(cells, losses, alpha1):
        found, new_rss, new_loss = _refined(cells, losses, start, alpha1)
        better = new_rss < rss * (1 - SAME_FIT)
        theta[better], rss[better], loss[better] = found[better], new_rss[better], new_loss[better]
    undefined = loss <= 0
    theta[undefined] = np.nan
    return CollapseFit(
        midpoint=theta[:, 0],
        alpha1=theta[:, 1],
        width=np.exp(theta[:, 2]),
        floor_frac=np.where(undefined, np.nan, 1 - loss),
        rss=rss,
    )


def _starts(cells: CollapseCells, losses: _Losses, alpha1: float | None) -> Iterator[Array]:
    """Where the refinement of every row begins, (rows, 3) each: at the widths of the grid that fit the row best."""
    searched = list(_global_search(cells, losses, alpha1))
    points, gains = np.stack([p for p, _ in searched]), np.stack([gain for _, gain in searched])
    for chosen in np.argsort(-gains, axis=0, kind="stable")[:STARTS]:
        yield points[chosen, np.arange(points.shape[1])]


def _global_search(
    cells: CollapseCells, losses: _Losses, alpha1: float | None
) -> Iterator[tuple[Array, Array]]:
    """For each width of a grid the best midpoint and alpha1 of every row, (rows, 3), and what they gain, (rows,).

    One start for each width, because a narrow curve can lie between two budgets in several places and the sum of
    squares then has several minima.
    """
    low, high = cells.bounds(alpha1)
    reach = max(float(np.abs(cells.dz).max()), TINY)
    for log_width in _axis(low[2], high[2], log(WIDTH_STEP)):
        step = min(MIDPOINT_STEP * exp(log_width), MAX_MIDPOINT_STEP)
        midpoints, slopes = _axis(low[0], high[0], step), _axis(low[1], high[1], min(step / reach, 0.5))
        points = np.stack([a.ravel() for a in np.meshgrid(midpoints, slopes, [log_width])], axis=1)
        best, gain = _best(losses, _lost(cells, points)[1])
        yield points[best], gain


def _axis(low: float, high: float, step: float) -> Array:
    """Equal steps of at most `step` from one bound to the other."""
    return np.linspace(low, high, ceil((high - low) / step) + 1)


def _best(losses: _Losses, lost: Array) -> tuple[Indices, Array]:
    """The grid point, of (points, cells), with the smallest sum of squares for each row, and the share it explains."""
    best, gains = np.empty(len(losses.aa), dtype=np.int64), np.empty(len(losses.aa))
    lost, squares = lost.T, (lost * lost).T
    all_of_it = np.maximum(losses.dd.sum(axis=1), TINY)
    rows = max(1, BLOCK_ENTRIES // lost.shape[1])
    for first in range(0, len(best), rows):
        block = slice(first, first + rows)
        cross, square = losses.ad[block] @ lost, losses.aa[block] @ squares
        loss = _scale(cross, square)
        # loss * (2 * cross - loss * square), in place
        square *= loss
        cross *= 2
        cross -= square
        cross *= loss
        cross /= all_of_it[block, None]
        # Rounded to 9 digits, so that the order of additions in the product cannot choose between equal points.
        cross *= 1e9
        np.rint(cross, out=cross)
        best[block] = chosen = cross.argmax(axis=1)
        gains[block] = cross[np.arange(len(cross)), chosen] / 1e9
    return best, gains


def _lost(cells: CollapseCells, theta: Array) -> tuple[Array, Array]:
    """Position t on the sigmoid and the lost part 1 - S at every cell, (rows, cells) each."""
    position = (_TWO_LN19 * np.exp(-theta[:, 2]))[:, None] * (
        cells.x - theta[:, :1] - theta[:, 1:2] * cells.dz
    )
    return position, expit(-position)


def _scale(cross: Array, square: Array) -> Array:
    """Best 1 - phi, in [0, 1]: the size of the loss at the smallest budgets."""
    scale = np.maximum(square, TINY)
    np.divide(cross, scale, out=scale)
    return np.clip(scale, 0.0, 1.0, out=scale)


def _place(cells: CollapseCells, losses: _Losses, theta: Array) -> _Place:
    """What follows from parameters, (rows, 3)."""
    position, lost = _lost(cells, theta)
    cross, square = (losses.ad * lost).sum(axis=1), (losses.aa * lost * lost).sum(axis=1)
    loss = _scale(cross, square)
    rest = losses.dd - 2 * loss[:, None] * losses.ad * lost
    rest += (loss**2)[:, None] * losses.aa * lost * lost
    return _Place(theta, np.maximum(rest.sum(axis=1), 0.0), loss, square, position, lost)


def _refined(
    cells: CollapseCells, losses: _Losses, start: Array, alpha1: float | None
) -> tuple[Array, Array, Array]:
    """Levenberg-Marquardt within the bounds for all rows at once: parameters (rows, 3), rss and 1 - phi (rows,)."""
    low, high = cells.bounds(alpha1)
    here = _place(cells, losses, start)
    theta, rss, loss = here.theta.copy(), here.rss.copy(), here.loss.copy()
    damping = np.full(len(theta), 1e-2)
    open_rows = np.arange(len(theta))
    for _ in range(MAX_ROUNDS):
        if len(open_rows) == 0:
            break
        trial = np.clip(here.theta + _step(cells, losses, here, damping, (low, high)), low, high)
        small = (np.abs(trial - here.theta) < SMALL_STEP).all(axis=1)
        there = _place(cells, losses, trial)
        better = there.rss < here.rss
        here = here.where(better, there)
        theta[open_rows], rss[open_rows], loss[open_rows] = here.theta, here.rss, here.loss
        damping = np.where(better, damping * 0.2, damping * 5)
        left = np.flatnonzero(~small & (damping < 1e8))
        if len(left) < len(open_rows):
            open_rows, damping = open_rows[left], damping[left]
            losses, here = losses.of(left), here.of(left)
    return theta, rss, loss


def _step(
    cells: CollapseCells, losses: _Losses, here: _Place, damping: Array, bounds: tuple[Array, Array]
) -> Array:
    """The damped Gauss-Newton step of every row, 0 for a parameter whose bound stands in the way."""
    theta, loss, lost = here.theta, here.loss, here.lost
    spread = lost * (1 - lost)
    steepness = (_TWO_LN19 * np.exp(-theta[:, 2]))[:, None]
    slopes = [steepness * spread, steepness * cells.dz * spread, here.position * spread]
    slopes = [loss[:, None] * slope for slope in slopes]
    free = (loss > 0) & (loss < 1)
    weighted, square = losses.aa * lost, np.maximum(here.square, TINY)
    along = [np.where(free, (weighted * slope).sum(axis=1) / square, 0.0) for slope in slopes]
    slopes = [slope - part[:, None] * lost for slope, part in zip(slopes, along, strict=True)]
    rest = losses.ad - loss[:, None] * losses.aa * lost
    gradient = np.stack([(rest * slope).sum(axis=1) for slope in slopes], axis=1)
    products = [[(part * b).sum(axis=1) for b in slopes] for part in (losses.aa * a for a in slopes)]
    matrix = np.stack([np.stack(row, axis=1) for row in products], axis=1)
    low, high = bounds
    stuck = ((theta <= low) & (gradient <= 0)) | ((theta >= high) & (gradient >= 0))
    gradient = np.where(stuck, 0.0, gradient)
    matrix = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, matrix)
    diagonal = np.einsum("rii->ri", matrix)
    floor = np.maximum(1e-9 * diagonal.max(axis=1, keepdims=True), TINY)
    matrix = matrix + np.einsum("ri,ij->rij", damping[:, None] * diagonal + floor + stuck * 1.0, np.eye(3))
    return np.asarray(np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0], dtype=np.float64)


def law(lo: float, hi: float) -> str:
    """What an interval of alpha1 says: "relative", "absolute", "not_distinguishable" (holds 0 and 1) or "neither"."""
    relative, absolute = lo <= 1 <= hi, lo <= 0 <= hi
    if relative and absolute:
        return "not_distinguishable"
    return "relative" if relative else "absolute" if absolute else "neither"
