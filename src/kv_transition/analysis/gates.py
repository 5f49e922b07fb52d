"""Whether a bin's reference can carry a statement about retention at all.

Without these gates a task on which the full cache scores 0, or one that is answered without its context, would look
lossless at the smallest budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transition.analysis.intervals import augmented_tests, clustered_variance, t_quantile

Array = NDArray[np.float64]

#: Clusters below which a bin's reference is not judged.
MIN_CLUSTERS = 10
#: Mean score of the full cache below which there is nothing to retain.
MIN_REFERENCE_MEAN = 0.05
#: Level of the test that the full cache scores above the run without context.
FLOOR_LEVEL = 0.05


def reference_gate(full: Array, clusters: NDArray[Any], conf: float = 0.95) -> str:
    """Judge the full-cache scores of a bin.

    Parameters
    ----------
    full : (n,) scores of the uncompressed reference, nan where missing; clusters : (n,) integer labels.

    Returns
    -------
    "ok"; "no_reference" (no score); "too_few" (under MIN_CLUSTERS clusters); "reference_too_weak" (mean under
    MIN_REFERENCE_MEAN, or not above 0 at the confidence level).
    """
    present = ~np.isnan(full)
    scores = full[present]
    if len(scores) == 0:
        return "no_reference"
    codes = np.unique(clusters[present], return_inverse=True)[1]
    variance, n_clusters = clustered_variance(scores, codes)
    if n_clusters < MIN_CLUSTERS:
        return "too_few"
    mean = float(scores.mean())
    if mean < MIN_REFERENCE_MEAN or mean <= t_quantile(conf, n_clusters - 1) * np.sqrt(variance):
        return "reference_too_weak"
    return "ok"


def floor_gate(full: Array, no_context: Array | None, clusters: NDArray[Any]) -> str:
    """Judge whether the task needs its context, from the run with an empty context.

    Returns
    -------
    "ok" (the full cache scores above the floor); "context_not_needed" (it does not: a guesser also "retains");
    "floor_not_measured" (no run without context, or under MIN_CLUSTERS clusters of it).
    """
    if no_context is None:
        return "floor_not_measured"
    present = ~np.isnan(full) & ~np.isnan(no_context)
    if len(np.unique(clusters[present])) < MIN_CLUSTERS:
        return "floor_not_measured"
    p_up, _ = augmented_tests((full - no_context)[present], clusters[present])
    return "ok" if p_up <= FLOOR_LEVEL else "context_not_needed"


def bin_gate(
    full: Array, no_context: Array | None, clusters: NDArray[Any], conf: float = 0.95
) -> tuple[str, str]:
    """(gate, floor): the gate of a bin's retention and transition, and the state of its floor.

    The gate is the reference's; where that is ok and the floor was measured and not exceeded, "context_not_needed".
    """
    gate, floor = reference_gate(full, clusters, conf), floor_gate(full, no_context, clusters)
    return ("context_not_needed" if gate == "ok" and floor == "context_not_needed" else gate), floor
