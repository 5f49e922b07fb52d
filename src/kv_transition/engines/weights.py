"""A model folder: what config.json says and the weights as float32 arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transition.errors import UserError

Array = NDArray[np.float32]

ARCHITECTURES = ("LlamaForCausalLM",)


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama model; names as in its config.json."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope: Mapping[str, Any]

    def inverse_frequencies(self) -> Array:
        """Rotary frequencies (radians per position), shape (head_dim / 2,), with the config's scaling.

        Computed in float32 throughout, as the models were trained and as transformers does.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        plain = np.asarray(1 / np.float32(self.rope["rope_theta"]) ** exponents, dtype=np.float32)
        if self.rope["rope_type"] == "linear":
            plain /= np.float32(self.rope["factor"])
        if self.rope["rope_type"] == "llama3":
            plain = _llama3_frequencies(plain, self.rope)
        return plain


def _llama3_frequencies(plain: Array, rope: Mapping[str, Any]) -> Array:
    """Long wavelengths slowed down by `factor`, short ones untouched, a smooth passage in between."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / np.float32(2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray((1 - share) * plain / factor + share * plain, dtype=np.float32)


def _rope(raw: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The rotary settings, from `rope_parameters` (newer configs) or `rope_theta` and `rope_scaling`."""
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    rope.setdefault("rope_theta", raw.get("rope_theta", 10_000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise UserError(
            f"{source}: rope scaling {rope['rope_type']!r} is not supported by the reference engine; "
            "use a model with default, linear or llama3 positions"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{source}: partial_rotary_factor {rope['partial_rotary_factor']} is not supported by the reference engine; "
            "use a Llama model"
        )
    return rope


def _refuse_unsupported(raw: Mapping[str, Any], source: Path) -> None:
    architectures = raw.get("architectures") or ["none named"]
    if not set(architectures) & set(ARCHITECTURES):
        raise UserError(
            f"{source}: architecture {', '.join(architectures)} is not supported by the reference engine; "
            f"use a model of architecture {', '.join(ARCHITECTURES)}"
        )
    for key in ("sliding_window", "attention_chunk_size"):
        if raw.get(key) is not None and raw.get("use_sliding_window", True):
            raise UserError(
                f"{source}: {key} {raw[key]} is not supported: such a model drops positions by itself, so a KV budget "
                "would not mean what it says; use a model with full attention"
            )
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: hidden_act {raw['hidden_act']!r} is not supported; use a model with silu")
    if raw.get("quantization_config"):
        raise UserError(
            f"{source}: quantised weights are not supported; use float32, float16 or bfloat16 ones"
        )


def read_config(folder: str | Path) -> LlamaConfig:
    """Read config.json of a model folder.

    Raises
    ------
    UserError
        When the folder or the file is missing, or the model is not one that the reference engine computes exactly.
    """
    source = Path(folder) / "config.json"
    if not source.is_file():
        what = "config.json" if source.parent.is_dir() else "folder"
        raise UserError(
            f"{source.parent}: no such {what}; model.path must be the folder of a Llama model (config.json, *.safetensors, "
            "tokenizer.json)"
        )
    try:
        raw = json.loads(source.read_text(encoding="utf-8"))
        _refuse_unsupported(raw, source)
        heads = raw["num_attention_heads"]
        return LlamaConfig(
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            hidden_size=raw["hidden_size"],
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            rope=_rope(raw, source),
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not readable as JSON ({error}); fetch the model's files again") from None
    except KeyError as error:
        raise UserError(f"{source}: key {error} is missing; fetch the model's files again") from None


def _to_float32(data: bytes | bytearray, dtype: str) -> Array:
    """Numbers of a safetensors entry. numpy has no bfloat16: it is the upper half of a float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    kinds = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    if dtype not in kinds:
        raise UserError(
            f"weights of type {dtype} are not supported; give float32, float16 or bfloat16 weights"
        )
    return np.frombuffer(data, dtype=kinds[dtype]).astype(np.float32)


def _weight_files(folder: Path) -> list[Path]:
    """The shards named by the index, else every safetensors file of the folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{index}: not an index of weights; fetch the model's files again") from None
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"{index}: names {absent[0]}, which is not in the folder; fetch the model's files again"
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: no *.safetensors file; model.path must be a folder with the model's weights"
        )
    return files


def read_weights(folder: str | Path) -> dict[str, Array]:
    """All weights of a model folder by name, as float32.

    Raises
    ------
    UserError
        When there are none, a shard is missing, a file is damaged or a type is unsupported.
    """
    from safetensors import SafetensorError, deserialize

    weights: dict[str, Array] = {}
    for file in _weight_files(Path(folder)):
        try:
            for name, entry in deserialize(file.read_bytes()):  # type: ignore[no-untyped-call]
                weights[name] = _to_float32(entry["data"], entry["dtype"]).reshape(entry["shape"])
        except SafetensorError as error:
            raise UserError(f"{file}: not a safetensors file ({error}); fetch it again") from None
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    return weights
