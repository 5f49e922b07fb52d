"""A Llama model in numpy: a prefill that shows every layer's keys and values, and decoding from pruned caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transition.engines.attention import CacheGroup, causal_attention, rotary, rotate
from kv_transition.engines.evictions import LayerPrefill
from kv_transition.engines.weights import LlamaConfig
from kv_transition.errors import UserError

Array = NDArray[np.float32]
Ids = NDArray[np.int64]

#: Decoding fills its batch up to a multiple of this. BLAS rounds the rows of a matrix product differently in small
#: products and at the edge of its blocks (12 or 16 rows); whole blocks make an answer independent of how many other
#: cells are decoded beside it.
WHOLE_BLOCKS = 48

#: Rows of the feed-forward layer at once, in whole blocks: bounds the memory of a long prefill.
ROWS_AT_ONCE = 42 * WHOLE_BLOCKS


def filled_up(rows: Array) -> Array:
    """Rows (n, width) and zeros up to a multiple of `WHOLE_BLOCKS`."""
    missing = -len(rows) % WHOLE_BLOCKS
    return np.concatenate([rows, np.zeros((missing, rows.shape[1]), dtype=np.float32)])


def rms_norm(rows: Array, weight: Array, epsilon: float) -> Array:
    """Each row divided by its root mean square, times weight."""
    size = np.sqrt((rows * rows).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    result: Array = rows / size * weight
    return result


@dataclass(frozen=True)
class Projection:
    """A linear layer; several that read the same input are stacked into one."""

    weight: Array
    bias: Array | None

    def __call__(self, rows: Array) -> Array:
        result: Array = rows @ self.weight.T
        if self.bias is not None:
            result += self.bias
        return result


@dataclass(frozen=True)
class Layer:
    """The weights of one decoder layer."""

    attention_norm: Array
    query_key_value: Projection
    output: Projection
    mlp_norm: Array
    gate_up: Projection
    down: Projection


class Llama:
    """Weights of a LlamaForCausalLM, ready to run in float32.

    Parameters
    ----------
    config : the model's shape.
    weights : by their names in the safetensors files.

    Raises
    ------
    UserError
        When a weight is missing.
    """

    def __init__(self, config: LlamaConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self._frequencies = config.inverse_frequencies()

        def weight(name: str) -> Array:
            if name not in weights:
                raise UserError(f"the model's weights lack {name}; fetch the model's files again")
            return weights[name]

        def projection(*names: str) -> Projection:
            biases = [weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights]
            stacked = np.concatenate([weight(f"{name}.weight") for name in names])
            return Projection(stacked, np.concatenate(biases) if biases else None)

        def layer(number: int) -> Layer:
            root = f"model.layers.{number}"
            return Layer(
                attention_norm=weight(f"{root}.input_layernorm.weight"),
                query_key_value=projection(*(f"{root}.self_attn.{part}_proj" for part in "qkv")),
                output=projection(f"{root}.self_attn.o_proj"),
                mlp_norm=weight(f"{root}.post_attention_layernorm.weight"),
                gate_up=projection(*(f"{root}.mlp.{part}_proj" for part in ("gate", "up"))),
                down=projection(f"{root}.mlp.down_proj"),
            )

        stacked_heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        self._embedding = weight("model.embed_tokens.weight")
        self._layers = [layer(number) for number in range(config.num_hidden_layers)]
        if any(len(layer.query_key_value.weight) != stacked_heads for layer in self._layers):
            raise UserError(
                "the model's attention weights do not have the shape that its config.json gives "
                "(num_attention_heads, num_key_value_heads, head_dim); fetch the model's files again"
            )
        self._norm = weight("model.norm.weight")
        self._head = self._embedding if config.tie_word_embeddings else weight("lm_head.weight")

    def _heads(self, layer: Layer, rows: Array) -> Array:
        """Queries, keys and values of normed rows, (n, H + 2K, d)."""
        config = self.config
        normed = rms_norm(rows, layer.attention_norm, config.rms_norm_eps)
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        return layer.query_key_value(normed).reshape(len(rows), heads, config.head_dim)

    def _add_mlp(self, layer: Layer, rows: Array) -> None:
        """In place: rows += the feed-forward layer, in blocks of rows."""
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            normed = rms_norm(part, layer.mlp_norm, self.config.rms_norm_eps)
            gate_up = layer.gate_up(normed)
            half = gate_up.shape[1] // 2
            gate, up = gate_up[:, :half], gate_up[:, half:]
            with np.errstate(over="ignore"):
                part += layer.down(gate / (1 + np.exp(-gate)) * up)

    def logits(self, rows: Array) -> Array:
        """Logits (n, vocabulary) of hidden rows (n, hidden_size)."""
        result: Array = rms_norm(rows, self._norm, self.config.rms_norm_eps) @ self._head.T
        return result

    def prefill(
        self,
        ids: Sequence[int],
        watch: Callable[[LayerPrefill], None],
        example_id: str = "",
        with_received: bool = False,
    ) -> Array:
        """Read a prompt, one layer after the other, and show each layer to `watch` before the next one runs.

        Evictions cut a layer's cache after its attention, so they change nothing in the layers above: one prefill
        serves every method and budget.

        Parameters
        ----------
        ids : (n,) token ids at positions 0 .. n - 1.
        with_received : fill :attr:`LayerPrefill.received`.

        Returns
        -------
        (vocabulary,) logits after the last token; zeros for an empty prompt.
        """
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        angles = rotary(self._frequencies, np.arange(len(ids)))
        rows = self._embedding[np.asarray(ids, dtype=np.int64)]
        for number, layer in enumerate(self._layers):
            stacked = self._heads(layer, rows)
            rotated = rotate(stacked[:, : heads + kv_heads], angles)
            # Arrays of their own: a cell that keeps everything keeps these alive, and nothing else.
            parts = rotated[:, :heads], rotated[:, heads:], stacked[:, heads + kv_heads :]
            queries, keys, values = (part.swapaxes(0, 1).copy() for part in parts)
            attended, received = causal_attention(queries, keys, values, with_received)
            rows += layer.output(attended.reshape(len(rows), heads * self.config.head_dim))
            self._add_mlp(layer, rows)
            watch(LayerPrefill(number, example_id, queries, keys, values, received))
        return self.logits(rows[-1:])[0] if len(rows) else np.zeros(len(self._head), dtype=np.float32)

    def extend(self, groups: Sequence[CacheGroup[Any]], tokens: Ids, positions: Ids) -> Array:
        """Append the same number of tokens to every cell's cache.

        Weights are read once for all cells; attention is computed for each group of equal caches.

        Parameters
        ----------
        tokens : (cells, new) ids, cells in the order of the groups and their rows.
        positions : (cells,) true positions of the first new tokens, whatever the caches still hold.

        Returns
        -------
        (cells, vocabulary) logits after the last new token.
        """
        heads, kv_heads, width = (
            self.config.num_attention_heads,
            self.config.num_key_value_heads,
            self.config.head_dim,
        )
        cells, new = tokens.shape
        angles = rotary(self._frequencies, positions[:, None] + np.arange(new))
        rows = filled_up(self._embedding[tokens.reshape(-1)])
        for number, layer in enumerate(self._layers):
            stacked = self._heads(layer, rows)[: cells * new].reshape(cells, new, -1, width)
            rotated = rotate(stacked[:, :, : heads + kv_heads], angles)
            attended, done = np.empty((cells, new, heads * width), dtype=np.float32), 0
            for group in groups:
                part = slice(done, done + len(group))
                queries, keys = rotated[part, :, :heads], rotated[part, :, heads:]
                values = stacked[part, :, heads + kv_heads :]
                attended[part] = group.attend(number, queries, keys, values)
                done = part.stop
            rows += layer.output(filled_up(attended.reshape(cells * new, -1)))
            self._add_mlp(layer, rows)
        for group in groups:
            group.used += new
        last = rows[: cells * new].reshape(cells, new, -1)[:, -1]
        return self.logits(filled_up(last))[:cells]
