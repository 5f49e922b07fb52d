"""The reference engine: budgets proved from the cache, failures that stay in their cell, answers that do not drift."""

import hashlib
import itertools
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from random_models import CONFIG, WORDS, random_prompt, random_weights, write_random_llama
from safetensors.numpy import save_file

from kv_transition.data.prompts import Prompt, build_prompt
from kv_transition.data.synthetic import make_records
from kv_transition.engines import evictions, reference, sweep
from kv_transition.engines.attention import CacheGroup
from kv_transition.engines.base import ENGINE_PROTOCOL, Cell, Decoding, PromptCells
from kv_transition.engines.endpoints import build_engine
from kv_transition.engines.evictions import EVICTIONS, Eviction, top_positions
from kv_transition.engines.llama import Llama
from kv_transition.engines.reference import ReferenceEngine
from kv_transition.engines.sweep import split_prompt
from kv_transition.engines.weights import read_config, read_weights
from kv_transition.errors import UserError

MODES = (("prompt", "full"), ("prompt", "compressed"), ("context", "compressed"))
FULL = Cell("full")
GRID = [
    Cell(method, budget, replicate)
    for method, budget in itertools.product(EVICTIONS, (16, 40))
    for replicate in range(3 if method == "random" else 1)
]
PROMPT = random_prompt(seed=1, context_words=90)
DECODING = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_llama(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def engine(folder):
    return ReferenceEngine(folder, first_token="compressed")


def swept(engine, cells, prompt=PROMPT, decoding=DECODING, example_id="example"):
    return dict(zip(cells, engine.sweep(prompt, cells, decoding, example_id), strict=True))


# The model


def test_decoding_from_the_full_cache_is_reading_the_longer_prompt(engine):
    """After each generated token the logits are those of a prefill that ends with that token."""
    ids = engine.tokenizer.prompt_ids(PROMPT).ids
    result = engine.generate(PROMPT, FULL, replace(DECODING, max_new_tokens=1), "example")
    tokens = engine.tokenizer.encode(result.text)
    for _ in range(5):
        expected = int(engine.model.prefill(ids + tokens, lambda layer: None).argmax())
        tokens.append(expected)
    longer = engine.generate(PROMPT, FULL, DECODING, "example")
    assert longer.text == engine.tokenizer.decode(tokens)


@pytest.mark.parametrize("length", [255, 256, 257, 513])
def test_blocks_of_the_prefill_do_not_show(engine, monkeypatch, length):
    ids = np.random.RandomState(0).randint(4, 64, length).tolist()
    blocked = engine.model.prefill(ids, lambda layer: None)
    monkeypatch.setattr("kv_transition.engines.attention.BLOCK", 10_000)
    assert engine.model.prefill(ids, lambda layer: None) == pytest.approx(blocked, abs=1e-3)


def _as(dtype, weights):
    return {name: array.astype(dtype) for name, array in weights.items()}


def test_half_precision_weights_are_read_as_the_same_numbers(tmp_path):
    weights = _as(np.float16, random_weights(CONFIG))
    folder = write_random_llama(tmp_path / "half")
    save_file(weights, folder / "model.safetensors")
    for name, array in read_weights(folder).items():
        assert array.dtype == np.float32
        assert (array == weights[name]).all()


def test_bfloat16_weights_are_the_upper_halves_of_float32(tmp_path):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    numbers = np.array([1.0, -2.5, 0.15625], dtype=np.float32)
    data = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert read_weights(tmp_path)["w"].tolist() == [1.0, -2.5, 0.15625]


def test_sharded_weights_are_read_whole(tmp_path):
    folder = write_random_llama(tmp_path / "sharded")
    whole = read_weights(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    shards = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for file, own in shards.items():
        save_file({name: whole[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {name: array.tobytes() for name, array in read_weights(folder).items()} == {
        name: array.tobytes() for name, array in whole.items()
    }
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"index.json: names model-00002-of-00002.safetensors"):
        read_weights(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM is not supported"),
        ({"sliding_window": 512}, "sliding_window 512 is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope scaling 'yarn' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, "rope scaling 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"tie_word_embeddings": False, "num_attention_heads": 8}, "do not have the shape"),
    ],
    ids=str,
)
def test_a_model_that_is_not_computed_exactly_is_refused_by_name(tmp_path, changes, message):
    folder = write_random_llama(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message):
        ReferenceEngine(folder)


def test_a_missing_folder_and_a_folder_without_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent: no such folder; model.path must be"):
        ReferenceEngine(tmp_path / "absent")
    folder = write_random_llama(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"empty: no \*.safetensors file"):
        ReferenceEngine(folder)


def test_a_damaged_weights_file_and_a_missing_weight_are_named(tmp_path):
    folder = write_random_llama(tmp_path / "damaged")
    weights = random_weights(CONFIG)
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lack model.norm.weight"):
        ReferenceEngine(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"model.safetensors: not a safetensors file"):
        ReferenceEngine(folder)


# Budgets


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_every_layer_of_every_cell_holds_exactly_the_budget(folder, mode):
    engine = ReferenceEngine(folder, *mode)
    prompt_ids = engine.tokenizer.prompt_ids(PROMPT, mode[0])
    question = 0 if mode[0] == "prompt" else len(prompt_ids.ids) - prompt_ids.context_len
    for cell, result in swept(engine, GRID).items():
        assert result.failure is None, result.error
        assert result.kv.kept_per_layer == (cell.budget,) * 3
        assert (result.kv.kept_min, result.kv.kept_mean, result.kv.kept_max) == (cell.budget,) * 3
        assert result.kv.requested == cell.budget
        assert (result.kv.active, result.kv.verified) == (True, "measured")
        assert result.kv.bytes_kept == cell.budget * 3 * 2 * 2 * 16 * 4
        assert result.kv.question_tokens == question
        assert result.kv.peak_tokens == cell.budget + question + result.completion_tokens


def test_scope_and_first_token_say_which_positions_the_eviction_sees():
    sees = {mode: split_prompt(100, 80, *mode) for mode in MODES}
    assert [(split.press_len, split.refed, split.question_tokens) for split in sees.values()] == [
        (100, 0, 0),
        (99, 1, 0),
        (80, 0, 20),
    ]


def test_scope_context_with_the_first_token_of_the_full_cache_is_refused(folder):
    with pytest.raises(UserError, match=r"kv.first_token: 'full' does not go with kv.scope context"):
        ReferenceEngine(folder, scope="context", first_token="full")


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_a_share_is_a_share_of_what_the_budget_is_spent_on(folder, mode):
    engine = ReferenceEngine(folder, *mode)
    prompt_ids = engine.tokenizer.prompt_ids(PROMPT, mode[0])
    base = len(prompt_ids.ids) if mode[0] == "prompt" else prompt_ids.context_len
    for share, result in zip(
        (0.25, 0.5), swept(engine, [Cell("knorm", 0.25), Cell("knorm", 0.5)]).values(), strict=True
    ):
        assert result.kv.kept_mean == result.kv.requested == int(share * base)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_a_budget_that_takes_nothing_away_copies_the_full_answer(folder, mode):
    engine = ReferenceEngine(folder, *mode)
    prompt_ids = engine.tokenizer.prompt_ids(PROMPT, mode[0])
    base = len(prompt_ids.ids) if mode[0] == "prompt" else prompt_ids.context_len
    results = swept(engine, [FULL, Cell("tova", base), Cell("tova", base - 1), Cell("tova", 10_000)])
    full, at, below, above = results.values()
    for copy in (at, above):
        assert (copy.copied_from, copy.text, copy.kv.active) == ("full", full.text, False)
        assert copy.kv.kept_per_layer == full.kv.kept_per_layer == (base,) * 3
        assert copy.timings.latency_s is copy.timings.prefill_s is copy.timings.decode_s is None
    assert (below.copied_from, below.kv.active, below.kv.kept_mean) == (None, True, base - 1)
    assert full.copied_from is None


def test_the_full_answer_is_computed_for_a_copy_even_if_it_is_not_asked_for(engine):
    alone = swept(engine, [Cell("tova", 5000)])[Cell("tova", 5000)]
    assert alone.text == swept(engine, [FULL])[FULL].text


def test_with_first_token_compressed_even_one_token_feels_the_budget(folder):
    """First tokens from the full prefill are the same whatever the budget; re-read ones are not."""
    one = Decoding(max_new_tokens=1)
    cells = [FULL, *GRID]
    of_full = {result.text for result in swept(ReferenceEngine(folder), cells, decoding=one).values()}
    felt = ReferenceEngine(folder, first_token="compressed")
    of_compressed = {result.text for result in swept(felt, cells, decoding=one).values()}
    assert len(of_full) == 1
    assert len(of_compressed) > 5


def test_a_prompt_without_a_context_is_answered_in_scope_context(folder):
    """The floor without a context: nothing is compressed, everything is read."""
    prompt = Prompt(({"role": "user", "content": " ".join(WORDS[:9])},), None)
    results = [ReferenceEngine(folder, *mode).generate(prompt, FULL, DECODING, "example") for mode in MODES]
    assert {result.failure for result in results} == {None}
    assert len({result.text for result in results}) == 1


# One prefill for the grid


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_a_cell_answers_alone_as_it_does_in_the_grid(folder, mode):
    engine = ReferenceEngine(folder, *mode)
    cells = [FULL, *GRID]
    together = swept(engine, cells)
    backwards = swept(engine, cells[::-1])
    for cell in cells:
        alone = engine.generate(PROMPT, cell, DECODING, "example")
        assert alone.text == together[cell].text == backwards[cell].text
        assert alone.kv == together[cell].kv
    assert len({result.text for result in together.values()}) > 10


def test_logits_of_a_cell_are_bit_for_bit_the_same_alone_and_in_any_company(engine):
    """Else adding a budget to a grid could change answers that are not computed again."""
    rng = np.random.RandomState(0)
    cache, other, longer = (
        [tuple(rng.randn(2, 2, kept, 16).astype(np.float32)) for _ in range(3)] for kept in (30, 30, 41)
    )
    alone = engine.model.extend([CacheGroup({0: cache}, 1)], np.array([[9]]), np.array([100]))[0]
    for company in [*range(1, 60), 300, 1500, 2500]:
        group = CacheGroup({0: cache, **dict.fromkeys(range(1, company), other), company: cache}, 1)
        others = CacheGroup({"of another prompt": longer}, 1)
        tokens = np.array([[9], *([number % 50] for number in range(1, company)), [9], [7]])
        positions = np.array([100] * (company + 1) + [2000])
        logits = engine.model.extend([group, others], tokens, positions)
        assert (logits[0] == alone).all()
        assert (logits[company] == alone).all()


# Several prompts at once


def asked_at(*lengths):
    """Prompts of these lengths in words, each at the grid and without its context."""
    for number, words in enumerate(lengths):
        prompt = random_prompt(seed=number, context_words=words)
        yield PromptCells(f"example {number}", prompt, [FULL, *GRID])
        bare = random_prompt(seed=number, context_words=0)
        yield PromptCells(f"example {number}", bare, [FULL])


def swept_all(engine, asked):
    return [rows for together in engine.sweep_all(asked, DECODING) for rows in together]


def without_times(results):
    return [[{**row.as_row(), "timings": None} for row in rows] for rows in results]


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("limits", [{}, {"PROMPTS_TOGETHER": 3}, {"BYTES_TOGETHER": 1}], ids=str)
def test_prompts_that_are_answered_together_get_the_answers_that_each_gets_alone(
    folder, mode, limits, monkeypatch
):
    """The shortest prompts are within every budget, the longest one is beyond all."""
    for name, value in limits.items():
        monkeypatch.setattr(reference, name, value)
    engine, asked = ReferenceEngine(folder, *mode), list(asked_at(90, 5, 30, 200, 31, 90, 12))
    alone = [engine.sweep(one.prompt, one.cells, DECODING, one.example_id) for one in asked]
    together = swept_all(engine, asked)
    assert without_times(together) == without_times(alone)
    assert len({row.text for rows in together for row in rows}) > 30


def test_a_decoding_step_serves_many_prompts(engine, monkeypatch):
    batches = []
    decode = sweep.decode_cells

    def counted(model, prompts, *rest, **named):
        batches.append(len(prompts))
        return decode(model, prompts, *rest, **named)

    monkeypatch.setattr(sweep, "decode_cells", counted)
    asked = list(asked_at(90, 5, 30, 200))
    swept_all(engine, asked)
    assert batches == [8]
    largest = sum(row.kv.bytes_kept for row in engine.sweep(asked[0].prompt, [FULL], DECODING, "x"))
    monkeypatch.setattr(reference, "BYTES_TOGETHER", largest)
    batches.clear()
    swept_all(engine, asked)
    assert batches[0] == 1, "the first prompt's caches alone are as large as that"
    assert sum(batches) == 8


def test_each_prompt_has_its_share_of_the_time_that_decoding_took(engine):
    times = [[row.timings for row in rows] for rows in swept_all(engine, list(asked_at(90, 30)))]
    for rows in times:
        assert rows[0].prefill_s > 0
        assert rows[0].decode_s > 0
        assert [row.decode_s for row in rows[1:]] == [None] * (len(rows) - 1)
    grid, bare = times[0][0], times[1][0]
    assert grid.decode_s > bare.decode_s


def test_a_prompt_that_fails_among_others_is_a_failed_row_and_all_others_are_answered(engine, monkeypatch):
    asked, prefill = list(asked_at(90, 30, 60)), engine.model.prefill
    expected = without_times(swept_all(engine, asked))

    def fails(ids, watch, example_id="", *rest):
        if example_id == "example 1" and len(ids) > 20:
            raise MemoryError("planted")
        return prefill(ids, watch, example_id, *rest)

    monkeypatch.setattr(engine.model, "prefill", fails)
    found = swept_all(engine, asked)
    assert {row.failure for row in found[2]} == {"ENGINE_ERROR"}
    assert all("does not fit into memory" in row.error for row in found[2])
    del found[2], expected[2]
    assert without_times(found) == expected


def test_where_there_is_no_memory_for_all_prompts_at_once_each_is_decoded_alone(engine, monkeypatch):
    asked, decode = list(asked_at(90, 30)), sweep.decode_cells
    expected = without_times(swept_all(engine, asked))

    held = []

    def small(model, prompts, *rest, **named):
        if len(prompts) > 1:
            held.extend(weakref.ref(prompt.caches[0][0][0]) for prompt in prompts)
            raise MemoryError("planted")
        assert not any(cache() is not None for cache in held), "what did not fit is gone"
        return decode(model, prompts, *rest, **named)

    monkeypatch.setattr(sweep, "decode_cells", small)
    assert without_times(swept_all(engine, asked)) == expected
    assert len(held) == len(asked)


def test_a_mistake_in_the_settings_is_raised_after_what_was_read_before_it_is_answered(folder):
    engine = ReferenceEngine(folder, unknown_token_limit=0.5)
    good, *_ = asked_at(90)
    foreign = replace(good, prompt=build_prompt("{context}", "", " ".join(["nowhere"] * 50)))
    answers = engine.sweep_all([good, foreign], DECODING)
    assert [len(rows) for rows in next(answers)] == [len(good.cells)]
    with pytest.raises(UserError, match="unknown to the model"):
        next(answers)


@pytest.mark.parametrize("words", [63, 64, 65, 150])
def test_a_long_question_is_read_as_part_of_the_prompt(folder, words):
    """Read behind the full cache, in pieces, it gives the answer that one prefill gives."""
    prompt = random_prompt(seed=2, context_words=40, question_words=words)
    answers = {ReferenceEngine(folder, *mode).generate(prompt, FULL, DECODING, "id").text for mode in MODES}
    assert len(answers) == 1


def test_replicates_of_random_differ_and_repeat(engine):
    cells = [Cell("random", 24, replicate) for replicate in range(3)]
    texts = [result.text for result in swept(engine, cells).values()]
    assert len(set(texts)) == 3
    assert texts == [result.text for result in swept(engine, cells).values()]
    assert texts != [result.text for result in swept(engine, cells, example_id="other").values()]


def test_timings_of_a_request_are_its_own_and_those_of_a_sweep_are_stored_once(engine):
    alone = engine.generate(PROMPT, Cell("snapkv", 16), DECODING, "example").timings
    assert alone.timing_scope == "request"
    assert 0 < alone.ttfb_s <= alone.latency_s
    rows = [result.timings for result in swept(engine, [FULL, *GRID]).values()]
    assert {(row.timing_scope, row.latency_s, row.ttfb_s) for row in rows} == {("sweep", None, None)}
    assert [row.prefill_s is not None for row in rows] == [True] + [False] * len(GRID)
    assert sum(row.compress_s is not None for row in rows) == len(EVICTIONS)


# The end of an answer


def test_max_new_tokens_ends_with_length(engine):
    result = engine.generate(PROMPT, FULL, Decoding(3), "example")
    assert (result.finish_reason, result.completion_tokens) == ("length", 3)
    assert len(result.text.split()) == 3


def test_a_stop_string_ends_the_answer_and_is_cut_off(engine):
    words = engine.generate(PROMPT, FULL, DECODING, "example").text.split()
    stop = ("nowhere", words[2], f" {words[2]}")
    result = engine.generate(PROMPT, FULL, replace(DECODING, stop=stop), "example")
    assert result.text == " ".join(words[:2])
    assert (result.finish_reason, result.completion_tokens) == ("stop", 3)


def test_the_models_end_token_ends_the_answer_and_is_no_text(folder, tmp_path):
    engine = ReferenceEngine(folder)
    words = engine.generate(PROMPT, FULL, DECODING, "example").text.split()
    config = {"eos_token_id": engine.tokenizer.encode(words[1])[0]}
    ended = ReferenceEngine(write_random_llama(tmp_path / "ended", **config))
    result = ended.generate(PROMPT, FULL, DECODING, "example")
    assert (result.text, result.finish_reason, result.completion_tokens) == (words[0], "stop", 2)


def test_a_stop_token_ends_the_answer_and_stays_in_its_text(engine):
    words = engine.generate(PROMPT, FULL, DECODING, "example").text.split()
    at = words.index(words[2])
    decoding = replace(DECODING, stop_token_texts=(f"w0 {words[2]}", "  "))
    result = engine.generate(PROMPT, FULL, decoding, "example")
    assert result.text == " ".join(words[: at + 1])
    assert (result.finish_reason, result.completion_tokens) == ("stop", at + 1)


def test_before_the_least_number_of_tokens_no_end_is_taken(folder, tmp_path):
    """As with the transformers library's own minimum: the best of the other tokens is taken instead."""
    engine = ReferenceEngine(folder)
    free = engine.generate(PROMPT, FULL, DECODING, "example").text.split()
    stops = replace(DECODING, stop_token_texts=(free[0],))
    assert engine.generate(PROMPT, FULL, stops, "example").text == free[0]
    least = engine.generate(PROMPT, FULL, replace(stops, min_new_tokens=2), "example").text.split()
    assert len(least) >= 2
    assert free[0] not in least[:2]
    config = {"eos_token_id": engine.tokenizer.encode(free[0])[0]}
    ended = ReferenceEngine(write_random_llama(tmp_path / "ended", **config))
    assert ended.generate(PROMPT, FULL, DECODING, "example").text == ""
    assert (
        ended.generate(PROMPT, FULL, replace(DECODING, min_new_tokens=2), "example").text.split()[:2]
        == least[:2]
    )


@pytest.mark.kvpress
def test_the_least_number_of_tokens_is_that_of_transformers(root):
    import torch
    from transformers import AutoModelForCausalLM

    engine = ReferenceEngine(root / "resources" / "tiny-reader")
    model = AutoModelForCausalLM.from_pretrained(engine.path, dtype=torch.float32)
    for record in make_records("phrasebook_qa", 4, 64, 128, seed=5):
        prompt = build_prompt("phrasebook_qa", record["input"], record["context"])
        ids = engine.tokenizer.prompt_ids(prompt).ids
        first = engine.generate(prompt, FULL, Decoding(1), "example").text
        [stop] = engine.tokenizer.encode(first)
        for least in (0, 1, 3):
            theirs = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                max_new_tokens=6,
                do_sample=False,
                min_length=len(ids) + least,
                eos_token_id=[*engine.tokenizer.eos_ids, stop],
            )
            decoding = Decoding(6, min_new_tokens=least, stop_token_texts=(first,))
            ours = engine.generate(prompt, FULL, decoding, "example")
            assert ours.text == engine.tokenizer.decode(theirs[0, len(ids) :].tolist())
            assert ours.text != first or least == 0


def test_cells_that_end_early_leave_the_others_as_they_were(engine):
    """Finished cells make room in the batch; the rows that move must stay whose they are."""
    texts = {cell: result.text for cell, result in swept(engine, GRID).items()}
    for word in {word for text in texts.values() for word in text.split()[1:2]}:
        stopped = swept(engine, GRID, decoding=replace(DECODING, stop=(word,)))
        for cell, result in stopped.items():
            assert result.text == texts[cell].partition(word)[0]


# Failures


def planted(monkeypatch, **changes):
    table = {**EVICTIONS, **changes}
    monkeypatch.setattr(sweep, "EVICTIONS", table)


def test_a_cell_that_keeps_more_than_its_budget_is_an_error_and_no_score(engine, monkeypatch):
    """The number of kept positions is read from the cache; a method's word for it does not count."""
    twice = Eviction(evictions.tova, select=lambda scores, k: top_positions(scores, 2 * k))
    planted(monkeypatch, tova=twice)
    results = swept(engine, [FULL, *GRID])
    for cell, result in results.items():
        if cell.method == "tova":
            assert (result.failure, result.text, result.kv) == ("ENGINE_ERROR", "", None)
            keep = cell.budget - 1
            assert f"kept {[2 * keep] * 3} positions per layer where {keep} were asked for" in result.error
        else:
            assert result.failure is None


def test_a_failing_eviction_fails_its_own_cells_only(engine, monkeypatch):
    def broken(layer, parameters, replicate):
        raise ZeroDivisionError("planted")

    planted(monkeypatch, knorm=Eviction(broken))
    results = swept(engine, [FULL, *GRID])
    assert {cell.method for cell, result in results.items() if result.failure} == {"knorm"}
    assert results[Cell("knorm", 16)].error == "ZeroDivisionError: planted"
    alone = engine.generate(PROMPT, Cell("knorm", 16), DECODING, "example")
    assert alone.error == "ZeroDivisionError: planted"


def test_out_of_memory_fails_the_example_and_the_next_one_runs(folder, monkeypatch):
    engine = ReferenceEngine(folder)

    def prefill(*args, **kwargs):
        raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "prefill", prefill)
        assert {result.failure for result in swept(engine, [FULL, *GRID]).values()} == {"ENGINE_ERROR"}
    assert {result.failure for result in swept(engine, [FULL, *GRID]).values()} == {None}


def test_a_prompt_beyond_the_models_positions_is_an_error_that_says_so(engine):
    results = swept(engine, [FULL, Cell("snapkv", 16)], prompt=random_prompt(1, 700))
    for result in results.values():
        assert result.failure == "ENGINE_ERROR"
        assert "the prompt has 708 tokens; the model reads 1 to 600 (max_position_embeddings)" in result.error
        assert result.error.endswith("(dataset.max_tokens) or cut them (protocol.max_length_tokens)")


def test_text_that_the_models_vocabulary_does_not_know_is_refused(engine):
    prompt = Prompt(({"role": "user", "content": "w1 w2 Call me Ishmael"},), 4)
    with pytest.raises(UserError, match=r"vocabulary does not know this text.*engine.unknown_token_limit"):
        engine.generate(prompt, FULL, DECODING, "example")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("snapvk", 64), "'snapvk' is unknown"),
        (Cell("snapkv"), "needs a budget"),
        (Cell("full", 64), "has no budget"),
        (Cell("bm25", 64), "shortens the prompt, not the cache"),
    ],
    ids=str,
)
def test_a_cell_that_makes_no_sense_is_refused(engine, cell, message):
    with pytest.raises(UserError, match=message):
        engine.generate(PROMPT, cell, DECODING, "example")


# From settings


def answer_slice(folder, **engine):
    return {
        "engine": {"kind": "reference", "dtype": "float32", "unknown_token_limit": 0.2, **engine},
        "model": {"name": "model", "path": str(folder), "revision": None},
        "kv": {"scope": "prompt", "first_token": "compressed", "methods": {"snapkv": {"window": 4}}},
    }


def test_settings_become_an_engine(folder):
    engine = build_engine(answer_slice(folder))
    provenance = engine.provenance()
    assert provenance["class"] == "ReferenceEngine"
    assert provenance["protocol"] == ENGINE_PROTOCOL
    assert engine.parameters["snapkv"] == {"window": 4, "kernel": 5}
    assert engine.generate(PROMPT, Cell("h2o", 16), DECODING, "example").kv.method == "observed_attention"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "refrence"}, "engine.kind: 'refrence' is unknown"),
        ({"dtype": "int8"}, "engine.dtype: 'int8'"),
    ],
    ids=str,
)
def test_an_unknown_kind_or_dtype_is_named(folder, changes, message):
    with pytest.raises(UserError, match=message):
        build_engine(answer_slice(folder, **changes))


# Answers that do not drift

#: protocol -> digest of the tokens of every cell of the fixed model below.
GOLDEN = {1: "8e3fb5dcaa811458", 2: "8e3fb5dcaa811458"}


def golden_digest(engine: ReferenceEngine) -> str:
    # Every word once: where words repeat, their keys have equal norms in layer 0, and rounding orders them.
    words = np.random.RandomState(3).permutation(WORDS)[:56].tolist()
    content = " ".join(words)
    prompt = Prompt(({"role": "user", "content": content},), len(" ".join(words[:50])))
    rows = []
    for mode in MODES:
        engine.scope, engine.first_token = mode
        for cell, result in swept(engine, [FULL, *GRID], prompt, Decoding(3)).items():
            rows.append(f"{'-'.join(mode)} {cell.method} {cell.label} {cell.replicate} {result.text}")
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def test_answers_of_a_fixed_model_are_those_of_this_protocol_number(tmp_path):
    """Stored answers are reused while ENGINE_PROTOCOL stays the same, so a change of answers must raise it.

    If this fails, an edit has changed what the engine answers. If that was meant, raise ENGINE_PROTOCOL in
    engines/base.py and add the new digest under the new number; if not, the edit is wrong. The model, its prompt and
    the number of tokens are chosen so that rounding cannot decide an answer: weights moved by one part in 100,000
    leave the digest as it is.
    """
    digest = golden_digest(ReferenceEngine(write_random_llama(tmp_path / "golden", seed=7)))
    assert GOLDEN.get(ENGINE_PROTOCOL) == digest


def test_rounding_does_not_decide_the_golden_answers(tmp_path):
    folder = write_random_llama(tmp_path / "golden", seed=7)
    engine = ReferenceEngine(folder)
    exact = golden_digest(engine)
    rng = np.random.RandomState(7)
    for _ in range(5):
        moved = {
            name: (array * (1 + 1e-5 * rng.randn(*array.shape))).astype(np.float32)
            for name, array in read_weights(folder).items()
        }
        engine.model = Llama(read_config(folder), moved)
        assert golden_digest(engine) == exact
