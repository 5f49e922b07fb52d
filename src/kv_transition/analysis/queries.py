"""Score files and manifests in, one row for each cell and selected example out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kv_transition.budgets import UNCOMPRESSED
from kv_transition.data.manifest import Manifest, read_manifest
from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import INFRASTRUCTURE, LABELS
from kv_transition.files import read_parquet

if TYPE_CHECKING:
    import pandas as pd

#: From the weakest: the `verified` of an averaged row is the weakest of its replicates.
VERIFIED = ("no", "reported", "measured")
CELL = ["method", "budget", "budget_value"]
SCORE_COLUMNS = ("task", "example_id", *CELL, "replicate", "score", "failure")


def read_examples(
    score_paths: Sequence[str | Path], manifest_paths: Sequence[str | Path]
) -> tuple[pd.DataFrame, dict[tuple[str, int], list[str]]]:
    """The example table and the clusters of each bin, as `bin_stats`, `retention` and `transition` take them."""
    manifests = [read_manifest(path) for path in manifest_paths]
    return example_table(score_paths, manifests), cluster_lists(manifests)


def cluster_lists(manifests: Sequence[Manifest]) -> dict[tuple[str, int], list[str]]:
    """(dataset, bin_idx) -> sorted cluster ids of the bin's selected examples; an empty bin has an empty list."""
    return {
        (manifest.dataset_id, bin_idx): sorted(set(manifest.clusters.get(str(bin_idx), [])))
        for manifest in manifests
        for bin_idx in range(manifest.n_bins)
    }


def example_table(score_paths: Sequence[str | Path], manifests: Sequence[Manifest]) -> pd.DataFrame:
    """Average replicates and lay the scores out against the manifest.

    Returns
    -------
    One row for each cell (method, budget) of a dataset and each selected example, sorted; a row that no score file has
    stands with a null score, no status and no failure. Columns: dataset, task, example_id, cluster_id, bin_idx, token_len,
    method, budget, budget_value, status, score, em, f1, failure, infrastructure_failed, reference_failed, press_len,
    active, verified, kept_min, kept_mean, kept_max, the dataset's protocol, metric and length_unit, bin_name, and truncated
    (1 where the prompt was cut to the model's limit, null where no score file says it).

    status is "ok", or why a text method had nothing to ask: "infeasible", "not_applicable"; such a row has no score.

    score, em and f1 average the replicates that got an answer (an empty answer counts 0); they are null where none did.
    infrastructure_failed is the share of replicates that timed out or failed in the engine: the policy "zero" counts
    these as 0, "exclude" leaves them out. failure is the first label of the replicates in the taxonomy's order.
    reference_failed marks all rows of an example whose `full` or `no_context` request got no answer.

    Raises
    ------
    UserError
        A score file lacks a column, belongs to no manifest or names examples outside it, or a row is doubled.
    """
    import pandas as pd

    by_task = {manifest.task: manifest for manifest in manifests}
    parts = []
    for path in score_paths:
        scores = read_parquet(path)
        missing = [name for name in SCORE_COLUMNS if name not in scores]
        if missing:
            raise UserError(f"{path}: column {missing[0]} is missing; score the task again")
        for task, rows in scores.groupby("task", sort=True):
            if task not in by_task:
                raise UserError(
                    f"{path}: no manifest of task {task}; give the manifest the task was run with"
                )
            parts.append(_laid_out(rows, by_task[str(task)], path))
    if not parts:
        raise UserError("no scores to analyse; score at least one task first")
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(
        ["dataset", "method", "budget_value", "bin_idx", "example_id"], ignore_index=True
    )


def _laid_out(rows: pd.DataFrame, manifest: Manifest, path: str | Path) -> pd.DataFrame:
    """The rows of one task, averaged, one for each cell and selected example."""
    import pandas as pd

    selected = pd.DataFrame(
        {
            "example_id": [entry.example_id for entry in manifest.entries],
            "cluster_id": [example.cluster_id for example in manifest.examples],
            "bin_idx": [entry.bin_idx for entry in manifest.entries],
            "token_len": [entry.token_len for entry in manifest.entries],
        }
    )
    unknown = set(rows["example_id"]) - set(selected["example_id"])
    if unknown:
        raise UserError(
            f"{path}: example {min(unknown)} is not in the manifest of {manifest.task}; score the task again"
        )
    averaged = average_replicates(rows, path)
    cells = averaged[CELL].drop_duplicates(["method", "budget"])
    table = cells.merge(selected, how="cross").merge(
        averaged.drop(columns="budget_value"), how="left", on=["method", "budget", "example_id"]
    )
    table["infrastructure_failed"] = table["infrastructure_failed"].fillna(0.0)
    for name in ("status", "failure", "verified"):
        table[name] = table[name].astype(object).where(table[name].notna(), None)
    table["truncated"] = table["example_id"].map(_truncated(rows))
    reference = table["method"].isin(UNCOMPRESSED) & (table["infrastructure_failed"] > 0)
    table["reference_failed"] = table["example_id"].isin(table.loc[reference, "example_id"])
    table["protocol"] = manifest.protocol
    table["metric"] = "+".join(sorted(set(rows["metric"].dropna()))) if "metric" in rows else ""
    table["length_unit"] = manifest.length_unit
    table["bin_name"] = table["bin_idx"].map(dict(enumerate(manifest.bin_names)))
    table.insert(0, "dataset", manifest.dataset_id)
    table.insert(1, "task", manifest.task)
    return table


def _truncated(rows: pd.DataFrame) -> dict[str, float]:
    """1 for the examples whose whole prompt was cut in the middle, 0 for the others; none that is not known of."""
    if "dropped_tokens" not in rows:
        return {}
    known = rows[(rows["method"] == "full") & rows["dropped_tokens"].notna()]
    return dict(zip(known["example_id"], (known["dropped_tokens"] > 0).astype(float), strict=True))


def average_replicates(rows: pd.DataFrame, path: str | Path = "scores") -> pd.DataFrame:
    """One row for each (method, budget, example) of a task; see `example_table` for what an averaged row says."""
    import pandas as pd

    rows = rows.sort_values(["method", "budget", "example_id", "replicate"], ignore_index=True)
    key = ["method", "budget", "example_id"]
    doubled = rows.duplicated([*key, "replicate"])
    if doubled.any():
        method, budget, example = rows[doubled].iloc[0][key]
        raise UserError(
            f"{path}: example {example} stands twice under {method} {budget}; score the task again"
        )
    failed = rows["failure"].isin(INFRASTRUCTURE)
    empty = rows["failure"] == "EMPTY_OUTPUT"
    ranks = {name: rank for rank, name in enumerate(LABELS)}
    measures = pd.DataFrame({name: rows[name] for name in [*key, "budget_value"]})
    for name in ("score", "em", "f1"):
        values = rows[name].astype("float64") if name in rows else pd.Series(np.nan, index=rows.index)
        measures[name] = values.mask(empty, 0.0).mask(failed)
    measures["status"] = rows.get("status", "ok")
    measures["failure"] = rows["failure"].map(ranks).astype("float64")
    measures["infrastructure_failed"] = failed.astype("float64")
    for name in ("press_len", "active", "kept_min", "kept_mean", "kept_max"):
        measures[name] = rows[name].astype("Float64").astype("float64") if name in rows else np.nan
    verified = rows["verified"] if "verified" in rows else pd.Series(None, index=rows.index, dtype=object)
    measures["verified"] = verified.map({name: rank for rank, name in enumerate(VERIFIED)}).astype("float64")
    how = {"score": "mean", "em": "mean", "f1": "mean", "failure": "min", "infrastructure_failed": "mean"}
    how |= {
        "budget_value": "first",
        "status": "first",
        "press_len": "max",
        "active": "max",
        "verified": "min",
    }
    how |= {"kept_min": "min", "kept_mean": "mean", "kept_max": "max"}
    averaged = measures.groupby(key, sort=True).agg(how).reset_index()
    averaged["failure"] = averaged["failure"].map(dict(enumerate(LABELS)))
    averaged["verified"] = averaged["verified"].map(dict(enumerate(VERIFIED)))
    return averaged
