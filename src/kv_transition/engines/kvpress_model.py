"""A causal language model of transformers, ready for kvpress, or one line that says why it cannot be used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.engines.failures import is_out_of_memory
from kv_transition.engines.kvpress_settings import check_model_config, require_packages
from kv_transition.errors import UserError

if TYPE_CHECKING:
    from kv_transition.engines.base import Cell

log = logging.getLogger(__name__)

#: Attention weights that kvpress computes from a model's queries may differ from the model's own by this much.
TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05}
#: Tokens of the text on which that is checked.
PROBE_TOKENS = 24


@dataclass(frozen=True)
class LoadedModel:
    """A model and what the engine has to know of it.

    Attributes
    ----------
    model : the causal model, in evaluation mode.
    attention : the attention module of each layer.
    longest : tokens that the model reads.
    kv_heads, width : KV heads, and numbers in a key, of every layer.
    tested : whether kvpress is tested with models of this class.
    """

    model: Any
    attention: tuple[Any, ...]
    longest: int
    kv_heads: int
    width: int
    tested: bool = True

    @property
    def device(self) -> Any:
        """Where it is."""
        return self.model.device

    def tokens(self, ids: Sequence[int]) -> Any:
        """A batch of one, on the model's device."""
        import torch

        return torch.tensor([list(ids)], dtype=torch.long, device=self.device)

    def probe(self) -> list[int]:
        """A short text on which a model is checked: tokens from all over its vocabulary."""
        size = int(self.model.config.vocab_size)
        spacing = max(size // (PROBE_TOKENS + 1), 1)
        return [(number + 1) * spacing % size for number in range(PROBE_TOKENS)]

    def wait(self) -> None:
        """Until a GPU has done all that it was told."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        """Let a GPU have back what is not in use any more."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    @contextmanager
    def seeded(self, ids: Sequence[int], cell: Cell) -> Iterator[None]:
        """Let torch draw by a seed that follows from the prompt and the cell; what others draw is not touched."""
        import torch

        name = f"{cell.method}|{cell.label}|{cell.replicate}|{' '.join(map(str, ids))}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def clear_masks(self) -> None:
        """Forget which positions AdaKV masked: the marks are on the modules, and would spoil the next answer."""
        for module in self.attention:
            module.masked_key_indices = None


@contextmanager
def offline() -> Iterator[None]:
    """Let no press fetch anything from the hub: what it needs has to be in the hub's cache on this machine."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def load_model(folder: Path, device: str, dtype: str, attn_implementation: str) -> LoadedModel:
    """Load a model folder.

    Parameters
    ----------
    device : "cpu" or "cuda".
    dtype : "float32", "bfloat16" or "float16".
    attn_implementation : "sdpa" or "eager".

    Raises
    ------
    UserError
        When the extra is missing, the folder is no model, weights are missing, or kvpress cannot compress it rightly.
    """
    require_packages()
    import kvpress
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # What it says of a model that it does not know, it would say at every press; it is said once below.
    logging.getLogger("kvpress.presses.base_press").setLevel(logging.ERROR)
    where = str(folder)
    if not (folder / "config.json").is_file():
        what = "config.json" if folder.is_dir() else "folder"
        raise UserError(
            f"{where}: no such {what}; model.path must be the folder of a model (config.json, *.safetensors, tokenizer.json)"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        check_model_config(config.to_dict(), where)
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        model = model.to(device).eval().requires_grad_(False)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or unknown model makes transformers say
        refuse_without_memory(error, where)
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: transformers cannot load this model: {reason}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(f"{where}: the model's weights lack {missing[0]}; fetch the model's files again")
    attention = _attention_modules(model, where)
    tested = isinstance(model, kvpress.presses.base_press.SUPPORTED_MODELS)
    found = LoadedModel(
        model,
        attention,
        longest=int(config.max_position_embeddings),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        width=int(attention[0].head_dim),
        tested=tested,
    )
    if not tested:
        _check_queries(found, dtype, where)
        log.warning(
            "%s is not among the models that kvpress is tested with; on a short text it computes the attention as the model does",
            type(model).__name__,
        )
    return found


def refuse_without_memory(error: BaseException, where: str) -> None:
    """Say in one line where an error is that the model does not fit into memory.

    Raises
    ------
    UserError
    """
    if is_out_of_memory(error):
        raise UserError(
            f"{where}: the model does not fit into memory (beside what else is in it); end other programs there, set a smaller "
            "engine.dtype, or use a smaller model"
        ) from None


def _attention_modules(model: Any, where: str) -> tuple[Any, ...]:
    """The attention module of each layer, made as kvpress makes them."""
    name = type(model).__name__
    decoder = getattr(model, "model", None)
    layers = getattr(decoder, "layers", None) or ()
    rotary = getattr(decoder, "rotary_emb", None)
    parts = ("layer_idx", "head_dim", "config")
    fits = bool(layers) and rotary is not None and hasattr(model.config, "max_position_embeddings")
    if not fits or not all(
        hasattr(layer, "self_attn")
        and all(hasattr(layer.self_attn, part) for part in parts)
        and (hasattr(layer.self_attn, "k_proj") or hasattr(layer.self_attn, "qkv_proj"))
        for layer in layers
    ):
        raise UserError(
            f"{where}: {name} is not built as kvpress expects (decoder layers with self_attn and rotary positions), so its "
            "cache cannot be compressed; use a model such as Llama, Mistral, Qwen2, Qwen3 or Phi3"
        )
    for layer in layers:
        # As kvpress does: expected attention looks for it there.
        layer.self_attn.rotary_emb = rotary
    return tuple(layer.self_attn for layer in layers)


def _check_queries(loaded: LoadedModel, dtype: str, where: str) -> None:
    """Compare what kvpress takes for the last queries' attention with the model's own, on every layer of a short text.

    Normed queries, other rotary conventions, scaled or capped logits: an architecture that kvpress does not know may
    compute any of these differently, and its scores would be wrong without a word.
    """
    import torch
    from kvpress import SnapKVPress

    model, window, worst = loaded.model, 4, []
    ids = loaded.tokens(loaded.probe())

    def compare(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        keys = kwargs["past_key_values"].layers[module.layer_idx].keys
        theirs = SnapKVPress.compute_window_attention(
            module, kwargs["hidden_states"], keys, window, kwargs["position_embeddings"]
        )
        worst.append(float((theirs - output[1][..., -window:, :-window]).abs().max()))

    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    hooks = [module.register_forward_hook(compare, with_kwargs=True) for module in loaded.attention]
    try:
        with torch.no_grad():
            model(ids, past_key_values=_empty_cache(), use_cache=True, logits_to_keep=1)
        agrees = max(worst) <= TOLERANCE[dtype]
    except Exception as error:  # shapes that do not fit, attention weights that are not told
        refuse_without_memory(error, where)
        agrees = False
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)
    if not agrees:
        raise UserError(
            f"{where}: kvpress does not compute the attention of {type(model).__name__} as the model does, so its scores "
            "would be wrong; use a model such as Llama, Mistral, Qwen2, Qwen3 or Phi3"
        )


def _empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()
