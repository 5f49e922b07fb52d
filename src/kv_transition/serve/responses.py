"""The shapes of OpenAI's responses, whole and streamed, with `kv` and `timing` beside what OpenAI knows."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response

from kv_transition.engines.local import LocalEngine
from kv_transition.methods import KNOWN_METHODS
from kv_transition.serve.answering import Finished, Piece, engine_facts
from kv_transition.serve.api_errors import ApiError
from kv_transition.serve.requests import NOT_ASKED, Ask
from kv_transition.serve.streaming import DONE, chunk, event
from kv_transition.serve.worker import Job


class Json(Response):
    """A JSON response that can hold whatever a client has sent, half surrogate pairs included."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return json.dumps(content, allow_nan=False).encode()


def error_response(error: ApiError) -> Json:
    """An error in OpenAI's shape."""
    return Json(error.body(), error.status, error.headers)


def _base(ask: Ask, model: str) -> dict[str, Any]:
    kind = ("chatcmpl", "chat.completion") if ask.chat else ("cmpl", "text_completion")
    name = f"{kind[1]}.chunk" if ask.chat and ask.stream else kind[1]
    return {
        "id": f"{kind[0]}-{uuid.uuid4().hex}",
        "object": name,
        "created": int(time.time()),
        "model": model,
    }


def _usage(finished: Finished) -> dict[str, int]:
    prompt, answer = finished.prompt_tokens, finished.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _beside(finished: Finished) -> dict[str, Any]:
    return {"kv": finished.kv, "timing": finished.timing}


def whole_response(ask: Ask, model: str, finished: Finished) -> Json:
    """An answer that is not streamed."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finished.finish_reason}
    if ask.chat:
        choice["message"] = {"role": "assistant", "content": finished.rest}
    else:
        choice["text"] = finished.rest
    return Json(
        {**_base(ask, model), "choices": [choice], "usage": _usage(finished), **_beside(finished)},
    )


def _choice(ask: Ask, text: str | None, finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    """A chunk's choice; `delta` is what a chat's chunk holds beside the text."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    if ask.chat:
        choice["delta"] = delta if text is None else {**delta, "content": text}
    else:
        choice["text"] = text or ""
    return choice


async def streamed(ask: Ask, model: str, job: Job) -> AsyncIterator[bytes]:
    """The server-sent events of an answer whose job has started.

    `kv` and `timing` stand on the last chunk: that with the usage where it is asked for, else that with the finish
    reason. What fails in the middle is sent as an error, and the stream ends without [DONE].
    """
    base, usage = _base(ask, model), {"usage": None} if ask.include_usage else {}
    if ask.chat:
        yield chunk(base, _choice(ask, "", role="assistant"), **usage)
    while not isinstance(news := await job.next_event(), Finished):
        if isinstance(news, ApiError):
            yield event(news.body())
            return
        if isinstance(news, Piece):
            yield chunk(base, _choice(ask, news.text), **usage)
    if news.rest:
        yield chunk(base, _choice(ask, news.rest), **usage)
    last = _choice(ask, None, news.finish_reason)
    if ask.include_usage:
        yield chunk(base, last, **usage)
        yield chunk(base, None, usage=_usage(news), **_beside(news))
    else:
        yield chunk(base, last, **_beside(news))
    yield DONE


def model_card(name: str, created: int, engine: LocalEngine) -> Mapping[str, Any]:
    """The served model as /v1/models lists it, with the methods it can be asked with."""
    methods = {
        method: {
            "title": KNOWN_METHODS[method].title,
            "aliases": list(KNOWN_METHODS[method].aliases),
            "parameters": {
                key: value for key, value in KNOWN_METHODS[method].defaults.items() if key not in NOT_ASKED
            },
        }
        for method in ("full", *engine.offered)
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "kv-transition",
        "max_model_len": engine.longest,
        "methods": methods,
        "engine": engine_facts(engine),
    }
