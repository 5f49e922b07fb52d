"""Several questions about one context: read and compressed once, answered as if each had been read for itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import WORDS, write_random_llama

from kv_transition.data.prompts import Prompt
from kv_transition.engines import greedy, sweep
from kv_transition.engines.base import Cell, Decoding, EngineResult
from kv_transition.engines.contexts import context_of
from kv_transition.engines.evictions import EVICTIONS
from kv_transition.engines.reference import ReferenceEngine
from kv_transition.errors import UserError

FULL = Cell("full")
GRID = [FULL] + [
    Cell(method, budget, replicate)
    for method, budget in itertools.product(EVICTIONS, (16, 40, 4000))
    for replicate in range(3 if method == "random" else 1)
]
DECODING = Decoding(max_new_tokens=5)


def context(seed: int) -> str:
    return " ".join(np.random.RandomState(seed).choice(WORDS, 90))


def question(about: str, words: str) -> Prompt:
    return Prompt(({"role": "user", "content": f"{about} {words}"},), len(about))


ONE, OTHER = context(1), context(2)
QUESTIONS = [question(ONE, "w1 w2"), question(ONE, "w3 w4 w5"), question(ONE, "w6")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def engine(folder: Path) -> ReferenceEngine:
    return ReferenceEngine(folder, "context", "compressed", unknown_token_limit=0.2)


@pytest.fixture
def prefills(engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every prefill."""
    lengths: list[int] = []
    prefill = engine.model.prefill

    def counted(ids: Sequence[int], *rest: Any) -> Any:
        lengths.append(len(ids))
        return prefill(ids, *rest)

    monkeypatch.setattr(engine.model, "prefill", counted)
    return lengths


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """The keys and values that each sweep decodes from, as bytes."""
    seen: list[list[bytes]] = []
    decode = greedy.decode_cells

    def watched(model: Any, prompts: Any, *rest: Any, **named: Any) -> Any:
        layers = [layer for prompt in prompts for cache in prompt.caches.values() for layer in cache]
        seen.append([keys.tobytes() + values.tobytes() for keys, values in layers])
        return decode(model, prompts, *rest, **named)

    monkeypatch.setattr(sweep, "decode_cells", watched)
    return seen


def asked(
    engine: ReferenceEngine, prompts: Sequence[Prompt], grids: Sequence[Sequence[Cell]], ahead: bool = True
) -> list[list[EngineResult]]:
    """Sweep one prompt after another, each announced while the one before it is computed."""
    results = []
    for number, (prompt, cells) in enumerate(zip(prompts, grids, strict=True)):
        if ahead and number + 1 < len(prompts):
            engine.read_ahead(prompts[number + 1])
        results.append(engine.sweep(prompt, cells, DECODING, f"example {number}"))
    return results


def without_times(results: Sequence[Sequence[EngineResult]]) -> list[Any]:
    return [[{**row.as_row(), "timings": None} for row in rows] for rows in results]


# The same answers for less


def test_answers_budgets_and_kept_sets_are_those_of_questions_that_share_nothing(
    engine: ReferenceEngine, kept: list[list[bytes]]
) -> None:
    together = asked(engine, QUESTIONS, [GRID] * 3)
    shared, kept[:] = list(kept), []
    alone = asked(engine, QUESTIONS, [GRID] * 3, ahead=False)
    assert without_times(together) == without_times(alone)
    assert shared == kept
    assert all(row.kv is not None and row.kv.verified == "measured" for rows in together for row in rows)


def test_a_context_is_read_once_for_all_its_questions(engine: ReferenceEngine, prefills: list[int]) -> None:
    asked(engine, [*QUESTIONS, question(OTHER, "w1")], [GRID] * 4)
    assert prefills == [91, 91], "once for each context, its mark of the user included"


def test_the_questions_after_the_first_spend_nothing_on_reading_and_compressing(
    engine: ReferenceEngine,
) -> None:
    first, second, _ = asked(engine, QUESTIONS, [GRID] * 3)
    assert (first[0].timings.prefill_s or 0) > 0
    assert second[0].timings.prefill_s == 0.0
    spent = {
        cell.method: row.timings.compress_s
        for cell, row in zip(GRID, second, strict=True)
        if row.timings.compress_s is not None
    }
    assert (spent.pop("random") or 0) > 0, "drawn for each example"
    assert spent == dict.fromkeys(set(EVICTIONS) - {"random"}, 0.0)
    assert (second[0].timings.decode_s or 0) > 0


def test_random_positions_are_drawn_for_each_example(
    engine: ReferenceEngine, kept: list[list[bytes]], prefills: list[int]
) -> None:
    asked(engine, QUESTIONS, [[Cell("random", 16)]] * 3)
    assert len(prefills) == 1
    assert len({tuple(layers) for layers in kept}) == 3


def test_a_prompt_that_ends_with_its_context_is_answered_from_the_remembered_logits(
    engine: ReferenceEngine, prefills: list[int]
) -> None:
    bare = [Prompt(({"role": "user", "content": ONE},), len(ONE), wrapped=False) for _ in range(2)]
    first, second = asked(engine, bare, [[FULL, Cell("knorm", 16)]] * 2)
    assert [row.text for row in first] == [row.text for row in second]
    assert len(prefills) == 1


# What is remembered, and how long


def test_cells_that_were_not_remembered_are_computed_anew(
    engine: ReferenceEngine, prefills: list[int]
) -> None:
    few = [FULL, Cell("snapkv", 40)]
    asked(engine, QUESTIONS, [few, few[1:], few])
    assert len(prefills) == 1, "fewer cells are all there"
    prefills.clear()
    grids = [few, [*few, Cell("random", 16)], [*few, Cell("random", 40), Cell("random", 16, 1)]]
    results = asked(engine, QUESTIONS, grids)
    assert len(prefills) == 2, (
        "what a random cell needs was not kept for the second question, but for the third"
    )
    assert without_times(results) == without_times(asked(engine, QUESTIONS, grids, ahead=False))


def test_one_context_is_held_and_only_until_the_last_question_about_it(
    engine: ReferenceEngine, prefills: list[int]
) -> None:
    mixed = [QUESTIONS[0], question(OTHER, "w1"), QUESTIONS[1]]
    asked(engine, mixed, [GRID] * 3)
    assert len(prefills) == 3
    engine.sweep(QUESTIONS[2], GRID, DECODING, "later")
    assert len(prefills) == 4, "nobody had said that another question about it would come"


def test_a_question_that_failed_leaves_nothing_to_the_next_one(
    engine: ReferenceEngine, prefills: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = greedy.decode_cells, itertools.count()

    def fails_once(*given: Any, **named: Any) -> Any:
        if next(calls) == 0:
            raise MemoryError("full")
        return decode(*given, **named)

    monkeypatch.setattr(sweep, "decode_cells", fails_once)
    failed, good, after = asked(engine, QUESTIONS, [GRID] * 3)
    assert {row.failure for row in failed} == {"ENGINE_ERROR"}
    assert {row.failure for row in good + after} == {None}
    assert len(prefills) == 2


def test_a_cell_that_failed_is_tried_again_with_the_next_question(
    engine: ReferenceEngine, prefills: list[int]
) -> None:
    sinks = Cell("streaming_llm", 16)
    short = " ".join(["w7"] * 30)
    strict = engine.variant("context", "compressed", {"streaming_llm": {"n_sink": 31}})
    first, second = asked(strict, [question(short, "w1"), question(short, "w2")], [[FULL, sinks]] * 2)
    assert [row.failure for row in first] == [row.failure for row in second] == [None, "ENGINE_ERROR"]
    assert len(prefills) == 2


def test_a_single_request_takes_nothing_over_and_keeps_nothing(
    engine: ReferenceEngine, prefills: list[int]
) -> None:
    engine.read_ahead(QUESTIONS[1])
    engine.generate(QUESTIONS[0], FULL, DECODING, "one")
    engine.generate(QUESTIONS[1], FULL, DECODING, "two")
    assert len(prefills) == 2


def test_other_settings_share_no_context(engine: ReferenceEngine, prefills: list[int]) -> None:
    engine.read_ahead(QUESTIONS[1])
    engine.sweep(QUESTIONS[0], GRID, DECODING, "one")
    other = engine.variant("context", "compressed", {"snapkv": {"window": 4}})
    other.sweep(QUESTIONS[1], GRID, DECODING, "two")
    assert len(prefills) == 2


def test_scope_prompt_reads_every_prompt_whole(engine: ReferenceEngine, prefills: list[int]) -> None:
    asked(engine.variant("prompt", "full", {}), QUESTIONS, [GRID] * 3)
    assert prefills == [94, 95, 93]


def test_contexts_are_the_same_when_all_before_their_end_is(engine: ReferenceEngine) -> None:
    system = {"role": "system", "content": "w9"}
    told = Prompt((system, *QUESTIONS[0].messages), QUESTIONS[0].context_end)
    assert context_of(QUESTIONS[0]) == context_of(QUESTIONS[1]) != context_of(question(OTHER, "w1 w2"))
    assert context_of(told) != context_of(QUESTIONS[0])
    assert context_of(Prompt(QUESTIONS[0].messages, None)) is None


# Reading ahead


def test_the_next_prompt_is_tokenised_while_the_model_computes(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised = threading.Event()
    prompt_ids, prefill = engine.tokenizer.prompt_ids, engine.model.prefill
    seen: list[tuple[str, bool]] = []

    def told(prompt: Prompt, scope: Any) -> Any:
        own = threading.current_thread() is threading.main_thread()
        seen.append((prompt.messages[-1]["content"], own))
        result = prompt_ids(prompt, scope)
        if not own:
            tokenised.set()
        return result

    def computed(*given: Any) -> Any:
        assert tokenised.wait(60), "the next prompt is not tokenised before this one is answered"
        return prefill(*given)

    monkeypatch.setattr(engine.tokenizer, "prompt_ids", told)
    monkeypatch.setattr(engine.model, "prefill", computed)
    prompts = [QUESTIONS[0], question(OTHER, "w1")]
    asked(engine, prompts, [[FULL]] * 2)
    texts = [prompt.messages[-1]["content"] for prompt in prompts]
    assert sorted(seen) == sorted([(texts[0], True), (texts[1], False)]), "each prompt once"


def test_a_prompt_that_cannot_be_read_ends_the_run_where_its_turn_comes(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt_ids = engine.tokenizer.prompt_ids

    def refuses(prompt: Prompt, scope: Any) -> Any:
        if prompt is QUESTIONS[1]:
            raise UserError("the chat template refuses the prompt")
        return prompt_ids(prompt, scope)

    monkeypatch.setattr(engine.tokenizer, "prompt_ids", refuses)
    engine.read_ahead(QUESTIONS[1])
    assert engine.sweep(QUESTIONS[0], [FULL], DECODING, "one")[0].failure is None
    with pytest.raises(UserError, match="refuses the prompt"):
        engine.sweep(QUESTIONS[1], [FULL], DECODING, "two")


def test_text_that_the_model_does_not_know_is_refused_under_its_own_name(engine: ReferenceEngine) -> None:
    foreign = question(ONE, "alien " * 60)
    engine.read_ahead(foreign)
    engine.sweep(QUESTIONS[0], [FULL], DECODING, "one")
    with pytest.raises(UserError, match=r"example two: \d+% of the prompt's tokens are unknown"):
        engine.sweep(foreign, [FULL], DECODING, "two")


def test_another_prompt_than_the_announced_one_is_answered_rightly(engine: ReferenceEngine) -> None:
    engine.read_ahead(QUESTIONS[1])
    surprising = engine.sweep(question(OTHER, "w1"), GRID, DECODING, "one")
    assert without_times([surprising]) == without_times(
        [engine.sweep(question(OTHER, "w1"), GRID, DECODING, "one")]
    )
