"""The noise floor in words: what retention shows when nothing was evicted and only the arithmetic differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kv_transition.analysis.figures.canvas import finite
from kv_transition.report.markdown import escape_text
from kv_transition.report.study import Study
from kv_transition.report.tables import with_interval
from kv_transition.report.wording import percent, range_words, size_words

if TYPE_CHECKING:
    import pandas as pd

#: Longest error that is quoted.
MAX_ERROR = 160


def noise_words(study: Study, task: str) -> str:
    """The noise floor of a task's retention as a paragraph; empty where the engine has none to measure."""
    engine = study.settings["engine"]
    if engine["kind"] != "kvpress" or engine["dtype"] == "float32":
        return ""
    row = _row(study, task)
    if row is None:
        return (
            f"**Noise floor of {_number_format(str(engine['dtype']))}:** not measured. How far scores move when only the "
            "arithmetic differs is not known here; `engine.noise_examples` says how many answers are computed a second way."
        )
    if row["status"] == "float32":
        return "**Noise floor:** none needed, this machine computed in float32."
    if row["status"] == "other_machine":
        return (
            "**Noise floor:** not known. The answers and those that were to be compared with them were computed in different "
            "number formats or on different devices."
        )
    name = f"**Noise floor of {row['dtype']}:**"
    if row["status"] != "ok":
        return f"{name} not known. {_failed_words(row)}"
    failed = f" {_failed_words(row)}" if row["n_failed"] else ""
    return (
        f"{name} n = {int(row['n'])} answers of the full cache were computed with {row['attention']} attention, as all cells "
        f"here, and again with {row['other_attention']}: {_changed_words(row)} changed; {_moved_words(row)}.{failed}"
    )


def floor_reminder(study: Study, task: str) -> str:
    """One line under a further table of retention; empty where no floor was measured."""
    row = _row(study, task)
    if row is None or row["status"] != "ok":
        return ""
    return (
        f"Noise floor of {row['dtype']}: as above. Less the score without context there is less to divide by, so the same "
        "arithmetic weighs more here."
    )


def noise_over_tasks(study: Study) -> str:
    """The noise floors of all tasks in one sentence; empty where none was measured."""
    table = study.noise_floor
    rows = None if table is None else table[table["status"] == "ok"]
    if rows is None or rows.empty:
        return ""
    shares, moved = rows["changed_share"].astype(float), rows["mean_diff"].astype(float).abs()
    full = float(rows["mean_score"].sum())
    against = (
        f", and the retention of the mean, full cache against itself, is {rows['mean_score_other'].sum() / full:.3f}"
        if full
        else ""
    )
    missing = len(study.tasks) - len(rows)
    return (
        f"**Noise floor of {' and '.join(sorted(set(rows['dtype'])))}:** with the other implementation of attention "
        f"{_span(shares.min(), shares.max())} of the full cache's answers to a task changed (n = {int(rows['n'].sum())} over "
        f"{len(rows)} tasks), the mean score of a task differs by {range_words(moved.min(), moved.max())}{against}."
        + (f" It is not known of {missing} task{'s' if missing > 1 else ''}." if missing else "")
    )


def _row(study: Study, task: str) -> pd.Series | None:
    if study.noise_floor is None:
        return None
    rows = study.noise_floor[study.noise_floor["task"] == task]
    return rows.iloc[0] if len(rows) else None


def _changed_words(row: pd.Series) -> str:
    share, low, high = (_percent(row[f"changed_{name}"]) for name in ("share", "lo", "hi"))
    return f"{share} [{low}, {high}]" if finite(row["changed_lo"]) else share


def _moved_words(row: pd.Series) -> str:
    against = (
        f", so the retention of the full cache against itself is {with_interval(row['R'], row['R_lo'], row['R_hi'])}"
        if finite(row["R"])
        else ""
    )
    if float(row["mean_abs_diff"]) == 0:
        return f"no score differs{against}"
    return (
        f"the mean score differs by {size_words(abs(float(row['mean_diff'])))} ({_three(row['mean_score'])} and "
        f"{_three(row['mean_score_other'])}; mean absolute difference per example {size_words(float(row['mean_abs_diff']))})"
        f"{against}. A difference in retention of that size can be arithmetic, not eviction"
    )


def _failed_words(row: pd.Series) -> str:
    n, failed = int(row["n"]), int(row["n_failed"])
    error = f", the first with: {escape_text(row['error'], MAX_ERROR)}" if row["error"] else ""
    if not failed:
        return "No answer was computed a second time."
    if not n:
        return f"No pair of answers: all {failed} failed with one of the two implementations of attention{error}."
    return f"{failed} further examples are left out, because they failed with one of the two{error}."


def _number_format(dtype: str) -> str:
    return "the number format" if dtype == "auto" else dtype


def _three(value: object) -> str:
    return f"{float(value):.3f}"  # type: ignore[arg-type]


def _percent(share: object) -> str:
    return percent(round(float(share), 3))  # type: ignore[arg-type]


def _span(low: float, high: float) -> str:
    first, last = _percent(low), _percent(high)
    return first if first == last else f"{first} to {last}"
