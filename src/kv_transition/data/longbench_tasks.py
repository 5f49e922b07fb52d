"""What LongBench's own evaluation does with each of its tasks: facts that its records do not carry.

Read in the official evaluation code (THUDM/LongBench at 2e00731, MIT). Which tasks there are is asked of the source of the
records (`longbench_loader.list_longbench_tasks`), never of this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

AnswerFormat = Literal["number", "class", "option"]


@dataclass(frozen=True)
class TaskFacts:
    """How the official evaluation treats a task.

    Attributes
    ----------
    metric : name of the official metric in `eval.metrics.METRICS`.
    category : group of LongBench's own averages.
    wrapped : the prompt goes through the model's chat template; few-shot and code tasks are plain text.
    first_line : only the answer's first line is scored.
    stops_at_line : an answer has at least one token and ends with the line, in LongBench's own runs.
    answer_format : what an answer has to contain, None for free text.
    language : "en", "zh" or "code".
    """

    metric: str
    category: str
    wrapped: bool = True
    first_line: bool = False
    answer_format: AnswerFormat | None = None
    language: str = "en"
    stops_at_line: bool = False


#: Task -> facts, by the names of LongBench v1 (LongBench-E adds `_e`) and `longbench_v2`.
TASK_FACTS: Mapping[str, TaskFacts] = MappingProxyType(
    {
        "narrativeqa": TaskFacts("qa_f1", "single-document QA"),
        "qasper": TaskFacts("qa_f1", "single-document QA"),
        "multifieldqa_en": TaskFacts("qa_f1", "single-document QA"),
        "multifieldqa_zh": TaskFacts("qa_f1_zh", "single-document QA", language="zh"),
        "hotpotqa": TaskFacts("qa_f1", "multi-document QA"),
        "2wikimqa": TaskFacts("qa_f1", "multi-document QA"),
        "musique": TaskFacts("qa_f1", "multi-document QA"),
        "dureader": TaskFacts("rouge_l_zh", "multi-document QA", language="zh"),
        "gov_report": TaskFacts("rouge_l", "summarization"),
        "qmsum": TaskFacts("rouge_l", "summarization"),
        "multi_news": TaskFacts("rouge_l", "summarization"),
        "vcsum": TaskFacts("rouge_l_zh", "summarization", language="zh"),
        "trec": TaskFacts("classification", "few-shot", False, True, "class"),
        "triviaqa": TaskFacts("qa_f1", "few-shot", False, True),
        "samsum": TaskFacts("rouge_l", "few-shot", False, True, stops_at_line=True),
        "lsht": TaskFacts("classification", "few-shot", False, True, "class", "zh"),
        "passage_count": TaskFacts("count", "synthetic", answer_format="number"),
        "passage_retrieval_en": TaskFacts("retrieval", "synthetic", answer_format="number"),
        "passage_retrieval_zh": TaskFacts("retrieval_zh", "synthetic", answer_format="number", language="zh"),
        "lcc": TaskFacts("code_sim", "code", False, language="code"),
        "repobench-p": TaskFacts("code_sim", "code", False, language="code"),
        "longbench_v2": TaskFacts("choice", "multiple choice", answer_format="option"),
    }
)


def base_name(task: str) -> str:
    """The name of a task of LongBench-E (`<task>_e`) in LongBench v1, its namesake; any other name as it is."""
    return task.removesuffix("_e")


def task_facts(task: str) -> TaskFacts | None:
    """Facts of a task, those of its namesake for LongBench-E (`<task>_e`); None for a task of another origin."""
    return TASK_FACTS.get(task) or TASK_FACTS.get(base_name(task))
