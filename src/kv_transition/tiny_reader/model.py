"""The tiny reader: a Llama of 340 thousand parameters, written for training on packed questions.

Parameter names and arithmetic are those of Hugging Face's LlamaForCausalLM, so that its weights load there unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kv_transition.data.synthetic import VOCABULARY


@dataclass(frozen=True)
class ReaderConfig:
    """Shape of the model; :meth:`to_dict` is its config.json."""

    vocab_size: int = len(VOCABULARY)
    hidden_size: int = 128
    intermediate_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rope_theta: float = 5e5
    rms_norm_eps: float = 1e-5
    #: Far beyond what it was trained on: rotary positions have no table, and a longer prompt is the user's business.
    max_position_embeddings: int = 32768

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        """The fields of Hugging Face's LlamaConfig."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "attention_bias": True,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "initializer_range": 0.02,
            "bos_token_id": VOCABULARY.index("<s>"),
            "eos_token_id": VOCABULARY.index("</s>"),
            "dtype": "float32",
        }


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; biases on all four projections."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return mixed


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    @property
    def blocks(self) -> list[Block]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, Block)]


class TinyReader(nn.Module):
    """The model; the output matrix is the embedding."""

    def __init__(self, config: ReaderConfig | None = None) -> None:
        super().__init__()
        self.config = config or ReaderConfig()
        self.model = Decoder(self.config)
        initialise(self)

    def hidden(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Final hidden states.

        Parameters
        ----------
        ids, positions : (batch, length) token ids and rotary positions.
        mask : (batch, 1, length, length) added to the attention logits: 0 where a token may look, -inf elsewhere.

        Returns
        -------
        (batch, length, hidden_size)
        """
        cos, sin = _rotary(positions, self.config)
        x = self.model.embed_tokens(ids)
        for block in self.model.blocks:
            x = block(x, cos, sin, mask)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden_size) to (..., vocab_size)."""
        return F.linear(hidden, self.model.embed_tokens.weight)


#: How many tokens back heads look at the start, per layer. A question's names stand 2 and 8 tokens before its end.
LOOKS_BACK = ((1, 2, 3, 4), (4, 2), (2, 8))


def initialise(reader: TinyReader, amplitude: float = 6.0) -> None:
    """Random weights, heads that look a fixed number of tokens back, and heads that copy.

    The heads of the first layer look back by position alone: their query and key matrices are zero and stay so. Heads
    of the later layers start as copiers: the output matrix is the value matrix transposed. Copying a phrase needs both
    kinds of heads, and finding them takes most of the training when they are not given.
    """
    config = reader.config
    nn.init.normal_(reader.model.embed_tokens.weight, std=config.hidden_size**-0.5)
    for index, (block, looks) in enumerate(zip(reader.model.blocks, LOOKS_BACK, strict=True)):
        for name, parameter in block.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                quiet = name.endswith(("q_proj.weight", "k_proj.weight", "o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 if quiet else config.hidden_size**-0.5)
        with torch.no_grad():
            if index > 0:
                _copy(block.self_attn, config)
            _look_back(block.self_attn, looks, amplitude, config)
    first = reader.model.blocks[0].self_attn
    for projection in (first.q_proj, first.k_proj):
        nn.init.zeros_(projection.weight)
        projection.weight.requires_grad_(False)


def _copy(attention: Attention, config: ReaderConfig) -> None:
    """Orthogonal value matrix; each head writes back what its KV head read."""
    group = config.num_attention_heads // config.num_key_value_heads
    nn.init.orthogonal_(attention.v_proj.weight)
    read = attention.v_proj.weight.view(-1, config.head_dim, config.hidden_size)
    attention.o_proj.weight.copy_(0.25 * read.repeat_interleave(group, 0).reshape(-1, config.hidden_size).T)


def _look_back(attention: Attention, looks: tuple[int, ...], amplitude: float, config: ReaderConfig) -> None:
    """Biases that make head i look `looks[i]` tokens back.

    A key bias of `amplitude` in every rotary pair, and a query bias turned by -k times the pair's frequency, give an
    attention logit that is largest k tokens back.
    """
    group = config.num_attention_heads // config.num_key_value_heads
    frequencies = _frequencies(config)
    straight = torch.cat([torch.ones_like(frequencies), torch.zeros_like(frequencies)])
    for head, back in enumerate(looks):
        turned = torch.cat([torch.cos(back * frequencies), -torch.sin(back * frequencies)])
        query, key = head * config.head_dim, head // group * config.head_dim
        attention.q_proj.bias[query : query + config.head_dim] = amplitude * turned
        attention.k_proj.bias[key : key + config.head_dim] = amplitude * straight


def _frequencies(config: ReaderConfig) -> Tensor:
    pairs = config.head_dim // 2
    return torch.exp(torch.arange(pairs) * (-math.log(config.rope_theta) / pairs))


def _rotary(positions: Tensor, config: ReaderConfig) -> tuple[Tensor, Tensor]:
    angles = positions[:, None, :, None].float() * _frequencies(config)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
