"""Scores as LongBench's own tables show them: 0 to 100, two places, and only where every request was answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kv_transition.analysis.figures.canvas import METRIC_WORDS, budget_tick
from kv_transition.budgets import UNCOMPRESSED, budget_label
from kv_transition.data.longbench_tasks import task_facts
from kv_transition.eval.failure_taxonomy import INFRASTRUCTURE
from kv_transition.eval.longbench_e import BINS, bin_score
from kv_transition.eval.task_scores import task_score
from kv_transition.report.markdown import name_text, table

if TYPE_CHECKING:
    import pandas as pd

    from kv_transition.report.study import Study

#: Inclusive upper edges (words) that make LongBench-E's bins, but the last.
E_EDGES = [int(upper) - 1 for _, upper in BINS[:-1]]
ALL = "all"


@dataclass(frozen=True)
class OfficialScores:
    """What the report shows of a task: a heading, what the numbers are comparable with, and the table."""

    title: str
    note: str
    table: str


def official_scores(study: Study, task: str) -> OfficialScores | None:
    """LongBench's number for every cell of one of its tasks; None for a task of another origin.

    A cell with a TIMEOUT, an ENGINE_ERROR or a missing answer has no number, but "incomplete (k of n)": k answers for n
    requests. A method that is not applicable has no row.
    """
    facts = task_facts(task)
    rows = study.scores[study.scores["task"] == task]
    metrics = set(rows["metric"].dropna())
    if facts is None or not metrics <= {facts.metric, "published"}:
        return None
    labels = [budget_label(budget) for budget in study.budgets]
    out = []
    for method in [name for name in UNCOMPRESSED if (rows["method"] == name).any()] + study.methods_on(task):
        own = rows[rows["method"] == method]
        for part, members in _parts(study.manifests[task]):
            chosen = own[own["example_id"].isin(members)]
            cells = {label: _number(found, members, part) for label, found in chosen.groupby("budget")}
            shown = [cells.get(label, "–") for label in ([*labels] if method not in UNCOMPRESSED else [])]
            full = cells.get("full", "–") if method in UNCOMPRESSED else "–"
            out.append([name_text(method), part, full, *(shown or ["–"] * len(labels))])
    header = ["method", "length", "no budget", *(budget_tick(budget) for budget in study.budgets)]
    if {row[1] for row in out} == {ALL}:
        header.pop(1)
        out = [[row[0], *row[2:]] for row in out]
    title = "Published score x 100" if metrics == {"published"} else "LongBench score"
    return OfficialScores(title, _note(study, task, metrics), table(header, out))


def _parts(manifest: Any) -> Iterator[tuple[str, dict[str, int]]]:
    """All examples of a manifest, and those of each of LongBench-E's bins where the manifest has these bins.

    Yields
    ------
    The part's name, and example_id -> place among the records, in whose order the official code adds scores.
    """
    entries = manifest["entries"]
    positions = {
        example["example_id"]: example["meta"].get("position", index)
        for index, example in enumerate(manifest["examples"])
    }
    yield ALL, positions
    if manifest.get("bin_by") == "length" and manifest["bin_edges"][:-1] == E_EDGES:
        for index, (name, _) in enumerate(BINS):
            inside = {entry["example_id"] for entry in entries if entry["bin_idx"] == index}
            yield name, {key: place for key, place in positions.items() if key in inside}


def _number(rows: pd.DataFrame, positions: dict[str, int], part: str) -> str:
    """The score of one cell, with the official arithmetic; of several replicates all answers count alike."""
    asked = len(positions) * max(int(rows["replicate"].nunique()), 1)
    answered = int((~rows["failure"].isin(INFRASTRUCTURE) & (rows["status"] == "ok")).sum())
    if answered < asked:
        return f"incomplete ({answered} of {asked})"
    if not asked:
        return "–"
    places = rows["example_id"].map(positions)
    scores = rows["score"].iloc[places.argsort(kind="stable")].tolist()
    return f"{task_score(scores) if part == ALL else bin_score(scores):.2f}"


def _note(study: Study, task: str, metrics: set[str]) -> str:
    manifest = study.manifests[task]
    protocol = str(manifest["protocol"])
    metric = " and ".join(METRIC_WORDS.get(name, name) for name in sorted(metrics))
    if "modified" in protocol:
        comparable = (
            "not comparable with published LongBench numbers, whose answers had other lengths or ends"
        )
    elif protocol.startswith("official"):
        comparable = (
            "comparable with published LongBench numbers of the same model, prompt limit and chat template (here the "
            "tokenizer's own)"
        )
    elif metrics == {"published"} or protocol == "published":
        comparable = "as comparable as their source made them"
    else:
        comparable = "not comparable with published LongBench numbers, which other prompts gave"
    selected = len(manifest["entries"])
    records = manifest.get("n_records") or selected
    sample = (
        f" A sample of {selected} of {records} records: their mean, not the task's."
        if selected < records
        else ""
    )
    deep = study.scores[(study.scores["task"] == task) & study.scores["recursion_artefact"].astype(bool)]
    artefact = (
        f" {len(deep)} answers are so long that LongBench's own code may score them 0 by exceeding Python's recursion limit; "
        "here they have their true score."
        if len(deep)
        else ""
    )
    return f"{metric} x 100 over {selected} records, protocol {protocol}: {comparable}.{sample}{artefact}"
