"""From which budget on a method is shown to lose no more than delta: the fixed sequence of non-inferiority tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LosslessCell:
    """What the claim needs of one (method, budget) cell of the retention table.

    Attributes
    ----------
    ni_p : p-value of "loses delta or more"; None where there was no test.
    mde : smallest difference found with power 0.8; None where not estimable.
    """

    budget: str
    value: float
    gate: str
    active_frac: float
    unreliable: bool
    ni_p: float | None
    mde: float | None


def lossless_budget(cells: Iterable[LosslessCell], alpha: float = 0.05, min_active_share: float = 0.5) -> str:
    """Label of the smallest budget shown to lose less than delta, tested from the largest budget down.

    Budgets that fewer than `min_active_share` of the prompts exceeded are passed over, neither tested nor failed: nothing was
    compressed there. The sequence stops at the first failure, so no adjustment for the number of budgets is needed.

    Returns
    -------
    A budget label, "not tested" (nothing could be), or "not demonstrated (MDE 0.12)" with the smallest difference that
    the first failing cell would have found with power 0.8.
    """
    shown = None
    for cell in sorted(cells, key=lambda cell: -cell.value):
        if cell.gate != "ok":
            return "not tested"
        if cell.active_frac < min_active_share:
            continue
        if cell.unreliable or cell.ni_p is None or cell.ni_p > alpha:
            if shown is not None:
                return shown
            return "not demonstrated" if cell.mde is None else f"not demonstrated (MDE {cell.mde:.2f})"
        shown = cell.budget
    return "not tested" if shown is None else shown
