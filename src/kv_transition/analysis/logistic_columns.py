"""The columns of `transition.parquet` that a logistic fit of the mean scores gives; they are the same for every tau.

    logistic_status "ok"; "outside_grid" (m lies beyond the budgets; m_label is "<64" or ">2048"); "too_few_budgets" (under
                    3); "no_transition_detected" (the smallest budget does not score below the full cache, or no rising
                    curve fits better than a constant); the row's own status where that is not "ok"
    m, m_lo, m_hi   midpoint, log2 budget, and its bootstrap limits; m_label in whole tokens ("187") or a share ("f0.187"),
                    or the status
    width, width_lo, width_hi   octaves from 5 % to 95 % of the rise; weakly determined, so never to be shown without its
                    limits
    floor, ceil     the curve far below and far above the budgets
    slope_per_octave    of the curve at m
    logistic_rss    sum over budgets and the full cache of examples x (mean - curve)^2
    drop_p          one-sided test that the smallest budget scores below the full cache
    gof_p           share of resamples, moved onto the fitted curve, that fit no better than the data do
    logistic_flags  comma-separated, or "": "m_at_bound", "width_at_bound" (the fit is at the edge of what is searched: m
                    up to one octave beyond the budgets, width from 0.5 octave to twice their range), "shape_rejected"
                    (gof_p < 0.05, and the curve leaves more than 0.1 % of the sum of squares: read T instead),
                    "interval_unbounded" (a limit of m is null)

A mean is that of all examples with a score of the cell; the full cache enters as the point where nothing is lost. Limits
are percentiles of the keyed resamples of the bin; those in which a cell has no example are left out. A limit at the edge
of what is searched is null, because the data do not bound the value on that side; both are null where resampling cannot
move the value. With shares (f0.25) budgets are log2 of the share.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, nan

import numpy as np

from kv_transition.analysis.bootstrap import resampled_ratio
from kv_transition.analysis.cells import Array
from kv_transition.analysis.curves import Curve
from kv_transition.analysis.intervals import augmented_tests
from kv_transition.analysis.logistic import (
    MIN_BUDGETS,
    Box,
    LogisticFits,
    fit_curve,
    fit_logistic,
    fit_on_grid,
)
from kv_transition.analysis.pairs import PairScores
from kv_transition.analysis.tables import Columns, Row, columns

#: Level of the test that the smallest budget loses anything, and of the test of the curve's shape.
LEVEL = 0.05
#: Rise below which a fitted curve is a constant.
FLAT = 1e-9
#: Share of the sum of squares that a curve may leave without its shape being rejected.
MISFIT = 1e-3
#: Distance from a bound, octaves or log width, that counts as at it.
AT_BOUND = 1e-3

LOGISTIC: Columns = {
    **columns("string", "logistic_status"),
    **columns("float64", "m m_lo m_hi"),
    **columns("string", "m_label"),
    **columns("float64", "width width_lo width_hi floor ceil slope_per_octave logistic_rss drop_p gof_p"),
    **columns("string", "logistic_flags"),
}


def cell_sums(pairs: PairScores) -> tuple[Array, Array]:
    """Bootstrap columns, (cells + 1, n) each, the full cache last: scores, 0 where missing, and 1 where present."""
    scores = np.vstack([pairs.compressed, pairs.full])
    present = ~np.isnan(scores)
    return np.where(present, scores, 0.0), present.astype(np.float64)


def logistic_values(
    curve: Curve, status: str, inside: PairScores, resampled: tuple[Array, Array], conf: float
) -> Row:
    """The columns of one curve.

    Parameters
    ----------
    status : of the curve's rows; inside : the scores of its bin.
    resampled : (cells + 1, B) totals of the columns of `cell_sums`.
    """
    if status != "ok":
        return _without(status, nan)
    y, full, clusters = curve.pairs[0]
    drop_p, _ = augmented_tests(full - y, clusters)
    if len(curve.rows) < MIN_BUDGETS:
        return _without("too_few_budgets", drop_p)
    if not drop_p <= LEVEL:
        return _without("no_transition_detected", drop_p)
    scores = [inside.compressed[row] for row in curve.rows] + [inside.full]
    scores = [values[~np.isnan(values)] for values in scores]
    means = np.array([values.mean() for values in scores])
    weights = np.array([len(values) for values in scores], dtype=np.float64)
    x = curve.grid.log2
    fit = fit_curve(x, means, weights)
    if fit.ceil[0] - fit.floor[0] < FLAT:
        return _without("no_transition_detected", drop_p)
    rows = [*curve.rows, len(inside.compressed)]
    replicates = resampled_ratio(resampled[0][rows], resampled[1][rows])
    replicates = replicates[:, ~np.isnan(replicates).any(axis=0)]
    return _fitted(curve, fit) | _evidence(x, means, weights, fit, replicates, conf) | {"drop_p": drop_p}


def _fitted(curve: Curve, fit: LogisticFits) -> Row:
    """Parameters of the fit and what they are called."""
    m, width, x = float(fit.m[0]), float(fit.width[0]), curve.grid.log2
    floor, top = float(fit.floor[0]), float(fit.ceil[0])
    label = curve.grid.between(m)
    if not x[0] <= m <= x[-1]:
        label = f"<{curve.grid.labels[0]}" if m < x[0] else f">{curve.grid.labels[-1]}"
    return {
        "logistic_status": "ok" if x[0] <= m <= x[-1] else "outside_grid",
        "m": m,
        "m_label": label,
        "width": width,
        "floor": floor,
        "ceil": top,
        "slope_per_octave": (top - floor) * log(19) / (2 * width),
        "logistic_rss": float(fit.rss[0]),
    }


def _evidence(
    x: Array, means: Array, weights: Array, fit: LogisticFits, replicates: Array, conf: float
) -> Row:
    """Bootstrap limits of midpoint and width, the test of the shape, and the flags."""
    box = Box.of(x)
    m_lo = m_hi = width_lo = width_hi = gof_p = nan
    if replicates.shape[1]:
        refitted = fit_logistic(x, replicates, weights)
        m_lo, m_hi = _limits(refitted.m, float(fit.m[0]), box.low[0], box.high[0], conf)
        log_width = float(np.log(fit.width[0]))
        width_lo, width_hi = np.exp(_limits(np.log(refitted.width), log_width, box.low[1], box.high[1], conf))
        if np.ptp(replicates, axis=1).max() > FLAT:
            moved = replicates - means[:, None] + fit.curve(x)
            rss = fit_on_grid(x, np.column_stack([means, moved]), weights).rss
            gof_p = float((rss >= rss[0]).mean())
    found = {
        "m_at_bound": _at(fit.m[0], (box.low[0], box.high[0])),
        "width_at_bound": _at(np.log(fit.width[0]), (box.low[1], box.high[1])),
        "shape_rejected": gof_p < LEVEL and fit.rss[0] > MISFIT * fit.flat_rss[0],
        "interval_unbounded": np.isnan(m_lo) or np.isnan(m_hi),
    }
    return {
        "m_lo": m_lo,
        "m_hi": m_hi,
        "width_lo": float(width_lo),
        "width_hi": float(width_hi),
        "gof_p": gof_p,
        "logistic_flags": ",".join(name for name, holds in found.items() if holds),
    }


def _limits(values: Array, point: float, low: float, high: float, conf: float) -> tuple[float, float]:
    """Percentile limits; nan for one at the bound of its side, for both where they are the same.

    They hold the point: where a step of the curve fits equally well anywhere between two budgets, the replicates may all
    have come to rest on one side of it.
    """
    lower, upper = np.quantile(values, [(1 - conf) / 2, (1 + conf) / 2])
    if upper <= lower:
        return nan, nan
    lower, upper = min(lower, point), max(upper, point)
    return (
        nan if _at(lower, (low,)) else float(lower),
        nan if _at(upper, (high,)) else float(upper),
    )


def _at(value: float, bounds: Sequence[float]) -> bool:
    return any(abs(value - bound) < AT_BOUND for bound in bounds)


def _without(status: str, drop_p: float) -> Row:
    """The columns where there is no fit: the status, and no number but that of the drop test."""
    values: Row = {name: nan for name, kind in LOGISTIC.items() if kind == "float64"}
    return values | {"logistic_status": status, "m_label": status, "drop_p": drop_p, "logistic_flags": ""}
