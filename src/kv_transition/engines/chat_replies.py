"""What a server of the OpenAI kind answered: its reply, streamed or whole, read into one answer.

A null instead of a text is an empty answer where the model ended it itself (`stop`), or where all its tokens went into
reasoning that the server keeps apart (`length`). With tool calls, a filter or no reason at all it is no answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kv_transition.engines.http_transport import Fault

#: Other servers' words for the two ways in which an answer ends.
FINISH_REASONS = {
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "max_tokens": "length",
}

#: What can stand in the place of a text.
BESIDE_TEXT = frozenset({"reasoning_content", "reasoning", "tool_calls", "function_call", "refusal"})

#: What can stand beside the choices, and its type.
FACTS = {"usage": dict, "kv": dict, "timing": dict, "model": str, "system_fingerprint": str}

#: The server broke the answer off.
BROKEN_OFF = frozenset({"abort", "aborted", "cancelled", "error"})


@dataclass
class Reply:
    """One reply.

    Attributes
    ----------
    finish_reason : "stop" or "length", another word of the server's, or None where it says nothing.
    ttfb_s : seconds from the request to the first text of a stream; None where the reply came in one piece.
    usage, kv, timing : as the server sent them; empty where it did not.
    """

    text: str = ""
    finish_reason: str | None = None
    ttfb_s: float | None = None
    latency_s: float = 0.0
    usage: Mapping[str, Any] = field(default_factory=dict)
    kv: Mapping[str, Any] | None = None
    timing: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    system_fingerprint: str | None = None
    notes: list[str] = field(default_factory=list)

    def tokens(self, name: str) -> int | None:
        """A number of `usage`, where it is one."""
        value = self.usage.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return value if whole else None


class _Pieces:
    """The parts of a reply that come in several events."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.got_text = self.reasoned = self.has_choice = self.whole = self.called = False
        self.refusals: list[str] = []

    def take(self, choice: Mapping[str, Any]) -> str:
        """Keep what a choice adds, and return its text."""
        self.has_choice = True
        part = choice.get("delta") or choice.get("message") or choice
        if not isinstance(part, dict):
            raise Fault(f"the answer is no object but a {type(part).__name__}", "body")
        content = part.get("text" if part is choice else "content")
        if content is not None and not isinstance(content, str):
            raise Fault(f"the answer is no text but a {type(content).__name__}", "body")
        if not BESIDE_TEXT.isdisjoint(part):
            self.reasoned |= bool(part.get("reasoning_content") or part.get("reasoning"))
            self.called |= bool(part.get("tool_calls") or part.get("function_call"))
            if isinstance(part.get("refusal"), str):
                self.refusals.append(part["refusal"])
        self.got_text |= content is not None
        self.texts.append(content or "")
        return content or ""


def read_reply(events: Iterable[Mapping[str, Any] | None], begin: float) -> Reply:
    """Join the objects of a reply.

    Parameters
    ----------
    events : as :meth:`Transport.post` yields them.
    begin : when the request was sent, in seconds of time.perf_counter().

    Raises
    ------
    Fault
        When the reply ends too early, or is no answer.
    """
    reply, pieces, streamed = Reply(), _Pieces(), False
    for event in events:
        if event is None:
            pieces.whole = True
            continue
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise Fault("the reply has no list of choices", "body")
        if choices:
            choice = choices[0]
            if not isinstance(choice, dict):
                raise Fault("the reply's choice is no object", "body")
            streamed = streamed or "delta" in choice or pieces.has_choice
            if pieces.take(choice) and reply.ttfb_s is None:
                reply.ttfb_s = time.perf_counter() - begin
            reason = choice.get("finish_reason")
            if not isinstance(reason, str | None):
                raise Fault(f"finish_reason is a {type(reason).__name__}", "body")
            reply.finish_reason = FINISH_REASONS.get(reason or "", reason) or reply.finish_reason
        _take_facts(reply, event)
    reply.latency_s = time.perf_counter() - begin
    if not streamed:
        reply.ttfb_s = None
    reply.text = "".join(pieces.texts)
    _check(reply, pieces)
    return reply


def _take_facts(reply: Reply, event: Mapping[str, Any]) -> None:
    """What stands beside the choices, on whichever event it comes."""
    for name in FACTS.keys() & event.keys():
        if isinstance(event[name], FACTS[name]):
            setattr(reply, name, event[name])


def _check(reply: Reply, pieces: _Pieces) -> None:
    """Tell an answer from what only looks like one."""
    if not pieces.whole and reply.finish_reason is None:
        raise Fault("the stream ended in the middle of the answer", "dropped", transient=True)
    if not pieces.has_choice:
        raise Fault("the reply has no choices", "body")
    if reply.finish_reason in BROKEN_OFF:
        words = f"the server broke the answer off (finish_reason {reply.finish_reason})"
        raise Fault(words, "dropped", transient=True)
    if pieces.got_text and (reply.text or not pieces.refusals):
        return
    if pieces.refusals:
        reply.text = "".join(pieces.refusals)
        reply.notes.append("refusal")
    elif pieces.called:
        raise Fault("the reply has tool calls instead of a text", "body")
    elif reply.finish_reason == "length" and pieces.reasoned:
        reply.notes.append("only reasoning")
    elif reply.finish_reason != "stop":
        raise Fault(f"the text is null (finish_reason {reply.finish_reason})", "body")
