"""Llama models with random weights, the prompts and the grid that the benchmarks of the local engines ask of them.

Weights and prompts are random numbers: the arithmetic does not depend on them. They are drawn wide enough that an answer
depends on what is in the cache, so that a wrong cache is a wrong answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_transition.engines.base import Cell
from kv_transition.engines.greedy import Ending
from kv_transition.engines.sweep import split_prompt
from kv_transition.methods import resolve_parameters

if TYPE_CHECKING:
    from kv_transition.engines.kvpress_model import LoadedModel

METHODS = ("snapkv", "streaming_llm", "knorm", "tova")
BUDGETS = (64, 128, 256, 512, 1024, 2048)
FULL = Cell("full")
#: SnapKV's window is one for the whole curve, and at most half of the smallest budget.
WINDOW, KERNEL, SINKS = 32, 5, 4


def _shape(
    layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int
) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
    }


#: Name -> layers and widths. 1b and 8b have the numbers of Llama 3.2 1B and Llama 3.1 8B.
SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": _shape(3, 64, 4, 2, 96, 512),
    "28m": _shape(8, 512, 8, 4, 1408, 8192),
    "1b": _shape(16, 2048, 32, 8, 8192, 128256),
    "8b": _shape(32, 4096, 32, 8, 14336, 128256),
}
#: 0.2 at 512 numbers; other widths draw so that queries and keys grow as long as there.
SPREAD = 0.2 * math.sqrt(512)


def parameter_count(shape: str) -> int:
    """Parameters of a shape, its embeddings tied."""
    of = SHAPES[shape]
    hidden, narrow = of["hidden_size"], of["num_key_value_heads"] / of["num_attention_heads"]
    attention = hidden * hidden * (2 + 2 * narrow)
    layer = attention + 3 * hidden * of["intermediate_size"] + 2 * hidden
    return round(of["num_hidden_layers"] * layer + hidden * (of["vocab_size"] + 1))


def random_model(shape: str, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> Any:
    """A LlamaForCausalLM with random weights, made where it is going to be used; it never ends an answer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SHAPES[shape]
    config = LlamaConfig(
        **sizes,
        initializer_range=SPREAD / math.sqrt(sizes["hidden_size"]),
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def loaded_model(model: Any) -> LoadedModel:
    """The model as the engine kvpress holds it."""
    from kv_transition.engines.kvpress_model import LoadedModel

    attention = tuple(layer.self_attn for layer in model.model.layers)
    for module in attention:
        module.rotary_emb = model.model.rotary_emb
    config = model.config
    return LoadedModel(
        model,
        attention,
        longest=int(config.max_position_embeddings),
        kv_heads=int(config.num_key_value_heads),
        width=int(attention[0].head_dim),
    )


def random_ids(tokens: int, vocabulary: int, seed: int = 1) -> list[int]:
    """A prompt."""
    ids: list[int] = np.random.default_rng(seed).integers(0, vocabulary, tokens).tolist()
    return ids


def grid(tokens: int, methods: Sequence[str] = METHODS, budgets: Sequence[int] = BUDGETS) -> list[Cell]:
    """Every method at every budget below the prompt's length."""
    return [Cell(method, budget) for method, budget in itertools.product(methods, budgets) if budget < tokens]


def unending(new_tokens: int) -> Ending:
    """Answers of exactly so many tokens."""
    return Ending(new_tokens, (), frozenset(), lambda tokens: "")


def sweep(
    loaded: LoadedModel, ids: Sequence[int], cells: Sequence[Cell], new_tokens: int
) -> dict[Cell, list[int]]:
    """Our answers: one prefill for all cells; the last prompt token is read from the pruned caches.

    Raises
    ------
    RuntimeError
        When a cell has no answer.
    """
    from kv_transition.engines.kvpress_presses import SHARED_PREFILL
    from kv_transition.engines.kvpress_sweep import sweep_cells

    split = split_prompt(len(ids), 0, "prompt", "compressed")
    parameters = resolve_parameters({"snapkv": {"window": WINDOW, "kernel": KERNEL}})
    swept = sweep_cells(
        loaded, ids, split, list(cells), parameters, SHARED_PREFILL, unending(new_tokens), "benchmark"
    )
    for cell, cache in swept.caches.items():
        if cache.error is not None:
            raise RuntimeError(f"{cell.method} {cell.label}: {cache.error}")
    return {cell: list(swept.answers[cell].tokens) for cell in cells}
