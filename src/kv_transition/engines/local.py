"""What the engines that hold the model in this process share: everything but the model's own arithmetic."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from kv_transition.data.prompts import Prompt
from kv_transition.data.tokenizer import ModelTokenizer, PromptIds
from kv_transition.engines.answers import FULL, Answers
from kv_transition.engines.base import (
    BaseEngine,
    Cell,
    Decoding,
    EngineResult,
    TimingScope,
    check_vocabulary,
)
from kv_transition.engines.contexts import SharedContext, context_of
from kv_transition.engines.greedy import Ending
from kv_transition.engines.sweep import FirstToken, Scope, Split, Swept, split_prompt
from kv_transition.errors import ConfigError, UserError
from kv_transition.methods import TEXT_METHODS, canonical_name, resolve_parameters

#: A prompt's tokens, and the share of them that the vocabulary does not know.
_Tokens = tuple[PromptIds, float]


@dataclass(frozen=True)
class Asked:
    """A prompt as the model is asked.

    Attributes
    ----------
    ids : its tokens, `context_len` of them up to the context's end.
    cells : as they were asked for, under their methods' own names.
    raw : what is said of the prompt in each result.
    begin : time of `time.perf_counter`.
    """

    ids: Sequence[int]
    context_len: int
    cells: Sequence[Cell]
    raw: Mapping[str, Any]
    begin: float

    def results(self, split: Split, swept: Swept, timing_scope: TimingScope) -> list[EngineResult]:
        """The result of every cell, in their order."""
        answers = Answers(swept, split, len(self.ids), self.begin, timing_scope)
        return [replace(answers.result(cell), raw=self.raw) for cell in self.cells]


class LocalEngine(BaseEngine):
    """Answers with a model in this process, from caches whose budget is read back from the cache itself.

    Parameters
    ----------
    folder : holds the model's tokenizer; subclasses read the weights from it.
    scope : "prompt" compresses the whole prompt, "context" only what stands before the question.
    first_token : "full" takes the first answer token from the uncompressed prefill, as papers do; "compressed" reads
        the last prompt token again, from the pruned cache, so that every answer token feels the budget.
    methods : hyper-parameters by method, over the defaults of `methods.KNOWN_METHODS`.
    unknown_token_limit : share of unknown tokens above which a prompt is refused.

    Attributes
    ----------
    longest : tokens that the model reads.
    offered : methods that this engine can apply, by their own names.
    contexts : what the last prompt's context left for the next question about it.

    Raises
    ------
    UserError
        When the settings contradict each other, or the folder holds no tokenizer.
    """

    longest: int
    offered: tuple[str, ...]

    def __init__(
        self,
        folder: str | Path,
        scope: Scope,
        first_token: FirstToken,
        methods: Mapping[str, Mapping[str, Any]],
        unknown_token_limit: float,
    ) -> None:
        self._configure(scope, first_token, methods)
        self.path = Path(folder)
        self.unknown_token_limit = unknown_token_limit
        self.tokenizer = ModelTokenizer(self.path)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

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
        self.contexts: SharedContext[Any] = SharedContext()
        self._ahead: list[tuple[Prompt, Future[_Tokens]]] = []

    def variant(
        self, scope: Scope, first_token: FirstToken, methods: Mapping[str, Mapping[str, Any]]
    ) -> Self:
        """An engine with other settings that shares this one's weights and tokenizer."""
        other = copy(self)
        other._configure(scope, first_token, methods)
        return other

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
        """Answer one prompt at many cells from one prefill. A cell's answer does not depend on the other cells.

        Where `read_ahead` was told of another question about this context, what was computed of it is kept for that one.
        """
        return self._answer(prompt, cells, decoding, example_id, "sweep")

    def read_ahead(self, prompt: Prompt) -> None:
        """Tokenise the prompt that comes after the one that is swept next, while that one is computed."""
        # Room for the prompt at hand and the one behind it.
        self._ahead = [*self._ahead[-1:], (prompt, self._reader.submit(self._tokens, prompt))]

    def _tokens(self, prompt: Prompt) -> _Tokens:
        prompt_ids = self.tokenizer.prompt_ids(prompt, self.scope)
        return prompt_ids, self.tokenizer.unknown_share(prompt_ids.ids)

    def _read(self, prompt: Prompt) -> _Tokens:
        """The prompt's tokens, from ahead where they are; whatever went wrong there is raised here."""
        for number, (ahead, tokens) in enumerate(self._ahead):
            if ahead is prompt:
                del self._ahead[: number + 1]
                return tokens.result()
        return self._tokens(prompt)

    def _next_shares(self, prompt: Prompt) -> bool:
        """Whether the next prompt is another question about this one's context."""
        context = context_of(prompt) if self.scope == "context" else None
        return context is not None and any(context_of(ahead) == context for ahead, _ in self._ahead)

    @property
    def computation(self) -> dict[str, Any]:
        """What a client is told of the computation, beside the engine's class."""
        return {}

    @abstractmethod
    def _sweep_cells(
        self, ids: Sequence[int], split: Split, cells: Sequence[Cell], ending: Ending, example_id: str
    ) -> Swept:
        """Answer one prompt at distinct cells, each active or uncompressed."""

    def _answer(
        self,
        prompt: Prompt,
        cells: Sequence[Cell],
        decoding: Decoding,
        example_id: str,
        timing_scope: TimingScope,
        observe: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[EngineResult]:
        asked = self._asked(prompt, cells, example_id)
        if timing_scope == "request":
            # Its timings are its own, and whoever asks again may do so in a day: nothing is taken over or kept.
            self.contexts.forget()
        self.contexts.wanted = timing_scope == "sweep" and self._next_shares(prompt)
        try:
            split, live = self._split(asked)
            ending = self._ending(decoding, observe)
            swept = self._sweep_cells(asked.ids, split, live, ending, example_id)
            return asked.results(split, swept, timing_scope)
        except UserError:
            raise
        except Exception as error:
            # Out of memory, an over-long prompt: failed rows of this example, and the next one runs, from the beginning.
            self.contexts.wanted = False
            return [EngineResult.failed(error, len(asked.ids), timing_scope) for _ in cells]
        finally:
            if not self.contexts.wanted:
                self.contexts.forget()

    def _asked(self, prompt: Prompt, cells: Sequence[Cell], example_id: str) -> Asked:
        """A prompt in tokens, and its cells under their own names; a mistake of the configuration is raised."""
        own_cells = [self._checked(cell) for cell in cells]
        begin = time.perf_counter()
        prompt_ids, unknown_share = self._read(prompt)
        raw = {"unknown_share": unknown_share}
        check_vocabulary(raw, self.unknown_token_limit, example_id)
        return Asked(prompt_ids.ids, prompt_ids.context_len, own_cells, raw, begin)

    def _split(self, asked: Asked) -> tuple[Split, list[Cell]]:
        """How the prompt is compressed, and the cells that are to run: those whose budget is active, and the full cache
        where another one needs it.
        """
        if not 1 <= len(asked.ids) <= self.longest:
            raise ValueError(
                f"the prompt has {len(asked.ids)} tokens; the model reads 1 to {self.longest} (max_position_embeddings); "
                "leave such prompts out (dataset.max_tokens) or cut them (protocol.max_length_tokens)"
            )
        split = split_prompt(len(asked.ids), asked.context_len, self.scope, self.first_token)
        for cell in asked.cells:
            self._check_window(cell, split)
        return split, list(dict.fromkeys(cell if split.is_active(cell) else FULL for cell in asked.cells))

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
        window = self.parameters.get(cell.method, {}).get("window")
        if window is None or not isinstance(cell.budget, float) or not split.is_active(cell):
            return
        kept = split.requested(cell) or 0
        if kept < 2 * window:
            raise ConfigError(
                f"kv.window: {window} is more than half of the {kept} positions that budget {cell.label} keeps of a prompt "
                f"of {split.budget_base} tokens; lower kv.window, raise kv.budgets or set dataset.min_tokens"
            )

    def _checked(self, cell: Cell) -> Cell:
        """The cell under its method's own name."""
        method = cell.method if cell.method in self.parameters else canonical_name(cell.method)
        if method in TEXT_METHODS:
            raise ConfigError(
                f"kv.methods: {method} shortens the prompt, not the cache; ask with the shorter prompt and full"
            )
        if method != "full":
            self._check_offered(method)
        if (method == "full") != (cell.budget is None):
            need = "has no budget" if method == "full" else "needs a budget"
            raise ConfigError(f"kv.budgets: {cell.label!r} for method {method}, which {need}")
        return replace(cell, method=method)

    def _check_offered(self, method: str) -> None:
        """Refuse a method that this engine cannot apply."""
        if method not in self.offered:
            raise ConfigError(
                f"kv.methods: {method} is not among the methods of this engine ({', '.join(self.offered)}); set "
                "engine.kind: kvpress, or leave it out"
            )
