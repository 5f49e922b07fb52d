"""What the worker's thread does for one request: check the prompt against the model, answer, and tell what was kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kv_transition import __version__
from kv_transition.data.prompts import prompt_hash
from kv_transition.engines.base import ENGINE_PROTOCOL, Decoding, EngineResult
from kv_transition.engines.local import LocalEngine
from kv_transition.engines.sweep import split_prompt
from kv_transition.errors import UserError
from kv_transition.serve.api_errors import ApiError, bad_request
from kv_transition.serve.requests import DEFAULT_MAX_TOKENS, Ask
from kv_transition.serve.streaming import TextStream
from kv_transition.serve.worker import Job


@dataclass(frozen=True)
class Started:
    """The prompt is accepted: from here on only the engine can fail."""


@dataclass(frozen=True)
class Piece:
    """Text that is ready to be sent."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The answer.

    Attributes
    ----------
    rest : what no piece has held of its text; all of it where nothing is streamed.
    kv, timing : as the response shows them.
    """

    rest: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    kv: dict[str, Any]
    timing: dict[str, float | None]


def answer(engine: LocalEngine, ask: Ask, job: Job) -> None:
    """Answer a request and emit what becomes of it: Started, Pieces where it streams, Finished.

    Raises
    ------
    ApiError
        400 for a prompt that the model cannot read as asked, 500 when the engine fails.
    """
    try:
        max_tokens = _checked_length(engine, ask)
        job.emit(Started())
        result, rest = _generated(engine, ask, job, max_tokens)
    except UserError as error:
        # The path of the model's folder is no business of a client.
        raise ApiError(400, str(error).replace(f"{engine.path}: ", "")) from None
    if job.cancelled:
        return
    if result.failure or result.kv is None:
        raise ApiError(500, result.error or "the engine gave no answer", code="engine_error")
    job.emit(
        Finished(
            rest=rest,
            finish_reason=result.finish_reason or "stop",
            prompt_tokens=result.prompt_tokens or 0,
            completion_tokens=result.completion_tokens or 0,
            kv=kv_echo(ask, result, engine),
            timing=_timing(job, result),
        )
    )


def _checked_length(engine: LocalEngine, ask: Ask) -> int:
    """Longest answer to a prompt that the model can read; refusals name the field to change."""
    prompt_ids = engine.tokenizer.prompt_ids(ask.prompt, ask.scope)
    length, longest = len(prompt_ids.ids), engine.longest
    field = "messages" if ask.chat else "prompt"
    if length == 0:
        raise bad_request(field, "is empty; give at least one token")
    room = longest - length
    wanted = ask.max_tokens or min(DEFAULT_MAX_TOKENS["chat" if ask.chat else "completions"], max(room, 1))
    if wanted > room:
        raise bad_request(
            field,
            f"the model reads {longest} tokens; these are {length}, and {wanted} are asked for the answer; shorten the "
            "prompt or lower max_tokens",
            "context_length_exceeded",
        )
    if ask.min_tokens > wanted:
        raise bad_request(
            "min_tokens", f"{ask.min_tokens} is more than the {wanted} tokens an answer has here"
        )
    unknown = engine.tokenizer.unknown_share(prompt_ids.ids)
    if unknown > engine.unknown_token_limit:
        raise bad_request(
            field,
            f"{unknown:.0%} of the tokens are unknown to the model, more than the {engine.unknown_token_limit:.0%} this "
            "server takes; its answer would mean nothing",
            "unknown_tokens",
        )
    _check_parameters(ask, length, prompt_ids.context_len)
    return wanted


def _check_parameters(ask: Ask, length: int, context_len: int) -> None:
    """What a method needs of this prompt; budgets in tokens are checked when a request is read."""
    split = split_prompt(length, context_len, ask.scope, ask.first_token)
    if not split.is_active(ask.cell):
        return
    kept, window, sinks = (
        split.requested(ask.cell) or 0,
        ask.parameters.get("window"),
        ask.parameters.get("n_sink"),
    )
    if window is not None and 2 * window > kept:
        raise bad_request(
            "kv.window", f"{window} is more than half of the {kept} positions that this budget keeps"
        )
    if sinks is not None and split.press_len <= sinks:
        raise bad_request(
            "kv.n_sink", f"{sinks} needs a longer prompt; the eviction sees {split.press_len} positions"
        )


def _generated(engine: LocalEngine, ask: Ask, job: Job, max_tokens: int) -> tuple[EngineResult, str]:
    """The engine's result, and what of its text has not been emitted."""
    stream = TextStream(engine.tokenizer.decode, ask.stop, engine.tokenizer.byte_ids) if ask.stream else None

    def observe(tokens: Sequence[int]) -> bool:
        if stream and (piece := stream.push(tokens)):
            job.emit(Piece(piece))
        return job.cancelled

    own = engine.variant(ask.scope, ask.first_token, {ask.cell.method: ask.parameters})
    decoding = Decoding(max_tokens, ask.stop, ask.min_tokens, ask.stop_token_texts)
    result = own.generate(ask.prompt, ask.cell, decoding, _seed(ask), observe)
    if stream is None or job.cancelled or result.failure:
        return result, result.text
    return result, stream.finish(result.text)


def _seed(ask: Ask) -> str:
    """What seeds `random`: the client's name for the example, else the prompt itself."""
    return prompt_hash(ask.prompt) if ask.seed is None else ask.seed


def _number(value: float) -> float:
    """Whole numbers without a fraction."""
    return int(value) if float(value).is_integer() else value


def kv_echo(ask: Ask, result: EngineResult, engine: LocalEngine) -> dict[str, Any]:
    """The response's `kv`: what was asked, and what the cache that answered really held.

    `applied` says that a budget was asked for and kept to; `active` that it took something away.
    """
    kv = result.kv
    assert kv is not None
    params: dict[str, Any] = dict(ask.parameters)
    if ask.cell.method == "random":
        params |= {"seed": _seed(ask), "replicate": ask.cell.replicate}
    return {
        "method": kv.method,
        "budget": ask.cell.budget,
        "applied": ask.cell.budget is not None,
        "active": kv.active,
        "requested": kv.requested,
        "prompt_tokens": kv.prompt_tokens,
        "kept_per_layer": [_number(kept) for kept in kv.kept_per_layer],
        "kept_mean": _number(kv.kept_mean),
        "kept_min": _number(kv.kept_min),
        "kept_max": _number(kv.kept_max),
        "press_len": kv.press_len,
        "question_tokens": kv.question_tokens,
        "bytes_kept": kv.bytes_kept,
        "peak_tokens": kv.peak_tokens,
        "verified": kv.verified,
        "scope": ask.scope,
        "first_token": ask.first_token,
        "params": params,
        "engine": engine_facts(engine),
    }


def engine_facts(engine: LocalEngine) -> dict[str, Any]:
    """Which engine answers."""
    own = {"class": type(engine).__name__, "protocol": ENGINE_PROTOCOL, "version": __version__}
    return {**own, **engine.computation}


def _timing(job: Job, result: EngineResult) -> dict[str, float | None]:
    """Seconds since the request's body was read; `prefill_s` is the prefill's own."""
    total_s = time.perf_counter() - job.accepted
    timings = result.timings
    ttft_s = None
    if timings.latency_s is not None and timings.ttfb_s is not None:
        ttft_s = total_s - timings.latency_s + timings.ttfb_s
    return {"queue_s": job.waited_s, "prefill_s": timings.prefill_s, "ttft_s": ttft_s, "total_s": total_s}
