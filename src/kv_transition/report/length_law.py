"""How a transition moves with the length of the prompt, in words and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import finite
from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Study
from kv_transition.report.wording import percent, status_words

if TYPE_CHECKING:
    import pandas as pd

#: What `flags` of the model mean to a reader.
FLAG_WORDS = {
    "truncated_bins": "bins whose prompts were mostly cut are left out",
    "bins_left_out": "bins that may not be judged are left out",
    "missing_budget": "a tested budget has no answers in a bin",
    "infeasible": "a budget is left out",
    "unreliable": "a cell has too many failed requests",
    "inactive_budgets": "at some budgets little was compressed",
    "midpoint_outside_grid": "the midpoint lies outside the tested budgets",
    "midpoint_at_bound": "the midpoint lies at the end of what was searched",
    "width_at_bound": "the width lies at the end of what was searched",
    "midpoint_interval_at_bound": "the midpoint's interval reaches the end of what was searched",
    "width_interval_at_bound": "the width's interval reaches the end of what was searched",
    "alpha1_at_bound": "the exponent lies at the end of what was searched",
    "interval_at_bound": "the interval reaches the end of what was searched",
    "interval_degenerate": "resampling cannot move it",
    "rests_on_inactive_budgets": "the loss ends where the prompts fit into the budget, which is no law of the method",
}


#: Flags that take the limits of the exponent away.
WITHOUT_LIMITS = frozenset({"rests_on_inactive_budgets", "midpoint_interval_at_bound", "interval_degenerate"})


@dataclass(frozen=True)
class LengthLaw:
    """The exponent of prompt length of one method on one task.

    Attributes
    ----------
    alpha, low, high : the exponent and its limits; nan where there is none.
    label : "relative", "absolute", "neither", "not_distinguishable", or "".
    """

    method: str
    alpha: float
    low: float
    high: float
    status: str
    label: str
    flags: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is an exponent with limits."""
        return self.status == "ok" and finite(self.low) and finite(self.high)

    @property
    def number(self) -> str:
        """The exponent with its interval: "0.98 [0.81, 1.10]"."""
        return f"{self.alpha:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.ok else "–"

    def brief(self) -> str:
        """The exponent with what it says in a word or two, for the table of the first screen."""
        words = {
            "relative": "a fixed share fits",
            "absolute": "a fixed number fits",
            "not_distinguishable": "both fit",
        }.get(self.label)
        if words is None:
            words = "more than a share" if self.low > 1 else "in between" if self.low > 0 else "falls"
        return f"{self.number}, {words}"

    def reading(self) -> str:
        """What the interval says and no more, as the end of "the budget that is needed ..."."""
        if not self.ok:
            reasons = [status_words(self.status)] if self.status != "ok" else []
            reasons += [FLAG_WORDS[flag] for flag in self.flags if flag in WITHOUT_LIMITS]
            return f"could not be determined: {'; '.join(reasons)}" if reasons else "could not be determined"
        if self.label == "relative":
            return "grows, and in proportion to the prompt is possible"
        if self.label == "absolute":
            return "grows less than in proportion, and not at all is possible"
        if self.label == "not_distinguishable":
            return "not distinguishable: both a fixed number of tokens and a fixed share of the prompt are possible"
        if self.low > 1:
            return "grows faster than the prompt"
        return "grows, but more slowly than the prompt" if self.low > 0 else "shrinks as prompts grow"


def length_laws(study: Study, task: str) -> list[LengthLaw]:
    """The exponents of a task's methods, in the order of the figures."""
    rows = study.models(task)
    rows = rows[(rows["model"] == "collapse") & (rows["term"] == "alpha1")]
    laws = {str(row["method"]): _law(row) for _, row in rows.iterrows()}
    return [laws[method] for method in study.methods_on(task) if method in laws]


def _law(row: pd.Series) -> LengthLaw:
    alpha, low, high = (
        float(row[name]) if finite(row[name]) else float("nan") for name in ("estimate", "lo", "hi")
    )
    return LengthLaw(
        method=str(row["method"]),
        alpha=alpha,
        low=low,
        high=high,
        status=str(row["status"]),
        label=str(row["label"] or ""),
        flags=tuple(flag for flag in str(row["flags"] or "").split(",") if flag),
    )


def length_law_table(study: Study, task: str) -> str:
    """The exponents of a task with what they mean and how well the two laws fit; empty without any."""
    laws = length_laws(study, task)
    if not any(law.status == "ok" for law in laws):
        return ""
    rows = []
    for law in laws:
        errors = [_term(study, task, law.method, name) for name in ("rss", "rss_alpha1_1", "rss_alpha1_0")]
        notes = "; ".join(FLAG_WORDS.get(flag, flag.replace("_", " ")) for flag in law.flags)
        rows.append([name_text(law.method), law.number, law.reading(), *errors, notes])
    header = [
        "method",
        "exponent",
        "the budget that is needed",
        "misfit, exponent free",
        "fixed at 1",
        "fixed at 0",
        "note",
    ]
    return table(header, rows)


def _term(study: Study, task: str, method: str, name: str) -> str:
    rows = study.models(task)
    rows = rows[(rows["model"] == "collapse") & (rows["method"] == method) & (rows["term"] == name)]
    return f"{float(rows.iloc[0]['estimate']):.3g}" if len(rows) and finite(rows.iloc[0]["estimate"]) else "–"


def no_law_words(study: Study, task: str) -> str:
    """Why a task has no exponent at all; empty where one of its methods has."""
    laws = length_laws(study, task)
    if not laws or any(law.status == "ok" for law in laws):
        return ""
    reasons = sorted({status_words(law.status) for law in laws})
    return f"How the budget grows with the prompt could not be determined: {'; '.join(reasons)}."


def law_conf(study: Study) -> str:
    """What an interval of an exponent is."""
    replicates = int(study.settings["analysis"]["collapse_replicates"])
    return f"{percent(study.conf)} bootstrap interval, {replicates:,} resamples of whole contexts within bins"
