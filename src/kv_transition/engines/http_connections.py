"""Connections of the HTTP engine: one write for each request, and no read that waits beyond a deadline.

Timeouts of sockets only bound the time between two bytes. A server that trickles is ended by the deadline instead, which
is checked before every read of status line, headers and body.
"""

from __future__ import annotations

import http.client
import io
import threading
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Clock(threading.local):
    """The deadline of the request that a thread is busy with, in seconds of time.monotonic()."""

    deadline = float("inf")


clock = Clock()


class _DeadlineReader(io.RawIOBase):
    """Reads a socket's stream; no read waits beyond the thread's deadline."""

    def __init__(self, raw: Any, connection: Any) -> None:
        self._raw, self._connection = raw, connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = clock.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline")
        if left < (self._connection.gettimeout() or float("inf")):
            self._connection.settimeout(left)
        received: int | None = self._raw.readinto(buffer)
        return received

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp: io.BufferedReader = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock))


class _OneWrite(HTTPConnection):
    """Sends headers and body of a request in one write: one packet less to wake the server for."""

    response_class = _DeadlineResponse
    _held: list[Any] | None = None

    def request(self, *args: Any, **options: Any) -> None:
        self._held = []
        try:
            super().request(*args, **options)
            whole, self._held = b"".join(self._held), None
            self.send(whole)
        finally:
            self._held = None

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)


class _Connection(_OneWrite):
    pass


class _TLSConnection(_OneWrite, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class Adapter(HTTPAdapter):
    """One thread's connections. What does not change between requests is found once; cookies are not kept."""

    def __init__(self) -> None:
        self._pools: dict[str, HTTPConnectionPool] = {}
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def get_connection_with_tls_context(self, request: Any, *args: Any, **options: Any) -> HTTPConnectionPool:
        if request.url not in self._pools:
            pool: Any = super().get_connection_with_tls_context(request, *args, **options)
            super().cert_verify(pool, request.url, True, None)  # type: ignore[no-untyped-call]
            self._pools[request.url] = pool
        return self._pools[request.url]

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Done when the pool was made."""

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.headers, response.raw = resp.status, resp.headers, resp
        return response
