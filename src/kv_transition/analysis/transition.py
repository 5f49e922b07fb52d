"""The transition budget: the smallest budget from which retention stays at or above tau. `transition.parquet`.

One row for each (dataset, method, bin, policy, tau); bin_idx -1 is all bins pooled. The grid of a row is the method's
compressed budgets that have at least one pair in that bin and are not infeasible there, b_1 < ... < b_K.

Labels of a budget estimate are the budget's own label ("64", "f0.25"), "<=b_1" (censored left) or ">b_K" (censored
right); `censored_*` says "none", "left" or "right", and `*_tokens` is null where censored. Where `status` is not "ok"
every label is the status itself, `censored_*` is null and every number is null.

    T_point     first budget of the longest run of budgets, ending at b_K, that all retain at least tau
    T_lower, T_upper    its confidence limits (fixed-sequence tests): "64", "<=64", ">512"; T_lower <= T_point <= T_upper
    T_interp, log2_T_interp, interp_label   interpolated on the isotonic curve; label in whole tokens ("187")
    interp_lo, interp_hi, interp_lo_label, interp_hi_label  its bootstrap limits, log2; null where censored
    isotonic, p_upper, p_lower, budgets     one value for each budget of the grid
    max_decrease    largest fall of retention from a budget to the next larger one; the isotonic curve hides it
    n_pairs         pairs of the budget that has fewest
    status      "ok"; the bin's gate ("no_reference", "too_few", "reference_too_weak", "context_not_needed");
                "not_applicable" (the method needs a question, and no record has one: there is no curve);
                "infeasible" (every budget is, in more than 5 % of the examples); "no_pairs" (no budget has a pair); "not_tested" (no budget was active in `min_active_share` of the
                examples, so nothing was compressed)
    flags       comma-separated, or "": "missing_budget" (a budget of the method has no pair here), "infeasible" (a
                budget is left out because the fixed part of more than 5 % of the prompts fills it), "unreliable" (a
                cell with too many failed requests), "inactive_budgets" (some budgets were mostly inactive),
                "point_inactive", "upper_inactive" (T_point, T_upper is such a budget: retention is 1 there because
                nothing was compressed, so the label is no evidence about compression), "interp_degenerate" (identical
                answers: resampling cannot move T_interp, so its limits are null)

Midpoint and width of a logistic curve, logistic_status to logistic_flags: see `logistic_columns`.

Budgets at which compression was mostly inactive keep their place in the grid: their retention is 1 by construction, so
they cannot make T too small, only the flags above keep them from being read as evidence. With budgets given as shares
(f0.25) the log2 columns are log2 of the share, and the `*_tokens` columns are the share of the bin's median prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_transition.analysis.bootstrap import resampled_ratio
from kv_transition.analysis.cells import Array, Clusters, DatasetScores, datasets
from kv_transition.analysis.curves import Curve, Grid, curves
from kv_transition.analysis.gates import bin_gate
from kv_transition.analysis.intervals import augmented_tests
from kv_transition.analysis.logistic_columns import LOGISTIC, cell_sums, logistic_values
from kv_transition.analysis.pairs import pair_scores
from kv_transition.analysis.queries import read_examples
from kv_transition.analysis.tables import ABOUT, CELL_KEYS, Columns, Row, columns, frame, write_table
from kv_transition.analysis.thresholds import (
    TOLERANCE,
    crossing,
    fixed_sequence_limits,
    isotonic,
    order_limits,
    sustained_point,
)

if TYPE_CHECKING:
    import pandas as pd

KEYS: Columns = {name: kind for name, kind in CELL_KEYS.items() if not name.startswith("budget")} | {
    "tau": "float64"
}
TRANSITION: Columns = {
    **KEYS,
    **columns("string", "T_point T_lower T_upper"),
    **columns("float64", "T_point_tokens T_lower_tokens T_upper_tokens"),
    **columns("string", "censored_point censored_lower censored_upper"),
    **columns("float64", "log2_T_interp T_interp"),
    **columns("string", "interp_label"),
    **columns("float64", "interp_lo interp_hi"),
    **columns("string", "interp_lo_label interp_hi_label status"),
    **columns("list", "p_upper p_lower isotonic budgets"),
    **columns("float64", "max_decrease"),
    **columns("int64", "n_pairs"),
    **columns("float64", "token_len_median"),
    **columns("string", "flags"),
    **LOGISTIC,
    **ABOUT,
}


def transition(table: pd.DataFrame, clusters: Clusters, cfg: Mapping[str, Any]) -> pd.DataFrame:
    """Transition budget, limits and interpolated position for every curve; see the module's page for the columns.

    Parameters
    ----------
    table : one row for each cell and example, as `queries.example_table` gives it.
    clusters : (dataset, bin_idx) -> sorted cluster ids of the bin in the manifest.
    cfg : conf, tau, seed, transition_replicates, fit_replicates, max_infrastructure_failures, min_active_share, policies.
    """
    rows = [row for data in datasets(table, clusters) for row in _rows(data, cfg)]
    return frame(rows, TRANSITION)


def _rows(data: DatasetScores, cfg: Mapping[str, Any]) -> Iterator[Row]:
    groups = {
        policy: (pair_scores(data, policy), same)
        for policy, same in data.policy_groups(cfg["policies"]).items()
    }
    sums = np.concatenate(
        [np.concatenate([*pairs.sums(), *cell_sums(pairs)]) for pairs, _ in groups.values()]
    )
    for bin_idx, totals in data.resampled(sums, cfg["seed"], cfg["transition_replicates"]):
        members = data.members(bin_idx)
        in_bin: Row = {"token_len_median": float(np.median(data.token_len[members])) if len(members) else nan}
        for (pairs, same), block in zip(groups.values(), np.split(totals, len(groups)), strict=True):
            inside = pairs.of(members)
            gate, _ = bin_gate(inside.full, inside.no_context, inside.clusters, cfg["conf"])
            paired, cells = np.split(block, [3 * len(pairs.compressed)])
            top, bottom, weights = np.split(paired, 3)
            ratios = resampled_ratio(top, bottom)
            scores, present = np.split(cells[:, : cfg["fit_replicates"]], 2)
            for curve in curves(data, inside, members, cfg):
                status = _status(curve, gate)
                logistic = logistic_values(curve, status, inside, (scores, present), cfg["conf"])
                for tau in cfg["tau"]:
                    values = in_bin | logistic
                    values |= _transition_values(
                        curve, status, ratios[curve.rows].T, weights[curve.rows].T, tau, cfg["conf"]
                    )
                    for name in same:
                        keys = (data.dataset, data.task, curve.method, bin_idx, name, tau)
                        yield dict(zip(KEYS, keys, strict=True)) | values | data.about


def _status(curve: Curve, gate: str) -> str:
    """The status of a curve: the gate of its bin, or why it says nothing."""
    if curve.flags in (("infeasible",), ("not_applicable",)) and not curve.rows:
        return curve.flags[0]
    if gate == "ok" and not curve.rows:
        return "no_pairs"
    if gate == "ok" and curve.inactive.all():
        return "not_tested"
    return gate


def _transition_values(
    curve: Curve, status: str, ratios: Array, weights: Array, tau: float, conf: float
) -> Row:
    """The columns of one curve that depend on tau; `ratios` and `weights` are (replicates, K)."""
    if status != "ok":
        return _undetermined(curve, status)
    tests = [augmented_tests(y - tau * f, clusters) for y, f, clusters in curve.pairs]
    p_upper, p_lower = [up for up, _ in tests], [down for _, down in tests]
    retention = curve.retention
    point = sustained_point(retention, tau)
    lower, upper = fixed_sequence_limits(p_upper, p_lower, conf)
    fit = isotonic(np.nan_to_num(retention), curve.n_pairs)
    values, degenerate = _interpolated(curve.grid, fit, ratios, weights, tau, conf)
    for name, index in (("point", point), ("lower", lower), ("upper", upper)):
        values |= _estimate(name, curve.grid, index)
    found = {
        "point_inactive": curve.is_inactive(point),
        "upper_inactive": curve.is_inactive(upper),
        "interp_degenerate": degenerate,
    }
    return values | {
        "status": status,
        "p_upper": p_upper,
        "p_lower": p_lower,
        "isotonic": fit.tolist(),
        "budgets": curve.grid.values.tolist(),
        "max_decrease": float(np.nanmax(np.append(-np.diff(retention), 0.0))),
        "n_pairs": int(curve.n_pairs.min()),
        "flags": ",".join([*curve.flags, *(name for name, holds in found.items() if holds)]),
    }


def _estimate(name: str, grid: Grid, index: float) -> Row:
    """Label, tokens and censoring of an estimate that is a budget of the grid."""
    inside = bool(np.isfinite(index))
    label = grid.label(index, grid.labels[int(index)] if inside else "")
    tokens = float(grid.values[int(index)]) * grid.tokens_per_value if inside else nan
    return {f"T_{name}": label, f"T_{name}_tokens": tokens, f"censored_{name}": grid.censored(index)}


def _interpolated(
    grid: Grid, fit: Array, ratios: Array, weights: Array, tau: float, conf: float
) -> tuple[Row, bool]:
    """Interpolated transition with bootstrap limits on the log2 budget axis, and whether the limits are degenerate."""
    position = float(crossing(fit, grid.log2, tau))
    whole = ~np.isnan(ratios).any(axis=1)
    replicates = crossing(isotonic(ratios[whole], weights[whole]), grid.log2, tau)
    lo, hi = order_limits(replicates, conf)
    degenerate = lo == hi and _without_spread(ratios[whole], lo)
    if degenerate:
        lo = hi = nan
    return {
        "log2_T_interp": _finite(position),
        "T_interp": float(2 ** _finite(position)) * grid.tokens_per_value,
        "interp_label": grid.between(position),
        "interp_lo": _finite(lo),
        "interp_hi": _finite(hi),
        "interp_lo_label": grid.between(lo),
        "interp_hi_label": grid.between(hi),
    }, degenerate


def _without_spread(ratios: Array, position: float) -> bool:
    """Whether resampling cannot move a position because the answers that decide it are the same in every pair."""
    deciding = {-inf: ratios[:, 0], inf: ratios[:, -1]}.get(position)
    return deciding is None or bool(np.ptp(deciding) <= TOLERANCE)


def _finite(value: float) -> float:
    return value if np.isfinite(value) else nan


def _undetermined(curve: Curve, status: str) -> Row:
    """The columns of a curve about which nothing can be said: the status in place of every label."""
    values: Row = {}
    for name in ("point", "lower", "upper"):
        values |= {f"T_{name}": status, f"T_{name}_tokens": nan, f"censored_{name}": None}
    values |= dict.fromkeys(("log2_T_interp", "T_interp", "interp_lo", "interp_hi", "max_decrease"), nan)
    values |= dict.fromkeys(("interp_label", "interp_lo_label", "interp_hi_label"), status)
    return values | {
        "status": status,
        "p_upper": [],
        "p_lower": [],
        "isotonic": [],
        "budgets": curve.grid.values.tolist(),
        "n_pairs": int(curve.n_pairs.min()) if curve.rows else 0,
        "flags": ",".join(curve.flags),
    }


def write_transition(
    score_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Scores and manifests in, `transition.parquet` out."""
    table = transition(*read_examples(score_paths, manifest_paths), cfg)
    write_table(table, TRANSITION, list(KEYS), cfg, out)
