"""Errors of one request in the words that its row keeps: one line, and for want of memory what helps."""

from __future__ import annotations

import re

#: Longest text of a foreign error that a row keeps, in characters.
LONGEST = 400

_PROMPTS = "leave out long prompts (dataset.max_tokens) or cut them (protocol.max_length_tokens)"
#: What helps where numpy computes, and where torch does.
REMEDY = f"the example does not fit into memory: give the job more, or {_PROMPTS}"
TORCH_REMEDY = (
    f"the example does not fit into memory, not even with one cell at a time: {_PROMPTS}, or set a smaller engine.dtype, or "
    "engine.attn_implementation: sdpa"
)
#: torch has no class of its own for want of memory on a CPU; some libraries on a GPU raise a plain RuntimeError too.
_OF_TORCH = re.compile(
    r"DefaultCPUAllocator|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)


def failure_words(error: BaseException) -> str:
    """An error as its class and one line, with a remedy where memory was lacking.

    The error's own words are cut in their middle where they are longer than `LONGEST`: what happened stands at the
    beginning and, in errors that quote others, at the end.
    """
    words = " ".join(str(error).split())
    if len(words) > LONGEST:
        words = f"{words[: LONGEST // 2]} ... {words[-LONGEST // 2 :]}"
    line = f"{type(error).__name__}: {words}" if words else type(error).__name__
    remedy = memory_remedy(error)
    return f"{line}; {remedy}" if remedy else line


def memory_remedy(error: BaseException) -> str | None:
    """What helps against an error that says that memory is lacking; None for other errors."""
    if is_out_of_memory(error):
        return REMEDY if isinstance(error, MemoryError) else TORCH_REMEDY
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that memory is lacking."""
    of_torch = isinstance(error, RuntimeError) and _OF_TORCH.search(str(error)) is not None
    return isinstance(error, MemoryError) or of_torch or type(error).__name__ == "OutOfMemoryError"
