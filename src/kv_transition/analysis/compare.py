"""Two sets of predictions for the same records: paired differences of their task scores, with intervals and tests.

Predictions files do not tell which records share a document, so every row counts as its own cluster; where documents
repeat, the intervals are too narrow by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr

from kv_transition.analysis.intervals import difference_interval, t_quantile
from kv_transition.data.predictions import Prediction
from kv_transition.errors import UserError
from kv_transition.eval.task_scores import task_score


@dataclass(frozen=True)
class Difference:
    """B minus A, in points of a score from 0 to 100; nan where one row alone gives no limits.

    Attributes
    ----------
    task : name of the task, "macro mean" for the mean over tasks.
    n : rows; for the macro mean, tasks.
    score_a, score_b : the scores as LongBench writes them.
    lo, hi : confidence limits. p : two-sided p value. p_holm : p adjusted over the tasks.
    status : "ok", "degenerate" (all rows differ by the same amount: limits and p come from two pseudo-values) or "too_few".
    """

    task: str
    n: int
    score_a: float
    score_b: float
    difference: float
    lo: float
    hi: float
    se: float
    df: int
    p: float
    p_holm: float = nan
    status: str = "ok"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.lo > 0 or self.hi < 0


@dataclass(frozen=True)
class Comparison:
    """The tasks' differences, in order, and the mean over them (None for a single task)."""

    conf: float
    tasks: tuple[Difference, ...]
    macro: Difference | None


def check_pairs(task: str, a: Sequence[Prediction], b: Sequence[Prediction], names: tuple[str, str]) -> None:
    """Fail unless row by row both answer the same record, as far as the reference answers and lengths tell.

    Raises
    ------
    UserError
        Naming the first row that differs, or the numbers of rows.
    """
    for first, second in zip(a, b, strict=False):
        lengths = {first.length, second.length} - {None}
        if first.answers != second.answers or len(lengths) > 1:
            what = "length" if first.answers == second.answers else "list of reference answers"
            raise UserError(
                f"{task}: row {first.row} (from 0) has another {what} in {names[0]} than in {names[1]}, so the files cannot "
                "be paired; bring both into the records' order, or name the tasks to compare with --task"
            )
    if len(a) != len(b):
        raise UserError(
            f"{task}: {len(a)} rows in {names[0]}, {len(b)} in {names[1]}; complete the shorter file, take doubled rows out, or name the tasks to compare with --task"
        )


def compare_tasks(scores: Mapping[str, tuple[ArrayLike, ArrayLike]], conf: float = 0.95) -> Comparison:
    """Compare two sets of scores, paired by row.

    Parameters
    ----------
    scores : task -> (scores of A, scores of B), each (n,), in [0, 1], the same rows in the same order.

    Returns
    -------
    Paired t intervals and tests of each task, p values adjusted by Holm over the tasks, and the macro mean.

    References
    ----------
    Holm (1979), Scand. J. Stat. 6:65.
    """
    found = [_difference(task, a, b, conf) for task, (a, b) in scores.items()]
    adjusted = holm([one.p for one in found])
    tasks = tuple(replace(one, p_holm=p) for one, p in zip(found, adjusted, strict=True))
    return Comparison(conf, tasks, _macro_mean(tasks, conf) if len(tasks) > 1 else None)


def _difference(task: str, a: ArrayLike, b: ArrayLike, conf: float) -> Difference:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n = len(first)
    interval = difference_interval(second, first, np.arange(n), conf)
    se, df, p = interval.se, n - 1, interval.p
    if interval.status == "degenerate":
        # The spread and the test that belong to the limits: two pseudo-values are two more clusters.
        df = n + 1
        se = (interval.hi - interval.point) / t_quantile(conf, df)
        p = 2 * float(stdtr(df, -abs(interval.point) / se))
    return Difference(
        task=task,
        n=n,
        score_a=task_score(first.tolist()),
        score_b=task_score(second.tolist()),
        difference=100 * interval.point,
        lo=100 * interval.lo,
        hi=100 * interval.hi,
        se=100 * se,
        df=df,
        p=p,
        status=interval.status,
    )


def _macro_mean(tasks: Sequence[Difference], conf: float) -> Difference:
    """Mean of the tasks' differences: each task counts the same, whatever its rows.

    The tasks are taken as independent: se = sqrt(sum of se_t^2) / tasks, with a t quantile at Satterthwaite's degrees of
    freedom, (sum of se_t^2)^2 / sum of (se_t^4 / df_t), rounded down. A task without limits leaves the mean without.

    References
    ----------
    Satterthwaite (1946), Biometrics Bulletin 2:110.
    """
    k = len(tasks)
    point = sum(task.difference for task in tasks) / k
    mean = Difference(
        task="macro mean",
        n=k,
        score_a=round(sum(task.score_a for task in tasks) / k, 2),
        score_b=round(sum(task.score_b for task in tasks) / k, 2),
        difference=point,
        lo=nan,
        hi=nan,
        se=nan,
        df=0,
        p=nan,
        status="too_few",
    )
    if any(isnan(task.se) for task in tasks):
        return mean
    variances = np.array([task.se for task in tasks]) ** 2
    total = float(variances.sum())
    se = sqrt(total) / k
    df = int(total**2 / np.sum(variances**2 / np.array([task.df for task in tasks])))
    half = t_quantile(conf, df) * se
    p = 2 * float(stdtr(df, -abs(point) / se))
    return replace(mean, lo=point - half, hi=point + half, se=se, df=df, p=p, status="ok")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order; nan (no test) stays nan and does not count.

    References
    ----------
    Holm (1979), Scand. J. Stat. 6:65.
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return [float(value) for value in adjusted]
