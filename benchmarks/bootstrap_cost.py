"""What the bootstrap costs for each cell, beside scipy's, and what all the statistics of a large study cost.

    python benchmarks/bootstrap_cost.py                     the bar, then 6 tasks x 8 bins x 42 cells: about two minutes
    python benchmarks/bootstrap_cost.py --tasks 20          a larger study: some minutes
    python benchmarks/bootstrap_cost.py --quick             no study, two turns, no verdict on time

336 cells (8 bins of 40 examples, 42 columns) are resampled 10,000 times, draws and percentile limits included; scipy's
bootstrap is timed on the cells of one bin, called for each or once for all, in turns with ours. CPU seconds belong to the machine, the ratio hardly does.
Ends with 1 if a bar is missed. One thread each: the variables of the linear algebra library are set for it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray
from record import Row, save, spread, without_bar
from scipy import stats

from kv_transition.analysis.aggregate import bin_stats, mean_sums, retention
from kv_transition.analysis.bootstrap import resampled_ratio, resampled_sums, stream_key
from kv_transition.analysis.cells import Clusters
from kv_transition.analysis.effect_models import effect_models
from kv_transition.analysis.intervals import percentile_limits
from kv_transition.analysis.lossless import lossless
from kv_transition.analysis.macro import macro
from kv_transition.analysis.paired_tests import paired_tests
from kv_transition.analysis.transition import transition
from kv_transition.schema import Analysis

Array = NDArray[np.float64]

SEED, BINS, COLUMNS, N, REPLICATES = 42, 8, 42, 40, 10_000
#: Most CPU milliseconds for each cell.
BAR = 0.4
#: Largest difference to the limits of a plain resampling with the same draws.
SAME = 1e-12
METHODS = ("expected_attention", "keydiff", "knorm", "observed_attention", "snapkv", "streaming_llm", "tova")
BUDGETS = (64, 128, 256, 512, 1024, 2048)


def graded(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Scores like F1: some 0, some 1, the others between."""
    u = rng.random(shape)
    return np.where(u < 0.3, 0.0, np.where(u < 0.5, 1.0, rng.random(shape)))


def our_limits(scores: Array, bin_idx: int) -> tuple[Array, Array]:
    """Percentile limits of the means of all columns of a bin, (columns, n), as bin_stats computes them."""
    totals = resampled_sums(mean_sums(scores), stream_key(SEED, "cost", bin_idx), REPLICATES)
    return percentile_limits(resampled_ratio(*np.split(totals, 2)))


def plain_limits(scores: Array, bin_idx: int) -> Array:
    """The same in the plainest way: draw, gather, average, numpy's quantile."""
    n = scores.shape[1]
    words = np.random.Philox(key=stream_key(SEED, "cost", bin_idx)).random_raw((REPLICATES * n + 1) // 2)
    draws = (words.astype("<u8").view("<u4")[: REPLICATES * n].astype(np.uint64) * np.uint64(n)) >> np.uint64(
        32
    )
    drawn = draws.astype(np.int64).reshape(REPLICATES, n)
    means = np.stack([column[drawn].mean(axis=1) for column in scores])
    return np.quantile(means, [0.025, 0.975], axis=1)


def scipy_limits(scores: Array) -> None:
    """The percentile interval of each column by scipy, a call for each."""
    for column in scores:
        stats.bootstrap(
            (column,), np.mean, n_resamples=REPLICATES, method="percentile", vectorized=True, rng=SEED
        )


def scipy_bin_limits(scores: Array) -> None:
    """The same intervals by one call of scipy for the bin, in batches that stay in the processor's cache."""
    stats.bootstrap(
        (scores,), np.mean, n_resamples=REPLICATES, batch=100, axis=1, method="percentile", rng=SEED
    )


def cpu_ms(action: Callable[[], object]) -> float:
    """CPU milliseconds of an action."""
    start = time.process_time()
    action()
    return 1e3 * (time.process_time() - start)


def race(repeats: int) -> list[Row]:
    """Time both sides in turns."""
    bins = graded(np.random.default_rng(SEED), (BINS, COLUMNS, N))
    furthest = max(
        float(np.abs(np.stack(our_limits(scores, i)) - plain_limits(scores, i)).max())
        for i, scores in enumerate(bins)
    )
    scipy_limits(bins[0, :2])
    ours: list[float] = []
    peers = {"a call a cell": scipy_limits, "a call a bin, batch=100": scipy_bin_limits}
    theirs: dict[str, list[float]] = {way: [] for way in peers}
    for _ in range(repeats):
        ours.append(cpu_ms(lambda: [our_limits(scores, i) for i, scores in enumerate(bins)]) / BINS / COLUMNS)
        for way, limits in peers.items():
            theirs[way].append(cpu_ms(partial(limits, bins[0])) / COLUMNS)
    by_cell, by_bin = (
        Row(
            f"bootstrap limits of a cell, n = {N}, {REPLICATES:,} resamples, {BINS * COLUMNS} cells",
            spread(ours, "CPU ms"),
            spread(times, "CPU ms"),
            f"scipy.stats.bootstrap {scipy.__version__}, {way}",
            tuple(b / a for a, b in zip(ours, times, strict=True)),
        )
        for way, times in theirs.items()
    )
    return [
        replace(by_cell, bar=f"<= {BAR} CPU ms", met=statistics.median(ours) <= BAR),
        by_bin,
        Row(
            "largest difference to the limits of a plain resampling with the same draws",
            f"{furthest:.1g}",
            bar=f"<= {SAME:g}",
            met=furthest <= SAME,
        ),
    ]


def made_up_task(task: int) -> pd.DataFrame:
    """One task: all methods and budgets, the full cache and no context, with a few requests that failed."""
    rng = np.random.default_rng([SEED, task])
    name = f"task{task:02d}"
    parts = []
    for bin_idx in range(BINS):
        lengths = np.sort(rng.integers(512 * 2**bin_idx // 2 + 1, 512 * 2**bin_idx, N))
        ids = [f"{name}-{bin_idx}-{i:03d}" for i in range(N)]
        full, loss = graded(rng, (N,)), rng.random(N)
        cells: list[tuple[str, int | None, Array]] = [("full", None, full)]
        cells.append(("no_context", None, np.where(rng.random(N) < 0.1, full, 0.0)))
        for (shift, method), budget in ((pair, b) for pair in enumerate(METHODS) for b in BUDGETS):
            midpoint = np.log2(lengths) - 4 + shift / 3
            kept = np.where(budget < lengths, 1 / (1 + np.exp(2 * (midpoint - np.log2(budget)))), 1.0)
            cells.append((method, budget, np.where(loss < kept, full, 0.0)))
        for method, budget, scores in cells:
            failed = (rng.random(N) < 0.01) & (budget is not None)
            parts.append(
                {
                    **{"example_id": ids, "cluster_id": ids, "bin_idx": bin_idx, "token_len": lengths},
                    **{"method": method, "budget": "full" if budget is None else str(budget)},
                    "budget_value": np.nan if budget is None else float(budget),
                    "score": np.where(failed, np.nan, scores),
                    "failure": np.where(failed, "TIMEOUT", None),
                }
            )
    table = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
    return table.assign(dataset=name, task=name, protocol="made-up", metric="f1", length_unit="tokens")


def whole_study(tasks: int) -> list[Row]:
    """The seconds of every table of a made-up study, both failure policies computed."""
    table = pd.concat([made_up_task(task) for task in range(tasks)], ignore_index=True)
    lists = table.groupby(["dataset", "bin_idx"])["cluster_id"]
    clusters: Clusters = {(str(name), int(idx)): sorted(set(ids)) for (name, idx), ids in lists}
    cfg: dict[str, Any] = Analysis().model_dump() | {"policies": ["zero", "exclude"]}
    makers: Mapping[str, Callable[..., pd.DataFrame]] = {
        "bin_stats": bin_stats,
        "retention": retention,
        "transition": transition,
        "paired_tests": paired_tests,
        "lossless": lossless,
        "effect_models": effect_models,
        "macro": macro,
    }
    rows, total = [], np.zeros(2)
    for name, make in makers.items():
        wall, cpu = time.perf_counter(), time.process_time()
        length = len(make(table, clusters, cfg))
        spent = np.array([time.perf_counter() - wall, time.process_time() - cpu])
        total += spent
        rows.append(Row(f"table {name}, {length:,} rows", f"{spent[1]:.1f} CPU s, {spent[0]:.1f} s"))
    study = (
        f"{tasks} tasks x {BINS} bins x {len(METHODS) * len(BUDGETS)} cells, n = {N}, {len(table):,} scores"
    )
    return [Row(f"all tables of {study}", f"{total[1]:.1f} CPU s, {total[0]:.1f} s"), *rows]


def main() -> int:
    """Run both parts; 0 if the bars are reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--tasks", type=int, default=6, help="tasks of the study; 0 leaves it out")
    parser.add_argument(
        "--quick", action="store_true", help="see that it works: 2 turns, no study, no verdict on time"
    )
    options = parser.parse_args()
    rows = race(2 if options.quick else options.repeats)
    if options.quick:
        rows = [without_bar(row) if row.ratio else row for row in rows]
    tasks = 0 if options.quick else options.tasks
    if tasks:
        rows += whole_study(tasks)
    save("bootstrap_cost", rows, ["numpy", "scipy", "pandas"])
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
