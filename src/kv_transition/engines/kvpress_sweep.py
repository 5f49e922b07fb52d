"""One prefill of a transformers model for all cells whose presses may share it, one each for the others, then answers.

Presses prune a layer's cache after that layer's attention, so hidden states, keys and values of a prefill are the same
for all of them: each press's own `compress` is called on the whole keys and values, and what it returns is the cell's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from kv_transition.engines.base import Cell
from kv_transition.engines.contexts import SharedContext, is_drawn
from kv_transition.engines.failures import is_out_of_memory
from kv_transition.engines.greedy import Answer, Ending
from kv_transition.engines.kvpress_caches import TorchCache
from kv_transition.engines.kvpress_decoding import decode_cells
from kv_transition.engines.kvpress_groups import CellLayers, Shelf
from kv_transition.engines.kvpress_model import LoadedModel, offline
from kv_transition.engines.kvpress_prefill import SharedPrefill
from kv_transition.engines.kvpress_presses import is_layerwise, make_press
from kv_transition.engines.kvpress_settings import DECODE_BATCH
from kv_transition.engines.sweep import Split, Swept
from kv_transition.errors import UserError
from kv_transition.methods import KNOWN_METHODS

OVERFLOWED = (
    "the model's logits are not numbers: its arithmetic has overflowed; set engine.dtype: bfloat16 or float32"
)


@dataclass(frozen=True)
class Compressed:
    """What a compressed context is to the next question about it; nothing writes to these tensors.

    Attributes
    ----------
    kept : what each cell holds.
    whole : keys and values of each layer before any eviction, for cells that are drawn anew; empty without such.
    """

    kept: Mapping[Cell, CellLayers]
    whole: Sequence[tuple[Any, Any]]


def sweep_cells(
    loaded: LoadedModel,
    ids: Sequence[int],
    split: Split,
    cells: Sequence[Cell],
    parameters: Mapping[str, Mapping[str, Any]],
    may_share: frozenset[str],
    ending: Ending,
    example_id: str,
    decode_batch: int = DECODE_BATCH,
    contexts: SharedContext[Compressed] | None = None,
) -> Swept:
    """Answer one prompt at distinct cells, each active or uncompressed.

    Parameters
    ----------
    may_share : methods whose cells take part in the shared prefill.
    decode_batch : cells that are decoded at once.
    contexts : what the question before left of its context; where that is this prompt's too, there is no prefill.

    Raises
    ------
    UserError
        For parameters that make no press.
    """
    sweep = _Sweep(loaded, ids, split, ending, decode_batch)
    contexts = contexts or SharedContext()
    caches = {cell: sweep.empty_cache(cell, is_layerwise(cell.method, parameters)) for cell in cells}
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
            # Without a question the first token's logits are the context's own, which are not remembered.
            earlier = contexts.remembered(ids, split, cells) if sweep.tail else None
            if earlier is not None:
                sweep.again(caches, presses, earlier)
            else:
                sweep.remembers = contexts.wanted and bool(sweep.prompt and sweep.tail)
                if together:
                    sweep.together([caches[cell] for cell in together], presses)
                for cell in cells:
                    if cell not in together:
                        sweep.alone(caches[cell], presses[cell])
                drawn = any(is_drawn(cell) for cell in cells)
                sound = all(cache.error is None for cache in caches.values())
                # Where a kvpress that was not proved has drawn by itself, there is nothing to draw from again.
                if sweep.remembers and sound and (sweep.whole or not drawn):
                    contexts.remember(ids, split, cells, Compressed(sweep.kept, sweep.whole))
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
    """One prompt's prefills and answers, and what took how long.

    Attributes
    ----------
    remembers : whether what is kept is held for the next question, in `kept` and `whole`.
    """

    def __init__(
        self, loaded: LoadedModel, ids: Sequence[int], split: Split, ending: Ending, decode_batch: int
    ) -> None:
        self.loaded, self.split, self.ending, self.decode_batch = loaded, split, ending, decode_batch
        self.eager = loaded.model.config._attn_implementation == "eager"
        self.prompt, self.tail = ids[: split.press_len], ids[split.press_len :]
        self.answers: dict[Cell, Answer] = {}
        self.prefill_s = self.decode_s = 0.0
        self.compress_s: dict[str, float] = defaultdict(float)
        self.first_token: float | None = None
        self.remembers = False
        self.kept: dict[Cell, CellLayers] = {}
        self.whole: list[tuple[Any, Any]] = []

    def empty_cache(self, cell: Cell, layerwise: bool) -> TorchCache:
        """What is to be kept of the positions that the eviction sees."""
        requested = self.split.requested(cell)
        keep = None if requested is None else requested - self.split.refed
        return TorchCache(cell, keep, layerwise)

    def together(self, caches: Sequence[TorchCache], presses: Mapping[Cell, Any]) -> None:
        """Cells that share a prefill; those for which there is no memory get further ones, in halves.

        A single cell that does not fit by itself fails, and with it the example where nothing has been answered yet.
        """
        failure: Exception | None = None
        try:
            self._share(caches, presses)
        except Exception as error:
            failure = error.with_traceback(None)
        if failure is not None and not is_out_of_memory(failure):
            raise failure
        again = [
            cache
            for cache in caches
            if failure or (cache.error is not None and is_out_of_memory(cache.error))
        ]
        if not again:
            return
        self._forget_context()
        if len(caches) == 1:
            if failure is not None and not self.answers:
                raise failure
            caches[0].fail(failure or caches[0].error or MemoryError())
            return
        self.loaded.free_memory()
        half = -(-len(again) // 2)
        for part in (again[:half], again[half:]):
            for cache in part:
                cache.reset()
            if part:
                self.together(part, presses)

    def _forget_context(self) -> None:
        """Hold nothing for the next question: it may be what memory is lacking for."""
        self.remembers = False
        self.kept.clear()
        self.whole.clear()

    def _share(self, caches: Sequence[TorchCache], presses: Mapping[Cell, Any]) -> None:
        """One prefill: the cells are compressed on the way, then they are answered in batches."""
        self._give_places(caches)
        shared, begin = self._shared(caches, presses), time.perf_counter()
        hooks = [module.register_forward_hook(shared, with_kwargs=True) for module in self.loaded.attention]
        try:
            logits, whole = self._read_prompt(caches)
        except BaseException:
            # The presses and this prefill hold each other: what it has gathered would stay until the next collection.
            for cache in caches:
                cache.let_go()
            raise
        finally:
            for hook in hooks:
                hook.remove()
            shared.release()
        self.prefill_s += time.perf_counter() - begin - sum(shared.seconds.values())
        if self.remembers and any(is_drawn(cache.cell) for cache in caches):
            self.whole = [(layer.keys, layer.values) for layer in whole.layers]
        del whole
        self._note_seconds(shared)
        self._decode_all(caches, logits)

    def alone(self, cache: TorchCache, press: Any) -> None:
        """A cell whose press gets a prefill of its own, under its own context manager.

        A press that draws at random draws the same for the same prompt and cell.
        """
        begin = time.perf_counter()
        try:
            with self.loaded.seeded(self.prompt, cache.cell), offline(), press(self.loaded.model):
                logits, whole = self._read_prompt([])
            cache.layers = [(layer.keys, layer.values) for layer in whole.layers]
            cache.masks = [getattr(module, "masked_key_indices", None) for module in self.loaded.attention]
        except UserError:
            raise
        except Exception as error:
            cache.fail(error)
            logits = None
        finally:
            self.loaded.clear_masks()
        if self.remembers and cache.error is not None and is_out_of_memory(cache.error):
            self._forget_context()
            cache.reset()
            self.alone(cache, press)
            return
        self.compress_s[cache.cell.method] += time.perf_counter() - begin
        cache.measure()
        self._decode_all([cache], logits)

    def again(
        self, caches: Mapping[Cell, TorchCache], presses: Mapping[Cell, Any], earlier: Compressed
    ) -> None:
        """Cells of a context that has been compressed for another question; drawn ones are cut for this example."""
        drawn = []
        for cell, cache in caches.items():
            if is_drawn(cell):
                drawn.append(cache)
            else:
                cache.take_over(earlier.kept[cell])
                cache.measure()
        shared = self._shared(drawn, presses)
        whole = zip(self.loaded.attention, earlier.whole, strict=True) if drawn else ()
        for module, (keys, values) in whole:
            shared.cut(module, None, keys, values, None, {})
        shared.release()
        self._note_seconds(shared)
        self._decode_all(list(caches.values()), None)

    def _shared(self, caches: Sequence[TorchCache], presses: Mapping[Cell, Any]) -> SharedPrefill:
        own = {cache.cell: presses[cache.cell] for cache in caches if cache.keep is not None}
        for press in own.values():
            press.post_init_from_model(self.loaded.model)
        return SharedPrefill(caches, own)

    def _give_places(self, caches: Sequence[TorchCache]) -> None:
        """Let cells that will keep equally much stand together from the start, so that no batch has to copy them.

        Not where they are decoded in several batches: each needs room for its answer while it is decoded, not before.
        """
        if len(caches) > self.decode_batch:
            return
        alike: dict[tuple[int | None, str], list[TorchCache]] = defaultdict(list)
        for cache in caches:
            # Only what is known to keep as many positions of every layer and KV head stands beside other methods.
            own = cache.layerwise or cache.cell.method not in KNOWN_METHODS or is_drawn(cache.cell)
            alike[cache.keep, cache.cell.method if own else ""].append(cache)
        room = len(self.tail) + self.ending.max_new_tokens
        for group in alike.values():
            shelf = Shelf(len(group), room)
            for row, cache in enumerate(group):
                cache.shelf, cache.row = shelf, row

    def _note_seconds(self, shared: SharedPrefill) -> None:
        shared.finish()
        for method, seconds in shared.seconds.items():
            self.compress_s[method] += seconds

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
        # The clock is read next, and a GPU may not have begun.
        self.loaded.wait()
        return output.logits[0, -1], whole

    def _decode_all(self, caches: Sequence[TorchCache], logits: Any) -> None:
        """The answers of the cells that have a cache, some at a time."""
        ready = [cache for cache in caches if cache.error is None]
        if self.remembers:
            self.kept |= {cache.cell: cache.held for cache in ready}
        # Cells of one size one after the other: they stand in one array.
        ready.sort(key=lambda cache: max(cache.kept))
        for start in range(0, len(ready), self.decode_batch):
            self._decode(ready[start : start + self.decode_batch], logits)

    def _decode(self, caches: Sequence[TorchCache], logits: Any) -> None:
        """The cells' answers; their tensors are let go afterwards, and what was measured of them stays.

        What one batch has no memory for is tried in halves, down to a single cell, whose failure is its own.
        """
        begin, failure = time.perf_counter(), None
        try:
            answers = decode_cells(
                self.loaded,
                {number: cache.held for number, cache in enumerate(caches)},
                self.tail,
                self.split.press_len,
                logits,
                self.ending,
                self.eager,
                self._note_first_token,
            )
            for number, cache in enumerate(caches):
                answer = answers[number]
                if answer is None:
                    cache.fail(ValueError(OVERFLOWED))
                else:
                    self.answers[cache.cell] = answer
                    cache.let_go()
        except Exception as error:
            failure = error.with_traceback(None)
        self.decode_s += time.perf_counter() - begin
        if failure is None:
            return
        if self.remembers:
            self._forget_context()
            self._decode(caches, logits)
            return
        if len(caches) == 1:
            caches[0].fail(failure)
            return
        half = len(caches) // 2
        self._decode(caches[:half], logits)
        self._decode(caches[half:], logits)

    def _note_first_token(self) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter()
