"""Reading what a client sends: never more than the limit, and not for longer than a slow line needs."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from kv_transition.serve.api_errors import ApiError

#: A body takes up a place in the server while it is read, so that it has to arrive within this time.
BODY_SECONDS = 30.0


def too_large(limit: int) -> ApiError:
    """A body above the limit."""
    return ApiError(413, f"the body is larger than {limit / 2**20:g} MiB; send less", code="body_too_large")


def check_declared_length(request: Request, limit: int) -> None:
    """Refuse a body by its Content-Length, before any of it is read.

    Raises
    ------
    ApiError
        413 above the limit.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > len(str(limit)) or int(declared) > limit):
        raise too_large(limit)


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises
    ------
    ApiError
        413 as soon as more than `limit` bytes have come, 408 when it does not end in time.
    starlette.requests.ClientDisconnect
        When the client goes away.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large(limit)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {BODY_SECONDS:g} s", code="body_timeout"
        ) from None
    return bytes(body)
