"""The curve of a method in a bin: its budgets that have pairs and say something, ascending."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transition.analysis.cells import Array, DatasetScores, Indices
from kv_transition.analysis.pairs import PairScores


@dataclass(frozen=True)
class Grid:
    """Budgets, ascending: their labels, their values, and tokens for one unit of value (1, or a prompt's length)."""

    labels: tuple[str, ...]
    values: Array
    tokens_per_value: float = 1.0

    @property
    def log2(self) -> Array:
        """The budget axis x_k."""
        return np.log2(self.values)

    def censored(self, position: float) -> str:
        """Which end of the grid hides a position: "left" for -inf, "right" for +inf, else "none"."""
        return {-inf: "left", inf: "right"}.get(position, "none")

    def label(self, position: float, inside: str) -> str:
        """The label of a position at -inf, +inf or, with its own text, inside the grid."""
        ends = {"left": f"<={self.labels[0]}", "right": f">{self.labels[-1]}"}
        return ends.get(self.censored(position), inside)

    def between(self, log2_value: float) -> str | None:
        """The label of a position between budgets: whole tokens ("187") or a share ("f0.187"); None for nan."""
        if np.isnan(log2_value):
            return None
        if not np.isfinite(log2_value):
            return self.label(log2_value, "")
        return f"f{2**log2_value:.3g}" if self.values[0] < 1 else f"{2**log2_value:.0f}"


@dataclass(frozen=True)
class Curve:
    """One method in one bin.

    Attributes
    ----------
    rows : the compressed cells, as indices into `PairScores.compressed`, of the budgets that have at least one pair and
        are not infeasible.
    pairs : (compressed, full, clusters) of the pairs at each budget.
    inactive : whether compression was active in too few examples, at each budget.
    flags : what a reader of the curve has to know.
    """

    method: str
    grid: Grid
    rows: list[int]
    pairs: list[tuple[Array, Array, Indices]]
    inactive: NDArray[np.bool_]
    flags: tuple[str, ...]

    @property
    def retention(self) -> Array:
        """Ratio of sums at each budget; nan where the reference is 0."""
        sums = [(y.sum(), f.sum()) for y, f, _ in self.pairs]
        return np.array([y / f if f > 0 else nan for y, f in sums])

    @property
    def n_pairs(self) -> Array:
        """Pairs at each budget."""
        return np.array([len(y) for y, _, _ in self.pairs], dtype=np.float64)

    def is_inactive(self, index: float) -> bool:
        """Whether an estimate is a budget at which compression was mostly inactive."""
        return bool(np.isfinite(index)) and bool(self.inactive[int(index)])


def curves(
    data: DatasetScores, inside: PairScores, members: Indices, cfg: Mapping[str, Any]
) -> Iterator[Curve]:
    """The curves of all methods in one bin; `inside` holds the pairs of the bin's `members`.

    That of a method which is not applicable there has no budgets and the one flag "not_applicable".

    `cfg` needs max_infrastructure_failures and min_active_share.
    """
    cells = [data.cells[row] for row in data.compressed()]
    for method in sorted({cell.method for cell in cells}):
        all_rows = [i for i, cell in enumerate(cells) if cell.method == method]
        nothing = {i: data.nothing_asked(data.compressed()[i], members) for i in all_rows}
        judged = [i for i in all_rows if nothing[i] is None]
        rows = [i for i in judged if len(inside.paired(i))]
        pairs = [
            (inside.compressed[i, at], inside.full[at], inside.clusters[at])
            for i, at in ((i, inside.paired(i)) for i in rows)
        ]
        table_rows = [data.compressed()[i] for i in rows]
        inactive = np.array(
            [data.active_share(row, members) < cfg["min_active_share"] for row in table_rows], bool
        )
        failed = [data.infrastructure_share(row, members) for row in table_rows]
        found = {
            "missing_budget": len(rows) < len(judged),
            "infeasible": "infeasible" in nothing.values(),
            "not_applicable": "not_applicable" in nothing.values(),
            "unreliable": any(share > cfg["max_infrastructure_failures"] for share in failed),
            "inactive_budgets": bool(inactive.any()),
        }
        values = np.array([cells[i].value for i in rows])
        shares = len(rows) > 0 and values[0] < 1
        yield Curve(
            method=method,
            grid=Grid(
                labels=tuple(cells[i].budget for i in rows),
                values=values,
                tokens_per_value=float(np.median(data.press_len[table_rows[0], members])) if shares else 1.0,
            ),
            rows=rows,
            pairs=pairs,
            inactive=inactive,
            flags=tuple(name for name, holds in found.items() if holds),
        )
