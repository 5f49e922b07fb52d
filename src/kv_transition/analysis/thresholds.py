"""Where a retention curve crosses tau: rules on a grid of budgets, as pure functions of arrays.

Positions on a grid of K budgets are indices 0 ... K - 1; -inf means "at or below the smallest budget" (censored left)
and +inf "above the largest" (censored right).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, inf, nan

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Retention this close below tau counts as tau: rounding noise must not decide a label.
TOLERANCE = 1e-12


def sustained_point(retention: Array, tau: float) -> float:
    """Index of the smallest budget from which retention stays at or above tau.

    -inf where all budgets retain tau (the transition is at or below the grid), +inf where the largest does not. A rule
    that takes the first crossing instead would be fooled by a dip at a larger budget.
    """
    below = np.flatnonzero(~(retention >= tau - TOLERANCE))
    if len(below) == 0:
        return -inf
    return float(below[-1] + 1) if below[-1] + 1 < len(retention) else inf


def fixed_sequence_limits(
    p_upper: Sequence[float], p_lower: Sequence[float], conf: float = 0.95
) -> tuple[float, float]:
    """Confidence limits of the transition budget, as indices into the grid.

    Parameters
    ----------
    p_upper, p_lower : (K,) one-sided p-values of "y - tau y_full is at most 0" and "... at least 0" at each budget,
        ascending; nan where no test was possible.

    Returns
    -------
    (lower, upper): upper is the last budget rejected from the largest downwards (+inf: none); lower is the one after
    the last rejected from the smallest upwards (-inf: none rejected, +inf: all). Each limit is wrong only if a true
    null next to the transition is rejected, so no adjustment for the number of budgets is needed.

    References
    ----------
    Hsu and Berger (1999), J. Am. Stat. Assoc. 94:468.
    """
    alpha, size = (1 - conf) / 2 + TOLERANCE, len(p_upper)
    upper = next((k + 1 for k in reversed(range(size)) if not p_upper[k] <= alpha), 0)
    lower = next((k for k in range(size) if not p_lower[k] <= alpha), size)
    return (
        -inf if lower == 0 else inf if lower == size else float(lower),
        inf if upper == size else float(upper),
    )


def isotonic(values: Array, weights: Array) -> Array:
    """Weighted least-squares fit that never decreases along the last axis (the result of pool-adjacent-violators).

    Parameters
    ----------
    values, weights : (..., K), weights positive. K is small: the minimax formula is vectorised over the rest.

    References
    ----------
    Barlow, Bartholomew, Bremner and Brunk (1972), Statistical Inference under Order Restrictions, theorem 1.9.
    """
    size = values.shape[-1]
    sums, totals = np.cumsum(weights * values, axis=-1), np.cumsum(weights, axis=-1)
    fitted = np.full(values.shape, -inf)
    for start in range(size):
        before = sums[..., start - 1] if start else 0.0, totals[..., start - 1] if start else 0.0
        smallest = np.full(values.shape[:-1], inf)
        # The smallest mean of a block that begins at `start` and ends at k or later, for k from the right.
        for end in reversed(range(start, size)):
            block = (
                (sums[..., end] - before[0]) / (totals[..., end] - before[1])
                if end > start
                else values[..., end]
            )
            smallest = np.minimum(smallest, block)
            fitted[..., end] = np.maximum(fitted[..., end], smallest)
    return fitted


def crossing(curve: Array, x: Array, tau: float) -> Array:
    """Where a non-decreasing curve reaches tau, interpolated linearly in x.

    (..., K) values at the K positions x give (...) positions; -inf where the first value is at or above tau, +inf where
    the last is below.
    """
    reached = curve >= tau - TOLERANCE
    right = np.clip(np.argmax(reached, axis=-1), 1, max(curve.shape[-1] - 1, 1))
    right = np.minimum(right, curve.shape[-1] - 1)
    left = np.maximum(right - 1, 0)
    low = np.take_along_axis(curve, left[..., None], axis=-1)[..., 0]
    high = np.take_along_axis(curve, right[..., None], axis=-1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = x[left] + np.minimum((tau - low) / (high - low), 1.0) * (x[right] - x[left])
    position = np.where(reached[..., 0], -inf, np.where(reached.any(axis=-1), inside, inf))
    return np.asarray(position, dtype=np.float64)


def order_limits(replicates: Array, conf: float = 0.95) -> tuple[float, float]:
    """Percentile limits as order statistics, fit for values at -inf and +inf; nan replicates are left out."""
    valid = np.sort(replicates[~np.isnan(replicates)])
    if len(valid) == 0:
        return nan, nan
    # Rounded, because 0.025 * 2000 must not come out a hair under 50.
    lower = floor(round((1 - conf) / 2 * len(valid), 9))
    upper = ceil(round((1 + conf) / 2 * len(valid), 9)) - 1
    return float(valid[lower]), float(valid[upper])
