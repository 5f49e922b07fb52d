"""Cluster bootstrap with one keyed random stream per (seed, dataset, bin).

The stream depends on the seed, the dataset and the bin alone, and the resampled clusters are the bin's clusters in the
manifest. So every method, budget and failure policy sees the same resamples (all differences are paired), and adding a
method, dropping a budget, reordering rows or changing the number of shards or cores leaves all other numbers as they
were. Only raw output of the bit generator is used: it is the same in every numpy version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Count matrices are made in blocks of rows of about this many entries: what a block needs stays in the processor's cache.
BLOCK_ENTRIES = 65_536
#: Examples in one cluster up to which resampled totals are exact (see `exact_grid`).
LARGEST_CLUSTER = 64


def stream_key(seed: int, dataset: str, bin_idx: int) -> int:
    """The 128-bit key of a bin's random stream."""
    digest = hashlib.sha256(f"{seed}|{dataset}|{bin_idx}|boot-v1".encode()).digest()
    return int.from_bytes(digest[:16], "little")


def resample_counts(key: int, n_clusters: int, replicates: int) -> Iterator[Array]:
    """How often each cluster is drawn: blocks of rows of the (replicates, n_clusters) count matrix.

    Each row draws n_clusters times with replacement from 32-bit words, low word first; the bias of the multiply-shift
    is under n_clusters / 2^32.
    """
    stream = np.random.Philox(key=key)
    # An even number of rows, so that a block ends between two 64-bit words.
    rows = max(2, BLOCK_ENTRIES // n_clusters // 2 * 2)
    first_of_row = np.repeat(np.arange(min(rows, replicates)) * n_clusters, n_clusters)
    for start in range(0, replicates, rows):
        block = min(rows, replicates - start)
        draws = block * n_clusters
        words = stream.random_raw((draws + 1) // 2).astype("<u8", copy=False).view("<u4")[:draws]
        # A 32-bit word times the number of clusters fits a signed 64-bit number.
        drawn = words.astype(np.int64)
        drawn *= n_clusters
        drawn >>= 32
        drawn += first_of_row[:draws]
        counts = np.bincount(drawn, minlength=draws).reshape(block, n_clusters)
        yield counts.astype(np.float64)


def exact_grid(sums: Array) -> Array:
    """Round cluster sums to a binary grid on which every resampled total is exact.

    A resample adds at most C times the largest cluster sum. With the grid fine enough for a double and coarse enough
    for that bound no addition rounds, so totals do not depend on the order of additions: neither the number of threads
    nor the other columns of the matrix product can change a bit. The rounding is far below the digits that are written.
    """
    bound = max(1, sums.shape[-1]) * LARGEST_CLUSTER
    scale = 2.0 ** (52 - bound.bit_length())
    return np.asarray(np.round(sums * scale) / scale, dtype=np.float64)


def resampled_sums(sums: Array, key: int, replicates: int) -> Array:
    """Totals over resampled clusters.

    Parameters
    ----------
    sums : (columns, C) sum of each column over each cluster of the bin, clusters sorted by id; 0 where absent.
    key : of `stream_key`.

    Returns
    -------
    (columns, replicates) totals.
    """
    columns, n_clusters = sums.shape
    totals = np.zeros((columns, replicates))
    if n_clusters == 0 or columns == 0:
        return totals
    on_grid = exact_grid(sums)
    start = 0
    for counts in resample_counts(key, n_clusters, replicates):
        np.matmul(on_grid, counts.T, out=totals[:, start : start + len(counts)])
        start += len(counts)
    return totals


def resampled_ratio(numerator: Array, denominator: Array) -> Array:
    """Replicates of a ratio; nan where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)
