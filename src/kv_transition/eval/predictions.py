"""Predictions of a LongBench task, scored as its own evaluation scores them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kv_transition.data.longbench_tasks import TASK_FACTS, TaskFacts, task_facts
from kv_transition.data.predictions import Prediction
from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import compile_refusals, findings_of_answer, first_line
from kv_transition.eval.longbench_metrics import check_gold, official_score
from kv_transition.eval.metrics import exact_match, f1
from kv_transition.eval.task_scores import ScoredRow
from kv_transition.schema import Scoring


def check_task(task: str) -> TaskFacts:
    """What LongBench does with a task; UserError naming the tasks that there are for any other name."""
    facts = task_facts(task)
    if facts is None:
        raise UserError(
            f"{task!r} is no task of LongBench; it has {', '.join(TASK_FACTS)} (and these with _e)"
        )
    return facts


def scored_text(facts: TaskFacts, pred: str) -> str:
    """The part of an answer that the task's metric sees."""
    return first_line(pred) if facts.first_line else pred


def check_answers(task: str, predictions: Sequence[Prediction], path: str | Path) -> None:
    """Fail for reference answers that the task's metric cannot use, naming file and line."""
    classes = predictions[-1].all_classes
    for prediction in predictions:
        try:
            check_gold(task, prediction.answers, prediction.all_classes or classes)
        except UserError as error:
            raise UserError(f"{path}, line {prediction.row + 1}: {error}") from None


def classes_differ(predictions: Sequence[Prediction]) -> bool:
    """Whether the class names are not the same in every line. The official evaluation uses those of the last one."""
    return len({prediction.all_classes for prediction in predictions}) > 1


def score_predictions(task: str, predictions: Sequence[Prediction]) -> list[ScoredRow]:
    """Score every prediction: the task's official metric, exact match and F1, and the failure label.

    As in the official evaluation the class names are those of the last line. Whether an answer was cut off at a token
    limit is not in the file, so TRUNCATED is only said of an unclosed `<think>`.

    Raises
    ------
    UserError
        For a task that LongBench does not have.
    """
    facts = check_task(task)
    refusals = compile_refusals(Scoring().refusal_patterns)
    classes = predictions[-1].all_classes if predictions else ()
    rows = []
    for prediction in predictions:
        scored = scored_text(facts, prediction.pred)
        score = official_score(task, prediction.pred, prediction.answers, classes)
        findings = findings_of_answer(
            prediction.pred,
            finish_reason=None,
            score=score,
            refusals=refusals,
            answer_format=facts.answer_format,
            classes=classes,
            first_line_only=facts.first_line,
        )
        rows.append(
            ScoredRow(
                row=prediction.row,
                length=prediction.length,
                score=score,
                em=exact_match(scored, prediction.answers),
                f1=f1(scored, prediction.answers)[0],
                failure=findings.label,
            )
        )
    return rows
