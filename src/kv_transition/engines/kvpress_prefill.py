"""One prefill of a transformers model in which the presses of many cells cut every layer as it is done."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kv_transition.engines.base import Cell
from kv_transition.engines.kvpress_caches import TorchCache
from kv_transition.engines.kvpress_presses import compress


class SharedPrefill:
    """Calls each press on every layer of one prefill, as that layer is done.

    Attributes
    ----------
    seconds : method -> time spent on its presses.
    """

    def __init__(self, caches: Sequence[TorchCache], presses: Mapping[Cell, Any]) -> None:
        self.caches, self.presses = caches, presses
        self.seconds: dict[str, float] = defaultdict(float)
        self._scores: dict[tuple[str, int], Any] = {}
        #: Whether any score so far is not a number: looked at after the prefill, because a look waits for the GPU.
        self._bad: dict[tuple[str, int], Any] = {}
        for cell, press in presses.items():
            press.score = self._once_per_layer(cell, press.score)

    def _once_per_layer(self, cell: Cell, score: Callable[..., Any]) -> Callable[..., Any]:
        """A method's scores do not depend on its budget; each budget is cut from the scores themselves."""
        key = cell.method, cell.replicate

        def remembered(*args: Any) -> Any:
            if key not in self._scores:
                scores = self._scores[key] = score(*args)
                bad = torch.isnan(scores).any()
                self._bad[key] = self._bad[key] | bad if key in self._bad else bad
            return self._scores[key]

        return remembered

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """What a layer's attention module calls when it is done."""
        whole = kwargs["past_key_values"].layers[module.layer_idx]
        self.cut(module, kwargs["hidden_states"], whole.keys, whole.values, output[1], kwargs)

    def cut(self, module: Any, hidden: Any, keys: Any, values: Any, attentions: Any, kwargs: Any) -> None:
        """Let every cell take its part of a layer's whole keys and values, (1, K, n, d) each."""
        shared = [tensor for tensor in (keys, values, hidden) if tensor is not None]
        versions = [tensor._version for tensor in shared]
        for cache in self.caches:
            begin = time.perf_counter()
            if cache.error is None and cache.keep is None:
                cache.add(keys, values)
            elif cache.error is None:
                try:
                    press = self.presses[cache.cell]
                    cache.add(*compress(press, module, hidden, keys, values, attentions, kwargs))
                except Exception as error:  # one method's failure is that cell's, never the example's
                    cache.fail(error)
                if versions != [tensor._version for tensor in shared]:
                    raise RuntimeError(
                        f"{cache.cell.method} changed the keys, values or hidden states that all cells share"
                    )
            self.seconds[cache.cell.method] += time.perf_counter() - begin
        self._scores.clear()

    def release(self) -> None:
        """Give the presses their own scores back."""
        for press in self.presses.values():
            del press.score

    def finish(self) -> None:
        """After the prefill: prove the budgets, and fail the cells whose scores were not numbers."""
        for cache in self.caches:
            bad = self._bad.get((cache.cell.method, cache.cell.replicate))
            if cache.keep is not None and bad is not None and bool(bad):
                cache.fail(
                    ValueError(
                        "the eviction's scores are not numbers; the model's keys or attention have overflowed"
                    )
                )
            cache.measure()
