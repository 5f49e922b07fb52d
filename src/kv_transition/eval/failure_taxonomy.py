"""What went wrong with an answer: one label for each row, every finding as a flag, no score ever changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kv_transition.errors import UserError

#: The labels in the order in which they win; an answer without a finding has none (None).
LABELS = ("TIMEOUT", "ENGINE_ERROR", "EMPTY_OUTPUT", "REFUSAL", "TRUNCATED", "FORMAT_ERROR")

#: Labels of requests that never got an answer; they come from the engine, all others are read off the text.
INFRASTRUCTURE = ("TIMEOUT", "ENGINE_ERROR")

#: What a task may ask of its answers: a digit, one of its class names, an option letter.
FORMATS = ("number", "class", "option")

_OPTION_LETTERS = ("A", "B", "C", "D")
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Findings:
    """Findings on one answer; several can hold at once."""

    timeout: bool = False
    engine_error: bool = False
    empty_output: bool = False
    refusal: bool = False
    truncated: bool = False
    format_error: bool = False

    @property
    def label(self) -> str | None:
        """The first label, in the order of LABELS, whose finding holds; None for a normal answer."""
        return next((label for label in LABELS if getattr(self, label.lower())), None)


def compile_refusals(patterns: Sequence[str]) -> re.Pattern[str]:
    """Join regular expressions for the beginning of a refusal into one; a faulty one is a UserError that names it.

    Case does not matter, and answers are matched with straight apostrophes.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"scoring.refusal_patterns: {pattern!r} is no regular expression ({error}); mend or remove it"
            ) from None
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)", re.IGNORECASE)


def first_line(text: str) -> str:
    """The part that counts in tasks with a first-line rule: the first line after leading line feeds."""
    return text.lstrip("\n").split("\n", 1)[0]


def without_thinking(text: str) -> tuple[str, bool]:
    """Take the closed `<think>` blocks out of a text.

    Returns
    -------
    (rest, unclosed): what is left, and whether a block was opened and never closed (it then stays in the rest).
    """
    kept: list[str] = []
    position = 0
    while (start := text.find(_THINK_OPEN, position)) >= 0:
        end = text.find(_THINK_CLOSE, start)
        if end < 0:
            return "".join(kept) + text[position:], True
        kept.append(text[position:start])
        position = end + len(_THINK_CLOSE)
    return "".join(kept) + text[position:], False


def findings_of_failure(failure: str) -> Findings:
    """Findings on a request without an answer: its own label and no other; ValueError for a foreign label."""
    if failure not in INFRASTRUCTURE:
        raise ValueError(failure)
    return Findings(**{failure.lower(): True})


def findings_of_answer(
    text: str,
    *,
    finish_reason: str | None,
    score: float,
    refusals: re.Pattern[str],
    answer_format: str | None = None,
    classes: Sequence[str] = (),
    first_line_only: bool = False,
) -> Findings:
    """Read the findings off an answer.

    Parameters
    ----------
    text : the answer as the model gave it.
    finish_reason : "stop", "length" or None where the engine does not say.
    score : the primary metric's score; an answer that scores is never a refusal.
    refusals : from :func:`compile_refusals`, matched at the answer's start (white space and quotes skipped).
    answer_format : None or one of FORMATS. "class" looks for the names in `classes`, "option" for one of
        `classes` (default A to D) that stands alone, in capitals.
    first_line_only : only the first line is scored, so text cut off behind it is not missed.
    """
    answer, unclosed = without_thinking(text)
    scored = first_line(text) if first_line_only else text
    cut_off_is_scored = not first_line_only or "\n" not in text.lstrip("\n")
    opening = answer.lstrip().lstrip("\"'“‘").lstrip().replace("’", "'")
    return Findings(
        empty_output=not answer.strip(),
        refusal=score == 0 and refusals.match(opening) is not None,
        truncated=unclosed or (finish_reason == "length" and cut_off_is_scored),
        format_error=not _has_format(scored, answer_format, classes),
    )


def _has_format(scored: str, answer_format: str | None, classes: Sequence[str]) -> bool:
    if answer_format is None:
        return True
    if answer_format == "number":
        return re.search(r"\d", scored) is not None
    if answer_format == "class":
        return any(name in scored for name in classes)
    letters = "|".join(re.escape(letter) for letter in classes or _OPTION_LETTERS)
    return re.search(rf"(?<![A-Za-z0-9])(?:{letters})(?![A-Za-z0-9])", scored) is not None
