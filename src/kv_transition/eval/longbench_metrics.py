"""LongBench's own metrics: its numbers, bit for bit, oddities included.

A metric compares one answer with one gold answer. The official value of a row is the largest over its gold answers
(`OFFICIAL_METRICS`), in some tasks after a cut at the first line (`official_score`). Where the official code stops
with an error the score is 0.0: a metric never fails on what a model wrote, and gold answers that no answer can
reach are found when the data are read (`check_gold`).

Two values depend on the installation there, not here. The code metric is difflib's ratio: with python-Levenshtein
installed the official code gives other numbers, and the published ones are difflib's. ROUGE-L of a very long
sentence is its true value: the official code meets Python's recursion limit and turns the error into 0.0
(`recursion_artefact`).

Source: THUDM/LongBench at 2e00731 (`LongBench/metrics.py`, `LongBench/eval.py`; `pred.py` for LongBench v2).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

from kv_transition.data.longbench_tasks import TASK_FACTS, task_facts
from kv_transition.data.words import chinese_words
from kv_transition.errors import UserError
from kv_transition.eval import rouge
from kv_transition.eval.failure_taxonomy import first_line
from kv_transition.eval.longbench_words import normalized_chinese_words, normalized_words

_Prepared = TypeVar("_Prepared")
#: The words of a text, and each of them once.
_Bag = tuple[list[str], set[str]]
#: A metric over all gold answers, as in `eval.metrics`: (answer, gold answers, class names) -> score in [0, 1].
_Metric = Callable[[str, Sequence[str], Sequence[str]], float]

#: Steps of a walk back through a table of ROUGE-L from which on the official code raises RecursionError, by metric.
#: The walk takes one call more than it has steps, and Python's default limit is 1,000 calls at a time. Nine are under
#: way before the walk: the script, its function for one file, the metric and six functions of the package; with
#: Chinese texts there is one metric around the other.
RECURSION_STEPS: Mapping[str, int] = MappingProxyType({"rouge_l": 1000 - 9, "rouge_l_zh": 1000 - 10})

_NUMBER = re.compile(r"\d+")
_PARAGRAPH = re.compile(r"Paragraph (\d+)")
_CHINESE_PARAGRAPH = re.compile(r"段落(\d+)")
_CHOICES = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))


def qa_f1(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """F1 of two bags of words: lower case, without ASCII punctuation and the words a, an, the."""
    return _f1(_bag(prediction), _bag(answer))


def qa_f1_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """F1 of two bags of the words that jieba finds: lower case, without ASCII and (most) Chinese punctuation."""
    return _f1(_chinese_bag(prediction), _chinese_bag(answer))


def rouge_l(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """ROUGE-L; see :mod:`kv_transition.eval.rouge`."""
    return rouge.rouge_l(rouge.split_sentences(prediction), rouge.split_sentences(answer))


def rouge_l_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """ROUGE-L of the words that jieba finds. Only "." ends a sentence, so a Chinese text is mostly one."""
    return rouge.rouge_l(_chinese_sentences(prediction), _chinese_sentences(answer))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 / (number of classes that the prediction names) if the gold class is one of them, else 0.0.

    Classes contained in the gold class do not count, but as the official code takes them out of the list it runs
    over, the one behind each of them is passed over and may stay.
    """
    named = [name for name in classes if name in prediction]
    position = 0
    while position < len(named):
        name = named[position]
        if name != answer and name in answer:
            named.remove(name)
        position += 1  # also past the name that has just moved up
    return 1.0 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Share of the numbers in the prediction that are the gold answer, compared as texts; 0.0 without numbers."""
    numbers = _NUMBER.findall(prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """As `count`, with the number of the first "Paragraph <number>" in the gold answer; 0.0 if there is none."""
    gold = _PARAGRAPH.search(answer)
    return count(prediction, gold[1], classes) if gold else 0.0


def retrieval_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """As `retrieval`, with "段落<number>"."""
    gold = _CHINESE_PARAGRAPH.search(answer)
    return count(prediction, gold[1], classes) if gold else 0.0


def code_sim(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Similarity (difflib's ratio, in hundredths) of the gold answer and the prediction's first line of code.

    That is the first line after leading line feeds which has no backtick, "#" or "//" in it (so a line with a web
    address is passed over too); the empty text if there is none. Indentation counts.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not ("`" in line or "#" in line or "//" in line)), "")
    if line == answer:
        return 1.0
    if 400 * min(len(line), len(answer)) < len(line) + len(answer):
        return 0.0  # the ratio is below 0.005 whatever they share (0 if one is empty)
    ratio: float = _sequence_matcher()(None, line, answer).ratio()
    return round(100 * ratio) / 100


def choice(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """LongBench v2: 1.0 if the letter given as "The correct answer is (X)" or "... is X" is the gold one.

    Asterisks are deleted first. The form with brackets goes first wherever it stands; an answer in another form
    is none.
    """
    text = prediction.replace("*", "")
    found = next((match for form in _CHOICES if (match := form.search(text))), None)
    return float(found is not None and found[1] == answer)


def official_score(task: str, prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Score of an answer to a LongBench task, as the official evaluation gives it for one row (0 to 1).

    Parameters
    ----------
    task : name of the task, for LongBench-E with `_e`.
    prediction : the answer as the model gave it.
    answers, classes : the row's `answers` and `all_classes` (empty where the row has none).

    Raises
    ------
    UserError
        For a task without an official metric.
    """
    facts = task_facts(task)
    if facts is None:
        raise UserError(
            f"task {task}: LongBench has no metric for it; its tasks are {', '.join(sorted(TASK_FACTS))}"
        )
    scored = first_line(prediction) if facts.first_line else prediction
    return OFFICIAL_METRICS[facts.metric](scored, answers, classes)


def check_gold(task: str, answers: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse gold answers of a LongBench task that the official code cannot score; other tasks pass.

    Parameters
    ----------
    task : name of the task, for LongBench-E with `_e`.
    answers, classes : the row's `answers` and `all_classes` (empty where the row has none).

    Raises
    ------
    UserError
        For a retrieval task's answer without its paragraph number, and a classification task without classes.
    """
    facts = task_facts(task)
    metric = facts.metric if facts else ""
    if metric == "classification" and not classes:
        raise UserError(
            f"task {task}: the gold answers {list(answers)} come without class names; "
            "fill the record's all_classes with the task's classes"
        )
    pattern = {"retrieval": _PARAGRAPH, "retrieval_zh": _CHINESE_PARAGRAPH}.get(metric)
    for answer in answers if pattern else ():
        if pattern and not pattern.search(answer):
            raise UserError(
                f"task {task}: the gold answer {answer!r} names no paragraph ({pattern.pattern}); "
                "mend the record's answers"
            )


def recursion_artefact(metric: str, prediction: str, answers: Sequence[str]) -> bool:
    """Whether the official code scores an answer lower than `OFFICIAL_METRICS`, because of Python's recursion limit.

    That is so if a walk back through the table of ROUGE-L takes RECURSION_STEPS or more for every gold answer that
    gives the largest score: the reference package calls itself once for each step, and the error counts as 0.0.
    Assumed is the official script under Python's default limit (measured with Python 3.11 and rouge 1.0.1); each
    further caller around it moves the edge by one step.

    Parameters
    ----------
    metric : name of the metric; False for all but rouge_l and rouge_l_zh.
    prediction, answers : as for the metric.
    """
    longest = max(map(len, answers), default=0)
    # A text has no more words than characters.
    if metric not in RECURSION_STEPS or len(prediction) + longest < RECURSION_STEPS[metric]:
        return False
    sentences = _chinese_sentences if metric == "rouge_l_zh" else rouge.split_sentences
    predicted, golds = sentences(prediction), [sentences(answer) for answer in answers]
    fails = [rouge.walks_as_far(predicted, gold, RECURSION_STEPS[metric]) for gold in golds]
    if not any(fails):
        return False
    scores = [rouge.rouge_l(predicted, gold) for gold in golds]
    return max(scores) > max(
        [0.0, *(score for score, failed in zip(scores, fails, strict=True) if not failed)]
    )


def _f1(predicted: _Bag, expected: _Bag) -> float:
    """F1 of two bags of words, with the official code's order of operations; 0.0 if they share nothing."""
    (left, left_words), (right, right_words) = predicted, expected
    if left_words.isdisjoint(right_words):
        return 0.0
    shared = left_words & right_words
    if len(left) == len(left_words) or len(right) == len(right_words):
        common = len(shared)
    else:
        left_counts, right_counts = Counter(left), Counter(right)
        common = sum(min(left_counts[word], right_counts[word]) for word in shared)
    precision, recall = common / len(left), common / len(right)
    return (2 * precision * recall) / (precision + recall)


def _bag(text: str) -> _Bag:
    words = normalized_words(text)
    return words, set(words)


def _chinese_bag(text: str) -> _Bag:
    words = normalized_chinese_words(text)
    return words, set(words)


@lru_cache(maxsize=16)  # about one row: recursion_artefact asks for what the metric has just seen
def _chinese_sentences(text: str) -> rouge.Sentences:
    return rouge.split_sentences(" ".join(chinese_words(text)))


@cache
def _sequence_matcher() -> Any:
    """difflib's class of that name, compiled."""
    from cydifflib import SequenceMatcher

    return SequenceMatcher


def _best(score: Callable[[str, str, Sequence[str]], float]) -> _Metric:
    """The largest score over the gold answers, 0.0 without any."""

    def best(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
        return max([0.0, *[score(prediction, answer, classes) for answer in answers]])

    return best


def _best_prepared(
    prepare: Callable[[str], _Prepared], compare: Callable[[_Prepared, _Prepared], float], remember: int
) -> _Metric:
    """As `_best`, with the work on the prediction done once for all gold answers.

    The work on this many gold answers is kept: they come back for every method and budget.
    """
    prepare_gold = lru_cache(maxsize=remember)(prepare)

    def best(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
        prepared, largest = prepare(prediction), 0.0
        for answer in answers:
            score = compare(prepared, prepare_gold(answer))
            if score > largest:
                largest = score
                if largest >= 1.0:
                    break
        return largest

    return best


#: The official metrics over all gold answers, by their names in `data.longbench_tasks`.
OFFICIAL_METRICS: Mapping[str, _Metric] = MappingProxyType(
    {
        "qa_f1": _best_prepared(_bag, _f1, 16_384),
        "qa_f1_zh": _best_prepared(_chinese_bag, _f1, 1024),
        "rouge_l": _best_prepared(rouge.split_sentences, rouge.rouge_l, 0),
        "rouge_l_zh": _best_prepared(_chinese_sentences, rouge.rouge_l, 1024),
        "classification": _best(classification),
        "count": _best(count),
        "retrieval": _best(retrieval),
        "retrieval_zh": _best(retrieval_zh),
        "code_sim": _best(code_sim),
        "choice": _best(choice),
    }
)
