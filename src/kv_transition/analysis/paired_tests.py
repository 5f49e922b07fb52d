"""Differences between two cells of the same examples, with tests: `paired_tests.parquet`.

One row for each (dataset, bin, policy) and pair of cells a, b; bin_idx -1 is all bins pooled. Three kinds of pairs:

    adjacent    two budgets of one method, next to each other on its grid in the bin, and the largest beside `full`. The grid
                is the budgets that have a score there and are not infeasible. p_adjusted: Holm over the curve
    method      two methods at one budget that both have. p_adjusted: Holm over all of bin -1 of a task and policy; in single
                bins, which are exploratory, Benjamini and Hochberg's q over all of the bin
    full        each cell with a budget (b) beside `full` (a). p_adjusted as for `method`

Columns beside the keys
    family          the tests that were adjusted together, within (dataset, policy): "adjacent|<method>|<bin>",
                    "method|<bin>", "full|<bin>"; a row without p does not count
    n_pairs, n_clusters     examples with both scores, and their clusters
    diff, diff_se, diff_lo, diff_hi, p      b minus a, paired t over clusters
    sd_d            spread of a single difference: diff_se times sqrt(n_pairs), so that clusters are reckoned with
    p_signflip      exact sign-flip p; null with more than 14 clusters that differ
    n_only_a, n_only_b      pairs with score 1 on one side only; null unless every score of the pairs is 0 or 1
    p_mcnemar       exact McNemar p; null unless these are known and no two pairs share a context
    adjustment      "holm" or "bh"
    mde             smallest difference that a one-sided 5 % test finds with power 0.8
    gate            the bin's reference gate; a difference does not need the reference, so its test is kept
    status          "ok"; "degenerate" (every pair differs by the same: limits from two pseudo-values, p is 1 for no
                    difference, else 0; p_adjusted takes the exact sign-flip p instead of the 0); "too_few" (one cluster: a difference alone);
                    "no_pairs"; "infeasible", "not_applicable" (one of the cells is: no difference and no test)
    inactive        compression was active in too few examples in one of the cells
    unreliable      too many requests of one of the cells timed out or failed in the engine

A difference without significance is no evidence of equality: read mde beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from kv_transition.analysis.cells import POOLED, Array, Clusters, DatasetScores, Indices, datasets
from kv_transition.analysis.compare import holm
from kv_transition.analysis.exact_tests import mcnemar_test, sign_flip_test
from kv_transition.analysis.gates import bin_gate
from kv_transition.analysis.intervals import MDE_FACTOR, NO_SPREAD, PSEUDO
from kv_transition.analysis.pairs import pair_scores
from kv_transition.analysis.queries import read_examples
from kv_transition.analysis.tables import ABOUT, Columns, Row, columns, frame, write_table

if TYPE_CHECKING:
    import pandas as pd

PAIRED_TESTS: Columns = {
    **columns("string", "dataset task policy kind"),
    **columns("int32", "bin_idx"),
    **columns("string", "method_a budget_a"),
    **columns("float64", "budget_value_a"),
    **columns("string", "method_b budget_b"),
    **columns("float64", "budget_value_b"),
    **columns("string", "family"),
    **columns("int64", "n_pairs n_clusters"),
    **columns(
        "float64", "diff diff_se sd_d diff_lo diff_hi p p_signflip n_only_a n_only_b p_mcnemar p_adjusted"
    ),
    **columns("string", "adjustment"),
    **columns("float64", "mde"),
    **columns("string", "gate status"),
    **columns("bool", "inactive unreliable"),
    **ABOUT,
}
SORTED_BY = (
    *("dataset", "task", "policy", "kind", "bin_idx"),
    *("method_a", "budget_value_a", "method_b", "budget_value_b"),
)
#: The numbers of a test, by column.
_NUMBERS = (
    *("diff", "diff_se", "sd_d", "diff_lo", "diff_hi", "p", "p_signflip"),
    *("n_only_a", "n_only_b", "p_mcnemar", "mde"),
)
_ABSENT = dict.fromkeys(_NUMBERS, nan)


@dataclass(frozen=True)
class Pair:
    """Two rows of a dataset's cells to compare, b minus a, and the family the test belongs to."""

    kind: str
    a: int
    b: int
    family: str


def paired_tests(table: pd.DataFrame, clusters: Clusters, cfg: Mapping[str, Any]) -> pd.DataFrame:
    """All paired tests; see the module's page for the columns.

    Parameters
    ----------
    table : one row for each cell and example, as `queries.example_table` gives it.
    clusters : (dataset, bin_idx) -> sorted cluster ids of the bin in the manifest.
    cfg : conf, policies, max_infrastructure_failures, min_active_share.
    """
    rows = [row for data in datasets(table, clusters) for row in _rows(data, cfg)]
    return frame(rows, PAIRED_TESTS)


def _rows(data: DatasetScores, cfg: Mapping[str, Any]) -> Iterator[Row]:
    groups = data.policy_groups(cfg["policies"])
    for bin_idx in [*data.bins, POOLED]:
        members = data.members(bin_idx)
        # Columns by cluster, so that a cluster's sum is the sum of a run of columns.
        members = members[np.argsort(data.clusters[members], kind="stable")]
        states = [_cell_state(data, row, members, cfg) for row in range(len(data.cells))]
        for policy, same in groups.items():
            scores = data.under(policy)[:, members]
            inside = pair_scores(data, policy).of(members)
            gate, _ = bin_gate(inside.full, inside.no_context, inside.clusters, cfg["conf"])
            asked = [i for i, state in enumerate(states) if state["nothing"] is None]
            pairs = list(_pairs(data, [i for i in asked if not np.isnan(scores[i]).all()], bin_idx))
            for values in _tested(data, pairs, scores, data.clusters[members], states, bin_idx, cfg["conf"]):
                for name in same:
                    keys = {"dataset": data.dataset, "task": data.task, "policy": name, "bin_idx": bin_idx}
                    yield keys | values | {"gate": gate} | data.about


def _cell_state(data: DatasetScores, row: int, members: Indices, cfg: Mapping[str, Any]) -> Row:
    """What is to be said of a cell in a bin, the same under every policy."""
    return {
        "nothing": data.nothing_asked(row, members),
        "inactive": data.active_share(row, members) < cfg["min_active_share"],
        "unreliable": data.infrastructure_share(row, members) > cfg["max_infrastructure_failures"],
    }


def _pairs(data: DatasetScores, on_grid: Sequence[int], bin_idx: int) -> Iterator[Pair]:
    """The pairs of one bin; `on_grid` are the cells that can be neighbours of a curve."""
    rows, full = data.compressed(), data.row("full")
    methods = sorted({data.cells[row].method for row in rows})
    for method in methods:
        curve = [row for row in rows if data.cells[row].method == method and row in on_grid]
        if full is not None and curve:
            curve.append(full)
        for a, b in pairwise(curve):
            yield Pair("adjacent", a, b, f"adjacent|{method}|{bin_idx}")
    row_of = {(data.cells[row].method, data.cells[row].budget): row for row in rows}
    for first, second in combinations(methods, 2):
        for (method, budget), a in row_of.items():
            if method == first and (second, budget) in row_of:
                yield Pair("method", a, row_of[second, budget], f"method|{bin_idx}")
    if full is not None:
        for row in rows:
            yield Pair("full", full, row, f"full|{bin_idx}")


def _tested(
    data: DatasetScores,
    pairs: Sequence[Pair],
    scores: Array,
    clusters: Indices,
    states: Sequence[Row],
    bin_idx: int,
    conf: float,
) -> Iterator[Row]:
    """The columns of all pairs of one bin under one policy, but for the keys of the bin."""
    numbers = paired_differences(scores[[p.a for p in pairs]], scores[[p.b for p in pairs]], clusters, conf)
    rows = []
    for i, pair in enumerate(pairs):
        nothing = states[pair.a]["nothing"] or states[pair.b]["nothing"]
        values = {name: column[i] for name, column in numbers.items()}
        rows.append(values | _ABSENT | {"status": nothing} if nothing else values)
    adjusted = np.full(len(pairs), nan)
    adjustments = ["bh" if pair.kind != "adjacent" and bin_idx != POOLED else "holm" for pair in pairs]
    for family in {pair.family for pair in pairs}:
        tests = [i for i, pair in enumerate(pairs) if pair.family == family]
        adjust = holm if adjustments[tests[0]] == "holm" else benjamini_hochberg
        adjusted[tests] = adjust([_judged_p(rows[i]) for i in tests])
    for i, (pair, values) in enumerate(zip(pairs, rows, strict=True)):
        a, b = data.cells[pair.a], data.cells[pair.b]
        yield values | {
            "kind": pair.kind,
            **{"method_a": a.method, "budget_a": a.budget, "budget_value_a": a.value},
            **{"method_b": b.method, "budget_b": b.budget, "budget_value_b": b.value},
            "family": pair.family,
            "p_adjusted": adjusted[i],
            "adjustment": adjustments[i],
            "inactive": states[pair.a]["inactive"] or states[pair.b]["inactive"],
            "unreliable": states[pair.a]["unreliable"] or states[pair.b]["unreliable"],
        }


def _judged_p(values: Row) -> float:
    """The p-value that stands among the others of a family: of equal differences the sign-flip p, not the t test's 0."""
    p = float(values["p"])
    return max(p, 2.0 ** (1 - int(values["n_clusters"]))) if values["status"] == "degenerate" else p


def paired_differences(a: Array, b: Array, clusters: Indices, conf: float) -> dict[str, NDArray[Any]]:
    """Many paired tests over the same examples at once; the numbers of `intervals.difference_interval`.

    Parameters
    ----------
    a, b : (tests, n) scores of the same examples, nan where missing. clusters : (n,) numbers from 0 up, ascending.

    Returns
    -------
    (tests,) arrays: n_pairs, n_clusters, status, and those of the module's page from diff to mde, without p_adjusted.
    """
    paired = ~np.isnan(a) & ~np.isnan(b)
    d = np.where(paired, b - a, 0.0)
    starts = np.flatnonzero(np.diff(clusters, prepend=-1))
    n = paired.sum(axis=1)
    n_clusters = (_cluster_sums(paired.astype(np.float64), starts) > 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = d.sum(axis=1) / n
        deviations = _cluster_sums(np.where(paired, d - mean[:, None], 0.0), starts)
        se = np.sqrt(n_clusters / (n_clusters - 1) * np.sum(deviations**2, axis=1)) / n
    enough = n_clusters >= 2
    se = np.where(enough, se, nan)
    constant = enough & (se <= NO_SPREAD)
    # Where nothing varies the limits are those of the sample with two pseudo-values in clusters of their own.
    df = np.where(constant, n_clusters + 1, n_clusters - 1)
    total = n_clusters + 2
    scale = np.where(constant, np.sqrt(total / (total - 1) * 2 * PSEUDO**2) / (n + 2), se)
    half = np.where(enough, stdtrit(np.maximum(df, 1), (1 + conf) / 2) * scale, nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(constant, np.abs(mean) <= NO_SPREAD, 2 * stdtr(np.maximum(df, 1), -np.abs(mean) / se))
    only_a, only_b = _discordant(a, b, paired)
    return {
        "n_pairs": n,
        "n_clusters": n_clusters,
        "diff": mean,
        "diff_se": np.where(constant, 0.0, se),
        "sd_d": np.where(constant, 0.0, se * np.sqrt(n)),
        "diff_lo": mean - half,
        "diff_hi": mean + half,
        "p": np.where(enough, p, nan),
        "p_signflip": np.where(enough, sign_flip_test(_cluster_sums(d, starts)), nan),
        "n_only_a": only_a,
        "n_only_b": only_b,
        "p_mcnemar": np.where(enough & (n == n_clusters), mcnemar_test(only_a, only_b), nan),
        "mde": np.where(enough, MDE_FACTOR * scale, nan),
        "status": np.select(
            [n == 0, ~enough, constant], ["no_pairs", "too_few", "degenerate"], default="ok"
        ).astype(object),
    }


def _cluster_sums(values: Array, starts: Indices) -> Array:
    """Sums over the runs of columns that begin at `starts`."""
    if len(starts) == values.shape[1]:
        return values
    return np.asarray(np.add.reduceat(values, starts, axis=1), dtype=np.float64)


def _discordant(a: Array, b: Array, paired: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Pairs with score 1 in a alone and in b alone; nan where a test has another score than 0 and 1, or no pair."""
    binary = (((a == 0) | (a == 1)) & ((b == 0) | (b == 1)) | ~paired).all(axis=1) & paired.any(axis=1)
    only_a, only_b = (paired & (a > b)).sum(axis=1), (paired & (b > a)).sum(axis=1)
    return np.where(binary, only_a, nan), np.where(binary, only_b, nan)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p values (q), in the given order; nan (no test) stays nan and does not count.

    References
    ----------
    Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57:289.
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    falling = tested[np.argsort(-p[tested], kind="stable")]
    adjusted = np.full(len(p), nan)
    factors = len(falling) / np.arange(len(falling), 0, -1)
    adjusted[falling] = np.minimum(np.minimum.accumulate(factors * p[falling]), 1.0)
    return [float(value) for value in adjusted]


def write_paired_tests(
    score_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Scores and manifests in, `paired_tests.parquet` out."""
    table = paired_tests(*read_examples(score_paths, manifest_paths), cfg)
    write_table(table, PAIRED_TESTS, SORTED_BY, cfg, out)
