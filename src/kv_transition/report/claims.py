"""What is shown of "loses less than delta", and what it would take to show it."""

from __future__ import annotations

from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Claim, Study
from kv_transition.report.wording import estimate_symbol, status_words


def claim_words(claim: Claim | None) -> str:
    """A claim for a table cell: "192", or that nothing is shown and what the sample could have seen."""
    if claim is None:
        return "–"
    if claim.status == "ok" and claim.budget is not None:
        return estimate_symbol(claim.budget)
    if claim.status == "not_demonstrated":
        return "not demonstrated" if claim.mde is None else f"not demonstrated (MDE {claim.mde:.2f})"
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
                "–" if claim.n_needed is None or claim.status == "ok" else f"{claim.n_needed:,}",
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


def p_words(p: float) -> str:
    """A p-value for a table cell: "0.013", "<0.001"."""
    return "&lt;0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"
