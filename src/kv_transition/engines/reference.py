"""The reference engine: numpy only, one prefill for all cells, every budget read back from the cache's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kv_transition.engines.base import Cell, Decoding, EngineResult, PromptCells
from kv_transition.engines.evictions import EVICTIONS
from kv_transition.engines.greedy import Ending
from kv_transition.engines.llama import Llama
from kv_transition.engines.local import Asked, LocalEngine
from kv_transition.engines.sweep import (
    FirstToken,
    Reading,
    Scope,
    Split,
    Swept,
    answer_cells,
    read_cells,
)
from kv_transition.engines.weights import read_config, read_weights

#: Most prompts that are decoded together; fewer where their caches are larger than this, in bytes.
PROMPTS_TOGETHER = 32
BYTES_TOGETHER = 16 * 2**20


@dataclass(frozen=True)
class _Begun:
    """A prompt that was read, and is not answered yet."""

    one: PromptCells
    asked: Asked
    reading: Reading


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
        reading = read_cells(self.model, ids, split, cells, self.parameters, example_id, self.contexts)
        return answer_cells(self.model, [reading], ending)[0]

    def sweep_all(
        self, asked: Sequence[PromptCells], decoding: Decoding
    ) -> Iterator[Sequence[Sequence[EngineResult]]]:
        """Answer prompts, each at its cells; in scope `prompt` those of several are decoded together.

        A small model spends most of a decoding step on what does not depend on the number of answers. No answer depends on
        which ones it is decoded with.
        """
        if self.scope == "context":
            # One question after the other, so that a context that they share is read once.
            yield from super().sweep_all(asked, decoding)
            return
        ending = self._ending(decoding, None)
        begun: list[_Begun] = []
        for number, one in enumerate(asked, 1):
            if number < len(asked):
                self.read_ahead(asked[number].prompt)
            try:
                begun.append(self._begin(one))
                alone = False
            except Exception:  # `sweep` says what is wrong with it, when those before it are answered
                alone = True
            held = sum(each.reading.decoded_bytes for each in begun)
            if alone or len(begun) == PROMPTS_TOGETHER or held >= BYTES_TOGETHER or number == len(asked):
                yield from self._finish(begun, decoding, ending)
            if alone:
                yield [self.sweep(one.prompt, one.cells, decoding, one.example_id)]

    def _begin(self, one: PromptCells) -> _Begun:
        asked = self._asked(one.prompt, one.cells, one.example_id)
        split, live = self._split(asked)
        reading = read_cells(self.model, asked.ids, split, live, self.parameters, one.example_id)
        return _Begun(one, asked, reading)

    def _finish(
        self, begun: list[_Begun], decoding: Decoding, ending: Ending
    ) -> Iterator[Sequence[Sequence[EngineResult]]]:
        """The answers of prompts that were read, and none is left; where there is no memory for all, one after the other."""
        try:
            swept = answer_cells(self.model, [each.reading for each in begun], ending)
            results = [
                each.asked.results(each.reading.split, own, "sweep")
                for each, own in zip(begun, swept, strict=True)
            ]
        except Exception:  # behind it nothing is held of what did not fit
            results = []
        prompts = [each.one for each in begun]
        begun.clear()
        if results:
            yield results
            return
        for one in prompts:
            yield [self.sweep(one.prompt, one.cells, decoding, one.example_id)]
