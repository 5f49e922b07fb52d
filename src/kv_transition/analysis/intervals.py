"""Closed-form intervals and one-sided tests for scores in [0, 1], clustered by source context.

Every function takes plain arrays and returns values. C is the number of clusters, t the Student quantile with C - 1
degrees of freedom. Where the sample has no spread the interval is widened by two pseudo-observations half a point
above and below, so that no interval has zero width and identical answers alone are never proof.

scipy.special takes a third of a second to import: it is imported where it is used, as cells and figures need only the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

#: Spread below which a sample counts as constant: far under any score difference, far over rounding noise.
NO_SPREAD = 1e-12
#: Half the width of the score range: the distance of the pseudo-observations from their centre.
PSEUDO = 0.5
#: Normal quantiles of a one-sided 5 % test with power 0.8, added: z(.95) + z(.8).
MDE_FACTOR = 2.486
#: Replicates that tell where the tails of the others begin.
SAMPLED = 512


@dataclass(frozen=True)
class Interval:
    """A point with its limits; a limit that does not exist is nan and `status` says why."""

    point: float
    lo: float = nan
    hi: float = nan
    se: float = nan
    p: float = nan
    status: str = "ok"


def cluster_codes(clusters: ArrayLike) -> Codes:
    """Number cluster labels 0, 1, ... in sorted order."""
    return np.unique(np.asarray(clusters), return_inverse=True)[1].astype(np.int64).ravel()


def cluster_sums(values: Array, codes: Codes) -> Array:
    """Sums over each cluster that occurs: (n,) or (n, k) values give (C,) or (C, k)."""
    present = np.bincount(codes) > 0
    columns = values[:, None] if values.ndim == 1 else values
    sums = np.stack([np.bincount(codes, weights=column)[present] for column in columns.T], axis=1)
    return np.asarray(sums[:, 0] if values.ndim == 1 else sums, dtype=np.float64)


def clustered_variance(values: Array, codes: Codes) -> tuple[float, int]:
    """Squared clustered standard error of the mean and the number of clusters.

    C / (C - 1) times the sum over clusters of the squared sum of deviations, over n^2; for clusters of one example this
    is s^2 / n. nan for fewer than two clusters.

    References
    ----------
    Miller (2024), arXiv 2411.00640, with the finite-cluster factor.
    """
    n = len(values)
    if n == 0:
        return nan, 0
    sums = cluster_sums(values - values.mean(), codes)
    n_clusters = len(sums)
    if n_clusters < 2:
        return nan, n_clusters
    return float(n_clusters / (n_clusters - 1) * np.sum(sums * sums) / n**2), n_clusters


def clustered_covariance(values: Array, codes: Codes) -> tuple[Array, int]:
    """The same for vectors: (n, k) values give the (k, k) covariance of the k means."""
    n = len(values)
    sums = cluster_sums(values - values.mean(axis=0), codes)
    n_clusters = len(sums)
    if n_clusters < 2:
        return np.full((values.shape[1],) * 2, nan), n_clusters
    products = np.sum(sums[:, :, None] * sums[:, None, :], axis=0)
    return n_clusters / (n_clusters - 1) * products / n**2, n_clusters


def t_quantile(conf: float, df: int) -> float:
    """Two-sided Student quantile: t with P(|T| <= t) = conf."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + conf) / 2))


def _as_arrays(values: ArrayLike, clusters: ArrayLike) -> tuple[Array, Codes]:
    return np.asarray(values, dtype=np.float64), cluster_codes(clusters)


def mean_interval(scores: ArrayLike, clusters: ArrayLike, conf: float = 0.95) -> Interval:
    """Quasi-Wilson interval of a mean score.

    The score interval of the fractional-logit quasi-likelihood: Wilson's interval with the dispersion estimated from
    the clusters and a t quantile. For 0/1 scores it is Wilson's interval with t.

    Parameters
    ----------
    scores : (n,) scores in [0, 1].
    clusters : (n,) labels; examples that share a context share a label.

    Returns
    -------
    Interval with `status` "ok", "no_scores" (n = 0) or "too_few" (one cluster: a point without limits).

    References
    ----------
    Wilson (1927), J. Am. Stat. Assoc. 22:209; Papke and Wooldridge (1996), J. Appl. Econom. 11:619.
    """
    y, codes = _as_arrays(scores, clusters)
    n = len(y)
    if n == 0:
        return Interval(nan, status="no_scores")
    mean = float(y.mean())
    variance, n_clusters = clustered_variance(y, codes)
    if n_clusters < 2:
        return Interval(mean, status="too_few")
    bernoulli = max(mean * (1 - mean), 0.0)
    dispersion = 1.0 if bernoulli <= NO_SPREAD or variance <= NO_SPREAD**2 else n * variance / bernoulli
    dispersion = max(dispersion, 1 / n)
    if n_clusters == n:
        dispersion = min(dispersion, n / (n - 1))
    k = t_quantile(conf, n_clusters - 1) ** 2 * dispersion / n
    centre = (mean + k / 2) / (1 + k)
    half = sqrt(k * bernoulli + k * k / 4) / (1 + k)
    # With a mean of exactly 0 or 1 the limit equals the mean up to rounding; the interval always holds its point.
    lo, hi = min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean)
    return Interval(mean, lo, hi, se=sqrt(variance))


def _pseudo_half_width(n: int, n_clusters: int, conf: float) -> float:
    """Half-width of the t interval of a constant sample plus two pseudo-values at distance PSEUDO, own clusters each."""
    total = n_clusters + 2
    se = sqrt(total / (total - 1) * 2 * PSEUDO**2) / (n + 2)
    return t_quantile(conf, total - 1) * se


def difference_interval(
    compressed: ArrayLike, full: ArrayLike, clusters: ArrayLike, conf: float = 0.95
) -> Interval:
    """Paired t interval of a mean difference, compressed minus full.

    Parameters
    ----------
    compressed, full : (n,) scores of the same examples, in the same order.
    clusters : (n,) labels; examples that share a context share a label.

    Returns
    -------
    Interval with two-sided `p` and `status` "ok", "degenerate" (no spread: the limits come from two pseudo-values and
    p is 1 for no difference, else 0), "no_pairs" or "too_few" (one cluster: a point without limits).
    """
    y, codes = _as_arrays(compressed, clusters)
    d = y - np.asarray(full, dtype=np.float64)
    n = len(d)
    if n == 0:
        return Interval(nan, status="no_pairs")
    mean = float(d.mean())
    variance, n_clusters = clustered_variance(d, codes)
    if n_clusters < 2:
        return Interval(mean, status="too_few")
    se = sqrt(variance)
    if se <= NO_SPREAD:
        half = _pseudo_half_width(n, n_clusters, conf)
        p = 1.0 if abs(mean) <= NO_SPREAD else 0.0
        return Interval(mean, mean - half, mean + half, se=0.0, p=p, status="degenerate")
    from scipy.special import stdtr

    half = t_quantile(conf, n_clusters - 1) * se
    p = 2 * float(stdtr(n_clusters - 1, -abs(mean) / se))
    return Interval(mean, mean - half, mean + half, se=se, p=p)


def minimum_detectable_effect(difference: Interval, n_clusters: int, conf: float = 0.95) -> float:
    """Smallest true difference that a one-sided 5 % test finds with power 0.8, from the observed spread.

    MDE_FACTOR times the standard error of the paired difference; for a sample without spread the standard error is the
    one behind its pseudo-value limits, so that identical answers are not taken for infinite precision.
    """
    if difference.status != "degenerate":
        return MDE_FACTOR * difference.se
    return MDE_FACTOR * (difference.hi - difference.point) / t_quantile(conf, n_clusters + 1)


def fieller_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: ArrayLike,
    conf: float = 0.95,
    lower_bound: float = 0.0,
) -> Interval:
    """Interval of the ratio of two paired means (retention: compressed over full).

    Parameters
    ----------
    numerator, denominator : (n,) scores of the same examples, in the same order.
    clusters : (n,) labels; examples that share a context share a label.
    lower_bound : the lowest value the ratio can take (0 for scores, -inf for differences of scores).

    Returns
    -------
    Interval with `status` "ok"; "ok_degenerate" (the numerator is the same multiple of the denominator in every
    pair: the limits come from two pseudo-values); "unbounded_weak_reference" (the denominator is not clearly away from
    0: a point without limits); "undefined_full_zero" (denominator 0: no point either); "no_pairs"; "too_few".

    References
    ----------
    Fieller (1954), J. R. Stat. Soc. B 16:175.
    """
    top, codes = _as_arrays(numerator, clusters)
    bottom = np.asarray(denominator, dtype=np.float64)
    n = len(top)
    if n == 0:
        return Interval(nan, status="no_pairs")
    b, f = float(top.mean()), float(bottom.mean())
    if abs(f) <= NO_SPREAD:
        return Interval(nan, status="undefined_full_zero")
    ratio = b / f
    covariance, n_clusters = clustered_covariance(np.stack([top, bottom], axis=1), codes)
    if n_clusters < 2:
        return Interval(ratio, status="too_few")
    t2 = t_quantile(conf, n_clusters - 1) ** 2
    a = f * f - t2 * float(covariance[1, 1])
    if a <= 0:
        return Interval(ratio, status="unbounded_weak_reference")
    residual_variance, _ = clustered_variance(top - ratio * bottom, codes)
    if residual_variance <= NO_SPREAD**2:
        half = _pseudo_half_width(n, n_clusters, conf) / abs(f)
        return Interval(ratio, max(ratio - half, lower_bound), ratio + half, status="ok_degenerate")
    h = b * f - t2 * float(covariance[0, 1])
    c = b * b - t2 * float(covariance[0, 0])
    root = sqrt(max(h * h - a * c, 0.0))
    return Interval(ratio, max((h - root) / a, lower_bound), (h + root) / a)


def augmented_tests(values: ArrayLike, clusters: ArrayLike) -> tuple[float, float]:
    """One-sided t tests of a mean against 0, steadied by a pseudo-pair.

    -0.5 and +0.5 are appended as two clusters of their own, so that a near-constant sample cannot reject by luck.

    Returns
    -------
    (p_up, p_down): p_up tests "the mean is at most 0", p_down "the mean is at least 0". nan for fewer than two clusters.
    """
    e, codes = _as_arrays(values, clusters)
    n_clusters = int(codes.max()) + 1 if len(codes) else 0
    if n_clusters < 2:
        return nan, nan
    from scipy.special import stdtr

    augmented = np.concatenate([e, [-PSEUDO, PSEUDO]])
    variance, total = clustered_variance(augmented, np.concatenate([codes, [n_clusters, n_clusters + 1]]))
    statistic = float(augmented.mean()) / sqrt(variance)
    return float(stdtr(total - 1, -statistic)), float(stdtr(total - 1, statistic))


def equivalence_tests(differences: ArrayLike, clusters: ArrayLike, delta: float) -> tuple[float, float]:
    """Non-inferiority and equivalence within `delta` (absolute) of a mean paired difference.

    Returns
    -------
    (ni_p, tost_p): ni_p tests "worse by at least delta"; tost_p is the larger of both one-sided tests.

    References
    ----------
    Schuirmann (1987), J. Pharmacokinet. Biopharm. 15:657.
    """
    d = np.asarray(differences, dtype=np.float64)
    ni_p = augmented_tests(d + delta, clusters)[0]
    return ni_p, float(np.maximum(ni_p, augmented_tests(d - delta, clusters)[1]))


def percentile_limits(replicates: Any, conf: float = 0.95) -> tuple[Array, Array]:
    """Percentile limits along the last axis (numpy's linear quantile, to the bit); nan replicates are left out."""
    values = np.asarray(replicates, dtype=np.float64)
    limits = np.full((2, *values.shape[:-1]), nan)
    incomplete = np.asarray(np.isnan(values).any(axis=-1))
    for row in np.ndindex(values.shape[:-1]):
        known = values[row][~np.isnan(values[row])] if incomplete[row] else values[row]
        if len(known):
            for side, level in enumerate(((1 - conf) / 2, (1 + conf) / 2)):
                limits[(side, *row)] = _quantile(known, level)
    return limits[0], limits[1]


def _quantile(values: Array, level: float) -> float:
    """Linear (type 7) quantile, with numpy's own order of operations."""
    position = (len(values) - 1) * level
    below = int(position)
    low, high = _neighbours(values, below)
    part = position - below
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def _neighbours(values: Array, below: int) -> tuple[float, float]:
    """The values at the positions `below` and `below` + 1 of the sorted values.

    Near an end only the values beyond a bound are put into order: half of what a full selection costs and more. The
    bound is guessed from the first values, so that about twice as many lie beyond it as are needed; where the guess
    was too narrow all values are looked at.
    """
    size, above = len(values), min(below + 1, len(values) - 1)
    upper = 2 * below > size
    rank = ceil(2 * SAMPLED * (size - below if upper else above + 1) / size)
    tail, skipped = values, 0
    if size > SAMPLED > rank:
        sample = np.sort(values[:SAMPLED])
        beyond = values[values >= sample[-1 - rank] if upper else values <= sample[rank]]
        left_out = size - len(beyond) if upper else 0
        if left_out <= below and above < left_out + len(beyond):
            tail, skipped = beyond, left_out
    ordered = np.partition(tail, (below - skipped, above - skipped))
    return float(ordered[below - skipped]), float(ordered[above - skipped])
