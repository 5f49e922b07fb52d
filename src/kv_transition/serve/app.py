"""The HTTP side: routes, the key, who is still there, one log line for each request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kv_transition.engines.local import LocalEngine
from kv_transition.serve.answering import Finished, Started, answer
from kv_transition.serve.api_errors import ApiError, shutting_down
from kv_transition.serve.bodies import check_declared_length, read_body
from kv_transition.serve.requests import Ask, read_request
from kv_transition.serve.responses import Json, error_response, model_card, streamed, whole_response
from kv_transition.serve.worker import Job, Worker

logger = logging.getLogger(__name__)

#: What the log shows for a request whose client went away; nobody receives it.
CLIENT_GONE = 499
#: Where the request's own scope keeps the words about it for the log.
NOTE = "kv_transition.note"
#: Characters of a path in the log.
LOGGED_PATH = 60


@dataclass(frozen=True)
class Service:
    """What is served, and within which limits.

    Attributes
    ----------
    name : the model's name in requests.
    max_body : bytes of a request's body.
    key : what clients have to show; None for none.
    """

    engine: LocalEngine
    worker: Worker
    name: str
    max_body: int
    key: str | None


def build_app(service: Service) -> FastAPI:
    """The application."""
    # No pages of its own: they would load scripts from elsewhere.
    app = FastAPI(title="kv-transition", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(AccessLog)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)

    async def check_key(request: Request) -> None:
        _check_key(service.key, request)

    guarded = [Depends(check_key)]
    card = model_card(service.name, int(time.time()), service.engine)

    @app.get("/health")
    async def health() -> Response:
        return Json({"status": "ok"})

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> Response:
        return Json({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> Response:
        if name != service.name:
            raise ApiError(404, "no model of this name is served here", "model", "model_not_found")
        return Json(card)

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat_completions(request: Request) -> Response:
        return await _completed(service, request, chat=True)

    @app.post("/v1/completions", dependencies=guarded)
    async def completions(request: Request) -> Response:
        return await _completed(service, request, chat=False)

    return app


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    return error_response(ApiError(error.status_code, str(error.detail).lower(), headers=error.headers))


def _check_key(key: str | None, request: Request) -> None:
    """The bearer key, where there is one; digests are compared, so that time tells nothing, not even its length."""
    if key is None:
        return
    shown = request.headers.get("authorization", "").encode("latin-1")
    expected = f"Bearer {key}".encode()
    if not hmac.compare_digest(hashlib.sha256(shown).digest(), hashlib.sha256(expected).digest()):
        raise ApiError(
            401,
            "this server needs its key as a bearer token in the header Authorization",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def _completed(service: Service, request: Request, chat: bool) -> Response:
    check_declared_length(request, service.max_body)
    place = service.worker.take_place()
    try:
        body = await read_body(request, service.max_body)
        ask = read_request(body, chat, service.name, ("full", *service.engine.offered))
        job = service.worker.submit(place, partial(answer, service.engine, ask))
    except ClientDisconnect:
        place.release()
        return Response(status_code=CLIENT_GONE)
    except BaseException:
        place.release()
        raise
    try:
        response = await _unless_gone(request, _respond(service, ask, job, request))
    except BaseException:
        service.worker.cancel(job)
        raise
    if response is None:
        service.worker.cancel(job)
        return Response(status_code=CLIENT_GONE)
    return response


async def _respond(service: Service, ask: Ask, job: Job, request: Request) -> Response:
    """The whole answer, or the stream of one that has started: a refusal has to come before the stream begins."""
    label = ask.cell.method if ask.cell.budget is None else f"{ask.cell.method}@{ask.cell.budget:g}"
    request.scope[NOTE] = label
    while not isinstance(news := await job.next_event(), Finished):
        if isinstance(news, ApiError):
            raise news
        if isinstance(news, Started) and ask.stream:
            events = streamed(ask, service.name, job)
            return EventStream(events, lambda: service.worker.cancel(job))
    request.scope[NOTE] = f"{label} {news.prompt_tokens}+{news.completion_tokens} tokens"
    return whole_response(ask, service.name, news)


async def _unless_gone(request: Request, work: Awaitable[Response]) -> Response | None:
    """What `work` gives; None, and `work` cancelled, when the client goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    wanted, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({wanted, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return wanted.result() if wanted.done() else None
    finally:
        wanted.cancel()
        leaving.cancel()


class EventStream(StreamingResponse):
    """Server-sent events; `at_end` runs when the last one is sent and when the client goes away."""

    def __init__(self, events: AsyncIterator[bytes], at_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()


class AccessLog:
    """One line for each request: method, path, status, what was asked of the cache, seconds. Never a word of a prompt.

    What fails inside is answered here too, in OpenAI's shape, and logged by its type alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, seen = time.perf_counter(), {"status": 0, "ended": 0}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                seen["ended"] = 1
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            # The grace is over, and this request is not even with the worker; a stream that has begun is cut off.
            if not seen["status"]:
                await error_response(shutting_down())(scope, receive, watched)
        except Exception as error:
            logger.error("internal error: %s", type(error).__name__)
            if seen["status"]:
                raise
            failed = error_response(ApiError(500, "internal error", code="internal_error"))
            await failed(scope, receive, watched)
        finally:
            _log(scope, seen["status"] if seen["ended"] else CLIENT_GONE, time.perf_counter() - begin)


def _log(scope: Scope, status: int, seconds: float) -> None:
    # The raw path: decoded, it could hold a line break and forge a line.
    path = scope.get("raw_path", b"")[:LOGGED_PATH].decode("ascii", "replace")
    note: Any = scope.get(NOTE, "-")
    logger.info("%s %s %d %s %.3f s", scope["method"], path, status, note, seconds)
