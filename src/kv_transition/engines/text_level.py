"""Methods that shorten the text instead of the cache: the baseline that every KV method has to beat at equal memory.

The budget is the whole prompt: template, instruction and question, which stay as they are, and what is left of the
context. The model reads the shorter prompt with its full cache, so any engine can answer it.

    recent  the last tokens of the context
    middle  its first and its last tokens, half and half
    bm25    the passages that BM25 ranks highest for the question, in the order of the document; passages are cut every
            `passage_tokens` tokens, equal ranks count from the front, and one that does not fit gives way to the next
            that does

A blank line joins what stood apart: glued together, two words would become one that the text does not have.

Texts are cut where tokens begin. At the cut they may be tokenised anew, so the finished prompt is counted: it is the
longest that was found within the budget, never a longer one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from kv_transition.budgets import Budget, kept_tokens
from kv_transition.data.prompts import Prompt
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.data.words import search_words
from kv_transition.methods import TEXT_METHODS as TEXT_METHODS

Status = Literal["ok", "infeasible", "not_applicable"]

#: What stands between the two halves, and between passages, whether they were neighbours in the text or not.
JOIN = "\n\n"

#: Cuts that take this many tokens more than there is room for are tried too: a cut text can have fewer tokens.
SLACK = 4


@dataclass(frozen=True)
class Shortened:
    """A prompt within its budget, or why there is none.

    Attributes
    ----------
    prompt : None unless `status` is "ok"; the full prompt itself where that is within the budget.
    status : "infeasible" where the prompt without any context already fills the budget, "not_applicable" where a method
        that ranks by the question has none.
    kept_tokens : tokens of the prompt, 0 without one.
    """

    prompt: Prompt | None
    status: Status
    kept_tokens: int


class _Passage(NamedTuple):
    """Characters `start` to `end` of the context: at most `passage_tokens` of its tokens."""

    start: int
    end: int
    tokens: int


class TextShortener:
    """Shortens the context of one example, at any method and budget.

    Parameters
    ----------
    question, context : of the record, before any other shortening.
    make_prompt : the finished prompt for a context, "" for none.
    tokenizer : the model's; it counts prompts and says where tokens begin.
    passage_tokens : length of a passage of `bm25`.
    scope : tokens are counted as the engine's prompts of this scope have them, see `ModelTokenizer.prompt_ids`.

    Attributes
    ----------
    full, full_tokens : the prompt with the whole context.
    """

    def __init__(
        self,
        question: str,
        context: str,
        make_prompt: Callable[[str], Prompt],
        tokenizer: ModelTokenizer,
        passage_tokens: int,
        scope: Literal["prompt", "context"] = "prompt",
    ) -> None:
        self.question, self.context = question, context
        self.tokenizer, self.passage_tokens = tokenizer, passage_tokens
        self._make_prompt, self._scope = make_prompt, scope
        self.full = make_prompt(context)
        self.full_tokens = self._count(self.full)

    def shorten(self, method: str, budget: Budget) -> Shortened:
        """The longest prompt of a method within a budget (tokens, or a share of the full prompt's tokens)."""
        allowed = kept_tokens(budget, self.full_tokens)
        if method == "bm25" and not self.question.strip():
            return Shortened(None, "not_applicable", 0)
        if self.full_tokens <= allowed:
            return Shortened(self.full, "ok", self.full_tokens)
        if self._fixed_tokens >= allowed:
            return Shortened(None, "infeasible", 0)
        cut = {"recent": self._recent, "middle": self._middle, "bm25": self._passages_within}[method]
        return self._longest(cut, allowed)

    def _count(self, prompt: Prompt) -> int:
        return len(self.tokenizer.prompt_ids(prompt, self._scope).ids)

    @cached_property
    def _fixed_tokens(self) -> int:
        return self._count(self._make_prompt(""))

    @cached_property
    def _starts(self) -> list[int]:
        return self.tokenizer.token_starts(self.context)

    def _longest(self, cut: Callable[[int], str], allowed: int) -> Shortened:
        """Let `cut` keep about as many tokens as there is room for, and correct that by what the prompt really has."""
        made: dict[str, Shortened] = {}

        def attempt(keep: int) -> Shortened:
            context = cut(keep)
            if context not in made:
                prompt = self._make_prompt(context)
                made[context] = Shortened(prompt, "ok", self._count(prompt))
            return made[context]

        def fits(one: Shortened) -> bool:
            # A prompt that its protocol has shortened once more has lost its middle and is not the method's.
            lost = one.prompt is not None and one.prompt.dropped_tokens > 0
            return one.kept_tokens <= allowed and not lost

        most = len(self._starts)
        keep = min(most, allowed - self._fixed_tokens)
        best = attempt(keep)
        while keep and not fits(best):
            keep = max(0, keep - max(1, best.kept_tokens - allowed))
            best = attempt(keep)
        while best.kept_tokens < allowed:
            farthest = min(most, keep + allowed - best.kept_tokens + SLACK)
            more = (k for k in range(farthest, keep, -1) if fits(attempt(k)))
            found = next((k for k in more if attempt(k).kept_tokens > best.kept_tokens), None)
            if found is None:
                break
            keep, best = found, attempt(found)
        return best

    def _recent(self, keep: int) -> str:
        return self.context[self._starts[-keep] :] if keep else ""

    def _middle(self, keep: int) -> str:
        """Of an odd number the first half has one more."""
        if not keep:
            return ""
        if keep >= len(self._starts):
            return self.context
        halves = self.context[: self._starts[keep - keep // 2]], self._recent(keep // 2)
        return JOIN.join(half for half in halves if half)

    def _passages_within(self, keep: int) -> str:
        """The best passages that fit into `keep` tokens."""
        chosen = []
        for passage in self._ranked_passages:
            if passage.tokens <= keep:
                chosen.append(passage)
                keep -= passage.tokens
        return JOIN.join(self.context[one.start : one.end] for one in sorted(chosen))

    @cached_property
    def _ranked_passages(self) -> list[_Passage]:
        """All passages, the one that fits the question best first."""
        size, tokens = self.passage_tokens, len(self._starts)
        if not tokens:
            return []
        bounds = [0, *self._starts[size::size], len(self.context)]
        lengths = [min(size, tokens - first) for first in range(0, tokens, size)]
        passages = [_Passage(*ends, n) for ends, n in zip(pairwise(bounds), lengths, strict=True)]
        scores = bm25_scores(self.question, [self.context[one.start : one.end] for one in passages])
        order = sorted(range(len(passages)), key=lambda index: (-scores[index], index))
        return [passages[index] for index in order]


def shorten(
    method: str,
    budget: Budget,
    question: str,
    context: str,
    make_prompt: Callable[[str], Prompt],
    tokenizer: ModelTokenizer,
    passage_tokens: int,
) -> Shortened:
    """One prompt of one method; :class:`TextShortener` makes many of one example. Parameters are those of both."""
    return TextShortener(question, context, make_prompt, tokenizer, passage_tokens).shorten(method, budget)


def bm25_scores(question: str, passages: list[str]) -> list[float]:
    """How well each passage fits the question; 0 for one that shares no word with it.

    References
    ----------
    Robertson and Zaragoza (2009), Found. Trends Inf. Retr. 3:333; k1 = 1.5, b = 0.75 and the idf of Lucene, which is
    positive for every word.
    """
    words = [search_words(passage) for passage in passages]
    known = {word for passage in words for word in passage}
    asked = [word for word in search_words(question) if word in known]
    if not asked:
        return [0.0] * len(passages)
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG, one line for each index
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(words, show_progress=False)
    return [float(score) for score in index.get_scores(asked)]
