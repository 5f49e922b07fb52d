"""Scores of a cell and its retention of the full cache's score: `bin_stats.parquet` and `retention.parquet`.

Both tables have one row for each (dataset, method, budget, bin, policy); bin_idx -1 is all bins pooled (examples
weighted equally, clusters taken across bins, bootstrap stratified by bin). An example whose `full` or `no_context`
request failed is left out of every cell (`n_reference_failed`). Cells that were never run have no row; a cell without
scores in a bin has a row with n = 0.

Every row says by which prompts (protocol), as which score (metric) and in which unit of length its numbers came about.

bin_stats, beside the keys
    n, n_clusters           examples with a score under the policy, and their clusters
    n_missing               selected examples without a score under the policy (absent, infeasible, not applicable, and
                            under "exclude" failed)
    n_infeasible, n_not_applicable   of these: what is fixed in the prompt fills the budget; the method has nothing to rank
                            by. Missing under both policies, never 0
    infeasible_frac         n_infeasible as a share of the bin's examples
    n_reference_failed      selected examples left out because their reference failed
    n_<failure label>       examples with that label, e.g. n_timeout; of several replicates the first label counts
    n_straddling_clusters   (bin_idx -1) clusters with examples in more than one bin
    truncated_frac          share of the bin's examples whose prompt was cut to the model's limit; null where not known
    mean_missing_0, mean_missing_1  bounds of the mean over all selected examples: those without a score count 0, or 1
    active_frac             share of the bin's examples in which the budget is below the prompt; null for full and no_context
    unreliable              more than `max_infrastructure_failures` of the cell timed out or failed in the engine
    verified_frac           share of examples whose kept tokens were measured in the cache
    bin_name                limits of the bin where they are not token_len (bins by the records' own length), else ""
    kept_*, token_len_*     over the cell's present examples
    mean, se, lo, hi        quasi-Wilson interval; null limits for fewer than 2 clusters
    boot_lo, boot_hi        bootstrap percentiles, a cross-check: of zero width where all scores are equal
    status                  "ok", "too_few" (fewer than 2 clusters: no interval) or "no_scores"; "infeasible" (more than
                            5 % of the examples are) and "not_applicable" (all are) have no mean and no interval

retention, beside the keys (methods with a budget only)
    gate        "ok", "no_reference", "too_few", "reference_too_weak", "context_not_needed": may the bin be judged?
    status      the gate where that is not "ok" (then R is a point without limits and the p-values are null), else
                "ok", "ok_degenerate" (identical answers; limits from pseudo-values), "unbounded_weak_reference",
                "undefined_full_zero", "no_pairs", "too_few"; before all of these "infeasible" and "not_applicable", with
                no R, no difference and no test
    R0_status   floor-adjusted retention: "floor_not_measured", the gate where that is not "ok", or as `status`
    diff_*      paired t interval of compressed minus full; diff_se is 0 and `degenerate` true without spread
    ni_p, tost_p, delta     non-inferiority and equivalence within `delta`
    mde         smallest difference found with power 0.8
    active_frac, unreliable as in bin_stats: such a cell is no evidence of a lossless budget, whatever its p-values
    boot_zero_den_frac      dropped bootstrap replicates (reference 0); above 1 % the bootstrap limits are null
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_transition.analysis.bootstrap import resampled_ratio
from kv_transition.analysis.cells import (
    ABSENT,
    POOLED,
    Array,
    Clusters,
    DatasetScores,
    Indices,
    datasets,
)
from kv_transition.analysis.gates import bin_gate
from kv_transition.analysis.intervals import mean_interval, percentile_limits
from kv_transition.analysis.pairs import pair_scores, pair_values
from kv_transition.analysis.queries import read_examples
from kv_transition.analysis.tables import ABOUT, CELL_KEYS, Columns, Row, columns, frame, write_table
from kv_transition.eval.failure_taxonomy import LABELS

if TYPE_CHECKING:
    import pandas as pd

#: Share of bootstrap replicates without a reference above which the bootstrap limits are not shown.
MAX_ZERO_DENOMINATOR = 0.01

BIN_STATS: Columns = {
    **CELL_KEYS,
    **columns("int64", "n n_clusters n_missing n_reference_failed"),
    **columns("int64", " ".join(f"n_{label.lower()}" for label in LABELS)),
    **columns("int64", "n_infeasible n_not_applicable"),
    **columns("float64", "infeasible_frac"),
    **columns("int64", "n_straddling_clusters"),
    **columns("float64", "truncated_frac active_frac"),
    **columns("bool", "unreliable"),
    **columns("float64", "verified_frac kept_min kept_mean kept_max"),
    **columns("float64", "token_len_min token_len_median token_len_max"),
    **columns("string", "bin_name"),
    **columns("float64", "mean se lo hi boot_lo boot_hi mean_missing_0 mean_missing_1 em_mean f1_mean"),
    **columns("string", "status"),
    **ABOUT,
}
RETENTION: Columns = {
    **CELL_KEYS,
    **columns("int64", "n_pairs n_clusters"),
    **columns("float64", "active_frac"),
    **columns("bool", "unreliable"),
    **columns("string", "gate"),
    **columns("float64", "R R_lo R_hi"),
    **columns("string", "status"),
    **columns("float64", "R0 R0_lo R0_hi"),
    **columns("string", "R0_status"),
    **columns("float64", "diff diff_se diff_lo diff_hi diff_p"),
    **columns("bool", "degenerate"),
    **columns("float64", "ni_p tost_p delta mde boot_lo boot_hi boot_zero_den_frac"),
    **ABOUT,
}

#: What a cell has not where nothing was asked.
_ESTIMATES = (
    *(
        "mean",
        "se",
        "lo",
        "hi",
        "boot_lo",
        "boot_hi",
        "mean_missing_0",
        "mean_missing_1",
        "em_mean",
        "f1_mean",
    ),
)
_RATIOS = (
    *("R", "R_lo", "R_hi", "R0", "R0_lo", "R0_hi", "diff", "diff_se", "diff_lo", "diff_hi", "diff_p"),
    *("ni_p", "tost_p", "mde", "boot_lo", "boot_hi"),
)


def bin_stats(table: pd.DataFrame, clusters: Clusters, cfg: Mapping[str, Any]) -> pd.DataFrame:
    """Counts, failures, mean score and its interval for every cell; see the module's page for the columns.

    Parameters
    ----------
    table : one row for each cell and example, as `queries.example_table` gives it.
    clusters : (dataset, bin_idx) -> sorted cluster ids of the bin in the manifest.
    cfg : conf, seed, bootstrap_replicates, max_infrastructure_failures, policies.
    """
    rows = [row for data in datasets(table, clusters) for row in _bin_stats_rows(data, cfg)]
    return frame(rows, BIN_STATS)


def retention(table: pd.DataFrame, clusters: Clusters, cfg: Mapping[str, Any]) -> pd.DataFrame:
    """Retention, paired difference and equivalence tests for every compressed cell; columns on the module's page.

    Parameters are those of `bin_stats`; `cfg` needs `delta` too.
    """
    rows = [row for data in datasets(table, clusters) for row in _retention_rows(data, cfg)]
    return frame(rows, RETENTION)


def with_keys(data: DatasetScores, row: int, bin_idx: int, policy: str, values: Row) -> Row:
    """A cell's key columns, its values, and what is to be said about them."""
    cell = data.cells[row]
    keys = (data.dataset, data.task, cell.method, bin_idx, cell.budget, cell.value, policy)
    return dict(zip(CELL_KEYS, keys, strict=True)) | values | data.about


def _bin_stats_rows(data: DatasetScores, cfg: Mapping[str, Any]) -> Iterator[Row]:
    groups = data.policy_groups(cfg["policies"])
    sums = np.concatenate([mean_sums(data.under(policy)) for policy in groups])
    for bin_idx, totals in data.resampled(sums, cfg["seed"], cfg["bootstrap_replicates"]):
        members = data.members(bin_idx)
        in_bin: Row = {
            "n_straddling_clusters": data.straddling_clusters() if bin_idx == POOLED else 0,
            "n_reference_failed": data.n_reference_failed(bin_idx),
            "bin_name": data.bin_names.get(bin_idx, ""),
            "truncated_frac": reduced(np.mean, data.truncated[members]),
        }
        for policy, block in zip(groups, np.split(totals, len(groups)), strict=True):
            measures = {name: data.under(policy, name)[:, members] for name in ("score", "em", "f1")}
            limits = percentile_limits(resampled_ratio(*np.split(block, 2)), cfg["conf"])
            for row in range(len(data.cells)):
                cell = {name: values[row] for name, values in measures.items()}
                values = (
                    in_bin
                    | _counts(data, row, members, cfg)
                    | _mean(cell, data.clusters[members], cfg["conf"])
                )
                shown = values["n_clusters"] > 1
                values |= {
                    f"boot_{side}": limits[i][row] if shown else nan for i, side in enumerate(("lo", "hi"))
                }
                if nothing := data.nothing_asked(row, members):
                    values |= dict.fromkeys(_ESTIMATES, nan) | {"status": nothing}
                for name in groups[policy]:
                    yield with_keys(data, row, bin_idx, name, values)


def mean_sums(scores: Array) -> Array:
    """Bootstrap columns of means: (cells, n) scores give (2 cells, n), scores and then 1 where there is one."""
    present = ~np.isnan(scores)
    return np.concatenate([np.where(present, scores, 0.0), present.astype(np.float64)])


def _mean(measures: Mapping[str, Array], clusters: Indices, conf: float) -> Row:
    """Mean score and interval of one cell in one bin, from its examples' measures."""
    scored = ~np.isnan(measures["score"])
    interval = mean_interval(measures["score"][scored], clusters[scored], conf)
    return {
        "n": int(scored.sum()),
        "n_clusters": len(np.unique(clusters[scored])),
        "n_missing": int((~scored).sum()),
        "mean": interval.point,
        "se": interval.se,
        "lo": interval.lo,
        "hi": interval.hi,
        "status": interval.status,
        "mean_missing_0": reduced(np.mean, np.where(scored, measures["score"], 0.0)),
        "mean_missing_1": reduced(np.mean, np.where(scored, measures["score"], 1.0)),
        "em_mean": reduced(np.mean, measures["em"][scored]),
        "f1_mean": reduced(np.mean, measures["f1"][scored]),
    }


def _counts(data: DatasetScores, row: int, members: Indices, cfg: Mapping[str, Any]) -> Row:
    """Failures, kept tokens and prompt lengths of one cell in one bin, the same under every policy."""
    label = data.label[row, members]
    there = members[label != ABSENT]
    counts: Row = {f"n_{name.lower()}": int((label == i).sum()) for i, name in enumerate(LABELS)}
    return counts | {
        "n_infeasible": int(data.extra["infeasible"][row, members].sum()),
        "n_not_applicable": int(data.extra["not_applicable"][row, members].sum()),
        "infeasible_frac": reduced(np.mean, data.extra["infeasible"][row, members]),
        "active_frac": data.active_share(row, members),
        "unreliable": data.infrastructure_share(row, members) > cfg["max_infrastructure_failures"],
        "verified_frac": reduced(np.mean, data.extra["measured"][row, there]),
        "kept_min": reduced(np.min, data.extra["kept_min"][row, there]),
        "kept_mean": reduced(np.mean, data.extra["kept_mean"][row, there]),
        "kept_max": reduced(np.max, data.extra["kept_max"][row, there]),
        "token_len_min": reduced(np.min, data.token_len[there]),
        "token_len_median": reduced(np.median, data.token_len[there]),
        "token_len_max": reduced(np.max, data.token_len[there]),
    }


def reduced(statistic: Callable[[Array], Any], values: Array) -> float:
    """A statistic of the values that are known; nan without any."""
    known = values[~np.isnan(values)]
    return float(statistic(known)) if len(known) else nan


def _retention_rows(data: DatasetScores, cfg: Mapping[str, Any]) -> Iterator[Row]:
    rows = data.compressed()
    groups = {
        policy: (pair_scores(data, policy), same)
        for policy, same in data.policy_groups(cfg["policies"]).items()
    }
    sums = np.concatenate([np.concatenate(pairs.sums()[:2]) for pairs, _ in groups.values()])
    for bin_idx, totals in data.resampled(sums, cfg["seed"], cfg["bootstrap_replicates"]):
        members = data.members(bin_idx)
        for (pairs, same), block in zip(groups.values(), np.split(totals, len(groups)), strict=True):
            in_bin = pairs.of(members)
            gate = bin_gate(in_bin.full, in_bin.no_context, in_bin.clusters, cfg["conf"])
            ratios = resampled_ratio(*np.split(block, 2))
            limits, zero = percentile_limits(ratios, cfg["conf"]), np.isnan(ratios).mean(axis=1)
            for i, row in enumerate(rows):
                values = pair_values(in_bin, i, gate, cfg["conf"], cfg["delta"])
                shown = gate[0] == "ok" and values["n_clusters"] > 1 and zero[i] <= MAX_ZERO_DENOMINATOR
                values |= {
                    "boot_lo": limits[0][i] if shown else nan,
                    "boot_hi": limits[1][i] if shown else nan,
                    "boot_zero_den_frac": float(zero[i]),
                    "active_frac": data.active_share(row, members),
                    "unreliable": data.infrastructure_share(row, members)
                    > cfg["max_infrastructure_failures"],
                }
                if nothing := data.nothing_asked(row, members):
                    values |= dict.fromkeys(_RATIOS, nan)
                    values |= {"status": nothing, "R0_status": nothing, "degenerate": False}
                for name in same:
                    yield with_keys(data, row, bin_idx, name, values)


def write_bin_stats(
    score_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Scores and manifests in, `bin_stats.parquet` out."""
    table = bin_stats(*read_examples(score_paths, manifest_paths), cfg)
    write_table(table, BIN_STATS, list(CELL_KEYS), cfg, out)


def write_retention(
    score_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Scores and manifests in, `retention.parquet` out."""
    table = retention(*read_examples(score_paths, manifest_paths), cfg)
    write_table(table, RETENTION, list(CELL_KEYS), cfg, out)
