"""What `engine.kind: kvpress` needs to be known before a model is loaded: the extra, the device, the number format."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from kv_transition.errors import ConfigError, UserError
from kv_transition.methods import SNAPKV_PRESETS, TEXT_METHODS

#: What the extra installs and the engine imports.
PACKAGES = ("torch", "transformers", "kvpress")
#: Cells that are decoded at once, unless the settings say otherwise.
DECODE_BATCH = 64


def require_packages() -> None:
    """Fail with one line where the extra is not installed. Cheap: imports nothing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"engine.kind: kvpress needs {', '.join(absent)}; install the extra: pip install 'kv-transition[kvpress]'"
        )


def resolved_engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The section `engine` with `auto` replaced by what it stands for on this machine, and kvpress's version.

    These are part of what determines an answer. Other engines have no choice here, and their section is left as it is.

    Raises
    ------
    UserError
        Where the extra is missing, or a GPU is asked for and there is none.
    """
    if engine["kind"] != "kvpress":
        return dict(engine)
    require_packages()
    device = engine.get("device", "auto")
    if device != "cpu":
        import torch

        found = torch.cuda.is_available()
        if device == "cuda" and not found:
            raise UserError(
                "engine.device: cuda is asked for and torch sees no GPU here; set auto or cpu, or install a torch for it"
            )
        device = "cuda" if found else "cpu"
    dtype = engine.get("dtype", "float32")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    attention = engine.get("attn_implementation", "sdpa")
    version = metadata.version("kvpress")
    return {**engine, "device": device, "dtype": dtype, "attn_implementation": attention, "kvpress": version}


def hub_model_folder(name: str, revision: str | None) -> Path:
    """Where the hub's cache on this machine has a model.

    Raises
    ------
    UserError
        When it has not: nothing of this size is fetched behind anybody's back.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError:
        raise UserError(
            f"model.name: {name!r} is no name of a model on the hub (owner/model), and model.path is null; name one, or the "
            "folder of a model in model.path"
        ) from None
    except (LocalEntryNotFoundError, FileNotFoundError):
        pinned = f" --revision {revision}" if revision else ""
        raise UserError(
            f"model.name: {name} is not in the hub's cache on this machine; fetch it with: hf download {name}{pinned}"
        ) from None


def check_granularity(
    methods: Sequence[str], presses: Mapping[str, Mapping[str, Any]], raw: Mapping[str, Any]
) -> None:
    """Refuse methods that keep positions for every query head beside those that keep them for every KV head.

    The same number of positions is then so many times the bytes, and one axis of budgets would compare unequal memory.

    Parameters
    ----------
    methods, presses : of the section `kv`.
    raw : config.json.

    Raises
    ------
    ConfigError
        Naming the press and the remedy.
    """
    heads = int(raw.get("num_attention_heads") or 1)
    group = heads // int(raw.get("num_key_value_heads") or heads)
    wide = [name for name in methods if name in presses and _per_query_head(presses[name])]
    others = [name for name in methods if name not in wide and name not in TEXT_METHODS]
    if group > 1 and wide and others:
        raise ConfigError(
            f"kv.presses.{wide[0]}: it keeps positions for every query head, {group} times the bytes that {others[0]} keeps at "
            "the same budget; set aggregation: mean, or give it an experiment of its own (bytes_kept is in its costs table)"
        )


def _per_query_head(press: Mapping[str, Any]) -> bool:
    preset = SNAPKV_PRESETS.get(str(press.get("press")), {})
    return bool({**preset, **press}.get("aggregation") == "per_query_head")


def check_model_config(raw: Mapping[str, Any], where: str) -> None:
    """Refuse models whose answers from a pruned cache would not mean what their budget says.

    Parameters
    ----------
    raw : config.json, or the configuration that transformers makes of it.

    Raises
    ------
    UserError
        For sliding windows and other attention that drops positions by itself, for rotary positions that change with the
        length that has been read, and for models that are no decoder of text alone.
    """
    longest = raw.get("max_position_embeddings") or 0
    for part in ("text_config", "vision_config", "audio_config"):
        if raw.get(part):
            raise UserError(f"{where}: {part}: models of several parts are not supported; use a text model")
    if raw.get("is_encoder_decoder"):
        raise UserError(f"{where}: encoder-decoder models are not supported; use a causal language model")
    others = sorted({str(kind) for kind in raw.get("layer_types") or ()} - {"full_attention"})
    uses = raw.get("use_sliding_window", True)
    for key in ("sliding_window", "attention_chunk_size"):
        window = raw.get(key)
        if window and uses and window < longest:
            raise UserError(
                f"{where}: {key} {window} is not supported: such a model drops positions by itself, so a KV budget would not "
                "mean what it says; use a model with full attention"
            )
    # A window that no prompt outgrows is none.
    if window_free := [
        kind for kind in others if kind != "sliding_attention" or not raw.get("sliding_window")
    ]:
        raise UserError(
            f"{where}: layers of type {', '.join(window_free)} are not supported: they keep no keys and values of all "
            "positions; use a model with full attention"
        )
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ("dynamic", "longrope", "su"):
        raise UserError(
            f"{where}: rotary positions of type {kind} are not supported: they change with the length that has been read, so "
            "kept keys and new queries would not fit; use a model with default, linear, llama3 or yarn positions"
        )
