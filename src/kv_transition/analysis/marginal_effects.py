"""The rows of the marginal models: effects of budget, length and method, and the length ratio of each method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from kv_transition.analysis.cells import Array, Indices
from kv_transition.analysis.gee import GeeFit, effects_design, fit_gee, length_ratio
from kv_transition.analysis.model_sample import (
    NO_VALUES,
    Sample,
    estimate_columns,
    in_comparable_units,
    log2_lengths,
)
from kv_transition.analysis.tables import Row
from kv_transition.budgets import budget_from_label, kept_tokens


@dataclass(frozen=True)
class _Observations:
    """The scored rows of some methods, (n,) each: what a marginal model is fitted to.

    `x` and `z` are log2 effective budget and log2 prompt length, `method` counts the methods that have a row.
    """

    scores: Array
    x: Array
    z: Array
    method: Indices
    clusters: Indices
    bins: Indices


def gee_rows(sample: Sample) -> Iterator[Row]:
    """The rows of the marginal models: all methods together, then the length ratio of each."""
    methods = sample.methods()
    if methods:
        yield from _effects(sample, methods)
    for method in methods:
        yield _length_ratio(sample, method)


def _effects(sample: Sample, methods: list[str]) -> Iterator[Row]:
    """One row for each coefficient of the model of all methods."""
    rows = _rows_of(sample, methods)
    seen, present = _observations(sample, rows), _present(sample, rows)
    about = _about(sample, rows) | {"model": "gee", "method": ""}
    design, terms = effects_design(
        seen.x - about["x_center"], seen.z - about["z_center"], seen.method, present or methods[:1]
    )
    fit = _fit(sample, rows, seen, design)
    for i, term in enumerate(terms):
        values = estimate_columns(fit.interval(i, sample.cfg["conf"])) if fit.status == "ok" else {}
        yield about | _sizes(fit, seen) | values | {"term": term}


def _length_ratio(sample: Sample, method: str) -> Row:
    """The row of a method's length ratio; it owes nothing to the other methods."""
    rows = _rows_of(sample, [method])
    seen, about = _observations(sample, rows), _about(sample, rows)
    design = np.stack([np.ones(len(seen.x)), seen.x - about["x_center"], seen.z - about["z_center"]], axis=1)
    fit = _fit(sample, rows, seen, design)
    values = (
        about | _sizes(fit, seen) | {"model": "gee_length_ratio", "method": method, "term": "length_ratio"}
    )
    if fit.status != "ok":
        return values
    ratio = length_ratio(fit, 1, 2, sample.cfg["conf"])
    return values | estimate_columns(ratio) | {"p": nan, "status": ratio.status}


def _fit(sample: Sample, rows: list[int], seen: _Observations, design: Array) -> GeeFit:
    """The fitted model, or that budgets and lengths are counted in different units."""
    if in_comparable_units(sample.data, [sample.data.cells[row].budget for row in rows]):
        return fit_gee(seen.scores, design, seen.clusters)
    return GeeFit("length_not_in_tokens", len(seen.scores), len(np.unique(seen.clusters)))


def _sizes(fit: GeeFit, seen: _Observations) -> Row:
    """Status and counts of a fit."""
    return {
        "status": fit.status,
        "df": nan if fit.df is None else fit.df,
        "n_obs": fit.n_obs,
        "n_clusters": fit.n_clusters,
        "n_bins": len(np.unique(seen.bins)),
    }


def _rows_of(sample: Sample, methods: list[str]) -> list[int]:
    """The compressed cells of some methods, as rows of the dataset."""
    return [row for row in sample.data.compressed() if sample.data.cells[row].method in methods]


def _members(sample: Sample) -> Indices:
    """The examples of the bins that may be used."""
    return np.flatnonzero(np.isin(sample.data.bin_of, list(sample.used)))


def _about(sample: Sample, rows: list[int]) -> Row:
    """Centres and flags of a model of some cells.

    x_center is the mean log2 of the budgets that occur, a share counting as that of the median prompt; z_center is the
    mean log2 length over the examples.
    """
    data, members = sample.data, _members(sample)
    median = float(np.median(data.token_len[members])) if len(members) else 1.0
    budgets = sorted({data.cells[row].value for row in rows})
    grid = [float(np.log2(value * median if value < 1 else value)) for value in budgets]
    failed = max(data.infrastructure_share(row, members) for row in rows)
    unreliable = failed > sample.cfg["max_infrastructure_failures"]
    return NO_VALUES | {
        "x_center": float(np.mean(grid)),
        "z_center": float(log2_lengths(data, members).mean()) if len(members) else nan,
        "flags": ",".join([*sample.flags, *["unreliable"] * unreliable]),
    }


def _seen(sample: Sample, row: int) -> Indices:
    """The examples with a score of a cell, without the bins in which the cell says nothing."""
    data, members = sample.data, _members(sample)
    scores = sample.pairs.compressed[data.compressed().index(row)]
    silent = [idx for idx in sample.used if data.nothing_asked(row, data.members(idx)) is not None]
    seen: Indices = members[~np.isnan(scores[members]) & ~np.isin(data.bin_of[members], silent)]
    return seen


def _present(sample: Sample, rows: list[int]) -> list[str]:
    """The methods that have a score, in alphabetical order."""
    return sorted({sample.data.cells[row].method for row in rows if len(_seen(sample, row))})


def _observations(sample: Sample, rows: list[int]) -> _Observations:
    """The scores of some cells, cell by cell."""
    data, present = sample.data, _present(sample, rows)
    parts: list[tuple[Any, ...]] = [(np.empty(0),) * 3 + (np.empty(0, dtype=np.int64),) * 3]
    for row in rows:
        cell, at = data.cells[row], _seen(sample, row)
        if len(at):
            scores = sample.pairs.compressed[data.compressed().index(row), at]
            x = _log2_kept(cell.budget, data.press_len[row, at])
            method = np.full(len(at), present.index(cell.method))
            parts.append((scores, x, log2_lengths(data, at), method, data.clusters[at], data.bin_of[at]))
    return _Observations(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _log2_kept(label: str, press_len: Array) -> Array:
    """log2 of the positions that are kept: the budget, or the prompt where it is shorter."""
    budget = budget_from_label(label)
    if isinstance(budget, float):
        kept = np.array([kept_tokens(budget, int(length)) for length in press_len], dtype=np.float64)
    else:
        kept = np.full(len(press_len), float(budget or 1))
    return np.log2(np.maximum(np.minimum(kept, press_len), 1.0))
