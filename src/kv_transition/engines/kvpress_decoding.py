"""Greedy answers of a transformers model from what a cell's cache still holds, at true positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache

from kv_transition.engines.greedy import Answer, Ending
from kv_transition.engines.kvpress_model import LoadedModel


def decode_cell(
    loaded: LoadedModel,
    layers: Sequence[tuple[Any, Any]],
    masks: Sequence[tuple[Any, Any, Any] | None],
    tail: Sequence[int],
    position: int,
    first_logits: Any,
    ending: Ending,
    on_first_token: Callable[[], None] = lambda: None,
    note_logits: Callable[[Any], None] = lambda logits: None,
) -> Answer:
    """The greedy answer of one cell.

    Parameters
    ----------
    layers : per layer (keys, values), each (1, K, kept, d); they are left as they are.
    masks : per layer what AdaKV masked, None for nothing; empty for no layer.
    tail : prompt tokens that are still to be read, from the cache; `position` is the true position of the first.
    first_logits : (vocabulary,) logits for the first answer token where the tail is empty.
    on_first_token : called when the logits of the first answer token are known.
    note_logits : told the (vocabulary,) logits of every step.
    """
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    answer, tokens, logits = Answer(), list(tail), first_logits
    with _masks_by_layer(loaded, layers, masks):
        while True:
            if tokens:
                # The cache is shorter than the text that was read: positions must not be taken from its length.
                positions = torch.arange(position, position + len(tokens), device=loaded.device)[None]
                output = loaded.model(
                    loaded.tokens(tokens),
                    past_key_values=cache,
                    position_ids=positions,
                    use_cache=True,
                    logits_to_keep=1,
                )
                position, logits = position + len(tokens), output.logits[0, -1]
            if not answer.tokens:
                on_first_token()
            row = logits.float().cpu().numpy()
            note_logits(row)
            (best,) = ending.choose(row[None], len(answer.tokens))
            if ending.append(answer, best):
                return answer
            tokens = [best]


@contextmanager
def _masks_by_layer(
    loaded: LoadedModel, layers: Sequence[tuple[Any, Any]], masks: Sequence[tuple[Any, Any, Any] | None]
) -> Iterator[None]:
    """Give every layer an attention mask of its own where layers keep different numbers of positions, or mask some.

    transformers makes one causal mask for all layers, from the length of the first one's cache. kvpress masks positions
    by keys that no query is drawn to, and fails where there is no such key; a mask says the same and always can.
    """
    same_length = len({keys.shape[2] for keys, _ in layers}) < 2
    if same_length and not any(mask is not None for mask in masks):
        yield
        return
    lowest = torch.finfo(loaded.model.dtype).min
    kept = [
        _kept_part(loaded, keys, masks[number] if masks else None, lowest)
        for number, (keys, _) in enumerate(layers)
    ]

    def own_mask(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        new = kwargs["hidden_states"].shape[1]
        part = kept[module.layer_idx]
        heads, before = part.shape[1], part.shape[3]
        length = kwargs["past_key_values"].layers[module.layer_idx].keys.shape[2] + new
        mask = part.new_zeros(1, heads, new, length)
        mask[..., :before] = part
        future = torch.ones(new, new, dtype=torch.bool, device=part.device).triu(1)
        mask[..., length - new :].masked_fill_(future, lowest)
        return args, {**kwargs, "attention_mask": mask}

    hooks = [module.register_forward_pre_hook(own_mask, with_kwargs=True) for module in loaded.attention]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kept_part(loaded: LoadedModel, keys: Any, mask: tuple[Any, Any, Any] | None, lowest: float) -> Any:
    """The mask of a layer's kept positions, (1, 1 or query heads, 1, kept): the lowest number where masked, else 0."""
    if mask is None:
        return keys.new_zeros(1, 1, 1, keys.shape[2])
    _, heads, positions = mask
    part = keys.new_zeros(keys.shape[1], keys.shape[2])
    part[heads, positions] = lowest
    group = int(loaded.model.config.num_attention_heads) // keys.shape[1]
    return part.repeat_interleave(group, dim=0)[None, :, None]
