"""What the HTTP client costs beside a server that needs 50 ms for each answer.

    python benchmarks/client_cost.py                    about two minutes
    python benchmarks/client_cost.py --repeats 1 --items 2000

Throughput is given as share of concurrency / latency, the most that any client can reach. Every answer goes through the
engine, its budget is checked, and its row is in the journal before its place is used again. The server is a process of
its own, and as cheap as it can be. Of several turns the best counts: other work on the machine only ever costs. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import queue
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell, Decoding, EngineResult
from kv_transition.engines.openai_compat import OpenAICompatEngine
from kv_transition.files import sha256_text
from kv_transition.run.concurrent import answer_concurrently
from kv_transition.run.journal import Journal

LATENCY_S = 0.05
PROMPT_BYTES = 32 * 1024
PROMPT_TOKENS = 8000
BUDGET = 256

SHARE_BAR = 0.90
CPU_BAR_MS = 2.0
#: What the journal's keys and the allocator may add between the two runs.
GROWTH_BAR_MB = 8

ENGINE: dict[str, Any] = {
    "model": "served",
    "mode": "auto",
    "connect_timeout_s": 5,
    "read_timeout_s": 30,
    "total_timeout_s": 60,
    "max_attempts": 3,
    "backoff_s": 0.5,
    "backoff_max_s": 5,
    "headers": {},
    "extra_body": {},
    "budget_transport": {"kind": "extra_body", "fields": "kv_transition"},
    "require_verified_budget": True,
}


class Punctual(threading.Thread):
    """Calls back after the latency to a tenth of a millisecond; the event loop's own timers round up to the next one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, latency_s: float) -> None:
        super().__init__(daemon=True)
        self.loop, self.latency_s = loop, latency_s
        self.waiting: queue.SimpleQueue[tuple[float, Callable[[bytes], None], bytes]] = queue.SimpleQueue()

    def add(self, write: Callable[[bytes], None], reply: bytes) -> None:
        """Write the reply when the latency is over."""
        self.waiting.put((time.monotonic() + self.latency_s, write, reply))

    def run(self) -> None:
        while True:
            due, write, reply = self.waiting.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            self.loop.call_soon_threadsafe(write, reply)


class Answering(asyncio.Protocol):
    """Answers every request after the latency with the same bytes."""

    later: Punctual
    streamed: bytes
    whole: bytes

    def connection_made(self, transport: Any) -> None:
        self.transport, self.received, self.missing = transport, b"", 0

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.missing -= len(data)
        else:
            self.received += data
            head, end, body = self.received.partition(b"\r\n\r\n")
            if not end:
                return
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            self.missing = int(length[1] if length else 0) - len(body)
            self.reply = self.streamed if b"event-stream" in head and self.streams else self.whole
        if not self.missing:
            self.received = b""
            self.later.add(self.transport.write, self.reply)

    streams = True


def reply_of(streamed: bool, pieces: int) -> bytes:
    """A whole reply with the echo of the budget."""
    kv = {"method": "snapkv", "budget": BUDGET, "scope": "prompt", "first_token": "full", "active": True}
    kv |= {"params": {"window": 8, "kernel": 5}, "prompt_tokens": PROMPT_TOKENS, "press_len": PROMPT_TOKENS}
    kv |= {"question_tokens": 0, "kept_per_layer": [BUDGET] * 32, "bytes_kept": 2**20, "verified": "measured"}
    kv |= {"engine": {"class": "ReferenceEngine"}}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": pieces,
        "total_tokens": PROMPT_TOKENS + pieces,
    }
    last = {"usage": usage, "kv": kv}
    if not streamed:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "word " * pieces},
            "finish_reason": "stop",
        }
        body = json.dumps({"choices": [choice], **last}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )
    deltas: list[tuple[dict[str, str], str | None]] = [({"content": "word "}, None)] * pieces
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in [*deltas, ({}, "stop")]
    ]
    lines = [*(json.dumps(event) for event in [*events, {"choices": [], **last}]), "[DONE]"]
    chunks = [f"data: {line}\n\n".encode() for line in lines]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + body + b"0\r\n\r\n"


async def serve(latency_s: float, streamed: bool, pieces: int) -> None:
    """Print the port, and answer until killed."""
    Answering.later, Answering.streams = Punctual(asyncio.get_running_loop(), latency_s), streamed
    Answering.later.start()
    Answering.streamed, Answering.whole = reply_of(True, pieces), reply_of(False, pieces)
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Server:
    """The server's process."""

    def __init__(self, latency_s: float, streamed: bool, pieces: int) -> None:
        options = [f"--latency={latency_s}", f"--streamed={int(streamed)}", f"--pieces={pieces}"]
        self.command = [sys.executable, __file__, "--serve", *options]

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Cost:
    """What a run cost: wall and CPU seconds of this process, and its peak memory since it began."""

    items: int
    wall_s: float
    cpu_s: float
    peak_mb: float


def prompts(items: int, size: int) -> Iterator[tuple[str, Prompt]]:
    """Distinct prompts of `size` bytes, made one at a time."""
    filler = "the quick brown fox jumps over the lazy dog " * (size // 44 + 1)
    for number in range(items):
        text = f"{filler[: size - 30]} question {number}"
        system = {"role": "system", "content": "Answer."}
        yield f"ex{number}", Prompt((system, {"role": "user", "content": text}), len(text) - 20)


def run(base_url: str, streamed: bool, concurrency: int, items: int, size: int) -> Cost:
    """Answer `items` prompts, and say what it cost."""
    section = {**ENGINE, "base_url": base_url, "stream": streamed, "concurrency": concurrency}
    engine = OpenAICompatEngine(section)
    cell, decoding = Cell("snapkv", BUDGET), Decoding(64)

    def ask(task: tuple[str, Prompt]) -> EngineResult:
        return engine.generate(task[1], cell, decoding, task[0])

    def record(task: tuple[str, Prompt], result: EngineResult) -> Mapping[str, Any]:
        row = {"key": sha256_text(task[0]), "example_id": task[0], "result": result.as_row()}
        return {
            **row,
            "engine": engine.provenance(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    with tempfile.TemporaryDirectory() as folder, Journal(folder) as journal:
        wall, cpu = time.perf_counter(), time.process_time()
        rows = answer_concurrently(prompts(items, size), ask, record, journal, concurrency)
        answered = sum(row["result"]["failure"] is None for row in rows)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if answered != items:
        raise SystemExit(f"{items - answered} of {items} requests failed")
    return Cost(items, wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def report(name: str, value: str, bar: str, reached: bool) -> bool:
    """Print a line of the table."""
    print(f"{name:<58} {value:>14} {bar:>10}  {'reached' if reached else 'MISSED'}", flush=True)
    return reached


def measure(rounds: int, items: int, pieces: int, repeats: int) -> bool:
    """All measurements; whether every bar is reached."""
    turns: dict[tuple[bool, int, int], list[Cost]] = {}
    # Every setting once, then all of them again: other work that lasts a while does not hit all turns of one setting.
    for _ in range(repeats):
        for streamed in (True, False):
            with Server(LATENCY_S, streamed, pieces) as base_url:
                for concurrency, size in itertools.product((8, 32), (1024, PROMPT_BYTES)):
                    cost = run(base_url, streamed, concurrency, concurrency * rounds, size)
                    turns.setdefault((streamed, concurrency, size), []).append(cost)
    reached = True
    for (streamed, concurrency, size), costs in turns.items():
        way = f"{pieces} events" if streamed else "one piece"
        share = rounds * LATENCY_S / min(cost.wall_s for cost in costs)
        name = f"throughput, {concurrency} in flight, {size // 1024} KB prompts, {way}"
        reached &= report(name, f"{share:.1%}", f"{SHARE_BAR:.0%}", share >= SHARE_BAR)
        cpu_ms = min(cost.cpu_s / cost.items for cost in costs) * 1e3
        name = f"   CPU per item, journal included, {size // 1024} KB prompts, {way}"
        reached &= report(name, f"{cpu_ms:.2f} ms", f"{CPU_BAR_MS} ms", cpu_ms <= CPU_BAR_MS)
    with Server(0.0, True, 3) as base_url:
        small, large = (run(base_url, True, 32, count, 1024) for count in (1000, items))
    growth = large.peak_mb - small.peak_mb
    print(f"peak memory: {small.peak_mb:.0f} MB at 1,000 items, {large.peak_mb:.0f} MB at {items:,}")
    return report("   growth", f"{growth:.1f} MB", f"{GROWTH_BAR_MB} MB", growth <= GROWTH_BAR_MB) and reached


def main() -> int:
    """Print the table; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60, help="requests per place in flight")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each; the best counts")
    parser.add_argument("--items", type=int, default=20_000, help="requests of the long run, for its memory")
    parser.add_argument("--pieces", type=int, default=16, help="events of a streamed answer")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--latency", type=float, default=LATENCY_S, help=argparse.SUPPRESS)
    parser.add_argument("--streamed", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.latency, bool(options.streamed), options.pieces))
        return 0
    return 0 if measure(options.rounds, options.items, options.pieces, options.repeats) else 1


if __name__ == "__main__":
    sys.exit(main())
