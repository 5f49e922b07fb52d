"""Small example tables for the tests of the analysis."""

import numpy as np
import pandas as pd

CFG = {
    "conf": 0.95,
    "tau": [0.9, 0.95],
    "delta": 0.05,
    "seed": 42,
    "bootstrap_replicates": 300,
    "transition_replicates": 200,
    "fit_replicates": 200,
    "collapse_replicates": 100,
    "policies": ["zero", "exclude"],
    "max_infrastructure_failures": 0.05,
    "min_active_share": 0.5,
}


def example_rows(
    method, budget, scores, *, bin_idx=0, token_len=4000, failure=None, dataset="d", clusters=None
):
    """Rows of one cell in one bin: the i-th score belongs to example <bin>-<i>; None is a failed request."""
    failures = failure or [None] * len(scores)
    ids = [f"{bin_idx}-{i:03d}" for i in range(len(scores))]
    value = np.nan if budget is None else float(str(budget).removeprefix("f"))
    return pd.DataFrame(
        {
            "dataset": dataset,
            "task": "task",
            "example_id": ids,
            "cluster_id": clusters or ids,
            "bin_idx": bin_idx,
            "token_len": token_len,
            "method": method,
            "budget": "full" if budget is None else str(budget),
            "budget_value": value,
            "score": np.array(scores, dtype=float),
            "failure": pd.Series(failures, dtype=object),
        }
    )


def clusters_of(table):
    """The manifest's cluster lists, taken from a table that is complete."""
    groups = table.groupby(["dataset", "bin_idx"])["cluster_id"]
    return {(str(name), int(idx)): sorted(set(ids)) for (name, idx), ids in groups}


def graded(n, seed=0, zeros=0.3):
    """Scores like F1: some zeros, the rest spread over (0, 1]."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < zeros, 0.0, np.round(rng.uniform(0.05, 1, n), 3))


def curve_table(
    method="snapkv", budgets=(64, 128, 256, 512), kept=(0.2, 0.5, 0.95, 1.0), n=40, bins=(0, 1), seed=0
):
    """`full` and one method whose answers equal the reference with the given probabilities, else score 0."""
    parts = []
    for bin_idx in bins:
        full = graded(n, seed + 10 * bin_idx)
        parts.append(example_rows("full", None, full, bin_idx=bin_idx))
        for budget, share in zip(budgets, kept, strict=True):
            rng = np.random.default_rng([seed, bin_idx, int(1000 * float(str(budget).removeprefix("f")))])
            scores = np.where(rng.random(n) < share, full, 0.0)
            parts.append(example_rows(method, budget, scores, bin_idx=bin_idx))
    return pd.concat(parts, ignore_index=True)


def bits(frame):
    """A table's exact content, keyed by its key columns, so that two tables can be compared cell by cell."""
    keys = [k for k in ("dataset", "method", "bin_idx", "budget", "policy", "tau") if k in frame]
    content = {}
    for row in frame.to_dict("records"):
        values = {k: repr(v) for k, v in sorted(row.items()) if k not in keys}
        content[tuple(row[k] for k in keys)] = values
    return content
