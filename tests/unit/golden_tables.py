"""The worked statistics tables in the analysis' form, for tests against their expected values."""

from pathlib import Path

import numpy as np
import pandas as pd

from kv_transition.files import read_parquet

CASES = ["d01_relative.zero", "d05_missing_failures.zero", "d05_missing_failures.exclude"]
CFG = {
    "conf": 0.95,
    "tau": [0.9, 0.95],
    "delta": 0.05,
    "seed": 42,
    "bootstrap_replicates": 10_000,
    "transition_replicates": 2_000,
    "fit_replicates": 2_000,
    "collapse_replicates": 200,
    "policies": ["zero", "exclude"],
    "max_infrastructure_failures": 0.05,
    "min_active_share": 0.5,
}


def golden_table(folder: Path, name: str):
    """A worked table in the analysis' form, and its clusters."""
    raw = read_parquet(folder / "stats_golden" / f"{name}.parquet")
    labels = ["full" if pd.isna(b) else str(int(b)) for b in raw["budget"]]
    table = raw.assign(
        dataset=name, task="task", budget=labels, budget_value=raw["budget"].astype("Float64").astype(float)
    )
    groups = raw.groupby("bin_idx")["cluster_id"]
    return table, {(name, int(idx)): sorted(set(ids)) for idx, ids in groups}


def row_of(frame, expected, **more):
    keys = {"method": expected["method"], "bin_idx": expected["bin_idx"], **more}
    if "budget" in expected:
        keys["budget"] = "full" if expected["budget"] is None else str(expected["budget"])
    found = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(found) == 1, keys
    return found.iloc[0]
