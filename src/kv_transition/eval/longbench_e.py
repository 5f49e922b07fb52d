"""LongBench-E: scores by the length that the records themselves state, in the three bins of the official evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kv_transition.errors import UserError
from kv_transition.eval.task_scores import ScoredRow

#: Name of each bin and the length below which a record falls into it (words; in Chinese characters), never tokens.
BINS: tuple[tuple[str, float], ...] = (("0-4k", 4000), ("4-8k", 8000), ("8k+", float("inf")))


def e_bins(rows: Sequence[ScoredRow]) -> dict[str, float | None]:
    """Score of each bin as LongBench-E writes it: the mean times 100, rounded to two places; None for an empty bin.

    The mean and the rounding are numpy's, as there; they can differ from Python's own in the second place.

    Raises
    ------
    UserError
        Naming the line of a row without a length.
    """
    groups: dict[str, list[float]] = {name: [] for name, _ in BINS}
    for row in rows:
        if row.length is None:
            raise UserError(
                f"line {row.row + 1}: no length, which LongBench-E's bins need; add the record's length, or score without "
                "--longbench-e"
            )
        groups[next(name for name, upper in BINS if row.length < upper)].append(row.score)
    return {name: bin_score(scores) if scores else None for name, scores in groups.items()}


def bin_score(scores: Sequence[float]) -> float:
    """Score of one bin from those of its rows, in their order; mean and rounding are numpy's, as there."""
    return float(round(100 * np.mean(scores), 2))
