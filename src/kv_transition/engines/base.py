"""What every engine is: cells in, answers with a proved KV budget out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kv_transition.budgets import Budget, budget_label
from kv_transition.data.prompts import Prompt
from kv_transition.engines.failures import failure_words
from kv_transition.errors import UserError

#: Part of the journal key. Whoever changes what an engine answers raises it, so that no old answer is reused.
#: 2: in scope prompt the prompt is tokenised at once.
ENGINE_PROTOCOL = 2

#: `measured` was read from the cache's own tensors; `reported` is a foreign server's word.
Verified = Literal["measured", "reported", "no"]

#: Whether the timings of a row are those of its own request, or shared by all cells of a sweep.
TimingScope = Literal["request", "sweep"]

ENGINE_ERROR = "ENGINE_ERROR"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a method at a budget (None: uncompressed), and which of its seeds."""

    method: str
    budget: Budget | None = None
    replicate: int = 0

    @property
    def label(self) -> str:
        """The budget as folder names and tables write it."""
        return budget_label(self.budget)


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding: at most `max_new_tokens`, ended early by the model or by one of the `stop` strings.

    Attributes
    ----------
    min_new_tokens : tokens before which no end token is taken.
    stop_token_texts : texts whose last token ends an answer as the model's own end tokens do, but stays in its text.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    stop_token_texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Decoding:
        """From what a protocol's `decoding` gives; keys that are not there have their defaults."""
        return cls(
            section["max_new_tokens"],
            tuple(section["stop"]),
            section.get("min_new_tokens", 0),
            tuple(section.get("stop_token_texts", ())),
        )


@dataclass(frozen=True)
class KVUse:
    """The KV cache an answer was computed from.

    Attributes
    ----------
    requested : prompt positions asked for; None without a budget.
    kept_per_layer : prompt positions in the cache, mean over the KV heads of each layer, read from the cache.
    press_len : positions that the eviction sees.
    prompt_tokens : tokens of the prompt, template included.
    question_tokens : prompt tokens behind the compressed part that are always kept and not part of the budget
        (scope "context"); 0 in scope "prompt".
    bytes_kept : bytes of the keys and values of the kept positions, all layers.
    peak_tokens : kept_max + question_tokens + generated tokens: positions in the cache at the end of the answer.
    active : whether the budget took anything away.
    """

    method: str
    requested: int | None
    kept_per_layer: tuple[float, ...]
    kept_mean: float
    kept_min: float
    kept_max: float
    press_len: int
    prompt_tokens: int
    question_tokens: int
    bytes_kept: int
    peak_tokens: int
    active: bool
    verified: Verified


@dataclass(frozen=True)
class Timings:
    """Seconds. In a sweep nothing is known per request, and shared work stands on one row only.

    Attributes
    ----------
    latency_s, ttfb_s : whole request and time to first token; None in a sweep.
    prefill_s, decode_s : in a sweep those of the prompt's whole sweep, on the first cell that was decoded. Of prompts that were
        decoded together each has its share.
    compress_s : in a sweep that of all the method's cells, on the method's first cell that was decoded.

    Both prefill_s and compress_s are 0.0 where nothing was done: the context had been read, and compressed, for an earlier
    question about it (scope "context").
    """

    latency_s: float | None = None
    ttfb_s: float | None = None
    prefill_s: float | None = None
    compress_s: float | None = None
    decode_s: float | None = None
    timing_scope: TimingScope = "sweep"


@dataclass(frozen=True)
class EngineResult:
    """One answer, or why there is none.

    Attributes
    ----------
    finish_reason : "stop" (the model or a stop string ended it), "length", "cancelled" (whoever observed it ended it), or
        None for a failure.
    completion_tokens : generated tokens, the end token included.
    copied_from : "full" where the budget took nothing away, so that the full answer is this cell's answer.
    failure : None, "ENGINE_ERROR" or "TIMEOUT"; `error` says what happened.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    kv: KVUse | None
    timings: Timings
    copied_from: str | None = None
    failure: str | None = None
    error: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """The result as a JSON object: what the journal keeps. Nothing is copied."""
        return {
            **vars(self),
            "kv": None if self.kv is None else dict(vars(self.kv)),
            "timings": dict(vars(self.timings)),
        }

    @classmethod
    def failed(
        cls,
        error: str | BaseException,
        prompt_tokens: int | None = None,
        timing_scope: TimingScope = "sweep",
    ) -> EngineResult:
        """An ENGINE_ERROR with its cause in words."""
        words = error if isinstance(error, str) else failure_words(error)
        timings = Timings(timing_scope=timing_scope)
        return cls("", None, prompt_tokens, None, None, timings, failure=ENGINE_ERROR, error=words)


def check_vocabulary(raw: Mapping[str, Any], limit: float, example_id: str) -> None:
    """The guard against text that the model's vocabulary does not know.

    Parameters
    ----------
    raw : an answer's `raw`; `unknown_share` in it is the share of the prompt's tokens that are unknown.
    limit : the setting `engine.unknown_token_limit`.

    Raises
    ------
    UserError
        When a larger share is unknown.
    """
    share = float(raw.get("unknown_share") or 0.0)
    if share > limit:
        raise UserError(
            f"example {example_id}: {share:.0%} of the prompt's tokens are unknown to the model; its vocabulary does not know "
            f"this text, so its answers would mean nothing. Use a model for this text (or raise engine.unknown_token_limit, "
            f"now {limit:g})"
        )


@dataclass(frozen=True, slots=True)
class PromptCells:
    """A prompt of an example, and the cells at which it is asked."""

    example_id: str
    prompt: Prompt
    cells: Sequence[Cell]


class BaseEngine(ABC):
    """Answers prompts from a KV cache of a given budget.

    Attributes
    ----------
    concurrency : single requests that may be in flight at the same time; 0 for an engine that is asked for whole examples
        (`sweep_all`).
    """

    concurrency: int = 0

    @abstractmethod
    def generate(self, prompt: Prompt, cell: Cell, decoding: Decoding, example_id: str) -> EngineResult:
        """Answer one prompt at one cell.

        Raises
        ------
        UserError
            For mistakes in the configuration; everything that goes wrong with one request is a failed result.
        """

    def sweep(
        self, prompt: Prompt, cells: Sequence[Cell], decoding: Decoding, example_id: str
    ) -> list[EngineResult]:
        """Answer one prompt at many cells, in the order of `cells`."""
        return [self.generate(prompt, cell, decoding, example_id) for cell in cells]

    def sweep_all(
        self, asked: Sequence[PromptCells], decoding: Decoding
    ) -> Iterator[Sequence[Sequence[EngineResult]]]:
        """Answer prompts, each at its cells; what comes at once are the results of the next ones, in their order."""
        for number, one in enumerate(asked, 1):
            if number < len(asked):
                self.read_ahead(asked[number].prompt)
            yield [self.sweep(one.prompt, one.cells, decoding, one.example_id)]

    def read_ahead(self, prompt: Prompt) -> None:  # noqa: B027  # an engine need not make anything of it
        """Told, before a prompt is swept, which one comes after it; changes no answer."""

    def provenance(self) -> dict[str, Any]:
        """What determines the answers: class, protocol, versions, hashes."""
        return {"class": type(self).__name__, "protocol": ENGINE_PROTOCOL}
