"""The reference engine: numpy only, one prefill for all cells, every budget read back from the cache's arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kv_transition.data.prompts import Prompt
from kv_transition.data.tokenizer import ModelTokenizer, PromptIds
from kv_transition.engines.base import (
    BaseEngine,
    Cell,
    Decoding,
    EngineResult,
    KVUse,
    Timings,
    TimingScope,
    check_vocabulary,
)
from kv_transition.engines.greedy import Answer, Ending
from kv_transition.engines.llama import Llama
from kv_transition.engines.sweep import (
    CellCache,
    FirstToken,
    Scope,
    Split,
    Swept,
    split_prompt,
    sweep_cells,
)
from kv_transition.engines.weights import read_config, read_weights
from kv_transition.errors import ConfigError, UserError
from kv_transition.methods import TEXT_METHODS, canonical_name, resolve_parameters

FULL = Cell("full")


class ReferenceEngine(BaseEngine):
    """Answers with a Llama model in numpy (float32), from caches pruned by the methods of `evictions.py`.

    Parameters
    ----------
    model_path : a folder with config.json, safetensors weights and a tokenizer.
    scope : "prompt" compresses the whole prompt, "context" only what stands before the question.
    first_token : "full" takes the first answer token from the uncompressed prefill, as papers do; "compressed" reads
        the last prompt token again, from the pruned cache, so that every answer token feels the budget.
    methods : hyper-parameters by method, over the defaults of `methods.KNOWN_METHODS`.
    unknown_token_limit : share of unknown tokens above which a prompt is refused.

    Raises
    ------
    UserError
        When the folder is no model that this engine computes exactly, or the settings contradict each other.
    """

    def __init__(
        self,
        model_path: str | Path,
        scope: Scope = "prompt",
        first_token: FirstToken = "full",
        methods: Mapping[str, Mapping[str, Any]] | None = None,
        unknown_token_limit: float = 0.2,
    ) -> None:
        self._configure(scope, first_token, methods or {})
        self.path = Path(model_path)
        self.unknown_token_limit = unknown_token_limit
        self.config = read_config(self.path)
        self.tokenizer = ModelTokenizer(self.path)
        self.model = Llama(self.config, read_weights(self.path))

    def _configure(
        self, scope: Scope, first_token: FirstToken, methods: Mapping[str, Mapping[str, Any]]
    ) -> None:
        if scope == "context" and first_token != "compressed":
            raise ConfigError(
                f"kv.first_token: {first_token!r} does not go with kv.scope context, where the question is read from the "
                "compressed cache; set kv.first_token: compressed"
            )
        self.scope, self.first_token = scope, first_token
        self.parameters = resolve_parameters(methods)

    def variant(
        self, scope: Scope, first_token: FirstToken, methods: Mapping[str, Mapping[str, Any]]
    ) -> ReferenceEngine:
        """An engine with other settings that shares this one's weights and tokenizer."""
        other = copy(self)
        other._configure(scope, first_token, methods)
        return other

    def provenance(self) -> dict[str, Any]:
        """Class, protocol, versions, and the hash of the tokenizer; the caller knows that of the model."""
        return {
            **super().provenance(),
            "dtype": "float32",
            "numpy": np.__version__,
            "tokenizer_hash": self.tokenizer.content_hash,
        }

    def generate(
        self,
        prompt: Prompt,
        cell: Cell,
        decoding: Decoding,
        example_id: str,
        observe: Callable[[Sequence[int]], bool] | None = None,
    ) -> EngineResult:
        """Answer one prompt at one cell; timings are the request's own.

        Parameters
        ----------
        observe : told all tokens so far, after each one behind which the answer goes on; True ends it there.
        """
        return self._answer(prompt, [cell], decoding, example_id, "request", observe)[0]

    def sweep(
        self, prompt: Prompt, cells: Sequence[Cell], decoding: Decoding, example_id: str
    ) -> list[EngineResult]:
        """Answer one prompt at many cells from one prefill. A cell's answer does not depend on the other cells."""
        return self._answer(prompt, cells, decoding, example_id, "sweep")

    def _answer(
        self,
        prompt: Prompt,
        cells: Sequence[Cell],
        decoding: Decoding,
        example_id: str,
        timing_scope: TimingScope,
        observe: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[EngineResult]:
        own_cells = [self._checked(cell) for cell in cells]
        begin = time.perf_counter()
        prompt_ids = self.tokenizer.prompt_ids(prompt, self.scope)
        unknown = {"unknown_share": self.tokenizer.unknown_share(prompt_ids.ids)}
        check_vocabulary(unknown, self.unknown_token_limit, example_id)
        try:
            ending = self._ending(decoding, observe)
            answers = self._swept(prompt_ids, own_cells, ending, example_id, begin, timing_scope)
            return [replace(answers.result(cell), raw=unknown) for cell in own_cells]
        except UserError:
            raise
        except Exception as error:
            # Out of memory, an over-long prompt: failed rows of this example, and the next one runs.
            return [EngineResult.failed(error, len(prompt_ids.ids), timing_scope) for _ in cells]

    def _swept(
        self,
        prompt_ids: PromptIds,
        cells: Sequence[Cell],
        ending: Ending,
        example_id: str,
        begin: float,
        timing_scope: TimingScope,
    ) -> _Answers:
        """Run the cells whose budget is active, and the full cache where another cell needs it."""
        ids, longest = prompt_ids.ids, self.config.max_position_embeddings
        if not 1 <= len(ids) <= longest:
            raise ValueError(
                f"the prompt has {len(ids)} tokens; the model reads 1 to {longest} (max_position_embeddings)"
            )
        split = split_prompt(len(ids), prompt_ids.context_len, self.scope, self.first_token)
        for cell in cells:
            self._check_window(cell, split)
        live = list(dict.fromkeys(cell if split.is_active(cell) else FULL for cell in cells))
        swept = sweep_cells(self.model, ids, split, live, self.parameters, ending, example_id)
        return _Answers(swept, split, len(ids), begin, timing_scope)

    def _ending(self, decoding: Decoding, observe: Callable[[Sequence[int]], bool] | None) -> Ending:
        return Ending(
            decoding.max_new_tokens,
            decoding.stop,
            frozenset(self.tokenizer.eos_ids),
            self.tokenizer.decode,
            decoding.min_new_tokens,
            self.tokenizer.last_ids(decoding.stop_token_texts),
            observe,
        )

    def _check_window(self, cell: Cell, split: Split) -> None:
        """One curve has one window: a share of a short prompt must not fall below twice the window."""
        if cell.method != "snapkv" or not isinstance(cell.budget, float) or not split.is_active(cell):
            return
        window, kept = self.parameters["snapkv"]["window"], split.requested(cell) or 0
        if kept < 2 * window:
            raise ConfigError(
                f"kv.window: {window} is more than half of the {kept} positions that budget {cell.label} keeps of a prompt "
                f"of {split.budget_base} tokens; lower kv.window, raise kv.budgets or set dataset.min_tokens"
            )

    def _checked(self, cell: Cell) -> Cell:
        """The cell under its method's own name."""
        method = canonical_name(cell.method)
        if method in TEXT_METHODS:
            raise ConfigError(
                f"kv.methods: {method} shortens the prompt, not the cache; ask with the shorter prompt and full"
            )
        if (method == "full") != (cell.budget is None):
            need = "has no budget" if method == "full" else "needs a budget"
            raise ConfigError(f"kv.budgets: {cell.label!r} for method {method}, which {need}")
        return replace(cell, method=method)


class _Answers:
    """The sweep of one prompt, made into results."""

    def __init__(
        self, swept: Swept, split: Split, prompt_tokens: int, begin: float, timing_scope: TimingScope
    ) -> None:
        self.swept, self.split, self.prompt_tokens = swept, split, prompt_tokens
        self.begin, self.timing_scope = begin, timing_scope
        #: The first decoded cell of each method, and of all: there stand the timings of shared work.
        self.first_of = {cell.method: cell for cell in reversed(swept.answers)}
        self.first = next(iter(swept.answers), None)

    def _timings(self, cell: Cell) -> Timings:
        swept, method = self.swept, cell.method
        timings = Timings(timing_scope=self.timing_scope)
        if cell == self.first:
            prefill_s = swept.prefilled - swept.start - sum(swept.compress_s.values())
            timings = replace(timings, prefill_s=prefill_s, decode_s=swept.end - swept.prefilled)
        if cell == self.first_of[method] and cell != FULL:
            timings = replace(timings, compress_s=swept.compress_s[method])
        if self.timing_scope == "request" and swept.first_token is not None:
            ttfb_s = swept.first_token - self.begin
            timings = replace(timings, latency_s=swept.end - self.begin, ttfb_s=ttfb_s)
        return timings

    def result(self, cell: Cell) -> EngineResult:
        """The result of one cell: its own, or the full one where its budget took nothing away."""
        active = self.split.is_active(cell)
        source = cell if active else FULL
        copied = source != cell
        cache = self.swept.caches[source]
        if cache.error:
            failed = EngineResult.failed(cache.error, self.prompt_tokens, self.timing_scope)
            return replace(failed, copied_from="full") if copied else failed
        answer = self.swept.answers[source]
        return EngineResult(
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=len(answer.tokens),
            kv=self._kv_use(cell, cache, answer, active),
            timings=Timings() if copied and self.timing_scope == "sweep" else self._timings(source),
            copied_from="full" if copied else None,
        )

    def _kv_use(self, cell: Cell, cache: CellCache, answer: Answer, active: bool) -> KVUse:
        """What the cell's arrays hold, the re-read last prompt token included where it counts."""
        kept = [positions + self.split.refed for positions in cache.kept]
        return KVUse(
            method=cell.method,
            requested=self.split.requested(cell),
            kept_per_layer=tuple(float(positions) for positions in kept),
            kept_mean=sum(kept) / len(kept),
            kept_min=float(min(kept)),
            kept_max=float(max(kept)),
            press_len=self.split.press_len,
            prompt_tokens=self.prompt_tokens,
            question_tokens=self.split.question_tokens,
            bytes_kept=cache.nbytes + self.split.refed * cache.position_bytes,
            peak_tokens=max(kept) + self.split.question_tokens + len(answer.tokens),
            active=active,
            verified="measured",
        )
