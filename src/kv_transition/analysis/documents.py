"""The analysis as one JSON document: the tables of one failure policy as lists of records.

A document of one dataset holds `dataset`, `failure_policy`, `settings`, the sections below, and `sensitivity`: the labels
that change between the failure policies. Every record names its method, bin_idx (-1: all bins) and, where it is about one
cell, its budget (null for the uncompressed references, an integer for tokens, a number below 1 for a share). What is not
known is null. Beside the names given here a record has the columns of its table, under their own names.

    cells       bin_stats: n_rows (requests with a result), n_failed (failure label -> rows), boot_exact_lo/_hi (boot_lo/_hi)
    reference   the full cache of each bin: status (the gate), mean, n_clusters
    retention   retention: tost_p_plain_statsmodels (equivalence by plain paired t tests, without the pseudo-pair)
    transition  transition, for each tau: interp_status ("ok", "<=min", ">max" or the status), interp_boot_lo/_hi (log2, or
                the label where censored)
    logistic    transition, once for each curve: status, m, width, floor, ceil, rss, flat_rss (of a constant), gof_p,
                m_boot_lo/_hi, m_at_bound, width_at_bound
    adjacent    paired_tests of neighbouring budgets: lower, upper, n, diff, se, p, p_signflip_exact, p_holm
    mcnemar     the same for 0/1 metrics: lower, upper, n_only_lower, n_only_upper, p
    against_full, between_methods   the other paired tests: n, diff, se, p, p_holm or (exploratory) p_bh
    lossless    lossless: status (the gate), smallest_lossless (by the tests alone), claim (the status of the lossless table)
                and smallest_claimed (its label: null where it would rest on a cell with too many failed requests)
    collapse    effect_models, once for each method: alpha1, alpha1_boot_lo/_hi, midpoint_at_center, width, floor_frac, rss,
                rss_alpha1_0, rss_alpha1_1, z_center
    gee         effect_models: formula, params and se_bias_reduced by statsmodels' names, alpha1 (length over budget effect)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from kv_transition import __version__
from kv_transition.analysis.document_fits import (
    CURVE_COLUMNS,
    collapse_records,
    gee_record,
    logistic_records,
)
from kv_transition.analysis.gates import MIN_CLUSTERS, MIN_REFERENCE_MEAN
from kv_transition.analysis.lossless import LosslessCell, descend
from kv_transition.analysis.records import (
    Record,
    as_json,
    budget_of,
    count,
    record,
    rows_of,
    whole_tokens,
    with_budget,
)
from kv_transition.eval.failure_taxonomy import INFRASTRUCTURE, LABELS

if TYPE_CHECKING:
    import pandas as pd

Tables = Mapping[str, "pd.DataFrame"]

_LABELS = ("T_point", "T_lower", "T_upper")


def document(tables: Tables, policy: str, cfg: Mapping[str, Any]) -> Record:
    """The document of one failure policy.

    Parameters
    ----------
    tables : bin_stats, retention, transition, paired_tests, lossless, effect_models and macro, with all policies.
    cfg : the analysis settings the tables were made with.

    Returns
    -------
    The document of the dataset; of several: {"datasets": {name: document}, "macro": records over the tasks, ...}.
    """
    about = {"failure_policy": policy, "settings": as_json(_settings(cfg))}
    names = sorted(set(tables["bin_stats"]["dataset"]))
    found = {name: about | _dataset(tables, name, policy, cfg) for name in names}
    if len(names) == 1:
        return found[names[0]]
    macro = [as_json(row) for row in rows_of(tables["macro"], policy=policy)]
    return {**about, "datasets": found, "macro": [with_budget(row) for row in macro]}


def _settings(cfg: Mapping[str, Any]) -> Record:
    return {
        "root_seed": cfg["seed"],
        "B": cfg["bootstrap_replicates"],
        "interp_B": cfg["transition_replicates"],
        "logistic_B": cfg["fit_replicates"],
        "collapse_B": cfg["collapse_replicates"],
        "conf": cfg["conf"],
        "taus": list(cfg["tau"]),
        "delta": cfg["delta"],
        "alpha": 1 - cfg["conf"],
        "zero_on": ["EMPTY_OUTPUT", *INFRASTRUCTURE],
        "min_clusters": MIN_CLUSTERS,
        "min_reference_mean": MIN_REFERENCE_MEAN,
        "min_active_share": cfg["min_active_share"],
        "max_infrastructure_failures": cfg["max_infrastructure_failures"],
        "version": __version__,
    }


def _dataset(tables: Tables, name: str, policy: str, cfg: Mapping[str, Any]) -> Record:
    rows = {
        table: rows_of(tables[table], dataset=name, policy=policy) for table in tables if table != "macro"
    }
    counted = {
        (row["method"], row["bin_idx"], row["budget"]): row["n"]
        for row in rows_of(tables["bin_stats"], dataset=name, policy="zero")
    }
    tests = {kind: [row for row in rows["paired_tests"] if row["kind"] == kind] for kind in _TESTS}
    return {
        "dataset": name,
        "cells": [_cell(row, counted) for row in rows["bin_stats"]],
        "reference": _references(rows["bin_stats"], rows["retention"]),
        "retention": [_retention(row) for row in rows["retention"]],
        "transition": [_transition(row) for row in rows["transition"]],
        "logistic": logistic_records(rows["transition"], rows["bin_stats"]),
        "mcnemar": [_mcnemar(row) for row in tests["adjacent"] if isfinite(row["p_mcnemar"])],
        **{section: [_test(row) for row in tests[kind]] for kind, section in _TESTS.items()},
        "lossless": _lossless(rows["lossless"], rows["retention"], cfg),
        "collapse": collapse_records([row for row in rows["effect_models"] if row["model"] == "collapse"]),
        "gee": gee_record([row for row in rows["effect_models"] if row["model"] != "collapse"]),
        "sensitivity": _sensitivity(tables, name, cfg["policies"]),
    }


def _cell(row: Record, counted: Mapping[tuple[str, int, str], int]) -> Record:
    counts = {label: row[f"n_{label.lower()}"] for label in LABELS}
    return record(
        row,
        {
            "n_rows": counted[row["method"], row["bin_idx"], row["budget"]],
            "n_failed": {label: count for label, count in counts.items() if count},
            "boot_exact_lo": row["boot_lo"],
            "boot_exact_hi": row["boot_hi"],
        },
        [f"n_{label.lower()}" for label in LABELS],
    )


def _references(cells: Sequence[Record], ratios: Sequence[Record]) -> list[Record]:
    """The full cache of each bin and what its gate says; without it the gate alone."""
    full = {row["bin_idx"]: row for row in cells if row["method"] == "full"}
    gates = {row["bin_idx"]: row["gate"] for row in ratios}
    none = {"mean": nan, "n_clusters": 0}
    return [
        as_json(
            {"bin_idx": idx, "status": gate}
            | {name: full.get(idx, none)[name] for name in ("mean", "n_clusters")}
        )
        for idx, gate in sorted(gates.items())
    ]


def _retention(row: Record) -> Record:
    return record(
        row,
        {
            "boot_exact_lo": row["boot_lo"],
            "boot_exact_hi": row["boot_hi"],
            "tost_p_plain_statsmodels": _plain_tost(row),
        },
    )


def _plain_tost(row: Record) -> float:
    """The larger p of both one-sided paired t tests against the margin; nan where there is no spread or no gate."""
    from scipy.special import stdtr

    if not (row["diff_se"] > 0 and isfinite(row["tost_p"])):
        return nan
    df, scaled = row["n_clusters"] - 1, 1 / row["diff_se"]
    return float(
        max(
            stdtr(df, -(row["diff"] + row["delta"]) * scaled),
            stdtr(df, (row["diff"] - row["delta"]) * scaled),
        )
    )


def _transition(row: Record) -> Record:
    return record(
        row,
        {
            "interp_status": _interp_status(row),
            "interp_boot_lo": _limit(row["interp_lo"], row["interp_lo_label"]),
            "interp_boot_hi": _limit(row["interp_hi"], row["interp_hi_label"]),
            "budgets": whole_tokens(row["budgets"]),
        },
        CURVE_COLUMNS,
    )


def _interp_status(row: Record) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    censored = {"<": "<=min", ">": ">max"}
    return "ok" if isfinite(row["log2_T_interp"]) else censored.get(str(row["interp_label"])[:1], "undefined")


def _limit(value: float, label: Any) -> float | str | None:
    """A limit, its label where the grid censors it, None where there is none."""
    if isfinite(value):
        return value
    return label if isinstance(label, str) and label[:1] in ("<", ">") else None


#: Kind of paired test -> section.
_TESTS = {"adjacent": "adjacent", "full": "against_full", "method": "between_methods"}
_TEST_COLUMNS = ("n_pairs", "diff_se", "p_signflip", "p_adjusted", "budget_value_a", "budget_value_b", "kind")
_SIDES = ("method_a", "budget_a", "method_b", "budget_b")


def _test(row: Record) -> Record:
    named = {
        "n": row["n_pairs"],
        **{name: count(row[name]) for name in ("n_only_a", "n_only_b")},
        "diff": row["diff"],
        "se": row["diff_se"],
        "p": row["p"],
        "p_signflip_exact": row["p_signflip"],
        f"p_{row['adjustment']}": row["p_adjusted"],
    }
    if row["kind"] == "method":
        sides = {name: row[name] for name in ("method_a", "method_b")} | {"budget": row["budget_a"]}
    else:
        method = row["method_a"] if row["kind"] == "adjacent" else row["method_b"]
        sides = {"method": method, "lower": row["budget_a"], "upper": row["budget_b"]}
        if row["kind"] == "full":
            sides = {"method": method, "budget": row["budget_b"]}
    rest = {key: value for key, value in row.items() if key not in _SIDES}
    return record(sides | rest, named, _TEST_COLUMNS)


def _mcnemar(row: Record) -> Record:
    named = {
        "lower": row["budget_a"],
        "upper": row["budget_b"],
        "n": row["n_pairs"],
        "n_only_lower": count(row["n_only_a"]),
        "n_only_upper": count(row["n_only_b"]),
        "p": row["p_mcnemar"],
    }
    return record({"method": row["method_a"], "bin_idx": row["bin_idx"]}, named)


def _lossless(claims: Sequence[Record], ratios: Sequence[Record], cfg: Mapping[str, Any]) -> list[Record]:
    """The claims beside what the tests show where failed requests bar no cell from a claim."""
    alpha = 1 - cfg["conf"]
    tests: dict[tuple[str, int], list[LosslessCell]] = {}
    for row in ratios:
        inactive = row["active_frac"] < cfg["min_active_share"]
        cell = LosslessCell(row["budget"], row["budget_value"], row["ni_p"], inactive)
        tests.setdefault((row["method"], row["bin_idx"]), []).append(cell)
    records = []
    for row in claims:
        shown = descend(tests[row["method"], row["bin_idx"]], alpha, exact=False).shown
        judged = row["status"] in ("ok", "not_demonstrated", "not_tested")
        named = {
            "status": "ok" if judged else row["status"],
            "delta": row["delta"],
            "alpha": alpha,
            "smallest_lossless": budget_of(shown.budget) if shown else None,
            "claim": row["status"],
            "smallest_claimed": budget_of(row["smallest_lossless"]),
            "all_bins": budget_of(row["all_bins"]),
            "tested": whole_tokens(row["tested"]),
            "n_pairs_min": count(row["n_pairs_min"]),
            "n_needed": count(row["n_needed"]),
        }
        records.append(record(row, named, ("smallest_lossless_value",)))
    return records


def _sensitivity(tables: Tables, name: str, policies: Sequence[str]) -> list[Record]:
    """The labels that the failure policy decides, each with its value under every policy."""
    labels: dict[tuple[Any, ...], dict[str, Any]] = {}
    for policy in policies:
        for row in rows_of(tables["transition"], dataset=name, policy=policy):
            for label in _LABELS:
                key = (row["method"], row["bin_idx"], row["tau"], label)
                labels.setdefault(key, {})[policy] = row[label]
        for row in rows_of(tables["lossless"], dataset=name, policy=policy):
            key = (row["method"], row["bin_idx"], None, "smallest_claimed")
            labels.setdefault(key, {})[policy] = row["smallest_lossless"] or row["status"]
    return [
        as_json(dict(zip(("method", "bin_idx", "tau", "label"), key, strict=True)) | values)
        for key, values in labels.items()
        if len(set(values.values())) > 1
    ]
