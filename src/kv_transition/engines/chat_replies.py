"""What a server of the OpenAI kind answered: its reply, streamed or whole, read into one answer.

A null instead of a text is an empty answer where the model ended it itself (`stop`), or where all its tokens went into
reasoning that the server keeps apart (`length`). What a filter or a tool call ended is no answer, with a text or without.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kv_transition.engines.http_transport import Fault, whole_text

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

#: Something else than the model's own end or the limit on tokens ended the answer; asked again, it would do so again.
CUT_OFF = frozenset({"content_filter", "tool_calls", "function_call"})

#: Counts of tokens are below it, as the results' columns hold them.
MOST_TOKENS = 2**31


@dataclass
class Reply:
    """One reply.

    Attributes
    ----------
    finish_reason : "stop" or "length", another word of the server's, or None where it says nothing.
    ttfb_s : seconds from the request to the first text of a stream; None where the reply came in one piece.
    latency_s : seconds from the request to the last event.
    usage, kv, timing : as the server sent them; empty where it did not.
    end_missing : the answer is whole, but what the server sends behind it may not have come.
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
    end_missing: bool = False

    def tokens(self, name: str) -> int | None:
        """A number of `usage`, where it is one that can be."""
        value = self.usage.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS
        return value if whole else None


class _Pieces:
    """The parts of a reply that come in several events."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.got_text = self.reasoned = self.has_choice = self.whole = self.called = self.streamed = False
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
    reply, pieces = Reply(), _Pieces()
    try:
        for event in events:
            reply.latency_s = time.perf_counter() - begin
            if event is None:
                pieces.whole = True
            else:
                _take_event(reply, pieces, event)
    except Fault as fault:
        if fault.kind not in ("dropped", "timeout") or not _complete(reply):
            raise
        reply.notes.append(f"{fault.label} behind the answer")
        reply.end_missing = True
    reply.end_missing |= not pieces.whole and not reply.usage
    if not pieces.streamed:
        reply.ttfb_s = None
    reply.text = whole_text("".join(pieces.texts))
    _check(reply, pieces)
    return reply


def _take_event(reply: Reply, pieces: _Pieces, event: Mapping[str, Any]) -> None:
    """What one object adds to the reply."""
    choices = event.get("choices")
    if not isinstance(choices, list):
        raise Fault("the reply has no list of choices", "body")
    if choices:
        choice = choices[0]
        if not isinstance(choice, dict):
            raise Fault("the reply's choice is no object", "body")
        pieces.streamed |= "delta" in choice or pieces.has_choice
        if pieces.take(choice) and reply.ttfb_s is None:
            reply.ttfb_s = reply.latency_s
        reason = choice.get("finish_reason")
        if not isinstance(reason, str | None):
            raise Fault(f"finish_reason is a {type(reason).__name__}", "body")
        if reason:
            reply.finish_reason = whole_text(FINISH_REASONS.get(reason, reason))
    _take_facts(reply, event)


def _complete(reply: Reply) -> bool:
    """Whether nothing of an answer is missing: it says how it ended, and was counted."""
    return reply.finish_reason in ("stop", "length") and bool(reply.usage)


def _take_facts(reply: Reply, event: Mapping[str, Any]) -> None:
    """What stands beside the choices, on whichever event it comes."""
    for name, kind in FACTS.items():
        if name in event and isinstance(value := event[name], kind):
            setattr(reply, name, whole_text(value) if isinstance(value, str) else value)


def _check(reply: Reply, pieces: _Pieces) -> None:
    """Tell an answer from what only looks like one."""
    if not pieces.whole and reply.finish_reason is None:
        raise Fault("the stream ended in the middle of the answer", "dropped", transient=True)
    if not pieces.has_choice:
        raise Fault("the reply has no choices", "body")
    if reply.finish_reason in BROKEN_OFF:
        words = f"the server broke the answer off (finish_reason {reply.finish_reason})"
        raise Fault(words, "dropped", transient=True)
    if reply.finish_reason in CUT_OFF:
        raise Fault(f"the answer was cut off (finish_reason {reply.finish_reason})", "body")
    if pieces.got_text and (reply.text or not pieces.refusals):
        return
    if pieces.refusals:
        reply.text = whole_text("".join(pieces.refusals))
        reply.notes.append("refusal")
    elif pieces.called:
        raise Fault("the reply has tool calls instead of a text", "body")
    elif reply.finish_reason == "length" and pieces.reasoned:
        reply.notes.append("only reasoning")
    elif reply.finish_reason != "stop":
        raise Fault(f"the text is null (finish_reason {reply.finish_reason})", "body")
