"""Text that is sent while it grows: what is sent is never taken back, and the pieces joined are the whole answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

#: What a decoder writes for bytes that are no character, or not yet.
REPLACEMENT = "\ufffd"


class TextStream:
    """Cuts a growing answer into pieces of text.

    A piece is held back while a later token could change it: bytes that are not a whole character yet, tokens of
    single bytes (which some tokenizers read together with the next one), the beginning of a stop string.

    Parameters
    ----------
    decode : text of tokens.
    stop : texts from which on an answer is cut off.
    byte_ids : tokens that stand for single bytes.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], byte_ids: Collection[int]
    ) -> None:
        self._decode, self._stop, self._byte_ids = decode, stop, byte_ids
        self._sent = ""

    def push(self, tokens: Sequence[int]) -> str:
        """The next piece, given all tokens so far of an answer that goes on; "" where nothing is certain."""
        sure = len(tokens)
        while sure and tokens[sure - 1] in self._byte_ids:
            sure -= 1
        text = self._decode(tokens[:sure]).rstrip(REPLACEMENT)
        return self._send(text[: len(text) - stop_beginning(text, self._stop)])

    def finish(self, text: str) -> str:
        """The last piece, given the whole answer.

        Raises
        ------
        ValueError
            When the answer does not begin with what was sent.
        """
        if not text.startswith(self._sent):
            raise ValueError("the tokenizer has changed text that was already sent")
        return self._send(text)

    def _send(self, text: str) -> str:
        piece = text[len(self._sent) :] if text.startswith(self._sent) else ""
        self._sent += piece
        return piece


def stop_beginning(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop string."""
    longest = min(len(text), max((len(one) - 1 for one in stop), default=0))
    return next(
        (
            size
            for size in range(longest, 0, -1)
            if any(size < len(one) and one.startswith(text[-size:]) for one in stop)
        ),
        0,
    )


def event(data: object) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, allow_nan=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def chunk(base: dict[str, Any], choice: dict[str, Any] | None, **more: Any) -> bytes:
    """One chunk of a streamed answer; without a choice it carries only what comes beside the text."""
    return event({**base, "choices": [] if choice is None else [choice], **more})
