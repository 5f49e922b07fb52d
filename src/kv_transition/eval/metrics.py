"""Exact match and token F1 of an answer against its reference answers, and the registry of metrics.

A metric sees the answer as the model gave it. Reasoning inside `<think>` is not taken out: LongBench's own
scoring does not do so either, and a model that spends its tokens on thinking shall not look better than it
answered. What went wrong is told by the failure labels, which never change a score.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from kv_transition.eval.longbench_metrics import OFFICIAL_METRICS

#: A metric: (answer, reference answers, class names of the task or ()) -> score in [0, 1].
Metric = Callable[[str, Sequence[str], Sequence[str]], float]


class _DropPunctuation(dict[int, int | None]):
    """Table for str.translate, filled as characters are met: punctuation -> None, all else unchanged."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        drop = character in string.punctuation or unicodedata.category(character).startswith("P")
        self[code] = None if drop else code
        return self[code]


_DROP_PUNCTUATION = _DropPunctuation()


def normalize_answer(text: str) -> str:
    """Lower-case a text, delete its punctuation, trim it and make every run of white space one space.

    Punctuation is `string.punctuation` (so `$+<=>^`|~` too) and every character of a Unicode category P*
    (curly quotes, dashes, CJK stops). It is deleted, not replaced: "co-op" becomes "coop". White space is what
    `str.split` splits at. Articles stay, and no Unicode normalisation form is applied: "é" as one character and
    as two differ.
    """
    return " ".join(text.lower().translate(_DROP_PUNCTUATION).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals any normalised reference answer, else 0.0 (also without any).

    Two texts that are both empty after normalisation are equal.
    """
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> tuple[float, str]:
    """Largest F1 over the reference answers, with the one that gave it.

    F1 of two bags of tokens (normalised texts split at white space) is 2 common / (tokens + tokens); 1.0 if both
    are empty, 0.0 if one is.

    Returns
    -------
    (F1, answer), the answer as given, the first one among equals; (0.0, "") without reference answers.

    References
    ----------
    Rajpurkar et al. (2016), SQuAD, section 6.1; here without the removal of articles.
    """
    tokens = normalize_answer(prediction).split()
    bag = Counter(tokens)
    best, best_answer = 0.0, answers[0] if answers else ""
    for answer in answers:
        reference = normalize_answer(answer).split()
        if tokens or reference:
            common = (bag & Counter(reference)).total()
            value = 2 * common / (len(tokens) + len(reference))
        else:
            value = 1.0
        if value > best:
            best, best_answer = value, answer
    return best, best_answer


def _em_metric(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    return exact_match(prediction, answers)


def _f1_metric(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    return f1(prediction, answers)[0]


#: Metrics that can be a task's primary one, by the name used in the configuration: the two above and LongBench's own.
METRICS: dict[str, Metric] = {"em": _em_metric, "f1": _f1_metric, **OFFICIAL_METRICS}
