"""A context that several questions share is read and compressed once (scope `context`).

An engine's `_sweep_cells` asks `SharedContext.remembered` before it reads a prompt, and hands to `SharedContext.remember`
what it made of the context: every cell's compressed cache, the logits after the context, and the whole keys and values where
a cell is drawn (`is_drawn`) and has to be cut anew for each example. Where a cell has an error nothing is to be remembered,
and decoding must not write to what is. `LocalEngine` says what is `wanted`, and forgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell

if TYPE_CHECKING:
    from kv_transition.engines.sweep import Split

T = TypeVar("T")


def is_drawn(cell: Cell) -> bool:
    """Whether what the cell keeps depends on the example's name, so that no two questions share it."""
    return cell.method == "random"


def context_of(prompt: Prompt) -> tuple[object, ...] | None:
    """What is equal in prompts that begin with the same context; None for a prompt whose context has no end."""
    if prompt.context_end is None:
        return None
    *before, last = prompt.messages
    earlier = tuple((message["role"], message["content"]) for message in before)
    return prompt.wrapped, earlier, last["role"], last["content"][: prompt.context_end]


class SharedContext(Generic[T]):
    """What an engine computed of the last prompt's context, where the next question is about it too.

    Attributes
    ----------
    wanted : whether the next prompt begins with the context of this one. It never does in scope `prompt` or in a single
        request, so that memory is held from one question to the next of the same context and no longer.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._ids: list[int] = []
        self._cells: frozenset[Cell] = frozenset()
        self._value: T | None = None

    def remembered(self, ids: Sequence[int], split: Split, cells: Sequence[Cell]) -> T | None:
        """What was remembered for this context, if all of `cells` can be had from it; else it is forgotten."""
        if self._value is None:
            return None
        drawn = any(is_drawn(cell) for cell in self._cells)
        there = all(drawn if is_drawn(cell) else cell in self._cells for cell in cells)
        if not there or self._ids != list(ids[: split.press_len]):
            self.forget()
        return self._value

    def remember(self, ids: Sequence[int], split: Split, cells: Sequence[Cell], value: T) -> None:
        """Keep what was computed of the context, in place of what was kept before; nothing where none is wanted."""
        self.forget()
        if self.wanted:
            self._ids, self._cells, self._value = list(ids[: split.press_len]), frozenset(cells), value

    def forget(self) -> None:
        """Let go of what was kept."""
        self._ids, self._cells, self._value = [], frozenset(), None
