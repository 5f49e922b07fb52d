"""Compressed cells against the full cache: everything is paired by example."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import numpy as np

from kv_transition.analysis.cells import Array, DatasetScores, Indices
from kv_transition.analysis.intervals import (
    difference_interval,
    equivalence_tests,
    fieller_interval,
    minimum_detectable_effect,
)
from kv_transition.analysis.tables import Row


@dataclass(frozen=True)
class PairScores:
    """Scores of compressed cells and of their references under one policy; nan where missing.

    compressed is (cells, n); full, no_context and clusters are (n,). no_context is None where it was not run.
    """

    compressed: Array
    full: Array
    no_context: Array | None
    clusters: Indices

    def of(self, members: Indices) -> PairScores:
        """The same for some of the examples."""
        floor = None if self.no_context is None else self.no_context[members]
        return PairScores(self.compressed[:, members], self.full[members], floor, self.clusters[members])

    def paired(self, i: int) -> Indices:
        """The examples with a score of cell i and of the full cache."""
        return np.flatnonzero(~np.isnan(self.compressed[i]) & ~np.isnan(self.full))

    def sums(self) -> tuple[Array, Array, Array]:
        """Bootstrap columns, (cells, n) each: compressed, full and 1, all 0 where there is no pair."""
        paired = ~np.isnan(self.compressed) & ~np.isnan(self.full)
        return (
            np.where(paired, self.compressed, 0.0),
            np.where(paired, self.full, 0.0),
            paired.astype(np.float64),
        )


def pair_scores(data: DatasetScores, policy: str) -> PairScores:
    """All compressed cells of a dataset beside `full` and `no_context`."""
    scores = data.under(policy)
    full, floor = data.row("full"), data.row("no_context")
    return PairScores(
        compressed=scores[data.compressed()],
        full=scores[full] if full is not None else np.full(scores.shape[1], nan),
        no_context=None if floor is None else scores[floor],
        clusters=data.clusters,
    )


def pair_values(pairs: PairScores, i: int, gate: tuple[str, str], conf: float, delta: float) -> Row:
    """Retention, difference and tests of cell i; `gate` is (gate, floor) of `gates.bin_gate`."""
    examples = pairs.paired(i)
    y, f, clusters = pairs.compressed[i, examples], pairs.full[examples], pairs.clusters[examples]
    n_clusters, judged = len(np.unique(clusters)), gate[0] == "ok"
    ratio = fieller_interval(y, f, clusters, conf)
    difference = difference_interval(y, f, clusters, conf)
    ni_p, tost_p = equivalence_tests(y - f, clusters, delta) if judged else (nan, nan)
    values: Row = {
        "n_pairs": len(examples),
        "n_clusters": n_clusters,
        "gate": gate[0],
        "R": ratio.point,
        "R_lo": ratio.lo if judged else nan,
        "R_hi": ratio.hi if judged else nan,
        "status": ratio.status if judged else gate[0],
        "diff": difference.point,
        "diff_se": difference.se,
        "diff_lo": difference.lo,
        "diff_hi": difference.hi,
        "diff_p": difference.p,
        "degenerate": difference.status == "degenerate",
        "ni_p": ni_p,
        "tost_p": tost_p,
        "delta": delta,
        "mde": minimum_detectable_effect(difference, n_clusters, conf),
    }
    return values | _floor_adjusted(pairs, i, gate, conf)


def _floor_adjusted(pairs: PairScores, i: int, gate: tuple[str, str], conf: float) -> Row:
    """Retention above the floor, (y_b - y_0) / (y_full - y_0), over the examples that have all three scores."""
    if gate[0] != "ok" or gate[1] != "ok" or pairs.no_context is None:
        status = "floor_not_measured" if gate[0] == "ok" else gate[0]
        return {"R0": nan, "R0_lo": nan, "R0_hi": nan, "R0_status": status}
    examples = pairs.paired(i)
    examples = examples[~np.isnan(pairs.no_context[examples])]
    floor = pairs.no_context[examples]
    kept, whole = pairs.compressed[i, examples] - floor, pairs.full[examples] - floor
    ratio = fieller_interval(kept, whole, pairs.clusters[examples], conf, lower_bound=-inf)
    return {"R0": ratio.point, "R0_lo": ratio.lo, "R0_hi": ratio.hi, "R0_status": ratio.status}
