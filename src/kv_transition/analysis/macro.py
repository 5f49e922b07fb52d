"""Means over the tasks of an experiment: `macro.parquet`.

One row for each (method, budget, policy), `full` and `no_context` among them. Each task counts the same, whatever its number
of examples; examples of tasks with different metrics are never pooled. With one task there is nothing to average, and the
table is empty.

    n_tasks, tasks_missing  tasks in which the cell has a score (and is not infeasible), and the others' names; unless all
                            have it there are no numbers, because the mean of fewer tasks is another quantity
    tasks_not_judged        tasks that are in the mean although their reference gate is not "ok"
    mean, se, lo, hi        mean over tasks of the task's mean; se = sqrt(sum of se_t^2) / tasks, normal quantile, limits
                            within [0, 1]. Tasks are taken as given, not as a sample of all tasks
    R, R_lo, R_hi           retention of the macro mean: the mean over tasks of the cell's score on its pairs with `full`,
                            by that of `full` on the same pairs; bootstrap percentiles, resampled by task and stratified by
                            bin, each task from its own stream. The limits are null where resampling cannot move R (`full`:
                            1 by definition) or more than MAX_ZERO_DENOMINATOR of the replicates have no value
    active_frac             mean over tasks of the share of examples in which compression is active; null without a budget
    unreliable              in one of the tasks too many requests of the cell timed out or failed in the engine
    status      "ok"; "tasks_missing" (no numbers); "too_few" (a task has one cluster: the mean and R alone, without limits);
                "degenerate" (in no task the scores vary: se is 0 and there are no limits of the mean)
    protocol, metric, length_unit   those of all tasks, joined with "+"
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from kv_transition.analysis.aggregate import MAX_ZERO_DENOMINATOR
from kv_transition.analysis.bootstrap import resampled_ratio
from kv_transition.analysis.cells import POOLED, Array, Clusters, DatasetScores, datasets
from kv_transition.analysis.gates import bin_gate
from kv_transition.analysis.intervals import NO_SPREAD, clustered_variance, percentile_limits
from kv_transition.analysis.pairs import pair_scores
from kv_transition.analysis.queries import read_examples
from kv_transition.analysis.tables import ABOUT, Columns, Row, columns, frame, write_table

if TYPE_CHECKING:
    import pandas as pd

KEYS: Columns = {"method": "string", "budget": "string", "budget_value": "float64", "policy": "string"}
MACRO: Columns = {
    **KEYS,
    **columns("int64", "n_tasks"),
    **columns("string", "tasks_missing tasks_not_judged"),
    **columns("float64", "mean se lo hi R R_lo R_hi active_frac"),
    **columns("bool", "unreliable"),
    **columns("string", "status"),
    **ABOUT,
}


@dataclass
class OverTasks:
    """What the tasks that have a cell add up to, under one policy.

    Attributes
    ----------
    tasks, means, variances, active : name, mean, squared standard error (nan with one cluster) and active share of each.
    compressed, full : sums over tasks of the mean on the pairs with `full`: the observed one and then the resampled ones,
        (1 + replicates,).
    """

    value: float
    unreliable: bool = False
    tasks: list[str] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    active: list[float] = field(default_factory=list)
    compressed: Array | float = 0.0
    full: Array | float = 0.0


#: (method, budget, policy) -> its sums.
Sums = dict[tuple[str, str, str], OverTasks]


def macro(table: pd.DataFrame, clusters: Clusters, cfg: Mapping[str, Any]) -> pd.DataFrame:
    """Macro means and their retention; see the module's page for the columns.

    Parameters
    ----------
    table : one row for each cell and example, as `queries.example_table` gives it: all tasks of the experiment.
    clusters : (dataset, bin_idx) -> sorted cluster ids of the bin in the manifest.
    cfg : conf, seed, bootstrap_replicates, policies, max_infrastructure_failures.
    """
    tasks = sorted(table["task"].unique())
    if len(tasks) < 2:
        return frame([], MACRO)
    sums: Sums = {}
    gates: dict[str, dict[str, str]] = {policy: {} for policy in cfg["policies"]}
    about: dict[str, set[str]] = {name: set() for name in ABOUT}
    for data in datasets(table, clusters):
        _add_task(sums, gates, data, cfg)
        for name, values in about.items():
            values.update(data.about[name].split("+"))
    joined = {name: "+".join(sorted(values - {""})) for name, values in about.items()}
    rows = []
    for (method, budget, policy), cell in sums.items():
        keys = dict(zip(KEYS, (method, budget, cell.value, policy), strict=True))
        rows.append(keys | _values(cell, tasks, gates[policy], cfg["conf"]) | joined)
    return frame(rows, MACRO)


def _add_task(
    sums: Sums, gates: dict[str, dict[str, str]], data: DatasetScores, cfg: Mapping[str, Any]
) -> None:
    """Add one task to the sums of its cells; a cell without a score gets its entry, but not the task."""
    groups, everyone = data.policy_groups(cfg["policies"]), data.members(POOLED)
    columns_of = {policy: _paired_columns(data, policy) for policy in groups}
    stacked = np.concatenate(list(columns_of.values()))
    in_bins = data.resampled(stacked, cfg["seed"], cfg["bootstrap_replicates"])
    _, totals = deque(in_bins, maxlen=1).pop()  # the last are those of all bins
    for (policy, same), resampled in zip(groups.items(), np.split(totals, len(groups)), strict=True):
        observed = columns_of[policy].sum(axis=1, keepdims=True)
        compressed, full, pairs = np.split(np.concatenate([observed, resampled], axis=1), 3)
        with np.errstate(divide="ignore", invalid="ignore"):
            compressed, full = compressed / pairs, full / pairs
        references = pair_scores(data, policy)
        gate, _ = bin_gate(references.full, references.no_context, data.clusters, cfg["conf"])
        scores = data.under(policy)
        for row, (cell, y) in enumerate(zip(data.cells, scores, strict=True)):
            scored = ~np.isnan(y)
            for name in same:
                gates[name][data.task] = gate
                entry = sums.setdefault((cell.method, cell.budget, name), OverTasks(cell.value))
                if not scored.any() or data.nothing_asked(row, everyone):
                    continue
                entry.tasks.append(data.task)
                entry.means.append(float(y[scored].mean()))
                entry.variances.append(clustered_variance(y[scored], data.clusters[scored])[0])
                entry.active.append(data.active_share(row, everyone))
                failed = data.infrastructure_share(row, everyone)
                entry.unreliable |= failed > cfg["max_infrastructure_failures"]
                entry.compressed = entry.compressed + compressed[row]
                entry.full = entry.full + full[row]


def _paired_columns(data: DatasetScores, policy: str) -> Array:
    """Bootstrap columns (3 cells, n): score, score of `full` and 1 where the example has both, else 0."""
    scores, row = data.under(policy), data.row("full")
    full = np.full_like(scores, nan) if row is None else np.broadcast_to(scores[row], scores.shape)
    paired = ~np.isnan(scores) & ~np.isnan(full)
    return np.concatenate([np.where(paired, scores, 0.0), np.where(paired, full, 0.0), paired])


def _values(cell: OverTasks, tasks: Sequence[str], gates: Mapping[str, str], conf: float) -> Row:
    """All columns of one cell but its keys and what is said of the tasks."""
    missing = [task for task in tasks if task not in cell.tasks]
    values: Row = {
        "n_tasks": len(cell.tasks),
        "tasks_missing": ",".join(missing),
        "tasks_not_judged": ",".join(task for task in cell.tasks if gates[task] != "ok"),
        **dict.fromkeys(("mean", "se", "lo", "hi", "R", "R_lo", "R_hi", "active_frac"), nan),
        "unreliable": cell.unreliable,
        "status": "tasks_missing",
    }
    if missing:
        return values
    mean, se = float(np.mean(cell.means)), sqrt(sum(cell.variances)) / len(tasks)
    ratio = resampled_ratio(np.asarray(cell.compressed), np.asarray(cell.full))
    values |= {
        "mean": mean,
        "R": float(ratio[0]),
        "active_frac": float(np.mean(cell.active)),
        "status": "too_few",
    }
    if isnan(se):
        return values
    half = float(ndtri((1 + conf) / 2)) * se
    moved = se > NO_SPREAD
    values |= {
        "se": se if moved else 0.0,
        "lo": max(mean - half, 0.0) if moved else nan,
        "hi": min(mean + half, 1.0) if moved else nan,
        "status": "ok" if moved else "degenerate",
    }
    return values | _limits(ratio[1:], conf)


def _limits(replicates: Array, conf: float) -> Row:
    """Percentile limits of R, where it has a distribution."""
    valid = replicates[~np.isnan(replicates)]
    if len(valid) < (1 - MAX_ZERO_DENOMINATOR) * len(replicates) or np.ptp(valid) <= NO_SPREAD:
        return {"R_lo": nan, "R_hi": nan}
    lo, hi = percentile_limits(valid, conf)
    return {"R_lo": float(lo), "R_hi": float(hi)}


def write_macro(
    score_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Scores and manifests in, `macro.parquet` out."""
    table = macro(*read_examples(score_paths, manifest_paths), cfg)
    write_table(table, MACRO, list(KEYS), cfg, out)
