"""Attention in numpy: over a whole prompt in blocks, and from new tokens to caches of several cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Positions = NDArray[np.int64]
Name = TypeVar("Name", bound=Hashable)

#: Queries that attend at once in a prefill: bounds the memory at BLOCK x prompt x (query heads per KV head) numbers.
BLOCK = 256


def rotary(frequencies: Array, positions: Positions) -> tuple[Array, Array]:
    """Cosine and sine of positions (..., length), each (..., length, d / 2).

    The angle is a float32 product, as the models were trained: exact angles would give other answers far out.
    """
    angles = positions.astype(np.float32)[..., None] * frequencies
    return np.cos(angles), np.sin(angles)


def rotate(heads: Array, angles: tuple[Array, Array]) -> Array:
    """Apply rotary positions to (..., length, heads, d): the two halves of d are the parts of complex numbers."""
    cosine, sine = (part[..., None, :] for part in angles)
    half = heads.shape[-1] // 2
    real, imaginary = heads[..., :half], heads[..., half:]
    rotated = np.empty_like(heads)
    np.multiply(real, cosine, out=rotated[..., :half])
    rotated[..., :half] -= imaginary * sine
    np.multiply(imaginary, cosine, out=rotated[..., half:])
    rotated[..., half:] += real * sine
    return rotated


def _future(length: int) -> NDArray[np.bool_]:
    """(length, length), True where the key comes after the query."""
    return np.triu(np.ones((length, length), dtype=bool), k=1)


def _exponentials(logits: Array) -> tuple[Array, Array]:
    """In place: exp(logits - row maximum), and the row sums, which divide the result afterwards (it is smaller)."""
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    return logits, logits.sum(axis=-1, keepdims=True)


def causal_attention(
    queries: Array, keys: Array, values: Array, with_received: bool = False
) -> tuple[Array, Array | None]:
    """Every position attends to itself and to all before it.

    Parameters
    ----------
    queries : (H, n, d); query heads g*G .. g*G + G - 1 read KV head g, which is never repeated in memory.
    keys, values : (K, n, d).
    with_received : also sum the attention that each position receives.

    Returns
    -------
    (n, H, d) outputs, and (K, n) attention received (summed over queries, mean over the group) or None.
    """
    heads, n, width = queries.shape
    group = heads // len(keys)
    grouped = queries.reshape(len(keys), group, n, width)
    scale = np.float32(width**-0.5)
    output = np.empty((n, heads, width), dtype=np.float32)
    received = np.zeros(keys.shape[:2], dtype=np.float32) if with_received else None
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        later = _future(end - start)
        for head in range(len(keys)):
            block: Array = (grouped[head, :, start:end] * scale).reshape(-1, width)
            logits: Array = block @ keys[head, :end].T
            np.copyto(logits.reshape(group, end - start, end)[:, :, start:], -np.inf, where=later)
            weights, total = _exponentials(logits)
            rows = (weights @ values[head, :end]) / total
            output[start:end, head * group : (head + 1) * group] = rows.reshape(group, -1, width).swapaxes(
                0, 1
            )
            if received is not None:
                received[head, :end] += ((1 / total[:, 0]) @ weights) / np.float32(group)
    return output, received


class CacheGroup(Generic[Name]):
    """The KV caches of cells that kept equally many positions, with room for the tokens to come.

    Attributes
    ----------
    rows : which cell each row of the arrays belongs to, by whatever names the caches came under.
    used : positions in the caches so far (of every cell of the group).
    """

    def __init__(self, caches: Mapping[Name, Sequence[tuple[Array, Array]]], room: int) -> None:
        """`caches`: cell -> per layer (keys, values), each (K, kept, d), kept equal in all."""
        self.rows = list(caches)
        heads, self.used, width = next(iter(caches.values()))[0][0].shape
        shape = (len(caches), heads, self.used + room, width)
        layers = range(len(next(iter(caches.values()))))
        self._keys = [np.empty(shape, dtype=np.float32) for _ in layers]
        self._values = [np.empty(shape, dtype=np.float32) for _ in layers]
        for row, cache in enumerate(caches.values()):
            for layer, (keys, values) in enumerate(cache):
                self._keys[layer][row, :, : self.used] = keys
                self._values[layer][row, :, : self.used] = values

    def __len__(self) -> int:
        return len(self.rows)

    def drop(self, cell: Name) -> None:
        """Forget a finished cell: the last one takes its row."""
        row = self.rows.index(cell)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
            for arrays in (self._keys, self._values):
                for array in arrays:
                    array[row, :, : self.used] = array[len(self.rows), :, : self.used]

    def attend(self, layer: int, queries: Array, keys: Array, values: Array) -> Array:
        """Store the new tokens of one layer, then let them attend to their cells' caches and to each other.

        Parameters
        ----------
        queries : (rows, new, H, d); keys, values : (rows, new, K, d), rotated by their true positions.

        Returns
        -------
        (rows, new, H * d) outputs. `used` is moved on by the caller, after the last layer.
        """
        rows, new, heads, width = queries.shape
        kv_heads, end = keys.shape[2], self.used + new
        own_keys, own_values = (arrays[layer][:rows, :, :end] for arrays in (self._keys, self._values))
        own_keys[:, :, self.used :] = keys.swapaxes(1, 2)
        own_values[:, :, self.used :] = values.swapaxes(1, 2)
        scaled = queries.reshape(rows, new, kv_heads, -1, width) * np.float32(width**-0.5)
        grouped = scaled.transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, width)
        logits = grouped @ own_keys.swapaxes(2, 3)
        if new > 1:
            own = logits.reshape(rows, kv_heads, -1, new, end)[..., self.used :]
            np.copyto(own, -np.inf, where=_future(new))
        weights, total = _exponentials(logits)
        output = ((weights @ own_values) / total).reshape(rows, kv_heads, -1, new, width)
        return output.transpose(0, 3, 1, 2, 4).reshape(rows, new, heads * width)
