"""A server of the OpenAI kind, in a process of its own, that does to each request what a script says.

    python tests/unit/fault_server.py --port 0 --script '{"latency_s": 0.05, "faults": {"ex3": ["429:1", "drop_inside"]}}'

It prints its port. A request is known by `id=NAME;` in its prompt, and NAME's n-th attempt meets the n-th of its faults; behind
the last one, and without any, it is answered by "answer to NAME". A fault ending in `*` stays for good. With --log every
request that was read and every answer that was sent whole adds a line, "asked NAME" or "answered NAME", so that the counts
outlive the server.

Script: latency_s; faults (by name, `*` for all others); kv (own, foreign, none, wrong: the echo of a budget); models; pieces
(events of a stream); text (instead of "answer to NAME"); finish (its finish_reason).
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STATUSES = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
STATUSES |= {
    413: "Payload Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
}
STATUSES |= {302: "Found", 503: "Service Unavailable", 504: "Gateway Timeout"}

#: Replies that arrive whole and hold no answer.
NO_ANSWER = ("empty_choices", "null_tool", "no_finish", "abort", "error_inside")


class Dropped(Exception):  # noqa: N818 - no error: the script wants it
    """The connection is to be closed without another byte."""


class FaultServer:
    """One listening server."""

    def __init__(self, script: dict[str, Any], log: str | None) -> None:
        self.script, self.met = script, defaultdict(int)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None

    def note(self, what: str, name: str) -> None:
        if self.log is not None:
            os.write(self.log, f"{what} {name}\n".encode())

    def fault_of(self, name: str) -> str:
        faults = self.script.get("faults", {})
        plan = faults.get(name, faults.get("*", []))
        number, self.met[name] = self.met[name], self.met[name] + 1
        if plan and plan[-1].endswith("*"):
            number = min(number, len(plan) - 1)
        return plan[number].rstrip("*") if number < len(plan) else "ok"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, Dropped, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                await self.answer(head.decode("latin-1"), body, writer)
        writer.close()

    async def answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        path = head.split(" ", 2)[1]
        if path.endswith("/models"):
            names = self.script.get("models", ["served"])
            await send(writer, 200, {"object": "list", "data": [{"id": name} for name in names]})
            return
        request = json.loads(body)
        text = request.get("prompt") or request["messages"][-1]["content"]
        found = re.search(r"id=([^;]+);", text[-200:]) or re.search(r"id=([^;]+);", text)
        name = found[1] if found else "unknown"
        self.note("asked", name)
        fault, _, detail = self.fault_of(name).partition(":")
        await asyncio.sleep(float(self.script.get("latency_s", 0)))
        if await refuse(fault, detail, head, writer):
            return
        await self.reply(request, name, fault, writer)
        if fault not in NO_ANSWER:
            self.note("answered", name)
        if fault == "drop_after":
            reset(writer)

    async def reply(
        self, request: dict[str, Any], name: str, fault: str, writer: asyncio.StreamWriter
    ) -> None:
        """An answer, whole or hurt."""
        chat, text = "messages" in request, self.script.get("text", f"answer to {name}")
        words = sum(len(message["content"].split()) for message in request.get("messages", []))
        words = words or len(request.get("prompt", "").split())
        reason = self.script.get("finish", "stop")
        usage: Any = {"prompt_tokens": words, "completion_tokens": 3, "total_tokens": words + 3}
        usage = {"usage_absent": None, "usage_text": {"prompt_tokens": "many", "completion_tokens": "3"}}.get(
            fault, usage
        )
        usage = {"prompt_tokens": -1, "completion_tokens": True} if fault == "usage_negative" else usage
        extra = {"usage": usage, "kv": self.echo(request, words), "timing": {"total_s": 0.01, "by": "me"}}
        extra = {key: value for key, value in extra.items() if value is not None}
        if fault.startswith("null"):
            text, reason = None, {"null": "stop", "null_length": "length", "null_tool": "tool_calls"}[fault]
        model = {"model": "served", "system_fingerprint": "fp"}
        if not request.get("stream") or fault == "not_streamed":
            message = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            if fault == "null_length":
                message["message"]["reasoning_content"] = "I think"
            choices = [] if fault == "empty_choices" else [{"index": 0, **message, "finish_reason": reason}]
            content = json.dumps({"object": "chat.completion", **model, "choices": choices, **extra}).encode()
            await whole(writer, content, fault)
            return
        pieces = int(self.script.get("pieces", 3))
        texts = (
            [None]
            if text is None
            else [text[i * len(text) // pieces : (i + 1) * len(text) // pieces] for i in range(pieces)]
        )
        made = [{"delta": {"content": part}} if chat else {"text": part} for part in texts]
        made = [{"delta": {"role": "assistant"}}, *made] if chat else made
        events = [{"index": 0, **part, "finish_reason": None} for part in made]
        if fault == "null_length":
            events[-1]["delta"]["reasoning_content"] = "I think"
        events = [{**model, "choices": [event]} for event in events]
        if fault == "empty_choices":
            events = [{**model, "choices": []}]
        elif fault != "no_finish":
            last = {"delta": {}} if chat else {"text": ""}
            events.append({**model, "choices": [{"index": 0, **last, "finish_reason": reason}]})
        events.append({**model, "choices": [], **extra})
        if fault == "error_inside":
            events[2:] = [{"error": {"message": "out of memory", "code": 503}}]
        if fault == "abort":
            events[-2]["choices"][0]["finish_reason"] = "abort"
        lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
        if fault not in ("no_done", "no_finish"):
            lines.append(b"data: [DONE]\n\n")
        await stream(writer, lines, fault)

    def echo(self, request: dict[str, Any], words: int) -> Any:
        """The `kv` object of this project's server, or what another makes of it."""
        kind, kv = self.script.get("kv", "own"), request.get("kv")
        if kind == "none" or kv is None:
            return None
        refed = int(kv.get("scope") == "prompt" and kv.get("first_token") == "compressed")
        budget = kv.get("budget")
        kept = words if budget is None else min(words, budget)
        kept += kind == "wrong"
        names = ("window", "kernel", "n_sink")
        return {
            "method": kv["method"],
            "budget": budget,
            "applied": budget is not None,
            "scope": kv["scope"],
            "first_token": kv["first_token"],
            "params": {name: kv[name] for name in names if name in kv},
            "prompt_tokens": words,
            "press_len": words - refed,
            "question_tokens": 0,
            "kept_per_layer": [kept, kept],
            "kept_mean": kept,
            "kept_min": kept,
            "kept_max": kept,
            "bytes_kept": kept * 64,
            "peak_tokens": kept + 3,
            "active": budget is not None and budget < words,
            "verified": "measured",
            "engine": {"class": "ReferenceEngine" if kind != "foreign" else "SomeEngine", "protocol": 1},
        }


async def refuse(fault: str, detail: str, head: str, writer: asyncio.StreamWriter) -> bool:
    """Do what is no answer at all; False where there is to be one."""
    if fault.isdigit():
        headers = {}
        if detail == "date":
            headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)}
        elif detail:
            headers = {"Retry-After": detail}
        said = f"no luck with status {fault}"
        key = (re.search(r"(?i)authorization: *bearer (\S+)", head) or ["", "no key"])[1]
        if fault == "413":
            said = f"too long, with {key}"
        if fault in ("401", "403"):
            said = f"Incorrect key provided: {key}, that is {key[:6]}******{key[-4:]}"
        if fault == "302":
            headers = {"Location": "http://elsewhere.example/v1"}
        await send(writer, int(fault), {"error": {"message": said, "type": "x", "code": "x"}}, headers)
    elif fault == "timeout":
        await asyncio.sleep(3600)
    elif fault == "drop_before":
        raise Dropped
    elif fault == "reset_before":
        reset(writer)
    elif fault == "malformed":
        await send(writer, 200, b'{"choices": [{"message": ')
    elif fault == "html":
        await send(
            writer, 200, b"<html><body>Welcome to the gateway</body></html>", {"Content-Type": "text/html"}
        )
    elif fault == "html_as_json":
        await send(writer, 200, b"<html><body>Welcome to the gateway</body></html>")
    elif fault == "trickle_headers":
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: " + b"x" * 100_000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
    elif fault == "die":
        os._exit(1)
    else:
        return False
    return True


async def send(
    writer: asyncio.StreamWriter, status: int, content: Any, headers: dict[str, str] | None = None
) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fields = {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} {STATUSES[status]}\r\n{lines}\r\n".encode() + body)
    await writer.drain()


async def whole(writer: asyncio.StreamWriter, content: bytes, fault: str) -> None:
    """One JSON object."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    if fault == "unframed_drop":
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + content[:20]
        )
        raise Dropped
    if fault == "trickle":
        writer.write(head)
        await trickle(writer, content)
    cut = len(content) // 2 if fault in ("drop_inside", "stall_inside") else None
    writer.write(head + content[:cut])
    await writer.drain()
    if fault == "drop_inside":
        raise Dropped
    if fault == "stall_inside":
        await asyncio.sleep(3600)


async def stream(writer: asyncio.StreamWriter, lines: list[bytes], fault: str) -> None:
    """Server-sent events, each in a chunk of its own."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    if fault == "unframed_drop":
        writer.write(head + b"Connection: close\r\n\r\n" + b"".join(lines[:2]) + lines[2][:15])
        raise Dropped
    writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
    if fault == "trickle":
        await trickle(writer, b"".join(lines))
    sent = lines[:2] if fault in ("drop_inside", "stall_inside") else lines
    for line in sent:
        writer.write(b"%x\r\n%b\r\n" % (len(line), line))
    await writer.drain()
    if fault == "drop_inside":
        raise Dropped
    if fault == "stall_inside":
        await asyncio.sleep(3600)
    if fault != "no_end":
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def trickle(writer: asyncio.StreamWriter, content: bytes) -> None:
    """One byte at a time, and never the last."""
    for byte in content[:-1]:
        writer.write(b"1\r\n%c\r\n" % byte if content.startswith(b"data") else bytes([byte]))
        await asyncio.sleep(0.05)
    await asyncio.sleep(3600)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side is reset."""
    found = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise Dropped


class FaultProcess:
    """The server as a process of the tests.

    Attributes
    ----------
    base_url : what an engine is given.
    """

    def __init__(self, script: dict[str, Any] | None = None, port: int = 0, log: Path | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log, self.script, self.port = log or Path(self.folder.name, "log"), script or {}, port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.folder.cleanup()

    def start(self) -> None:
        """Start, or start again on the same port."""
        command = [sys.executable, __file__, "--port", str(self.port), "--script", json.dumps(self.script)]
        self.process = subprocess.Popen(
            [*command, "--log", str(self.log)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def counts(self, what: str) -> Counter[str]:
        """How often each name was `asked` or `answered` so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(line.split(" ", 1)[1] for line in lines if line.startswith(f"{what} "))

    def settled(self, what: str, quiet_s: float = 0.3) -> Counter[str]:
        """The counts once nothing more happens."""
        before = self.counts(what)
        while True:
            time.sleep(quiet_s)
            if (now := self.counts(what)) == before:
                return now
            before = now


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", default="{}", help="JSON, see above")
    parser.add_argument("--log", help="file of counts")
    options = parser.parse_args()
    server = FaultServer(json.loads(options.script), options.log)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", options.port, limit=2**24, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
