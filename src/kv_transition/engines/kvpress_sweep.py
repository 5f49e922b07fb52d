"""One prefill of a transformers model for all cells whose presses may share it, one each for the others, then answers.

Presses prune a layer's cache after that layer's attention, so hidden states, keys and values of a prefill are the same
for all of them: each press's own `compress` is called on the whole keys and values, and what it returns is the cell's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from kv_transition.engines.base import Cell
from kv_transition.engines.greedy import Answer, Ending
from kv_transition.engines.kvpress_decoding import decode_cell
from kv_transition.engines.kvpress_model import LoadedModel
from kv_transition.engines.kvpress_presses import make_press
from kv_transition.engines.sweep import Split, Swept
from kv_transition.errors import UserError
from kv_transition.methods import KNOWN_METHODS


@dataclass
class TorchCache:
    """What a cell kept, or the error that befell it.

    Attributes
    ----------
    layers : keys and values of each layer, (1, K, kept, d) each; let go when the cell has been answered.
    masks : per layer the positions that are there but masked (AdaKV): indices of batch, KV head and position; None for
        none.
    kept, nbytes, position_bytes : as of `KeptCache`, read from the tensors and masks by `measure`.
    """

    cell: Cell
    keep: int | None
    layers: list[tuple[Any, Any]] = field(default_factory=list)
    masks: list[tuple[Any, Any, Any] | None] = field(default_factory=list)
    error: Exception | None = None
    kept: list[float] = field(default_factory=list)
    nbytes: int = 0
    position_bytes: int = 0

    def fail(self, error: Exception) -> None:
        """Keep the error and nothing else; a traceback would keep the tensors of every frame alive."""
        self.error = error.with_traceback(None)
        self.let_go()

    def let_go(self) -> None:
        """Free the tensors."""
        self.layers, self.masks = [], []

    def measure(self) -> None:
        """Read from the tensors what is kept, and prove the budget: else `error` is set."""
        if self.error is not None:
            return
        masks = self.masks or [None] * len(self.layers)
        self.kept = [
            keys.shape[2] - (0 if mask is None else _masked(mask) / keys.shape[1])
            for (keys, _), mask in zip(self.layers, masks, strict=True)
        ]
        each = [
            keys.shape[1] * (keys.shape[3] * keys.element_size() + values.shape[3] * values.element_size())
            for keys, values in self.layers
        ]
        self.position_bytes = sum(each)
        self.nbytes = round(sum(kept * size for kept, size in zip(self.kept, each, strict=True)))
        if self.keep is not None and not self._proved(self.keep):
            told = [round(positions, 2) for positions in self.kept]
            self.fail(
                RuntimeError(
                    f"{self.cell.method} kept {told} positions per layer where {self.keep} were asked for"
                )
            )

    def _proved(self, keep: int) -> bool:
        card = KNOWN_METHODS.get(self.cell.method)
        if card is not None and card.layerwise:
            return abs(sum(self.kept) / len(self.kept) - keep) <= 0.5
        return all(positions == keep for positions in self.kept)


def _masked(mask: tuple[Any, Any, Any]) -> int:
    """Masked (KV head, position) pairs, each counted once."""
    _, heads, positions = mask
    if not len(positions):
        return 0
    seen = torch.zeros(
        int(heads.max()) + 1, int(positions.max()) + 1, dtype=torch.bool, device=positions.device
    )
    seen[heads, positions] = True
    return int(seen.sum())


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
        for cell, press in presses.items():
            press.score = self._once_per_layer(cell, press.score)

    def _once_per_layer(self, cell: Cell, score: Callable[..., Any]) -> Callable[..., Any]:
        """A method's scores do not depend on its budget; each budget is cut from the scores themselves."""
        key = cell.method, cell.replicate

        def remembered(*args: Any) -> Any:
            if key not in self._scores:
                scores = score(*args)
                if torch.isnan(scores).any():
                    raise ValueError(
                        "the eviction's scores are not numbers; the model's keys or attention have overflowed"
                    )
                self._scores[key] = scores
            return self._scores[key]

        return remembered

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """What a layer's attention module calls when it is done."""
        whole = kwargs["past_key_values"].layers[module.layer_idx]
        keys, values, hidden = whole.keys, whole.values, kwargs["hidden_states"]
        versions = [tensor._version for tensor in (keys, values, hidden)]
        for cache in self.caches:
            begin = time.perf_counter()
            if cache.error is None and cache.keep is None:
                cache.layers.append((keys, values))
            elif cache.error is None:
                try:
                    press = self.presses[cache.cell]
                    cache.layers.append(press.compress(module, hidden, keys, values, output[1], kwargs))
                except Exception as error:  # one method's failure is that cell's, never the example's
                    cache.fail(error)
                if versions != [tensor._version for tensor in (keys, values, hidden)]:
                    raise RuntimeError(
                        f"{cache.cell.method} changed the keys, values or hidden states that all cells share"
                    )
            self.seconds[cache.cell.method] += time.perf_counter() - begin
        self._scores.clear()


def sweep_cells(
    loaded: LoadedModel,
    ids: Sequence[int],
    split: Split,
    cells: Sequence[Cell],
    parameters: Mapping[str, Mapping[str, Any]],
    may_share: frozenset[str],
    ending: Ending,
    example_id: str,
) -> Swept:
    """Answer one prompt at distinct cells, each active or uncompressed.

    Parameters
    ----------
    may_share : methods whose cells take part in the shared prefill.

    Raises
    ------
    UserError
        For parameters that make no press.
    """
    sweep = _Sweep(loaded, ids, split, ending)
    caches = {cell: sweep.empty_cache(cell) for cell in cells}
    presses = {
        cell: make_press(
            cell.method, parameters[cell.method], cache.keep, split.press_len, example_id, cell.replicate
        )
        for cell, cache in caches.items()
        if cache.keep is not None
    }
    together = [cell for cell in cells if cell not in presses or cell.method in may_share]
    with torch.no_grad():
        try:
            if together:
                sweep.together([caches[cell] for cell in together], presses)
            for cell in cells:
                if cell not in together:
                    sweep.alone(caches[cell], presses[cell])
        finally:
            loaded.clear_masks()
    return Swept(
        caches=caches,
        answers={cell: sweep.answers[cell] for cell in cells if cell in sweep.answers},
        prefill_s=sweep.prefill_s,
        compress_s=sweep.compress_s,
        decode_s=sweep.decode_s,
        first_token=sweep.first_token,
        end=time.perf_counter(),
    )


class _Sweep:
    """One prompt's prefills and answers, and what took how long."""

    def __init__(self, loaded: LoadedModel, ids: Sequence[int], split: Split, ending: Ending) -> None:
        self.loaded, self.split, self.ending = loaded, split, ending
        self.prompt, self.tail = ids[: split.press_len], ids[split.press_len :]
        self.answers: dict[Cell, Answer] = {}
        self.prefill_s = self.decode_s = 0.0
        self.compress_s: dict[str, float] = defaultdict(float)
        self.first_token: float | None = None

    def empty_cache(self, cell: Cell) -> TorchCache:
        """What is to be kept of the positions that the eviction sees."""
        requested = self.split.requested(cell)
        return TorchCache(cell, None if requested is None else requested - self.split.refed)

    def together(self, caches: Sequence[TorchCache], presses: Mapping[Cell, Any]) -> None:
        """Cells that share a prefill: all are compressed on the way, then each is answered."""
        own = {cache.cell: presses[cache.cell] for cache in caches if cache.keep is not None}
        for press in own.values():
            press.post_init_from_model(self.loaded.model)
        shared, begin = SharedPrefill(caches, own), time.perf_counter()
        hooks = [module.register_forward_hook(shared, with_kwargs=True) for module in self.loaded.attention]
        try:
            logits, _ = self._read_prompt(caches)
        finally:
            for hook in hooks:
                hook.remove()
        self.prefill_s += time.perf_counter() - begin - sum(shared.seconds.values())
        for method, seconds in shared.seconds.items():
            self.compress_s[method] += seconds
        for cache in caches:
            cache.measure()
            self._decode(cache, logits)

    def alone(self, cache: TorchCache, press: Any) -> None:
        """A cell whose press gets a prefill of its own, under its own context manager."""
        begin = time.perf_counter()
        try:
            with press(self.loaded.model):
                logits, whole = self._read_prompt([])
            cache.layers = [(layer.keys, layer.values) for layer in whole.layers]
            cache.masks = [getattr(module, "masked_key_indices", None) for module in self.loaded.attention]
        except UserError:
            raise
        except Exception as error:
            cache.fail(error)
        finally:
            self.loaded.clear_masks()
        self.compress_s[cache.cell.method] += time.perf_counter() - begin
        cache.measure()
        if cache.error is None:
            self._decode(cache, logits)

    def _read_prompt(self, caches: Sequence[TorchCache]) -> tuple[Any, Any]:
        """(vocabulary,) logits after the compressed part and the cache it left; None for an empty part."""
        whole = DynamicCache()
        if not self.prompt:
            # Nothing stands before the question: every cell starts from empty keys and values.
            empty = torch.empty(
                1,
                self.loaded.kv_heads,
                0,
                self.loaded.width,
                dtype=self.loaded.model.dtype,
                device=self.loaded.device,
            )
            for cache in caches:
                cache.layers = [(empty, empty) for _ in self.loaded.attention]
            return None, whole
        output = self.loaded.model(
            self.loaded.tokens(self.prompt), past_key_values=whole, use_cache=True, logits_to_keep=1
        )
        return output.logits[0, -1], whole

    def _decode(self, cache: TorchCache, logits: Any) -> None:
        """The cell's answer; its tensors are let go afterwards, and what was measured of them stays."""
        begin = time.perf_counter()
        if cache.error is None:
            try:
                answer = decode_cell(
                    self.loaded,
                    cache.layers,
                    cache.masks,
                    self.tail,
                    self.split.press_len,
                    logits,
                    self.ending,
                    self._note_first_token,
                )
                self.answers[cache.cell] = answer
                cache.let_go()
            except Exception as error:
                cache.fail(error)
        self.decode_s += time.perf_counter() - begin

    def _note_first_token(self) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter()
