"""The rows of the collapse model: whether a method's transition follows the budget or its share of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kv_transition.analysis.cells import Array
from kv_transition.analysis.collapse import RESOLUTION, CollapseCells, CollapseFit, fit_collapse, law
from kv_transition.analysis.curves import Curve, curves
from kv_transition.analysis.gates import bin_gate
from kv_transition.analysis.intervals import Interval, augmented_tests, percentile_limits
from kv_transition.analysis.model_sample import (
    NO_VALUES,
    Sample,
    estimate_columns,
    in_comparable_units,
    log2_lengths,
)
from kv_transition.analysis.tables import Row

#: Bins, and octaves between their mean lengths, that a statement about length needs at least.
MIN_BINS, MIN_LENGTH_SPREAD = 3, 0.1
#: Budgets that the shape of a curve needs at least.
MIN_BUDGETS = 3
#: A loss at the smallest budget has to be found at this level in so many bins.
DROP_LEVEL, MIN_DROPS = 0.05, 2
#: Share of replicates at a bound of alpha1 (or of the midpoint) above which the bound makes the interval.
MAX_AT_BOUND = 0.025

COLLAPSE_TERMS = ("alpha1", "midpoint", "width", "floor_frac", "rss", "rss_alpha1_0", "rss_alpha1_1")


def collapse_rows(sample: Sample) -> Iterator[Row]:
    """The collapse model's rows, method by method."""
    judged = [idx for idx, gate in sample.used.items() if gate == "ok"]
    by_method: dict[str, dict[int, Curve]] = {method: {} for method in sample.methods()}
    for idx in judged:
        members = sample.data.members(idx)
        for curve in curves(sample.data, sample.pairs.of(members), members, sample.cfg):
            by_method[curve.method][idx] = curve
    for method, in_bins in by_method.items():
        flags = sample.flags + ["bins_left_out"] * (len(judged) < len(sample.used))
        names = {flag for curve in in_bins.values() for flag in curve.flags}
        flags += sorted(names)
        in_bins = {idx: curve for idx, curve in in_bins.items() if curve.rows}
        status = _collapse_status(sample, method, in_bins, names)
        about: Row = NO_VALUES | {"model": "collapse", "method": method, "status": status}
        values = dict.fromkeys(COLLAPSE_TERMS, about | {"n_bins": len(in_bins), "flags": ",".join(flags)})
        if status == "ok":
            values = _collapse_values(sample, in_bins, about, flags)
        for term, row in values.items():
            yield row | {"term": term}


def _collapse_status(sample: Sample, method: str, in_bins: dict[int, Curve], flags: set[str]) -> str:
    """Whether a method's curves can be put on one another, or the first reason why not."""
    data = sample.data
    labels = [data.cells[row].budget for row in data.compressed() if data.cells[row].method == method]
    if not in_comparable_units(data, labels):
        return "length_not_in_tokens"
    if "ok" not in sample.used.values():
        whole = sample.pairs
        gate = bin_gate(whole.full, whole.no_context, whole.clusters, sample.cfg["conf"])[0]
        return gate if gate != "ok" else "too_few_bins"
    if not in_bins:
        return next((name for name in ("not_applicable", "infeasible") if name in flags), "no_pairs")
    if all(curve.inactive.all() for curve in in_bins.values()):
        return "not_tested"
    lengths = [float(log2_lengths(data, data.members(idx)).mean()) for idx in in_bins]
    if len(in_bins) < MIN_BINS or np.ptp(lengths) < MIN_LENGTH_SPREAD:
        return "too_few_bins"
    if len({label for curve in in_bins.values() for label in curve.grid.labels}) < MIN_BUDGETS:
        return "too_few_budgets"
    smallest = [curve.pairs[0] for curve in in_bins.values()]
    drops = [augmented_tests(full - y, clusters)[0] <= DROP_LEVEL for y, full, clusters in smallest]
    return "ok" if sum(drops) >= MIN_DROPS else "no_transition_detected"


def _collapse_values(
    sample: Sample, in_bins: dict[int, Curve], about: Row, flags: list[str]
) -> dict[str, Row]:
    """The rows of a fitted collapse model, by term."""
    lengths = {idx: log2_lengths(sample.data, sample.data.members(idx)) for idx in in_bins}
    centre = float(np.concatenate(list(lengths.values())).mean())
    sizes = [len(curve.rows) for curve in in_bins.values()]
    cells = CollapseCells(
        x=np.concatenate(
            [curve.grid.log2 + np.log2(curve.grid.tokens_per_value) for curve in in_bins.values()]
        ),
        dz=np.repeat([float(z.mean()) - centre for z in lengths.values()], sizes),
    )
    sums = _sums(sample, in_bins)
    fit = fit_collapse(cells, *sums)
    compressed, full, n_pairs = (rows[:1] for rows in sums)
    held = {a: fit_collapse(cells, compressed, full, n_pairs, alpha1=float(a)) for a in (0, 1)}
    intervals = {name: _percentiles(getattr(fit, name), sample.cfg["conf"]) for name in COLLAPSE_TERMS[:4]}
    flags = flags + _fit_flags(cells, fit, intervals)
    if "midpoint_interval_at_bound" in flags:
        # The edge of the search holds the midpoint and not the data, which so cannot say how it moves with length.
        intervals["alpha1"] = Interval(intervals["alpha1"].point, status="degenerate")
    elif _rests_on_inactive(sample, in_bins, cells, sums, intervals["alpha1"]):
        intervals["alpha1"] = Interval(intervals["alpha1"].point, status="degenerate")
        flags = [*flags, "rests_on_inactive_budgets"]
    members = np.concatenate([sample.data.members(idx) for idx in in_bins])
    about |= {
        "n_obs": int(sum(curve.n_pairs.sum() for curve in in_bins.values())),
        "n_clusters": len(np.unique(sample.data.clusters[members])),
        "n_bins": len(in_bins),
        "flags": ",".join(flags),
        "z_center": centre,
    }
    if "midpoint_at_bound" in flags:
        return dict.fromkeys(COLLAPSE_TERMS, about | {"status": "outside_grid"})
    rows = {name: about | estimate_columns(interval) for name, interval in intervals.items()}
    alpha1 = intervals["alpha1"]
    rows["alpha1"]["label"] = "" if np.isnan(alpha1.lo) else law(alpha1.lo, alpha1.hi)
    rows["rss"] = about | {"estimate": float(fit.rss[0])}
    return rows | {f"rss_alpha1_{a}": about | {"estimate": float(one.rss[0])} for a, one in held.items()}


def _rests_on_inactive(
    sample: Sample,
    in_bins: Mapping[int, Curve],
    cells: CollapseCells,
    sums: tuple[Array, Array, Array],
    alpha1: Interval,
) -> bool:
    """Whether alpha1 says something else without the cells in which some prompts were not compressed.

    A prompt that fits the budget scores as the full cache does, whatever the method: where a method still loses at that
    budget the curve jumps at the prompt's length, and any method would seem to follow the budget's share of the prompt.
    """
    data = sample.data
    shares = [
        data.active_share(data.compressed()[row], data.members(idx))
        for idx, curve in in_bins.items()
        for row in curve.rows
    ]
    # Not known (nan) counts as active.
    active = np.array([not share < 1 for share in shares])
    if active.all() or np.isnan(alpha1.lo):
        return False
    bins = np.repeat(list(in_bins), [len(curve.rows) for curve in in_bins.values()])
    labels = [label for curve in in_bins.values() for label in curve.grid.labels]
    n_budgets = len({label for label, kept in zip(labels, active, strict=True) if kept})
    if len(np.unique(bins[active])) < MIN_BINS or n_budgets < MIN_BUDGETS:
        return True
    compressed, full, n_pairs = (columns[:, active] for columns in sums)
    kept = CollapseCells(cells.x[active], cells.dz[active])
    fit = fit_collapse(kept, compressed, full, n_pairs)
    again = {name: _percentiles(getattr(fit, name), sample.cfg["conf"]) for name in COLLAPSE_TERMS[:4]}
    if np.isnan(again["alpha1"].lo) or "midpoint_interval_at_bound" in _fit_flags(kept, fit, again):
        return True
    return law(again["alpha1"].lo, again["alpha1"].hi) != law(alpha1.lo, alpha1.hi)


def _sums(sample: Sample, in_bins: dict[int, Curve]) -> tuple[Array, Array, Array]:
    """Sums of compressed scores, full scores and pairs at every cell: (1 + replicates, cells) each, the sample first."""
    parts: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
    for idx, curve in in_bins.items():
        blocks = np.split(sample.totals[idx], 3)
        for row, (y, full, _) in zip(curve.rows, curve.pairs, strict=True):
            own = (float(y.sum()), float(full.sum()), float(len(y)))
            for part, value, block in zip(parts, own, blocks, strict=True):
                part.append(np.append(value, block[row]))
    compressed, full_sums, n_pairs = (np.stack(part, axis=1) for part in parts)
    return compressed, full_sums, n_pairs


def _percentiles(fitted: Array, conf: float) -> Interval:
    """Estimate of the sample, limits of its replicates; no limits where no replicate moves."""
    point, replicates = float(fitted[0]), fitted[1:]
    known = replicates[~np.isnan(replicates)]
    if len(known) == 0:
        return Interval(point, status="degenerate")
    lo, hi = (float(limit) for limit in percentile_limits(known, conf))
    return Interval(point, lo, hi) if hi - lo > RESOLUTION else Interval(point, status="degenerate")


def _fit_flags(cells: CollapseCells, fit: CollapseFit, intervals: Mapping[str, Interval]) -> list[str]:
    """What a reader of the fitted numbers has to know."""
    low, high = cells.bounds()

    def at_bound(values: Array, i: int) -> Any:
        return (values <= low[i] + RESOLUTION) | (values >= high[i] - RESOLUTION)

    slopes = fit.alpha1[1:][~np.isnan(fit.alpha1[1:])]
    midpoints = fit.midpoint[1:][~np.isnan(fit.midpoint[1:])]
    found = {
        "midpoint_outside_grid": not cells.x.min() <= fit.midpoint[0] <= cells.x.max(),
        "midpoint_at_bound": at_bound(fit.midpoint, 0)[0],
        "midpoint_interval_at_bound": len(midpoints) > 0 and at_bound(midpoints, 0).mean() > MAX_AT_BOUND,
        "width_at_bound": at_bound(np.log(fit.width), 2)[0],
        "width_interval_at_bound": at_bound(np.log([intervals["width"].lo, intervals["width"].hi]), 2).any(),
        "alpha1_at_bound": at_bound(fit.alpha1, 1)[0],
        "interval_at_bound": len(slopes) > 0 and at_bound(slopes, 1).mean() > MAX_AT_BOUND,
        "interval_degenerate": any(one.status == "degenerate" for one in intervals.values()),
    }
    return [name for name, holds in found.items() if holds]
