"""What a cell kept of a transformers model's keys and values, and the proof of its budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from kv_transition.engines.base import Cell
from kv_transition.engines.kvpress_groups import CellLayers, Shelf


@dataclass
class TorchCache:
    """What a cell kept, or the error that befell it.

    Attributes
    ----------
    layerwise : whether the layers may keep differently many positions, and the budget is their mean.
    layers : keys and values of each layer, (1, K, kept, d) each; let go when the cell has been answered.
    masks : per layer the positions that are there but masked (AdaKV): indices of batch, KV head and position; None for
        none.
    shelf, row : where layers are put when they are added; None for nowhere.
    kept, nbytes, position_bytes : as of `KeptCache`, read from the tensors and masks by `measure`.
    """

    cell: Cell
    keep: int | None
    layerwise: bool = False
    layers: list[tuple[Any, Any]] = field(default_factory=list)
    masks: list[tuple[Any, Any, Any] | None] = field(default_factory=list)
    shelf: Shelf | None = None
    row: int = 0
    error: Exception | None = None
    kept: list[float] = field(default_factory=list)
    nbytes: int = 0
    position_bytes: int = 0

    @property
    def held(self) -> CellLayers:
        """What answers are decoded from."""
        return CellLayers(self.layers, self.masks, self.shelf, self.row)

    def take_over(self, held: CellLayers) -> None:
        """Hold what was held for an earlier question."""
        self.layers, self.masks = list(held.layers), list(held.masks)
        self.shelf, self.row = held.shelf, held.row

    def add(self, keys: Any, values: Any) -> None:
        """Keep these keys and values of the next layer, (1, K, kept, d) each."""
        if self.shelf is not None:
            keys, values = self.shelf.put(len(self.layers), self.row, keys, values)
        self.layers.append((keys, values))

    def fail(self, error: Exception) -> None:
        """Keep the error and nothing else; a traceback would keep the tensors of every frame alive."""
        self.error = error.with_traceback(None)
        self.let_go()

    def reset(self) -> None:
        """Be as before the prefill."""
        self.error = None
        self.let_go()

    def let_go(self) -> None:
        """Free the tensors."""
        self.layers, self.masks, self.shelf = [], [], None

    def measure(self) -> None:
        """Read from the tensors what is kept, and prove the budget: else `error` is set."""
        if self.error is not None:
            return
        masks = self.masks or [None] * len(self.layers)
        self.kept = [
            keys.shape[2] - (0 if mask is None else _masked(mask) / keys.shape[1])
            for (keys, _), mask in zip(self.layers, masks, strict=True)
        ]
        each = [
            keys.shape[1] * (keys.shape[3] * keys.element_size() + values.shape[3] * values.element_size())
            for keys, values in self.layers
        ]
        self.position_bytes = sum(each)
        self.nbytes = round(sum(kept * size for kept, size in zip(self.kept, each, strict=True)))
        if self.keep is not None and not self._proved(self.keep):
            told = [round(positions, 2) for positions in self.kept]
            self.fail(
                RuntimeError(
                    f"{self.cell.method} kept {told} positions per layer where {self.keep} were asked for"
                )
            )

    def _proved(self, keep: int) -> bool:
        if not self.kept:
            return False
        if self.layerwise:
            return abs(sum(self.kept) / len(self.kept) - keep) <= 0.5
        return all(positions == keep for positions in self.kept)


def _masked(mask: tuple[Any, Any, Any]) -> int:
    """Masked (KV head, position) pairs, each counted once."""
    _, heads, positions = mask
    if not len(positions):
        return 0
    seen = torch.zeros(
        int(heads.max()) + 1, int(positions.max()) + 1, dtype=torch.bool, device=positions.device
    )
    seen[heads, positions] = True
    return int(seen.sum())
