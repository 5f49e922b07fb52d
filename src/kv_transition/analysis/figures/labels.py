"""Labels of budget estimates: "64", "f0.25", "<=16" (censored left), ">512" (censored right)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kv_transition.budgets import Budget, parse_budget

#: Statuses that are no words, in as few as a panel has room for.
SHORT_STATUS = {
    "too_few": "under 10 examples",
    "no_reference": "full cache not run",
    "reference_too_weak": "full cache scores too low",
    "undefined_full_zero": "full cache scores 0",
    "too_few_bins": "too few length bins",
    "no_transition_detected": "no fall detected",
    "length_not_in_tokens": "lengths not in tokens",
    "no_pairs": "no example answered both ways",
}


def short_status(status: str) -> str:
    """A status of the tables in a few words, for a panel."""
    return SHORT_STATUS.get(status, status.replace("_", " "))


def looked_at(count: int) -> str:
    """ "1 was looked at", "5 were looked at"."""
    return f"{count} {'was' if count == 1 else 'were'} looked at"


Side = Literal["none", "left", "right"]


@dataclass(frozen=True)
class Estimate:
    """A transition budget or one of its limits, as far as the tested budgets reach.

    Attributes
    ----------
    side : "left" means at or below `budget`, the smallest tested; "right" means above it, the largest tested.
    """

    budget: Budget
    side: Side = "none"

    @property
    def rank(self) -> float:
        """A number that orders estimates: infinite above the tested budgets."""
        return math.inf if self.side == "right" else float(self.budget)


def read_estimate(label: str) -> Estimate:
    """Read a label as the transition table writes it.

    Raises
    ------
    ConfigError
        When the label names no budget (the table holds a status there where nothing could be estimated).
    """
    side: Side = "left" if label.startswith("<=") else "right" if label.startswith(">") else "none"
    return Estimate(parse_budget(label.removeprefix("<=").removeprefix(">")), side)
