"""What is shown of "loses less than delta", and what it would take to show it."""

from __future__ import annotations

from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Claim, Study
from kv_transition.report.wording import estimate_symbol, size_words, status_words


def claim_words(claim: Claim | None) -> str:
    """A claim for a table cell: "192", or that nothing is shown and what the sample could have seen."""
    if claim is None:
        return "–"
    if claim.status == "ok" and claim.budget is not None:
        return estimate_symbol(claim.budget)
    if claim.status == "not_demonstrated":
        if claim.loss is not None and claim.failed_at is not None:
            low, high = (f"{limit:.2f}" for limit in claim.loss)
            return f"no: loses {low} to {high} at {estimate_symbol(claim.failed_at)}"
        if claim.unreliable:
            return "not tested: too many requests failed"
        return "not demonstrated" if claim.mde is None else f"not demonstrated (MDE {size_words(claim.mde)})"
    if claim.status == "not_tested":
        return "not tested: little was compressed"
    return f"not tested: {status_words(claim.status)}"


def lossless_table(study: Study, task: str) -> str:
    """From which budget on each method is shown to lose less than delta: with all lengths together, and at every length."""
    rows = []
    for method in study.methods_on(task):
        claim = study.claim(task, method)
        if claim is None:
            continue
        over = "–" if claim.p_over_methods is None else p_words(claim.p_over_methods)
        rows.append(
            [
                name_text(method),
                claim_words(claim),
                over,
                "–" if claim.every_length is None else estimate_symbol(claim.every_length),
                _examples(claim),
            ]
        )
    header = [
        "method",
        f"shown to lose less than {study.delta:g} from",
        "p, all methods considered",
        "shown at every length from",
        "examples it takes",
    ]
    return table(header, rows)


def _examples(claim: Claim) -> str:
    """How many examples could show what was not shown; none could where the loss is sure, or where there were enough."""
    if claim.n_needed is None or claim.status != "not_demonstrated" or claim.loss is not None:
        return "–"
    enough = claim.n is not None and claim.n_needed <= claim.n
    return f"not more than the {claim.n:,}" if enough else f"{claim.n_needed:,}"


def p_words(p: float) -> str:
    """A p-value for a table cell: "0.013", "<0.001"."""
    return "&lt;0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"
