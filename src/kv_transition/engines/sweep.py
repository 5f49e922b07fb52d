"""One prefill for a prompt's whole grid: what each cell keeps of it, and greedy answers from what is kept."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kv_transition.budgets import kept_tokens
from kv_transition.engines.base import Cell
from kv_transition.engines.contexts import SharedContext, is_drawn
from kv_transition.engines.evictions import EVICTIONS, LayerPrefill
from kv_transition.engines.greedy import Answer, Ending, PrunedPrompt, decode_cells
from kv_transition.engines.llama import Llama

Array = NDArray[np.float32]
Scope = Literal["prompt", "context"]
FirstToken = Literal["full", "compressed"]


@dataclass(frozen=True)
class Split:
    """A prompt as compression sees it.

    Attributes
    ----------
    press_len : leading positions that the eviction sees; the rest is read afterwards, from the pruned caches.
    refed : later positions that count against the budget: the last prompt token, where the first answer token is to
        feel the budget; else 0.
    question_tokens : later positions that come on top of the budget.
    """

    press_len: int
    refed: int
    question_tokens: int

    @property
    def budget_base(self) -> int:
        """Positions a budget is spent on: a budget of this many, or more, takes nothing away."""
        return self.press_len + self.refed

    def requested(self, cell: Cell) -> int | None:
        """Prompt positions a cell asks for; None without a budget. A share is one of `budget_base`."""
        if cell.budget is None:
            return None
        return max(kept_tokens(cell.budget, self.budget_base), 1 + self.refed)

    def is_active(self, cell: Cell) -> bool:
        """Whether the cell's budget takes anything away."""
        requested = self.requested(cell)
        return requested is not None and requested < self.budget_base


def split_prompt(prompt_len: int, context_len: int, scope: Scope, first_token: FirstToken) -> Split:
    """How scope and first token divide a prompt of `prompt_len` tokens, `context_len` of them up to the context's end.

    Scope "prompt" compresses all of it; with first token "compressed" all but the last token, which is then read from
    the pruned cache and counts against the budget, so that a budget of b keeps b - 1 positions and that one. Scope
    "context" compresses the first `context_len` tokens and reads the question uncompressed.
    """
    if scope == "context":
        return Split(context_len, 0, prompt_len - context_len)
    refed = 1 if first_token == "compressed" else 0
    return Split(prompt_len - refed, refed, 0)


@dataclass
class CellCache:
    """What a cell kept: keys and values of each layer, (K, kept, d) each, or the error that befell it."""

    cell: Cell
    keep: int | None
    layers: list[tuple[Array, Array]] = field(default_factory=list)
    error: Exception | None = None

    @property
    def kept(self) -> list[int]:
        """Positions per layer, read from the arrays."""
        return [keys.shape[1] for keys, _ in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in all layers."""
        return sum(2 * keys.itemsize * keys.shape[0] * keys.shape[2] for keys, _ in self.layers)

    def check(self) -> None:
        """Prove the budget: every layer holds as many positions as were asked for, else `error` is set."""
        if self.error is None and self.keep is not None and any(kept != self.keep for kept in self.kept):
            self.error = RuntimeError(
                f"{self.cell.method} kept {self.kept} positions per layer where {self.keep} were asked for"
            )


class Compressor:
    """Applies every cell's eviction to each layer of a prefill, as that layer is done.

    Parameters
    ----------
    cells : cells whose budget is active, and uncompressed ones (which keep everything).
    parameters : method -> hyper-parameters.
    keep_whole : hold on to every layer's whole keys and values; else they go when the layer is done.

    Attributes
    ----------
    caches : in the order of `cells`.
    whole : keys and values of each layer, (K, n, d) each, where they are kept.
    seconds : method -> time spent on it.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        split: Split,
        parameters: Mapping[str, Mapping[str, int]],
        keep_whole: bool = False,
    ) -> None:
        keeps = [split.requested(cell) for cell in cells]
        self.caches = [
            CellCache(cell, None if keep is None else keep - split.refed)
            for cell, keep in zip(cells, keeps, strict=True)
        ]
        self.whole: list[tuple[Array, Array]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self._parameters = parameters
        self._keep_whole = keep_whole

    @property
    def needs_received(self) -> bool:
        """Whether the prefill has to sum the attention that positions receive."""
        return any(
            cache.keep is not None and EVICTIONS[cache.cell.method].needs_received for cache in self.caches
        )

    def __call__(self, layer: LayerPrefill) -> None:
        if self._keep_whole:
            self.whole.append((layer.keys, layer.values))
        self._cut_all(self.caches, layer)

    def take_over(self, earlier: Compressed, example_id: str) -> None:
        """What an earlier question left of the same context; drawn cells are cut for this example."""
        kept = {cache.cell: cache for cache in earlier.caches}
        for cache in self.caches:
            if not is_drawn(cache.cell):
                cache.layers = list(kept[cache.cell].layers)
        self.whole = earlier.whole
        drawn = [cache for cache in self.caches if is_drawn(cache.cell)]
        for index, (keys, values) in enumerate(self.whole if drawn else []):
            self._cut_all(drawn, LayerPrefill(index, example_id, keys[:, :0], keys, values))

    def _cut_all(self, caches: Sequence[CellCache], layer: LayerPrefill) -> None:
        scores: dict[tuple[str, int], Array] = {}
        for cache in caches:
            begin = time.perf_counter()
            if cache.error is None:
                try:
                    cache.layers.append(self.cut(cache, layer, scores))
                except Exception as error:  # one method's failure is that cell's, never the example's
                    cache.error = error
                    cache.layers.clear()
            self.seconds[cache.cell.method] += time.perf_counter() - begin

    def cut(
        self, cache: CellCache, layer: LayerPrefill, scores: dict[tuple[str, int], Array]
    ) -> tuple[Array, Array]:
        """Keys and values that the cell keeps of a layer; scores are shared by a method's budgets."""
        if cache.keep is None:
            return layer.keys, layer.values
        method, replicate = cache.cell.method, cache.cell.replicate
        eviction = EVICTIONS[method]
        if (method, replicate) not in scores:
            scores[method, replicate] = eviction.score(layer, self._parameters[method], replicate)
        positions = eviction.select(scores[method, replicate], cache.keep)
        heads = np.arange(len(layer.keys))[:, None]
        return layer.keys[heads, positions], layer.values[heads, positions]


@dataclass(frozen=True)
class Compressed:
    """What a compressed context is to the next question about it; nothing writes to these arrays.

    Attributes
    ----------
    logits : (vocabulary,) after the context's last token.
    caches : every cell's.
    whole : keys and values of each layer before any eviction, for cells that are drawn anew.
    """

    logits: Array
    caches: list[CellCache]
    whole: list[tuple[Array, Array]]


class KeptCache(Protocol):
    """What is told of a cell's cache, whatever its arrays are made of.

    Attributes
    ----------
    error : what befell the cell; None where it has a cache.
    kept : positions per layer, mean over the KV heads, read from the arrays.
    nbytes : bytes of the keys and values of these positions.
    position_bytes : bytes of one position in all layers.
    """

    @property
    def error(self) -> Exception | None: ...
    @property
    def kept(self) -> Sequence[float]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def position_bytes(self) -> int: ...


@dataclass(frozen=True)
class Swept:
    """All cells of one prompt, and what took how long (seconds).

    Attributes
    ----------
    caches, answers : by cell; a cell whose cache has an error has no answer.
    prefill_s, decode_s : of all cells together; the evictions are in neither. Where prompts were decoded together, decode_s
        is this one's share.
    compress_s : method -> seconds of its evictions.
    first_token, end : when the first cell's first token was known (None: no cell was decoded), and when all was done;
        times of `time.perf_counter`.
    """

    caches: Mapping[Cell, KeptCache]
    answers: Mapping[Cell, Answer]
    prefill_s: float
    compress_s: Mapping[str, float]
    decode_s: float
    first_token: float | None
    end: float


@dataclass(frozen=True)
class Reading:
    """A prompt that was read and compressed, before anything is answered.

    Attributes
    ----------
    caches : in the order of the cells that were asked for.
    tail : tokens behind the compressed part.
    logits : (vocabulary,) after the compressed part's last token.
    prefill_s : without the evictions; 0.0 where the context had been read for an earlier question.
    compress_s : method -> seconds of its evictions.
    """

    split: Split
    caches: Sequence[CellCache]
    tail: Sequence[int]
    logits: Array
    prefill_s: float
    compress_s: Mapping[str, float]

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the caches that the answers are decoded from."""
        return sum(cache.nbytes for cache in self.caches)

    @property
    def pruned(self) -> PrunedPrompt:
        """What decoding starts from: the caches by their numbers, without those that have an error."""
        layers = {number: cache.layers for number, cache in enumerate(self.caches) if cache.error is None}
        return PrunedPrompt(layers, self.tail, self.split.press_len, self.logits)


def read_cells(
    model: Llama,
    ids: Sequence[int],
    split: Split,
    cells: Sequence[Cell],
    parameters: Mapping[str, Mapping[str, int]],
    example_id: str,
    contexts: SharedContext[Compressed] | None = None,
) -> Reading:
    """Read one prompt and compress it for distinct cells, each active or uncompressed: one prefill.

    Parameters
    ----------
    contexts : what the question before left of its context; where that is this prompt's too, there is no prefill.
    """
    start = time.perf_counter()
    contexts = contexts or SharedContext()
    drawn = any(is_drawn(cell) for cell in cells)
    compressor = Compressor(cells, split, parameters, keep_whole=contexts.wanted and drawn)
    earlier = contexts.remembered(ids, split, cells)
    if earlier is None:
        logits = model.prefill(ids[: split.press_len], compressor, example_id, compressor.needs_received)
    else:
        logits = earlier.logits
        compressor.take_over(earlier, example_id)
    compress_s = sum(compressor.seconds.values())
    prefill_s = 0.0 if earlier else time.perf_counter() - start - compress_s
    for cache in compressor.caches:
        cache.check()
    if earlier is None and all(cache.error is None for cache in compressor.caches):
        contexts.remember(ids, split, cells, Compressed(logits, compressor.caches, compressor.whole))
    tail = ids[split.press_len :]
    return Reading(split, compressor.caches, tail, logits, prefill_s, compressor.seconds)


def answer_cells(model: Llama, readings: Sequence[Reading], ending: Ending) -> list[Swept]:
    """Answer prompts whose tails have the same length: one batch of decoding.

    Its time is divided among the prompts by the number of their answers' tokens.
    """
    start = time.perf_counter()
    first: list[float] = []
    answers = decode_cells(
        model,
        [reading.pruned for reading in readings],
        ending,
        on_first_token=lambda: first.append(time.perf_counter()),
    )
    end = time.perf_counter()
    tokens = [sum(len(answer.tokens) for answer in own.values()) for own in answers]
    share = (end - start) / max(sum(tokens), 1)
    return [
        Swept(
            caches={cache.cell: cache for cache in reading.caches},
            answers={reading.caches[number].cell: answer for number, answer in own.items()},
            prefill_s=reading.prefill_s,
            compress_s=reading.compress_s,
            decode_s=share * count,
            first_token=first[0] if first else None,
            end=end,
        )
        for reading, own, count in zip(readings, answers, tokens, strict=True)
    ]
