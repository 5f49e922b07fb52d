"""What an eviction is.

A prompt has been read: each layer holds a key and a value for every position and KV head. An eviction gives every
position a score and keeps the `budget` positions with the highest scores; the keys and values of all others are
deleted, and the answer is generated from what is left. The methods differ in the score alone, so each is one short
function below. Scores are those of kvpress 0.5.5 (the tests hold them against it, position by position); where a
method is not what its paper describes, its card in `methods.py` says so.

Symbols: n prompt positions, H query heads, K KV heads, G = H / K query heads in a KV head's group, d head width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Indices = NDArray[np.int64]
Parameters = Mapping[str, int]


@dataclass(frozen=True)
class LayerPrefill:
    """What one layer's prefill leaves behind, for an eviction to look at (and never to write to).

    Attributes
    ----------
    index : the layer's number, from 0.
    example_id : names the prompt.
    queries : (H, n, d) with rotary positions applied. Query heads g*G to (g+1)*G - 1 read KV head g.
    keys, values : (K, n, d), keys with rotary positions applied.
    received : (K, n) attention that each position received, summed over all queries, mean over the group's query
        heads; None unless a method that needs it runs.
    """

    index: int
    example_id: str
    queries: Array
    keys: Array
    values: Array
    received: Array | None = None


def window_attention(layer: LayerPrefill, window: int) -> Array:
    """Attention of the last `window` queries to the positions before the window, shape (K, G, window, n - window)."""
    kv_heads, n, width = layer.keys.shape
    queries = layer.queries[:, n - window :].reshape(kv_heads, -1, width)
    logits = (queries @ layer.keys.transpose(0, 2, 1)).reshape(kv_heads, -1, window, n) / np.float32(
        width**0.5
    )
    own = logits[..., n - window :]
    own[..., np.triu(np.ones((window, window), dtype=bool), k=1)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    before: Array = weights[..., : n - window]
    return before


def average_pool(votes: Array, kernel: int) -> Array:
    """Mean over `kernel` neighbours along the last axis; beyond the ends stand zeros, which count."""
    length, reach = votes.shape[-1], kernel // 2
    padded = np.pad(votes, [(0, 0)] * (votes.ndim - 1) + [(reach, reach)])
    pooled = np.zeros_like(votes)
    for shift in range(kernel):
        pooled += padded[..., shift : shift + length]
    return pooled / np.float32(kernel)


def _always_keep(scores: Array, last: int) -> Array:
    """Append `last` positions that score above all others."""
    return np.pad(scores, ((0, 0), (0, last)), constant_values=scores.max() + 1)


def snapkv(layer: LayerPrefill, parameters: Parameters, replicate: int) -> Array:
    """The window at the end of the prompt, and what it attends to, smoothed over neighbours.

    Neighbours that share a single peak score the same; the later ones are kept.
    """
    n = layer.keys.shape[1]
    window, kernel = min(parameters["window"], n - 1), parameters["kernel"]
    votes = window_attention(layer, window).mean(axis=2)
    return _always_keep(average_pool(votes, kernel).mean(axis=1), window)


def streaming_llm(layer: LayerPrefill, parameters: Parameters, replicate: int) -> Array:
    """The first `n_sink` positions (attention sinks), then the most recent ones."""
    kv_heads, n, _ = layer.keys.shape
    sinks = parameters["n_sink"]
    if n <= sinks:
        raise ValueError(
            f"streaming_llm needs a prompt longer than its n_sink = {sinks} positions; this one has {n}"
        )
    scores = np.arange(n, dtype=np.float64)
    # A budget below n_sink keeps the earliest sinks.
    scores[:sinks] = 2 * n - scores[:sinks]
    return np.tile(scores, (kv_heads, 1))


def observed_attention(layer: LayerPrefill, parameters: Parameters, replicate: int) -> Array:
    """The attention received, divided by the number of queries that could see the position."""
    if layer.received is None:
        raise ValueError("observed_attention needs the attention sums of the prefill")
    n = layer.keys.shape[1]
    return layer.received / np.arange(n, 0, -1, dtype=np.float32)


def tova(layer: LayerPrefill, parameters: Parameters, replicate: int) -> Array:
    """The last position, and what it attends to, averaged over all heads of the layer."""
    kv_heads, n, _ = layer.keys.shape
    votes = window_attention(layer, 1).reshape(-1, n - 1).mean(axis=0)
    return _always_keep(np.tile(votes, (kv_heads, 1)), 1)


def knorm(layer: LayerPrefill, parameters: Parameters, replicate: int) -> Array:
    """Keys with a small norm first: they tend to receive much attention.

    In layer 0 the keys of one word have the same norm wherever it stands, so there rounding chooses among its places.
    """
    norms: Array = np.sqrt((layer.keys * layer.keys).sum(axis=-1))
    return -norms


def random(layer: LayerPrefill, parameters: Parameters, replicate: int) -> Array:
    """A draw that depends on the example, the layer and the replicate, and on nothing else.

    A larger budget keeps a superset, whatever other budgets there are.
    """
    return random_scores(layer.example_id, layer.index, replicate, layer.keys.shape[:2])


def random_scores(example_id: str, layer: int, replicate: int, shape: Sequence[int]) -> Array:
    """Numbers from 0 to 1 for the (KV heads, positions) of a layer, the same on every machine and in every engine."""
    name = f"{example_id}|{layer}|{replicate}"
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:16], "big")
    return np.random.Generator(np.random.PCG64(seed)).random(tuple(shape))


def top_positions(scores: Array, k: int) -> Indices:
    """Positions of the `k` highest scores of each KV head.

    Parameters
    ----------
    scores : (K, n).
    k : 1 to n. Each budget is cut from the scores themselves.

    Returns
    -------
    (K, k) positions in ascending order. Of equal scores at the cut the later position is kept, on every machine.

    Raises
    ------
    ValueError
        When scores are not numbers.
    """
    if np.isnan(scores).any():
        raise ValueError(
            "the eviction's scores are not numbers; the model's keys or attention have overflowed"
        )
    heads, n = scores.shape
    cut = np.partition(scores, n - k, axis=1)[:, n - k, None]
    kept = scores >= cut
    if np.count_nonzero(kept) > heads * k:
        above, level = scores > cut, scores == cut
        room = k - above.sum(axis=1, keepdims=True)
        from_the_end = level[:, ::-1].cumsum(axis=1)[:, ::-1]
        kept = above | (level & (from_the_end <= room))
    return np.nonzero(kept)[1].reshape(heads, k)


@dataclass(frozen=True)
class Eviction:
    """A score, and how positions are chosen by it."""

    score: Callable[[LayerPrefill, Parameters, int], Array]
    select: Callable[[Array, int], Indices] = top_positions
    needs_received: bool = False


#: Method name -> eviction; the cards of the same names are in `methods.KNOWN_METHODS`.
EVICTIONS: Mapping[str, Eviction] = MappingProxyType(
    {
        "snapkv": Eviction(snapkv),
        "streaming_llm": Eviction(streaming_llm),
        "observed_attention": Eviction(observed_attention, needs_received=True),
        "tova": Eviction(tova),
        "knorm": Eviction(knorm),
        "random": Eviction(random),
    }
)
