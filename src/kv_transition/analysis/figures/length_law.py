"""How the transition moves with prompt length, as the collapse model of `effect_models` says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kv_transition.analysis.figures.canvas import FigureContext, finite
from kv_transition.analysis.figures.cells import each_row
from kv_transition.analysis.figures.labels import short_status

if TYPE_CHECKING:
    import pandas as pd

#: Label of an exponent's interval -> what it says.
LABEL_WORDS = {
    "relative": "relative budget",
    "absolute": "absolute budget",
    "neither": "neither law",
    "not_distinguishable": "either law",
}
#: Flags of an exponent or a limit that ends where the search for it does.
AT_BOUND = {"alpha1_at_bound", "interval_at_bound"}
NUMBERS = ["alpha1", "alpha1_lo", "alpha1_hi", "rss", "rss_alpha1_0", "rss_alpha1_1", "n_bins"]
#: Columns of the numbers beside a figure that prints a law.
COLUMNS = [*NUMBERS, "alpha1_label", "alpha1_status"]


@dataclass(frozen=True)
class LengthLaw:
    """The exponent of one method's transition budget in the prompt length, and how well each law fits.

    Attributes
    ----------
    alpha1, lo, hi : exponent and its limits; 0 is the same budget, 1 the same share of the prompt, at every length.
    rss : residual sum of squares with the exponent free; rss0, rss1 : with it held at 0 and at 1.
    n_bins : length bins that the model was fitted to.
    status : "ok", or why there is no exponent.
    """

    status: str = "not_estimated"
    label: str = ""
    alpha1: float | None = None
    lo: float | None = None
    hi: float | None = None
    rss: float | None = None
    rss0: float | None = None
    rss1: float | None = None
    n_bins: int | None = None
    at_bound: bool = False

    @property
    def known(self) -> bool:
        """There is an exponent."""
        return self.status == "ok" and self.alpha1 is not None

    @property
    def words(self) -> str:
        """The exponent with its interval, or the reason why there is none."""
        if not self.known:
            return f"no α₁: {short_status(self.status)}"
        limits = ", no interval" if self.lo is None or self.hi is None else f" [{self.lo:.2f}, {self.hi:.2f}]"
        numbers = f"{self.alpha1:.2f}{limits}".replace("-", "\N{MINUS SIGN}")
        return f"α₁ = {numbers}{' (at a bound)' if self.at_bound else ''}"

    @property
    def verdict(self) -> str:
        """Which law the interval leaves, in words; empty where none was looked for."""
        return LABEL_WORDS.get(self.label, self.label.replace("_", " ")) if self.known else ""

    def misfit(self, exponent: int) -> str:
        """The residual sums of squares with the exponent held at 0 or 1, and free."""
        held = self.rss0 if exponent == 0 else self.rss1
        if not self.known or held is None or self.rss is None:
            return ""
        return f"rss {_short(held)} at α₁ = {exponent}, {_short(self.rss)} free"

    def row(self) -> dict[str, Any]:
        """The numbers as columns, for the table beside a figure."""
        values = (self.alpha1, self.lo, self.hi, self.rss, self.rss0, self.rss1, self.n_bins)
        return dict(zip(COLUMNS, (*values, self.label, self.status), strict=True))


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def read_length_law(effect_models: pd.DataFrame, task: str, method: str, context: FigureContext) -> LengthLaw:
    """The collapse model of one method; status "not_estimated" where the table has none."""
    table = effect_models
    rows = table[
        (table["model"] == "collapse")
        & (table["task"] == task)
        & (table["method"] == method)
        & (table["policy"] == context.policy)
    ].drop_duplicates("term")
    if rows.empty:
        return LengthLaw()
    by_term = {str(row["term"]): row for row in each_row(rows)}
    main = by_term.get("alpha1", next(iter(by_term.values())))

    def number(term: str, column: str = "estimate") -> float | None:
        return float(by_term[term][column]) if term in by_term and finite(by_term[term][column]) else None

    return LengthLaw(
        status=str(main["status"]),
        label=main["label"] if isinstance(main["label"], str) else "",
        alpha1=number("alpha1"),
        lo=number("alpha1", "lo"),
        hi=number("alpha1", "hi"),
        rss=number("rss"),
        rss0=number("rss_alpha1_0"),
        rss1=number("rss_alpha1_1"),
        n_bins=int(main["n_bins"]) if finite(main["n_bins"]) else None,
        at_bound=not AT_BOUND.isdisjoint(str(main["flags"]).split(",")),
    )
