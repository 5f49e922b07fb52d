"""The reference engine: numpy only, one prefill for all cells, every budget read back from the cache's arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kv_transition.engines.base import Cell
from kv_transition.engines.evictions import EVICTIONS
from kv_transition.engines.greedy import Ending
from kv_transition.engines.llama import Llama
from kv_transition.engines.local import LocalEngine
from kv_transition.engines.sweep import FirstToken, Scope, Split, Swept, sweep_cells
from kv_transition.engines.weights import read_config, read_weights


class ReferenceEngine(LocalEngine):
    """Answers with a Llama model in numpy (float32), from caches pruned by the methods of `evictions.py`.

    Parameters
    ----------
    model_path : a folder with config.json, safetensors weights and a tokenizer.
    scope, first_token, methods, unknown_token_limit : as of `LocalEngine`.

    Raises
    ------
    UserError
        When the folder is no model that this engine computes exactly, or the settings contradict each other.
    """

    offered = tuple(EVICTIONS)

    def __init__(
        self,
        model_path: str | Path,
        scope: Scope = "prompt",
        first_token: FirstToken = "full",
        methods: Mapping[str, Mapping[str, Any]] | None = None,
        unknown_token_limit: float = 0.2,
    ) -> None:
        self.config = read_config(Path(model_path))
        super().__init__(model_path, scope, first_token, methods or {}, unknown_token_limit)
        self.longest = self.config.max_position_embeddings
        self.model = Llama(self.config, read_weights(self.path))

    def provenance(self) -> dict[str, Any]:
        """Class, protocol, versions, and the hash of the tokenizer; the caller knows that of the model."""
        return {
            **super().provenance(),
            "dtype": "float32",
            "numpy": np.__version__,
            **self.tokenizer.provenance,
        }

    def _sweep_cells(
        self, ids: Sequence[int], split: Split, cells: Sequence[Cell], ending: Ending, example_id: str
    ) -> Swept:
        return sweep_cells(self.model, ids, split, cells, self.parameters, ending, example_id, self.contexts)
