"""The score of a task from those of its rows, with the arithmetic of LongBench's own evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredRow:
    """Scores of one prediction in [0, 1], and the label of what went wrong with it, if anything."""

    row: int
    length: int | None
    score: float
    em: float
    f1: float
    failure: str | None


def task_score(scores: Iterable[float]) -> float:
    """The score of a task as LongBench writes it: the mean times 100, rounded to two places.

    The scores, at least one, are added one by one in their order: any other summation (compensated, pairwise) can differ
    in the last bit, and then in the second place.
    """
    total, count = 0.0, 0
    for score in scores:
        total += score
        count += 1
    return round(100 * total / count, 2)
