"""Attention from new tokens of many cells to what each cell's cache still holds, inside a transformers model.

A model that is called within `decoding` attends with `attend_in_groups` instead of its own attention. Cells that kept
equally many positions stand in one array with room for the tokens to come, most of them from the moment they are cut
(`Shelf`): nothing is padded, nothing is joined, and the keys and values of a KV head are never repeated for its query heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kv_transition.engines.kvpress_model import LoadedModel

#: Under this name transformers finds the attention below.
ATTENTION = "kv_transition_cells"

#: What AdaKV masks of a layer: indices of batch, KV head and position; None for nothing.
Masked = tuple[Any, Any, Any] | None


class Shelf:
    """Where cells that keep equally many positions stand from the moment they are cut, with room for the tokens to come.

    What a cell kept is written here once, and read for as long as it is needed; only the room behind it is used again.

    Parameters
    ----------
    rows : cells that stand here.
    room : tokens that will be added to each.

    Attributes
    ----------
    pairs : keys and values of each layer so far, (rows, heads, kept + room, d) each.
    """

    def __init__(self, rows: int, room: int) -> None:
        self._rows, self._room = rows, room
        self.pairs: list[tuple[Any, Any]] = []

    def put(self, layer: int, row: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """Copy what a cell keeps of a layer to its row, and return it as it stands there, (1, heads, kept, d) each.

        What is of another shape than its row is returned as it is, and stands nowhere.
        """
        if layer == len(self.pairs):
            arrays = [
                part.new_empty(self._rows, part.shape[1], part.shape[2] + self._room, part.shape[3])
                for part in (keys, values)
            ]
            self.pairs.append((arrays[0], arrays[1]))
        placed = []
        for array, part in zip(self.pairs[layer], (keys, values), strict=True):
            place = array[row : row + 1, :, : array.shape[2] - self._room]
            if place.shape != part.shape:
                return keys, values
            placed.append(place.copy_(part))
        return placed[0], placed[1]

    def arrays(self, cells: Sequence[CellLayers], room: int) -> list[list[Any]] | None:
        """Per layer the keys and values of these cells with room for that many tokens, (cells, heads, kept + room, d) each.

        None where they do not stand here, one below the other, or where there is too little room.
        """
        first, found = cells[0].row, []
        if room > self._room or len(self.pairs) != len(cells[0].layers):
            return None
        for layer, pair in enumerate(self.pairs):
            for part, array in enumerate(pair):
                begin, step = array.data_ptr(), array.stride(0) * array.element_size()
                for row, cell in enumerate(cells, first):
                    if cell.layers[layer][part].data_ptr() != begin + row * step:
                        return None
            found.append([array[first : first + len(cells)] for array in pair])
        return found


@dataclass(frozen=True)
class CellLayers:
    """What a cell kept: per layer keys and values, (1, heads, kept, d) each, and what of it is masked (none: nothing).

    `heads` are the KV heads, or the query heads where each of them kept positions of its own. `shelf` and `row` say where
    the layers were put; None for nowhere.
    """

    layers: Sequence[tuple[Any, Any]]
    masks: Sequence[Masked] = ()
    shelf: Shelf | None = None
    row: int = 0

    @property
    def shape(self) -> tuple[Any, ...]:
        """Cells of equal shape can stand in one array: heads and positions of every layer, and which are masked."""
        masked = tuple(mask is not None for mask in self.masks)
        return tuple(tuple(keys.shape[1:3]) for keys, _ in self.layers), masked


class CellGroup:
    """The KV caches of cells of one shape, with room for the tokens to come.

    Parameters
    ----------
    cells : name -> what the cell kept, in the order of the rows; the layers are left as they are.
    room : tokens that will be added.

    Attributes
    ----------
    rows : which cell each row of the arrays belongs to.
    added : tokens added so far. Moved on by the caller, after the last layer.
    """

    def __init__(self, cells: dict[int, CellLayers], room: int) -> None:
        self.rows, self.added = list(cells), 0
        first = next(iter(cells.values()))
        self._kept = [keys.shape[2] for keys, _ in first.layers]
        shelf, held = first.shelf, [*cells.values()]
        lent = None if shelf is None else shelf.arrays(held, room)
        #: Whether the rows are the cells' own places, which may be needed again as they are.
        self._lent = lent is not None
        self._arrays = _copied(held, room) if lent is None else lent
        self._visible: list[Any] = []
        for layer in range(len(first.layers)):
            own = [cell.masks[layer] if cell.masks else None for cell in cells.values()]
            self._visible.append(_visible(first.layers[layer][0], own))

    def __len__(self) -> int:
        return len(self.rows)

    def drop(self, cell: int) -> None:
        """Forget a finished cell: the last one takes its row."""
        row = self.rows.index(cell)
        last = self.rows.pop()
        if row == len(self.rows):
            return
        self.rows[row] = last
        count = len(self.rows)
        for pair, visible in zip(self._arrays, self._visible, strict=True):
            if visible is not None:
                visible[row] = visible[count]
            for part, array in enumerate(pair):
                if self._lent:
                    pair[part] = torch.cat([array[:row], array[count : count + 1], array[row + 1 : count]])
                else:
                    array[row] = array[count]
        self._lent = False

    def attend(
        self, layer: int, queries: Any, keys: Any, values: Any, scale: float, later: Any, eager: bool
    ) -> Any:
        """Store the new tokens of one layer, then let them attend to their cells' caches and to each other.

        Parameters
        ----------
        queries : (rows, H, new, d); keys, values : (rows, K, new, d), rotated by their true positions.
        later : (new, new), True where a key comes after the query; None for one new token.
        eager : compute as transformers' eager attention does: softmax in float32, then the format of the model.

        Returns
        -------
        (rows, H, new, d) outputs.
        """
        rows, heads, new, width = queries.shape
        start = self._kept[layer] + self.added
        end = start + new
        own_keys, own_values = (array[:rows, :, :end] for array in self._arrays[layer])
        stored = own_keys.shape[1]
        for array, more in ((own_keys, keys), (own_values, values)):
            # A cache that is kept for every query head holds the new tokens once for each too.
            repeats = stored // more.shape[1]
            array[:, :, start:] = more if repeats == 1 else more.repeat_interleave(repeats, dim=1)
        # The queries that share a KV head are so many more rows of one product.
        grouped = queries.reshape(rows, stored, heads // stored * new, width)
        seen = self._seen(layer, rows, new, end, heads // stored, later)
        if eager:
            logits = grouped @ own_keys.transpose(2, 3) * scale
            if seen is not None:
                logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
            weights = functional.softmax(logits, dim=-1, dtype=torch.float32).to(queries.dtype)
            output = weights @ own_values
        else:
            output = functional.scaled_dot_product_attention(
                grouped, own_keys, own_values, attn_mask=seen, scale=scale
            )
        return output.reshape(rows, heads, new, width)

    def _seen(self, layer: int, rows: int, new: int, end: int, repeats: int, later: Any) -> Any:
        """Which keys each query sees: (rows or 1, heads or 1, repeats * new, end); None for all of them."""
        visible = self._visible[layer]
        if later is None and visible is None:
            return None
        seen = torch.ones(
            (1, 1, new, end) if visible is None else (rows, visible.shape[1], new, end),
            dtype=torch.bool,
            device=self._arrays[layer][0].device,
        )
        if visible is not None:
            seen[..., : visible.shape[2]] = visible[:rows, :, None]
        if later is not None:
            seen[..., end - new :] &= ~later
        return seen.repeat(1, 1, repeats, 1)


def _visible(keys: Any, masks: Sequence[Masked]) -> Any:
    """(rows, heads, kept), False where a position is masked; None where nothing is. `keys` are those of one row."""
    if all(mask is None for mask in masks):
        return None
    visible = torch.ones(len(masks), *keys.shape[1:3], dtype=torch.bool, device=keys.device)
    for row, mask in enumerate(masks):
        if mask is not None:
            visible[row, mask[1], mask[2]] = False
    return visible


def _copied(cells: Sequence[CellLayers], room: int) -> list[list[Any]]:
    """Arrays of cells of one shape that stand elsewhere."""
    shelf = Shelf(len(cells), room)
    for row, cell in enumerate(cells):
        for layer, (keys, values) in enumerate(cell.layers):
            shelf.put(layer, row, keys, values)
    return [list(pair) for pair in shelf.pairs]


def in_groups(cells: dict[int, CellLayers], room: int) -> list[CellGroup]:
    """The cells in groups of one shape that stand together."""
    together: dict[Any, dict[int, CellLayers]] = defaultdict(dict)
    for name, cell in cells.items():
        together[cell.shape, id(cell.shelf)][name] = cell
    return [CellGroup(group, room) for group in together.values()]


class _Extension(Cache):  # type: ignore[misc]  # transformers has no types
    """What transformers takes for the cache: the new keys and values are handed on to the groups as they are."""

    def __init__(
        self, groups: Sequence[CellGroup], position: int, new: int, eager: bool, device: Any
    ) -> None:
        super().__init__(layers=[])
        self.groups, self.position, self.eager = groups, position, eager
        self.later = torch.ones(new, new, dtype=torch.bool, device=device).triu(1) if new > 1 else None

    def update(self, keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.position


def attend_in_groups(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Any, None]:
    """Attention of a layer, as transformers calls it: (rows, new, H, d) outputs, and no weights.

    Raises
    ------
    ValueError
        For attention that does more than scale, mask and weigh. (A sliding window is none of this attention's business: one
        that a prompt outgrows is refused by the model's configuration.)
    """
    asked = [name for name in ("softcap", "s_aux") if more.get(name) is not None]
    if asked or attention_mask is not None:
        raise ValueError(f"attention with {', '.join(asked) or 'a mask of its own'} is not supported")
    extension = module.kv_transition_extension
    scale = module.head_dim**-0.5 if scaling is None else scaling
    parts, start = [], 0
    for group in extension.groups:
        own = slice(start, start + len(group))
        start = own.stop
        parts.append(
            group.attend(
                module.layer_idx, query[own], key[own], value[own], scale, extension.later, extension.eager
            )
        )
    output = parts[0] if len(parts) == 1 else torch.cat(parts)
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend_in_groups)


@contextmanager
def decoding(loaded: LoadedModel) -> Iterator[None]:
    """Make the model attend in groups."""
    config = loaded.model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
        for module in loaded.attention:
            module.kv_transition_extension = None


def extend(loaded: LoadedModel, groups: Sequence[CellGroup], tokens: Any, position: int, eager: bool) -> Any:
    """Let every cell read new tokens, inside `decoding`.

    Parameters
    ----------
    tokens : (cells, new), in the order of the groups' rows; `position` is the true position of the first.

    Returns
    -------
    (cells, vocabulary) logits after the last of them.
    """
    count, new = tokens.shape
    extension = _Extension(groups, position, new, eager, loaded.device)
    for module in loaded.attention:
        module.kv_transition_extension = extension
    positions = torch.arange(position, position + new, device=loaded.device)
    output = loaded.model(
        tokens,
        past_key_values=extension,
        # The caches are shorter than the text that was read: positions must not be taken from their length.
        position_ids=positions.expand(count, -1),
        cache_position=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    for group in groups:
        group.added += new
    return output.logits[:, -1]
