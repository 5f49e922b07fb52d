"""Exact tests of paired scores, many tests at once: sign flips of the differences, and McNemar's for 0/1 scores."""

from __future__ import annotations

from math import nan

import numpy as np
from scipy.special import bdtr

from kv_transition.analysis.cells import Array
from kv_transition.analysis.intervals import NO_SPREAD

#: Non-zero differences up to which all their signs are gone through: 2^14 sums.
MAX_FLIPS = 14
#: Tests whose sums are held in memory together.
BLOCK_TESTS = 256


def sign_flip_test(sums: Array) -> Array:
    """Two-sided exact sign-flip (permutation) tests that paired differences are symmetric about 0.

    Whoever shares a context is flipped together, so the sums of the differences over each cluster go in. Clusters without
    a difference do not matter: p is the share of all sign patterns of the others whose total is at least as far from 0.

    Parameters
    ----------
    sums : (tests, C) sum of the differences over each cluster; 0 where a test has no such cluster.

    Returns
    -------
    (tests,) p-values; 1 where nothing differs, nan where more than MAX_FLIPS clusters do.

    References
    ----------
    Fisher (1935), The Design of Experiments, section 21.
    """
    differs = np.abs(sums) > NO_SPREAD
    counts = differs.sum(axis=1)
    p = np.full(len(sums), nan)
    p[counts == 0] = 1.0
    for count in range(1, MAX_FLIPS + 1):
        tests = np.flatnonzero(counts == count)
        for start in range(0, len(tests), BLOCK_TESTS):
            block = tests[start : start + BLOCK_TESTS]
            p[block] = _flipped(sums[block][differs[block]].reshape(len(block), count))
    return p


def _flipped(values: Array) -> Array:
    """p-values of (tests, m) differences, none of them 0. The first sign is fixed: flipping all changes no distance."""
    totals = values[:, :1]
    for column in values.T[1:]:
        totals = np.concatenate([totals + column[:, None], totals - column[:, None]], axis=1)
    observed = np.abs(values.sum(axis=1))
    # Sums that are equal but for rounding count as equally far.
    slack = NO_SPREAD * np.maximum(1.0, np.abs(values).sum(axis=1))
    return np.asarray(np.mean(np.abs(totals) >= (observed - slack)[:, None], axis=1), dtype=np.float64)


def mcnemar_test(n_only_a: Array, n_only_b: Array) -> Array:
    """Two-sided exact McNemar tests of paired 0/1 scores.

    The test takes the discordant pairs as independent: it knows no clusters, and is for examples of which no two share a
    context.

    Parameters
    ----------
    n_only_a, n_only_b : (tests,) pairs with score 1 on one side only.

    Returns
    -------
    (tests,) p-values; 1 without a discordant pair, nan where a count is nan.

    References
    ----------
    McNemar (1947), Psychometrika 12:153.
    """
    a, b = np.asarray(n_only_a, dtype=np.float64), np.asarray(n_only_b, dtype=np.float64)
    known = ~np.isnan(a) & ~np.isnan(b)
    p = np.full(a.shape, nan)
    fewer, discordant = np.minimum(a, b)[known], (a + b)[known].astype(np.int64)
    p[known] = np.minimum(2 * bdtr(fewer, discordant, 0.5), 1.0)
    return p
