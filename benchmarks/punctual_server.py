"""A server that answers every chat with the same text after a fixed latency, in a process of its own.

    with Server(0.05, log=path) as base_url: ...

It is as cheap as it can be, so that what is measured beside it is the client. A request for a budget gets it confirmed.
With a log the server writes down when which question was asked and when its answer left.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

LATENCY_S = 0.05
#: Prompt tokens that every answer claims.
PROMPT_TOKENS = 8000
#: The only budget that it knows.
BUDGET = 256
#: What a request for a budget has in its body, and no prompt here.
BUDGET_FIELD = b'"budget"'
STREAM_FIELD = re.compile(rb'"stream": ?true')
#: How a prompt says which one it is.
NUMBER = re.compile(rb"question (\d+)")


class Punctual(threading.Thread):
    """Calls back after the latency to a tenth of a millisecond; the event loop's own timers round up to the next one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, latency_s: float) -> None:
        super().__init__(daemon=True)
        self.loop, self.latency_s = loop, latency_s
        self.waiting: queue.SimpleQueue[tuple[float, Callable[[], None]]] = queue.SimpleQueue()

    def add(self, answer: Callable[[], None]) -> None:
        """Answer when the latency is over."""
        self.waiting.put((time.monotonic() + self.latency_s, answer))

    def run(self) -> None:
        while True:
            due, answer = self.waiting.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            self.loop.call_soon_threadsafe(answer)


class Answering(asyncio.Protocol):
    """Answers every request after the latency with the same bytes; one connection."""

    later: Punctual
    #: (streamed, with a budget) -> the reply.
    replies: Mapping[tuple[bool, bool], bytes]
    #: The question that is answered with 400.
    refuse: str | None = None
    log: IO[str] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport, self.head, self.body, self.missing = transport, b"", bytearray(), 0

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.body += data
            self.missing -= len(data)
        else:
            self.head += data
            head, end, body = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            self.missing = int(length[1] if length else 0) - len(body)
            self.head, self.body = head, bytearray(body)
        if not self.missing:
            self._asked()

    def _asked(self) -> None:
        # Looked for at the ends alone: the prompt between them is long.
        ends = bytes(self.body[:1024] + self.body[-1024:])
        budget = BUDGET_FIELD in ends
        reply = self.replies[STREAM_FIELD.search(ends) is not None, budget]
        question = None
        if self.log or self.refuse is not None:
            found = NUMBER.search(self.body)
            question = (found[1].decode() if found else "?") + "b" * budget
            if question == self.refuse:
                reply = REFUSAL
        self.head, self.body = b"", bytearray()
        self._note("asked", question)
        self.later.add(lambda: self._answer(reply, question))

    def _answer(self, reply: bytes, question: str | None) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply)
            self._note("refused" if reply is REFUSAL else "answered", question)

    def _note(self, event: str, question: str | None) -> None:
        if self.log:
            self.log.write(f"{time.monotonic():.4f} {event} {question}\n")


def _with_length(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


REFUSAL = _with_length(
    "400 Bad Request",
    b'{"error": {"message": "this prompt cannot be answered", "type": "invalid_request_error"}}',
)


def reply_of(streamed: bool, budget: bool, pieces: int) -> bytes:
    """A whole reply, with the confirmation of the budget or without."""
    kv = {"method": "snapkv", "budget": BUDGET, "scope": "prompt", "first_token": "full", "active": True}
    kv |= {"params": {"window": 8, "kernel": 5}, "prompt_tokens": PROMPT_TOKENS, "press_len": PROMPT_TOKENS}
    kv |= {"question_tokens": 0, "kept_per_layer": [BUDGET] * 32, "bytes_kept": 2**20, "verified": "measured"}
    kv |= {"engine": {"class": "ReferenceEngine"}}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": pieces,
        "total_tokens": PROMPT_TOKENS + pieces,
    }
    kind = "chat.completion.chunk" if streamed else "chat.completion"
    first: dict[str, Any] = {"id": "chat-1", "object": kind, "created": 0, "model": "served"}
    last = {"usage": usage, "kv": kv} if budget else {"usage": usage}
    if not streamed:
        message = {"role": "assistant", "content": "word " * pieces}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _with_length("200 OK", json.dumps({**first, "choices": [choice], **last}).encode())
    deltas: list[tuple[dict[str, str], str | None]] = [({"content": "word "}, None)] * pieces
    events: list[dict[str, Any]] = [
        {**first, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in [*deltas, ({}, "stop")]
    ]
    lines = [*(json.dumps(event) for event in [*events, {**first, "choices": [], **last}]), "[DONE]"]
    chunks = [f"data: {line}\n\n".encode() for line in lines]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + body + b"0\r\n\r\n"


async def serve(options: argparse.Namespace) -> None:
    """Print the port, and answer until killed."""
    Answering.later = Punctual(asyncio.get_running_loop(), options.latency)
    Answering.later.start()
    kinds = itertools.product((True, False), (True, False))
    Answering.replies = {
        (streamed, budget): reply_of(streamed, budget, options.pieces) for streamed, budget in kinds
    }
    Answering.refuse = options.refuse
    Answering.log = options.log.open("a", buffering=1) if options.log else None
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Server:
    """The server's process; entering gives its base URL.

    Parameters
    ----------
    pieces : events of a streamed answer, words of any.
    refuse : the question that is answered with 400: its number, with a b behind it where it is asked of a budget.
    log : file to which every request and answer is added.
    """

    def __init__(
        self,
        latency_s: float = LATENCY_S,
        pieces: int = 16,
        *,
        refuse: str | None = None,
        log: Path | None = None,
    ) -> None:
        self.command = [sys.executable, __file__, f"--latency={latency_s}", f"--pieces={pieces}"]
        self.command += [f"--log={log}"] * (log is not None)
        self.command += [f"--refuse={refuse}"] * (refuse is not None)

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(frozen=True)
class Event:
    """A line of the log: when, "asked", "answered" or "refused", and which question (one with a budget ends in b)."""

    at_s: float
    what: str
    question: str


def events(log: Path) -> list[Event]:
    """What the log of a server tells so far."""
    whole = log.read_text().rpartition("\n")[0] if log.is_file() else ""
    lines = (line.split() for line in whole.splitlines())
    return [Event(float(at), what, question) for at, what, question in lines]


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency", type=float, default=LATENCY_S)
    parser.add_argument("--pieces", type=int, default=16)
    parser.add_argument("--refuse")
    parser.add_argument("--log", type=Path)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
