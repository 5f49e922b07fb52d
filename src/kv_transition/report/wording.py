"""Sentences about results that never say more than the tests did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kv_transition.analysis.figures.labels import Estimate, read_estimate
from kv_transition.budgets import Budget

#: What a status of the tables means, as the end of "could not be determined: ...".
STATUS_WORDS = {
    "no_reference": "the full cache has no score here",
    "too_few": "fewer than 10 independent examples",
    "reference_too_weak": "the full cache itself scores too low to lose anything measurable",
    "context_not_needed": "the full cache does not score measurably above the model without any context",
    "no_pairs": "no example was answered both with the full cache and with a budget",
    "not_tested": "no tested budget was smaller than most of the prompts, so nothing was compressed",
    "unbounded_weak_reference": "the full-cache score is too uncertain to divide by",
    "undefined_full_zero": "the full cache scores 0",
    "floor_not_measured": "the score without context was not measured",
    "no_scores": "no scores",
    "infeasible": "template, instruction and question alone fill every tested budget in more than 5% of the prompts",
    "too_few_bins": "fewer than 3 length bins can be used, or they differ too little in length",
    "too_few_budgets": "fewer than 3 budgets were tested",
    "no_transition_detected": "the smallest budget loses score in fewer than 2 bins",
    "outside_grid": "the tested budgets do not show where the score falls",
    "length_not_in_tokens": "prompt lengths are not in tokens, and budgets are",
    "not_applicable": "the method needs a question, and the records have none",
}


def status_words(status: str) -> str:
    """A status of the tables in words; an unknown one as it is written."""
    return STATUS_WORDS.get(status, status.replace("_", " "))


def percent(share: float) -> str:
    """A share as a percentage without superfluous digits: 0.9 -> "90%", 0.025 -> "2.5%"."""
    return f"{100 * share:.3g}%"


def size_words(size: float) -> str:
    """The size of a difference of scores; a small one keeps a digit: 0.123 -> "0.12", 0.0042 -> "0.004"."""
    return f"{size:.2f}" if size >= 0.01 else f"{size:.1g}"


def range_words(low: float, high: float) -> str:
    """From one size to another: "0.02 to 0.10", or one number where they are shown alike."""
    first, last = size_words(low), size_words(high)
    return first if first == last else f"{first} to {last}"


def budget_words(budget: Budget) -> str:
    """A budget with its unit."""
    return f"{percent(budget)} of the prompt" if isinstance(budget, float) else f"{budget} tokens"


def estimate_words(label: str) -> str:
    """A transition budget in words: "64 tokens", "at or below 16 tokens", "above 512 tokens"."""
    estimate = read_estimate(label)
    prefix = {"none": "", "left": "at or below ", "right": "above "}[estimate.side]
    return prefix + budget_words(estimate.budget)


def estimate_symbol(label: str) -> str:
    """A label for a table cell: "64", "≤16", ">512", "≤5%"."""
    estimate = read_estimate(label)
    prefix = {"none": "", "left": "≤", "right": "&gt;"}[estimate.side]
    shown = percent(estimate.budget) if isinstance(estimate.budget, float) else str(estimate.budget)
    return prefix + shown


def interval_words(lower_label: str, upper_label: str) -> str:
    """The confidence interval of a transition budget, its unit left out: "32 to 128", "64 or more", "above 512"."""
    lower, upper = read_estimate(lower_label), read_estimate(upper_label)
    if lower.side == "right":
        return f"above {_plain(lower.budget)}"
    if upper.side == "left":
        return f"at or below {_plain(upper.budget)}"
    if lower.side == "left" and upper.side == "right":
        return "not limited by the tested budgets on either side"
    if lower.side == "left":
        return f"{_plain(upper.budget)} or less"
    if upper.side == "right":
        return f"{_plain(lower.budget)} or more"
    if lower.budget == upper.budget:
        return f"{_plain(lower.budget)} alone"
    return f"{_plain(lower.budget)} to {_plain(upper.budget)}"


def _plain(budget: Budget) -> str:
    return percent(budget) if isinstance(budget, float) else str(budget)


@dataclass(frozen=True)
class Curve:
    """One row of the transition table: a method on a task in a length bin at one tau.

    Attributes
    ----------
    point, lower, upper : labels; they mean nothing where `status` is not "ok".
    point_inactive, upper_inactive : the point, the upper limit is a budget that most prompts did not exceed.
    unreliable : too many requests of a cell failed. incomplete : a budget of the method has no pair here, or is filled by
        the fixed part of too many prompts.
    """

    task: str
    method: str
    bin_idx: int
    status: str
    point: str
    lower: str
    upper: str
    point_inactive: bool = False
    upper_inactive: bool = False
    unreliable: bool = False
    incomplete: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a transition budget at all."""
        return self.status == "ok"

    def cell(self) -> str:
        """The curve as a table cell: "64 [32, 128]", or a dash."""
        if not self.ok:
            return "–"
        point = (
            estimate_symbol(self.point)
            + ("°" if self.point_inactive else "")
            + ("†" if self.unreliable else "")
            + ("‡" if self.incomplete else "")
        )
        upper = estimate_symbol(self.upper) + ("°" if self.upper_inactive else "")
        return f"{point} [{estimate_symbol(self.lower)}, {upper}]"

    def clause(self) -> str:
        """The curve inside a sentence: "**64 tokens** with snapkv (32 to 128)"."""
        notes = [interval_words(self.lower, self.upper)]
        if self.point_inactive:
            notes.append("a budget that most prompts did not exceed, so that little was compressed")
        elif self.upper_inactive:
            notes.append("at the upper end most prompts were not compressed")
        if self.unreliable:
            notes.append("too many requests of a cell failed")
        if self.incomplete:
            notes.append("a smaller or larger tested budget has no answers here")
        return f"**{estimate_words(self.point)}** with {self.method} ({'; '.join(notes)})"


def answer_on_task(task: str, curves: Sequence[Curve], tau: float) -> str:
    """What a reader wants to know about one task.

    Parameters
    ----------
    task : the task's name, and at which lengths, escaped.
    curves : the curves of the task's methods, at those lengths.
    """
    known = [curve for curve in curves if curve.ok]
    parts = []
    if known:
        budgets = join([curve.clause() for curve in known])
        parts.append(f"On {task}, keeping at least {percent(tau)} of the full-cache score takes {budgets}.")
    elif len({curve.status for curve in curves}) == 1:
        return f"On {task}, no transition budget could be determined: {status_words(curves[0].status)}."
    else:
        parts.append(f"On {task}, no transition budget could be determined.")
    for status in sorted({curve.status for curve in curves if not curve.ok}):
        names = join([curve.method for curve in curves if curve.status == status])
        parts.append(f"For {names} it could not be determined on {task}: {status_words(status)}.")
    return " ".join(parts)


def answer_over_tasks(curves: Sequence[Curve], tau: float) -> str:
    """The pooled curves of many tasks, method by method, as counts: no average over tasks is claimed."""
    sentences = []
    for method in dict.fromkeys(curve.method for curve in curves):
        own = [curve for curve in curves if curve.method == method]
        points = [read_estimate(curve.point) for curve in own if curve.ok]
        inside = sorted((point for point in points if point.side == "none"), key=lambda point: point.rank)
        counts = []
        if inside:
            ends = _span(inside[0], inside[-1])
            counts.append(f"{ends} on {len(inside)}")
        for side, words in (
            ("left", "at or below the smallest tested budget"),
            ("right", "above the largest tested budget"),
        ):
            if number := sum(point.side == side for point in points):
                counts.append(f"{words} on {number}")
        if number := len(own) - len(points):
            counts.append(f"not to be determined on {number}")
        sentences.append(f"with {method} {join(counts)} of {len(own)} tasks{_reach(own)}")
    return (
        f"Point estimates of the budget that keeps at least {percent(tau)} of the full-cache score, all lengths of a task "
        f"together, and in brackets how far their intervals reach: {'; '.join(sentences)}."
    )


def _reach(curves: Sequence[Curve]) -> str:
    """From the smallest lower to the largest upper limit of some curves, in brackets; empty without any."""
    known = [curve for curve in curves if curve.ok]
    if not known:
        return ""
    lower = min((curve.lower for curve in known), key=_least)
    upper = max((curve.upper for curve in known), key=lambda label: read_estimate(label).rank)
    return f" ({interval_words(lower, upper)})"


def _span(low: Estimate, high: Estimate) -> str:
    return budget_words(low.budget) if low == high else f"{_plain(low.budget)} to {budget_words(high.budget)}"


def length_sentence(pairs: Mapping[str, tuple[Curve, Curve]], short: str, long: str) -> str:
    """Whether the transition budget moves between the shortest and the longest prompts of a task.

    A change is claimed only where the two intervals (of different examples) have no budget in common.

    Parameters
    ----------
    pairs : method -> its curve in the shortest and in the longest bin, both with status ok.
    short, long : the lengths in words.
    """
    grows, falls, open_ = [], [], []
    for method, (first, last) in pairs.items():
        change = f"{method} ({_short(first)} → {_short(last)})"
        if read_estimate(first.upper).rank < _least(last.lower):
            grows.append(change)
        elif read_estimate(last.upper).rank < _least(first.lower):
            falls.append(change)
        else:
            open_.append(change)
    parts = [f"From {short} to {long}"]
    found = []
    if grows:
        found.append(f"a larger budget is needed with {join(grows)}")
    if falls:
        found.append(f"a smaller budget is enough with {join(falls)}")
    if found:
        parts.append(" and ".join(found) + " (the two intervals have no budget in common).")
        if open_:
            parts.append(f"No change could be shown with {join(open_)}: the intervals overlap.")
    else:
        parts.append(f"no change of the budget could be shown with {join(open_)}: the intervals overlap.")
    return " ".join(parts)


def _short(curve: Curve) -> str:
    """A transition budget in words, its unit left out, marked where little was compressed."""
    estimate = read_estimate(curve.point)
    prefix = {"none": "", "left": "at or below ", "right": "above "}[estimate.side]
    return prefix + _plain(estimate.budget) + ("°" if curve.point_inactive else "")


def _least(label: str) -> float:
    """The smallest budget an interval with this lower limit admits: any, where the limit is censored left."""
    estimate = read_estimate(label)
    return 0.0 if estimate.side == "left" else estimate.rank


def looked_at(curves: int, conf: float) -> str:
    """What every sentence that picks out a method, task or bin owes the reader."""
    noun = "curve was" if curves == 1 else "curves were"
    return f"In brackets: {percent(conf)} intervals; each holds {percent(conf)} on its own; {curves} {noun} looked at."


def join(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))
