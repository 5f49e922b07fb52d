"""The engine kvpress: any causal model of transformers that kvpress can compress, on GPU or CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell, Decoding, EngineResult, TimingScope
from kv_transition.engines.greedy import Ending
from kv_transition.engines.kvpress_settings import (
    DECODE_BATCH,
    PACKAGES,
    require_packages,
    resolved_engine,
)
from kv_transition.engines.local import LocalEngine
from kv_transition.errors import ConfigError
from kv_transition.methods import KNOWN_METHODS

if TYPE_CHECKING:
    from kv_transition.engines.sweep import FirstToken, Scope, Split, Swept


class KVPressEngine(LocalEngine):
    """Answers with a model of transformers, from caches pruned by kvpress.

    Parameters
    ----------
    model_path : a folder with config.json, safetensors weights and a tokenizer.
    scope, first_token, methods, unknown_token_limit : as of `LocalEngine`. `methods` may hold presses given by their class
        (key `press`), as in kv.presses.
    device, dtype, attn_implementation, decode_batch : as in the section `engine` of the configuration.

    Raises
    ------
    UserError
        When the extra is missing, the folder is no model that can be compressed rightly, or the settings contradict each
        other.
    """

    def __init__(
        self,
        model_path: str | Path,
        scope: Scope = "prompt",
        first_token: FirstToken = "full",
        methods: Mapping[str, Mapping[str, Any]] | None = None,
        unknown_token_limit: float = 0.2,
        device: str = "auto",
        dtype: str = "float32",
        attn_implementation: str = "sdpa",
        decode_batch: int = DECODE_BATCH,
    ) -> None:
        require_packages()
        from kv_transition.engines.kvpress_decoding import check_decoding
        from kv_transition.engines.kvpress_model import load_model

        asked = {
            "kind": "kvpress",
            "device": device,
            "dtype": dtype,
            "attn_implementation": attn_implementation,
        }
        self.setting = resolved_engine(asked)
        super().__init__(model_path, scope, first_token, methods or {}, unknown_token_limit)
        self.loaded = load_model(
            self.path, self.setting["device"], self.setting["dtype"], attn_implementation
        )
        check_decoding(self.loaded, self.setting["dtype"], str(self.path))
        self.longest = self.loaded.longest
        self.decode_batch = decode_batch

    def _configure(
        self, scope: Scope, first_token: FirstToken, methods: Mapping[str, Mapping[str, Any]]
    ) -> None:
        from kv_transition.engines.kvpress_presses import FIXED, named_press

        super()._configure(scope, first_token, methods)
        named = {name: own for name, own in self.parameters.items() if "press" in own}
        for name, parameters in named.items():
            named_press(name, parameters)
        self.offered = (*(name for name in KNOWN_METHODS if name in FIXED), *named)

    def provenance(self) -> dict[str, Any]:
        """Class, protocol, versions, device, and the hash of the tokenizer; the caller knows that of the model."""
        import torch

        device = self.setting["device"]
        return {
            **super().provenance(),
            "dtype": self.setting["dtype"],
            "attn_implementation": self.setting["attn_implementation"],
            "device": device,
            "device_name": torch.cuda.get_device_name() if device == "cuda" else None,
            **{name: metadata.version(name) for name in PACKAGES},
            **({} if self.loaded.tested else {"untested_model": type(self.loaded.model).__name__}),
            **self.tokenizer.provenance,
        }

    @property
    def computation(self) -> dict[str, Any]:
        """Number format, attention, device and the version of kvpress."""
        return {name: self.setting[name] for name in ("dtype", "attn_implementation", "device", "kvpress")}

    def _check_offered(self, method: str) -> None:
        super()._check_offered(method)
        attention = self.setting["attn_implementation"]
        if method == "observed_attention" and attention != "eager":
            raise ConfigError(
                "engine.attn_implementation: observed_attention reads the attention weights, which only eager computes; set "
                "eager, or leave it out of kv.methods"
            )
        if method.startswith("adakv_") and attention == "eager":
            raise ConfigError(
                f"engine.attn_implementation: {method} masks positions, which eager attention does not do; set sdpa, or "
                "leave it out of kv.methods"
            )

    def _sweep_cells(
        self, ids: Sequence[int], split: Split, cells: Sequence[Cell], ending: Ending, example_id: str
    ) -> Swept:
        from kv_transition.engines.kvpress_presses import sharing
        from kv_transition.engines.kvpress_sweep import sweep_cells

        may_share = sharing(self.parameters, self.setting["kvpress"])
        return sweep_cells(
            *(self.loaded, ids, split, cells, self.parameters, may_share, ending, example_id),
            decode_batch=self.decode_batch,
            contexts=self.contexts,
        )

    def _answer(
        self,
        prompt: Prompt,
        cells: Sequence[Cell],
        decoding: Decoding,
        example_id: str,
        timing_scope: TimingScope,
        observe: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[EngineResult]:
        results = super()._answer(prompt, cells, decoding, example_id, timing_scope, observe)
        if self.setting["device"] == "cuda" and any(result.failure for result in results):
            import torch

            # Here no frame of the failed request is left: what it held must not make the next one fail.
            torch.cuda.empty_cache()
        return results
