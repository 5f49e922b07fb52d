"""Request bodies: read, checked field by field, and made into what the engine is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError

from kv_transition.data.prompts import Message, Prompt
from kv_transition.engines.base import Cell
from kv_transition.engines.evictions import EVICTIONS
from kv_transition.engines.sweep import FirstToken, Scope
from kv_transition.errors import ConfigError
from kv_transition.methods import KNOWN_METHODS, canonical_name, resolve_parameters
from kv_transition.serve.api_errors import QUOTED, ApiError, bad_request, quoted
from kv_transition.serve.fields import ChatRequest, CompletionRequest, KVRequest

#: Methods that a request may name where the reference engine answers.
METHODS = ("full", *EVICTIONS)
#: Hyper-parameters of a run, not of a request: a request says which replicate it is.
NOT_ASKED = ("seeds",)
HYPER_PARAMETERS = tuple(
    dict.fromkeys(
        name
        for card in KNOWN_METHODS.values()
        if card.evicts_tokens
        for name in card.defaults
        if name not in NOT_ASKED
    )
)

#: Answers whose length is not given: OpenAI's own default for completions, a bound for chats.
DEFAULT_MAX_TOKENS = {"chat": 512, "completions": 16}

#: Fields that would change the answer in ways this server does not offer -> values that ask for nothing.
ASKS_NOTHING: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "temperature": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
WHY_REFUSED = {
    "temperature": "decoding is greedy here; give 0 or leave it out",
    "n": "greedy decoding has one answer; give 1 or leave it out",
}

#: Options of `kv` that are no fields of OpenAI's: at the top level they would be ignored, and the answer a wrong one.
MISPLACED = (
    "budget",
    "method",
    "scope",
    "first_token",
    "context_end",
    "replicate",
    "extra_body",
    *HYPER_PARAMETERS,
)


@dataclass(frozen=True)
class Ask:
    """A checked request.

    Attributes
    ----------
    chat : from which endpoint, hence which shape the answer has.
    parameters : the method's hyper-parameters, defaults included.
    seed : what seeds `random`; None for the prompt's own hash.
    max_tokens : longest answer; None where the client left it open.
    """

    chat: bool
    prompt: Prompt
    cell: Cell
    scope: Scope
    first_token: FirstToken
    parameters: dict[str, int]
    seed: str | None
    max_tokens: int | None
    min_tokens: int
    stop: tuple[str, ...]
    stop_token_texts: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_request(raw: bytes, chat: bool, model_name: str, methods: Sequence[str] = METHODS) -> Ask:
    """Check the body of a request.

    Parameters
    ----------
    chat : whether it came to /v1/chat/completions; else to /v1/completions.
    model_name : the only name that is served.
    methods : those that a request may name, full among them.

    Raises
    ------
    ApiError
        400 for what is wrong or not offered, 404 for another model's name.
    """
    body = _json_object(raw)
    _check_names(body)
    request: ChatRequest | CompletionRequest
    try:
        request = (ChatRequest if chat else CompletionRequest).model_validate(body)
    except ValidationError as error:
        _refuse(error)
    if request.model != model_name:
        raise ApiError(
            404, f"the model {quoted(request.model)} is not served here", "model", "model_not_found"
        )
    for name, nothing in ASKS_NOTHING.items():
        _check_asks_nothing(name, body.get(name), nothing)
    kv = request.kv or KVRequest()
    cell, parameters = _cell(kv, methods)
    max_tokens, min_tokens = _lengths(request)
    return Ask(
        chat=chat,
        prompt=_prompt(request, kv),
        cell=cell,
        scope=kv.scope,
        first_token=kv.first_token,
        parameters=parameters,
        seed=kv.seed,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=tuple(request.stop or ()),
        stop_token_texts=tuple(request.stop_token_texts or ()),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _json_object(raw: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON number")

    try:
        body = json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:QUOTED]
        raise ApiError(400, f"the body is not readable as JSON: {reason}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return body


def _check_names(body: Mapping[str, Any]) -> None:
    """Refuse unknown options of `kv` and top-level fields that were meant for it.

    Whatever else is unknown at the top level is ignored, as OpenAI's servers do.
    """
    for name in body:
        plain = name.strip().lower()
        if name != "kv" and plain.startswith("kv"):
            raise bad_request(name[:40], "no such field; the cache is described by the field kv")
        if plain in MISPLACED:
            where = (
                "its fields stand at the top level of the body" if plain == "extra_body" else f"kv.{plain}"
            )
            raise bad_request(name[:40], f"no such field at the top level; write {where}")
    # A body of nothing but unknown options would make as many errors.
    kv = body.get("kv")
    for name in kv if isinstance(kv, dict) else ():
        if name not in KVRequest.model_fields:
            raise bad_request(
                f"kv.{name[:40]}", f"no such option; known are {', '.join(KVRequest.model_fields)}"
            )


def _refuse(error: ValidationError) -> NoReturn:
    """The first problem that pydantic found, in OpenAI's shape."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = ".".join(str(part)[:40] for part in first["loc"])
    problem = first["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
    if first["type"] == "missing":
        problem = "is missing"
    raise bad_request(param, problem[:1].lower() + problem[1:])


def _check_asks_nothing(name: str, value: object, nothing: tuple[object, ...]) -> None:
    # 0 == False: types count, or `n: true` would be one answer.
    if value is None or any(type(value) is type(allowed) and value == allowed for allowed in nothing):
        return
    raise bad_request(
        name, f"{quoted(value)} is not supported; {WHY_REFUSED.get(name, 'leave the field out')}"
    )


def _cell(kv: KVRequest, methods: Sequence[str]) -> tuple[Cell, dict[str, int]]:
    """The cell of the grid, and the method's hyper-parameters."""
    try:
        method = canonical_name(kv.method)
    except ConfigError:
        method = ""
    if method not in methods:
        raise bad_request("kv.method", f"{quoted(kv.method)} is unknown; known are {', '.join(methods)}")
    if method == "full" and kv.budget is not None:
        raise bad_request("kv.budget", "the full cache has no budget; name a method in kv.method too")
    if method != "full" and kv.budget is None:
        raise bad_request("kv.budget", f"is missing; {method} needs one")
    given = {name: value for name in HYPER_PARAMETERS if (value := getattr(kv, name)) is not None}
    for name in given:
        if name not in KNOWN_METHODS[method].defaults:
            raise bad_request(f"kv.{name}", f"{method} has no such hyper-parameter")
    try:
        parameters = resolve_parameters({method: given})[method]
    except ConfigError as error:
        where, _, problem = str(error).removeprefix(f"kv.methods.{method}.").partition(": ")
        raise bad_request(f"kv.{where}", problem) from None
    for name in ("window", "n_sink"):
        if isinstance(kv.budget, int) and parameters.get(name, 0) > kv.budget // 2:
            raise bad_request(
                f"kv.{name}",
                f"{parameters[name]} is more than half of budget {kv.budget}; lower it or raise kv.budget",
            )
    if kv.scope == "context" and kv.first_token != "compressed":
        raise bad_request(
            "kv.first_token",
            "scope context reads the question from the compressed cache; give first_token: compressed",
        )
    if kv.scope == "context" and method != "full" and kv.context_end is None:
        raise bad_request("kv.context_end", "is missing; scope context needs to know where the context ends")
    asked = {name: value for name, value in parameters.items() if name not in NOT_ASKED}
    return Cell(method, kv.budget, kv.replicate), asked


def _prompt(request: ChatRequest | CompletionRequest, kv: KVRequest) -> Prompt:
    if isinstance(request, ChatRequest):
        # Chat templates know OpenAI's newer name of the system's messages only by the older one.
        messages: tuple[Message, ...] = tuple(
            {"role": "system" if message.role == "developer" else message.role, "content": message.content}
            for message in request.messages
        )
    else:
        messages = ({"role": "user", "content": request.prompt},)
    length = len(messages[-1]["content"])
    if kv.context_end is not None and kv.context_end > length:
        raise bad_request(
            "kv.context_end", f"lies behind the end of the last text, which has {length} characters"
        )
    return Prompt(messages, kv.context_end, wrapped=isinstance(request, ChatRequest))


def _lengths(request: ChatRequest | CompletionRequest) -> tuple[int | None, int]:
    """Longest (None: left open) and shortest answer."""
    longest, newer = request.max_tokens, request.max_completion_tokens
    if longest is not None and newer is not None and longest != newer:
        raise bad_request("max_completion_tokens", "contradicts max_tokens; give one of them")
    longest = newer if longest is None else longest
    shortest = request.min_tokens or 0
    if longest is not None and shortest > longest:
        raise bad_request("min_tokens", f"{shortest} is more than max_tokens, {longest}")
    return longest, shortest
