"""One method over all tasks: where it breaks, what is shown of it, and how its budget grows with the prompt."""

from __future__ import annotations

from kv_transition.report.claims import claim_words
from kv_transition.report.length_law import length_laws
from kv_transition.report.markdown import name_text, table
from kv_transition.report.study import Study
from kv_transition.report.wording import percent


def method_summary(study: Study, method: str) -> str:
    """A row a task: transition budget at the shortest, the longest and all lengths, lossless claim, exponent of length."""
    tau = study.taus[0]
    rows = []
    for task in study.tasks:
        if method not in study.methods_on(task):
            rows.append([name_text(task), *["not applicable"] * 3, "–", "–"])
            continue
        bins = [one for one in study.bins(task) if one.n]
        bins = bins if len(bins) > 1 else []
        curves = {curve.bin_idx: curve for curve in study.curves(task, tau) if curve.method == method}
        pooled = next((c for c in study.pooled_curves(task, tau) if c.method == method), None)
        law = next((one for one in length_laws(study, task) if one.method == method), None)
        ends = [curves.get(bins[index].bin_idx) for index in (0, -1)] if bins else [None, None]
        cells = ["–" if curve is None else curve.cell() for curve in [*ends, pooled]]
        if bins:
            cells[:2] = [
                f"{cell} ({bins[index].lengths})" for index, cell in zip((0, -1), cells, strict=False)
            ]
        rows.append(
            [
                name_text(task),
                *cells,
                claim_words(study.claim(task, method)),
                law.brief() if law is not None and law.ok else "–",
            ]
        )
    header = [
        "task",
        f"keeps {percent(tau)} from: shortest prompts",
        "longest prompts",
        "all lengths",
        f"loses less than {study.delta:g} from",
        "exponent of prompt length",
    ]
    return table(header, rows)
