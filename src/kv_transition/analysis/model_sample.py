"""What the models of budget and length take from a dataset, and what their rows have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from kv_transition.analysis.cells import Array, DatasetScores, Indices
from kv_transition.analysis.intervals import Interval
from kv_transition.analysis.pairs import PairScores
from kv_transition.analysis.tables import Row
from kv_transition.budgets import budget_from_label

#: Share of truncated prompts above which a bin's length says nothing about its documents.
MAX_TRUNCATED = 0.5
#: The columns of a row that has no numbers.
NO_VALUES: Row = {
    **dict.fromkeys(("estimate", "se", "lo", "hi", "p", "df", "x_center", "z_center"), nan),
    **{"n_obs": 0, "n_clusters": 0, "n_bins": 0, "label": "", "flags": ""},
}


@dataclass(frozen=True)
class Sample:
    """One dataset under one policy: its pairs, the bins that its models may use and their bootstrap totals.

    `used` maps each bin of `usable_bins` to its gate; `totals` maps them to (3 cells, replicates).
    """

    data: DatasetScores
    pairs: PairScores
    used: dict[int, str]
    totals: dict[int, Array]
    cfg: Mapping[str, Any]

    @property
    def flags(self) -> list[str]:
        """What was left out before any method was looked at."""
        filled = {idx for idx in self.data.bins if len(self.data.members(idx))}
        return ["truncated_bins"] * (len(self.used) < len(filled))

    def methods(self) -> list[str]:
        """The methods that have a budget."""
        return sorted({self.data.cells[row].method for row in self.data.compressed()})


def usable_bins(data: DatasetScores) -> list[int]:
    """The bins that have examples and whose prompt lengths are those of their documents.

    A bin in which more than MAX_TRUNCATED of the prompts are known to be cut to the model's limit is none of these.
    """
    cut = {idx: np.nan_to_num(data.truncated[data.members(idx)]) for idx in data.bins}
    return [idx for idx, share in cut.items() if len(share) and share.mean() <= MAX_TRUNCATED]


def in_comparable_units(data: DatasetScores, labels: Sequence[str]) -> bool:
    """Whether the budgets can be set against the prompt lengths: shares always, tokens with lengths in tokens."""
    shares = all(isinstance(budget_from_label(label), float) for label in labels)
    return shares or data.about["length_unit"] in ("", "tokens")


def log2_lengths(data: DatasetScores, members: Indices) -> Array:
    """log2 prompt length of some examples."""
    return np.log2(np.maximum(data.token_len[members], 1.0))


def estimate_columns(interval: Interval) -> Row:
    """The number columns of an interval."""
    return {
        "estimate": interval.point,
        "se": interval.se,
        "lo": interval.lo,
        "hi": interval.hi,
        "p": interval.p,
    }
