"""One HTTP request to a server: its reply as JSON objects, or a fault that says whether asking again can help."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Literal

import requests
import urllib3

from kv_transition.engines.http_connections import Adapter, clock

#: Errors of a server that asking again does not change: it cannot do what was asked, or not in this version of HTTP.
LASTING_STATUSES = frozenset({501, 505})

#: A shorter key is a placeholder (EMPTY, none) for a server that asks for none, and may well be a word of an answer.
SHORTEST_KEY = 16

#: Characters of a server's own words in an error.
QUOTED_CHARACTERS = 200

#: No answer is longer: what is, is read no further.
LONGEST_BODY = 64 * 2**20
LONGEST_ERROR_BODY = 64 * 2**10

#: Time for the end of a body whose content is already whole; a connection that takes longer is not used again.
TAIL_S = 0.2

PIECE = 64 * 2**10

#: json.loads without its choice of a decoder, which a stream of small events would pay for again and again.
decode_json = json.JSONDecoder().decode

HIDDEN = "***"

FaultKind = Literal["unreachable", "dropped", "timeout", "status", "body", "budget"]


class Fault(Exception):  # noqa: N818 - what befell a request, as its row will say
    """Why one request has no answer, in words that hold no key.

    Attributes
    ----------
    kind : unreachable (no connection), dropped (the connection ended too early), timeout, status (not 200), body (not
        the answer of such a server), budget (an answer, but not from the cache that was asked for).
    transient : asking again may help.
    retry_after_s : what the server said about that, in seconds.
    """

    def __init__(
        self,
        words: str,
        kind: FaultKind,
        *,
        transient: bool = False,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(words)
        self.kind, self.transient, self.status, self.retry_after_s = kind, transient, status, retry_after_s

    @property
    def label(self) -> str:
        """A word for notes: the status, or the kind."""
        return str(self.status) if self.status else self.kind


class Transport:
    """Sends JSON and reads JSON: one connection per thread and server, no proxy, no redirect, no environment.

    Parameters
    ----------
    api_key : sent as bearer token; taken out of every text that comes back, unless it is but a placeholder.
    headers : further headers of every request.
    connect_timeout_s, read_timeout_s : seconds to connect, and between two bytes.
    """

    def __init__(
        self,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 120.0,
    ) -> None:
        self._api_key = api_key
        self._secret = api_key if api_key and len(api_key) >= SHORTEST_KEY else None
        bearer = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._headers = {**(headers or {}), **bearer, "Content-Type": "application/json"}
        self._headers |= {"Accept": "application/json, text/event-stream", "Accept-Encoding": "identity"}
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._prepared: dict[tuple[str, str], requests.PreparedRequest] = {}
        self._threads = threading.local()

    def __repr__(self) -> str:
        return "Transport()"

    def get(self, url: str, deadline: float) -> dict[str, Any]:
        """One JSON object; raises Fault."""
        return next((event for event in self._exchange("GET", url, None, deadline) if event is not None), {})

    def post(self, url: str, content: Mapping[str, Any], deadline: float) -> Iterator[dict[str, Any] | None]:
        """Send a JSON object; yield those of the reply, streamed or not, as they arrive.

        Parameters
        ----------
        deadline : in seconds of time.monotonic(); whatever is not there by then is a timeout.

        Yields
        ------
        JSON objects, and None when the server says that the reply is whole: at `[DONE]` in a stream, behind the only
        object otherwise. A stream may end without it; the caller knows whether what it has is an answer.

        Raises
        ------
        Fault
            For everything that is no such reply.
        """
        return self._exchange("POST", url, json.dumps(content).encode(), deadline)

    def scrub(self, text: str) -> str:
        """The text without the key; a placeholder is no secret."""
        return text.replace(self._secret, HIDDEN) if self._secret else text

    def _exchange(
        self, method: str, url: str, body: bytes | None, deadline: float
    ) -> Iterator[dict[str, Any] | None]:
        clock.deadline = deadline
        response = self._send(method, url, body, deadline)
        try:
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if response.status_code != HTTPStatus.OK:
                raise self._refusal(response, deadline)
            if kind == "text/event-stream":
                yield from self._streamed(response, deadline)
            elif not kind or kind == "application/json" or kind.endswith("+json"):
                yield self._document(response, deadline)
                yield None
            else:
                words = self._quoted(self._beginning(response, deadline))
                raise Fault(f"the reply is {self.scrub(kind)[:40]}, not JSON: {words}", "body")
        finally:
            response.close()

    def _request(self, method: str, url: str, body: bytes | None) -> requests.PreparedRequest:
        known = self._prepared.get((method, url))
        if known is None:
            known = requests.Request(method, url, headers=self._headers).prepare()
            self._prepared[method, url] = known
        request = known.copy()
        if body is not None:
            request.body = body
            request.headers["Content-Length"] = str(len(body))
        return request

    def _adapter(self) -> Adapter:
        adapter: Adapter | None = getattr(self._threads, "adapter", None)
        if adapter is None:
            adapter = self._threads.adapter = Adapter()
        return adapter

    def _send(self, method: str, url: str, body: bytes | None, deadline: float) -> requests.Response:
        left = max(deadline - time.monotonic(), 0.001)
        timeout = min(self._connect_timeout_s, left), min(self._read_timeout_s, left)
        try:
            return self._adapter().send(self._request(method, url, body), stream=True, timeout=timeout)
        except requests.exceptions.ConnectTimeout:
            raise self._timeout(f"no connection within {timeout[0]:g} s", deadline) from None
        except requests.exceptions.Timeout:
            raise self._timeout(f"no reply within {timeout[1]:g} s", deadline) from None
        except requests.exceptions.SSLError as error:
            raise Fault(f"no safe connection: {self._quoted(str(error))}", "unreachable") from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            kind: FaultKind = "unreachable" if _never_connected(error) else "dropped"
            raise Fault(_cause(error), kind, transient=True) from None

    @staticmethod
    def _timeout(words: str, deadline: float) -> Fault:
        """A timeout; beyond the deadline nothing is asked again."""
        late = time.monotonic() >= deadline - 0.001
        return Fault("not done within http.total_timeout_s" if late else words, "timeout", transient=not late)

    def _pieces(self, response: requests.Response, deadline: float) -> Iterator[bytes]:
        """The body as it arrives."""
        raw, size = response.raw, 0
        pieces: Iterable[bytes] = (
            raw.read_chunked(decode_content=True)
            if raw.chunked
            else iter(lambda: raw.read1(PIECE, decode_content=True), b"")
        )
        try:
            for piece in pieces:
                size += len(piece)
                if size > LONGEST_BODY:
                    raise Fault(f"the reply is longer than {LONGEST_BODY} bytes", "body")
                yield piece
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
            words = f"nothing more within {self._read_timeout_s:g} s, after {size} bytes of the reply"
            raise self._timeout(words, deadline) from None
        except urllib3.exceptions.DecodeError:
            raise Fault("the reply is not compressed as its header says", "body") from None
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            words = f"after {size} bytes of the reply: {_cause(error)}"
            raise Fault(words, "dropped", transient=True) from None

    def _document(self, response: requests.Response, deadline: float) -> dict[str, Any]:
        body = b"".join(self._pieces(response, deadline))
        framed = response.raw.chunked or "Content-Length" in response.headers
        if not framed and not body.rstrip().endswith(b"}"):
            raise Fault(
                f"the connection ended after {len(body)} bytes of the reply", "dropped", transient=True
            )
        return self._object(body)

    def _object(self, text: bytes) -> dict[str, Any]:
        try:
            content = decode_json(text.decode())
        except (ValueError, RecursionError):
            raise Fault(f"the reply is no JSON: {self._quoted(text)}", "body") from None
        if not isinstance(content, dict):
            raise Fault(f"the reply is no JSON object: {self._quoted(text)}", "body")
        if error := content.get("error"):
            raise self._reported(error)
        return content

    def _reported(self, error: object) -> Fault:
        """An error that comes with status 200, as servers send it in the middle of a stream."""
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else None
        words = f"error in the reply: {self._quoted(_message(error), status)}"
        return Fault(words, "status" if status else "body", transient=may_pass(status), status=status)

    def _streamed(self, response: requests.Response, deadline: float) -> Iterator[dict[str, Any] | None]:
        pieces = self._pieces(response, deadline)
        for data in event_data(pieces):
            if data == b"[DONE]":
                yield None
                break
            yield self._object(data)
        # Only a connection whose reply was read to its end is used again; the answer is whole in any case.
        clock.deadline = min(deadline, time.monotonic() + TAIL_S)
        try:
            for _ in pieces:
                pass
        except Fault:
            response.raw.close()

    def _beginning(self, response: requests.Response, deadline: float) -> bytes:
        """The first part of a body that is only quoted; what is missing of it does not matter."""
        body = b""
        try:
            for piece in self._pieces(response, min(deadline, time.monotonic() + self._read_timeout_s)):
                body += piece
                if len(body) > LONGEST_ERROR_BODY:
                    break
        except Fault:
            pass
        return body

    def _refusal(self, response: requests.Response, deadline: float) -> Fault:
        status = response.status_code
        body = self._beginning(response, deadline)
        try:
            content = json.loads(body)
            error = content.get("error", content) if isinstance(content, dict) else content
            said = _message(error)
        except (ValueError, RecursionError):
            said = body.decode("utf-8", "replace")
        known = {entry.value: entry.phrase for entry in HTTPStatus}
        words = f"HTTP {status} {known.get(status, '')}".rstrip()
        if 300 <= status < 400:
            said = (
                f"redirects are not followed, this one leads to {response.headers.get('Location', 'nowhere')}"
            )
        return Fault(
            f"{words}: {self._quoted(said, status)}" if said.strip() else words,
            "status",
            transient=may_pass(status),
            status=status,
            retry_after_s=retry_after(response.headers.get("Retry-After")),
        )

    def _quoted(self, said: str | bytes, status: int | None = None) -> str:
        """The first of a server's words, without the key and, where the key was refused, without parts of it."""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        text = self.scrub(whole_text(text))
        if self._api_key and status in (401, 403):
            parts = {self._api_key[:4], self._api_key[-4:]}
            text = re.sub(
                r"\S+",
                lambda word: HIDDEN if any(part in word.group() for part in parts) else word.group(),
                text,
            )
        return " ".join(text.split())[:QUOTED_CHARACTERS]


def whole_text(text: str) -> str:
    """The text with halves of characters joined; a half whose other one never came is a replacement character.

    JSON writes a character beyond the first 65536 as two halves, which a server may send in two events or cut apart.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def may_pass(status: int | None) -> bool:
    """Whether the same request may succeed after such a status: too many requests, or the server's own trouble."""
    return status == 429 or (status is not None and 500 <= status < 600 and status not in LASTING_STATUSES)


def event_data(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The data of each event in a stream of server-sent events, however it is cut into pieces.

    An event ends with an empty line; one that the stream's end cuts off is dropped, except for a whole `[DONE]`.
    """
    rest = b""
    data: list[bytes] = []
    for piece in pieces:
        alone = not (rest or data) and piece[:6] == b"data: " and piece[-2:] == b"\n\n"
        if alone and piece.count(b"\n") == 2:  # one whole event, as most servers send them
            yield piece[6:-2].removesuffix(b"\r")
            continue
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data == [b"[DONE]"]:
        yield data[0]


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, given as a number or as a date; None if it says neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None


def _message(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or json.dumps(error))
    return error if isinstance(error, str) else json.dumps(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception with all that it wraps: in its arguments, as its reason or its context."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if found in seen:
            continue
        seen.append(found)
        yield found
        inner = [*found.args, getattr(found, "reason", None), found.__cause__, found.__context__]
        waiting += [other for other in inner if isinstance(other, BaseException)]


def _never_connected(error: BaseException) -> bool:
    return any(isinstance(found, urllib3.exceptions.NewConnectionError) for found in _chain(error))


def _cause(error: BaseException) -> str:
    """What the operating system says, else the name of what befell the connection; never an address or a header."""
    for found in _chain(error):
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    names = [type(found).__name__ for found in _chain(error)]
    if any(name in ("RemoteDisconnected", "IncompleteRead", "InvalidChunkLength") for name in names):
        return "the server closed the connection"
    return names[-1]
