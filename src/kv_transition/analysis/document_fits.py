"""The fitted models in the JSON document: logistic curves, collapse model and marginal effects (see `documents`)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan

from kv_transition.analysis.records import Record, as_json, record

#: Columns of the logistic curve in the transition table -> their names in `logistic`.
CURVE_COLUMNS = {
    "logistic_status": "status",
    "drop_p": "drop_p",
    "m": "m",
    "m_label": "m_label",
    "m_lo": "m_boot_lo",
    "m_hi": "m_boot_hi",
    "width": "width",
    "width_lo": "width_boot_lo",
    "width_hi": "width_boot_hi",
    "floor": "floor",
    "ceil": "ceil",
    "slope_per_octave": "slope_per_octave",
    "logistic_rss": "rss",
    "gof_p": "gof_p",
    "logistic_flags": "flags",
}


def logistic_records(curves: Sequence[Record], cells: Sequence[Record]) -> list[Record]:
    """One record for each curve: a row of each tau says the same."""
    once = {(row["method"], row["bin_idx"]): row for row in reversed(curves)}
    records = []
    for method, idx in sorted(once):
        row = once[method, idx]
        flags = str(row["logistic_flags"] or "").split(",")
        fitted = isfinite(row["logistic_rss"])
        named = {name: row[column] for column, name in CURVE_COLUMNS.items()} | {
            "m_at_bound": "m_at_bound" in flags,
            "width_at_bound": "width_at_bound" in flags,
            "flat_rss": _flat_rss(cells, method, idx) if fitted else nan,
        }
        records.append(record({"method": method, "bin_idx": idx}, named))
    return records


def _flat_rss(cells: Sequence[Record], method: str, bin_idx: int) -> float:
    """Weighted squares around the mean of a curve's cells and the full cache: the fit of no transition at all."""
    used = [row for row in cells if row["bin_idx"] == bin_idx and row["method"] in ("full", method)]
    points = [(row["n"], row["mean"]) for row in used if row["n"] and isfinite(row["mean"])]
    mean = sum(n * y for n, y in points) / sum(n for n, _ in points)
    return float(sum(n * (y - mean) ** 2 for n, y in points))


def collapse_records(rows: Sequence[Record]) -> list[Record]:
    """One record for each method, of its terms."""
    records = []
    for method in sorted({row["method"] for row in rows}):
        terms = {row["term"]: row for row in rows if row["method"] == method}
        values = {name: terms[name]["estimate"] if name in terms else nan for name in _COLLAPSE_TERMS}
        shared = {
            name: value for name, value in next(iter(terms.values())).items() if name in _COLLAPSE_SHARED
        }
        alpha1, midpoint = terms.get("alpha1", {}), terms.get("midpoint", {})
        named = {
            "alpha1": values.pop("alpha1"),
            "alpha1_boot_lo": alpha1.get("lo", nan),
            "alpha1_boot_hi": alpha1.get("hi", nan),
            "label": alpha1.get("label"),
            "midpoint_at_center": values.pop("midpoint"),
            "midpoint_boot_lo": midpoint.get("lo", nan),
            "midpoint_boot_hi": midpoint.get("hi", nan),
        }
        records.append(record({"method": method}, named | values | shared))
    return records


_COLLAPSE_TERMS = ("alpha1", "midpoint", "width", "floor_frac", "rss", "rss_alpha1_0", "rss_alpha1_1")
_COLLAPSE_SHARED = ("n_obs", "n_clusters", "n_bins", "status", "flags", "z_center")


def gee_record(rows: Sequence[Record]) -> Record:
    """The effects of budget, length and method, by statsmodels' names of its parameters."""
    effects = [row for row in rows if row["model"] == "gee"]
    ratios = [row for row in rows if row["model"] == "gee_length_ratio"]
    methods = sorted({row["method"] for row in ratios if row["n_obs"]})
    about = effects[0] if effects else {}
    contrast = f"C(method, Treatment(reference='{methods[0]}'))" if len(methods) > 1 else ""
    names = {row["term"]: row["term"].replace("method[", f"{contrast}[T.") for row in effects}
    ratio = [
        {"method": row["method"], "formula": "y~xc+zc", "estimate": row["estimate"], "se_delta": row["se"]}
        | {name: row[name] for name in ("lo", "hi", "status", "flags")}
        for row in ratios
    ]
    whole: Record = as_json(
        {
            "formula": "y~xc*zc" + (f"*{contrast}" if contrast else ""),
            **{
                name: about.get(name)
                for name in ("status", "flags", "n_obs", "n_clusters", "x_center", "z_center")
            },
            **{
                name: {names[row["term"]]: row[column] for row in effects}
                for name, column in (
                    ("params", "estimate"),
                    ("se_bias_reduced", "se"),
                    ("p", "p"),
                    ("lo", "lo"),
                    ("hi", "hi"),
                )
            },
            "alpha1": ratio[0] if ratio else None,
            "alpha1_by_method": ratio,
        }
    )
    return whole
