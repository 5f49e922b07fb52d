"""The intervals that are mostly used, to stand beside the reported ones in `coverage.py`.

All take the clusters (n,) and scores (sets, n), and give the lower and upper limits of each data set.
"""

from __future__ import annotations

import numpy as np
from made_up_scores import Array, Clusters

from kv_transition.analysis.bootstrap import resampled_ratio, resampled_sums, stream_key
from kv_transition.analysis.intervals import percentile_limits

#: Replicates, and data sets that are resampled at once.
REPLICATES, BLOCK = 2_000, 500
Z95 = 1.959964


def normal_mean(clusters: Clusters, scores: Array) -> tuple[Array, Array]:
    """Mean -+ 1.96 s / sqrt(n); clusters are not looked at."""
    half = Z95 * scores.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])
    return scores.mean(axis=1) - half, scores.mean(axis=1) + half


def normal_difference(clusters: Clusters, compressed: Array, full: Array) -> tuple[Array, Array]:
    """The same for paired differences."""
    return normal_mean(clusters, compressed - full)


def normal_ratio(clusters: Clusters, compressed: Array, full: Array) -> tuple[Array, Array]:
    """The same for the ratio of means, by the delta method."""
    below = full.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = compressed.mean(axis=1) / below
        lo, hi = normal_mean(clusters, compressed - ratio[:, None] * full)
        return ratio + lo / below, ratio + hi / below


def percentile_ratio(clusters: Clusters, numerator: Array, denominator: Array) -> tuple[Array, Array]:
    """Bootstrap percentile interval of a ratio of sums, clusters resampled."""
    starts = np.flatnonzero(np.diff(clusters, prepend=-1))
    key = stream_key(1, "coverage", len(clusters))
    parts = []
    for first in range(0, len(numerator), BLOCK):
        sums = [np.add.reduceat(v[first : first + BLOCK], starts, axis=1) for v in (numerator, denominator)]
        totals = resampled_sums(np.concatenate(sums), key, REPLICATES)
        parts.append(np.stack(percentile_limits(resampled_ratio(*np.split(totals, 2)))))
    lo, hi = np.concatenate(parts, axis=1)
    return lo, hi


def percentile_mean(clusters: Clusters, scores: Array) -> tuple[Array, Array]:
    """Bootstrap percentile interval of a mean."""
    return percentile_ratio(clusters, scores, np.ones_like(scores))


def percentile_difference(clusters: Clusters, compressed: Array, full: Array) -> tuple[Array, Array]:
    """Bootstrap percentile interval of a paired difference."""
    return percentile_mean(clusters, compressed - full)
