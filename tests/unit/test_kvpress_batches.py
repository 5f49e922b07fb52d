"""The engine kvpress decodes many cells at once, looks at tokens now and then, and reads a shared context once.

None of that may change an answer: each is held against the same cells decoded one at a time, looked at after every token,
from a prefill of their own.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_kvpress_engine import (
    ADAKV,
    FULL,
    OF_KVPRESS,
    PARAMETERS,
    WORDS,
    ByHand,
    positions_by_key,
    prompt_of,
    swept,
    write_model,
)

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell, Decoding
from kv_transition.engines.greedy import Ending
from kv_transition.engines.kvpress_engine import KVPressEngine
from kv_transition.errors import UserError

pytestmark = pytest.mark.kvpress

METHODS = ("snapkv", "streaming_llm", "tova", "knorm", *OF_KVPRESS, *ADAKV)
GRID = [
    FULL,
    *(Cell(method, budget) for method in METHODS for budget in (24, 48)),
    *(Cell("random", 48, replicate) for replicate in range(3)),
]
#: Some answers meet a word with a 7 in it, others do not.
LONG = Decoding(12, stop_token_texts=tuple(word for word in WORDS if "7" in word))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def engine(folder) -> KVPressEngine:
    return KVPressEngine(folder, "prompt", "compressed", PARAMETERS, device="cpu")


def told(results):
    """Everything but how long it took."""
    return {cell: replace(result, timings=None) for cell, result in results.items()}


def errors(results) -> list[str]:
    return [result.error for result in results.values() if result.error]


# Batches


def test_cells_answered_at_once_are_those_answered_one_by_one(engine):
    batches = {}
    for size in (1, 4, 100):
        one = engine.variant("prompt", "compressed", PARAMETERS)
        one.decode_batch = size
        batches[size] = told(swept(one, GRID, prompt_of(180), LONG))
    assert errors(batches[1]) == []
    assert len({result.text for result in batches[1].values()}) > len(GRID) // 2
    assert batches[4] == batches[1]
    assert batches[100] == batches[1]


def test_no_cell_of_the_shared_prefill_is_copied_for_its_batch(engine, monkeypatch):
    """Its keys and values are put where they are answered from; only what has a prefill of its own is moved there."""
    from kv_transition.engines import kvpress_groups

    copied, copy = [], kvpress_groups._copied

    def counted(cells, room):
        copied.extend(cells)
        return copy(cells, room)

    monkeypatch.setattr(kvpress_groups, "_copied", counted)
    assert errors(swept(engine, GRID, prompt_of(180), LONG)) == []
    assert len(copied) == sum(cell.method in ADAKV for cell in GRID)


@pytest.mark.parametrize("least", [0, 5])
def test_tokens_that_nobody_looked_at_change_no_answer(engine, monkeypatch, least):
    """A GPU computes some tokens before the host looks: those behind an answer's end are thrown away."""
    from kv_transition.engines import kvpress_decoding

    decoding = replace(LONG, min_new_tokens=least)
    every = told(swept(engine, GRID, prompt_of(150), decoding))
    run = kvpress_decoding._Greedy.run
    for unseen in (3, 16):

        def rarely(self, *given, unseen=unseen):
            self.unseen = unseen
            run(self, *given)

        with monkeypatch.context() as patched:
            patched.setattr(kvpress_decoding._Greedy, "run", rarely)
            assert told(swept(engine, GRID, prompt_of(150), decoding)) == every
    assert {result.finish_reason for result in every.values()} == {"stop", "length"}
    assert min(result.completion_tokens for result in every.values()) > least


def test_a_batch_that_does_not_fit_into_memory_is_halved(engine, monkeypatch):
    import torch

    from kv_transition.engines import kvpress_sweep

    before = told(swept(engine, GRID, prompt_of(150)))
    decode, sizes = kvpress_sweep.decode_cells, []

    def small(loaded, cells, *rest):
        sizes.append(len(cells))
        if len(cells) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(loaded, cells, *rest)

    monkeypatch.setattr(kvpress_sweep, "decode_cells", small)
    assert told(swept(engine, GRID, prompt_of(150))) == before
    assert max(sizes) > 4


def test_a_cell_that_cannot_be_decoded_takes_no_other_with_it(engine, monkeypatch):
    from kv_transition.engines import kvpress_sweep

    before = told(swept(engine, GRID, prompt_of(150)))
    decode, bad = kvpress_sweep.decode_cells, Cell("tova", 48)
    names = {}
    one_batch = kvpress_sweep._Sweep._decode

    def named(sweep, caches, logits):
        names["cells"] = [cache.cell for cache in caches]
        one_batch(sweep, caches, logits)

    def fails(*given):
        if bad in names["cells"]:
            raise RuntimeError("no luck")
        return decode(*given)

    monkeypatch.setattr(kvpress_sweep._Sweep, "_decode", named)
    monkeypatch.setattr(kvpress_sweep, "decode_cells", fails)
    results = told(swept(engine, GRID, prompt_of(150)))
    assert results.pop(bad).error == "RuntimeError: no luck"
    assert results == {cell: result for cell, result in before.items() if cell != bad}


def test_no_more_cells_than_asked_for_are_decoded_at_once(engine, monkeypatch):
    from kv_transition.engines import kvpress_sweep

    decode, sizes = kvpress_sweep.decode_cells, []

    def counted(loaded, cells, *rest):
        sizes.append(len(cells))
        return decode(loaded, cells, *rest)

    monkeypatch.setattr(kvpress_sweep, "decode_cells", counted)
    one = engine.variant("prompt", "compressed", PARAMETERS)
    one.decode_batch = 7
    swept(one, GRID, prompt_of(150))
    assert max(sizes) == 7
    assert sum(sizes) == len(GRID)


def test_a_model_whose_attention_does_more_is_refused(folder, monkeypatch):
    from kv_transition.engines import kvpress_groups

    attend = kvpress_groups.CellGroup.attend

    def colder(self, layer, queries, *rest):
        return attend(self, layer, queries * 0.5, *rest)

    monkeypatch.setattr(kvpress_groups.CellGroup, "attend", colder)
    with pytest.raises(UserError, match="LlamaForCausalLM computes its attention in a way"):
        KVPressEngine(folder, device="cpu")


# One prefill


def prefills(engine, monkeypatch) -> list[int]:
    """Lengths of what the model reads in one piece, in order; answers' tokens and short questions left out."""
    forward, lengths = engine.loaded.model.forward, []

    def counted(ids, *rest, **more):
        lengths.extend([ids.shape[1]] * (ids.shape[1] > 30))
        return forward(ids, *rest, **more)

    monkeypatch.setattr(engine.loaded.model, "forward", counted)
    return lengths


def test_snapkv_as_others_have_it_shares_the_prefill(engine, monkeypatch):
    presses = {name: {"press": f"snapkv_{name}"} for name in ("paper", "kvcache_factory", "kvpress")}
    own = engine.variant("prompt", "compressed", {**PARAMETERS, **presses})
    cells = [FULL, Cell("snapkv", 140), *(Cell(name, budget) for name in presses for budget in (140, 160))]
    one_by_one = {cell: swept(own, [cell], prompt_of(250))[cell] for cell in cells}
    lengths = prefills(own, monkeypatch)
    together = swept(own, cells, prompt_of(250))
    assert errors(together) == []
    assert lengths == [251]
    assert told(together) == told(one_by_one)


# SnapKV for every query head


def expanded(folder: Path, to: Path) -> Path:
    """The same model with a KV head for each query head: the published implementations repeat keys and values so."""
    import shutil

    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, to)
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    weights = model.state_dict()
    for name in [name for name in weights if "k_proj" in name or "v_proj" in name]:
        heads = weights[name].view(config.num_key_value_heads, config.head_dim, *weights[name].shape[1:])
        weights[name] = heads.repeat_interleave(group, dim=0).flatten(0, 1)
    config.num_key_value_heads = config.num_attention_heads
    wide = transformers.LlamaForCausalLM(config)
    wide.load_state_dict(weights)
    wide.to(torch.float32).save_pretrained(to)
    return to


class EveryHead(ByHand):
    """kvpress's SnapKV with max-pooling, on a model in which every query head has keys of its own."""

    def press(self, cell, keep, press_len):
        import torch
        from torch.nn import functional

        from kv_transition.engines.kvpress_presses import kvpress

        class MaxPooled(kvpress.SnapKVPress):
            def score(self, module, hidden_states, keys, values, attentions, kwargs):
                weights = self.compute_window_attention(
                    module, hidden_states, keys, self.window_size, kwargs["position_embeddings"]
                )
                votes = functional.max_pool1d(weights.mean(-2), 7, padding=3, stride=1)
                return torch.cat([votes, torch.full((*votes.shape[:2], self.window_size), 9.0)], -1)

        return MaxPooled(1 - (keep + 0.5) / press_len, window_size=32, kernel_size=7)


@pytest.mark.parametrize("mode", [("prompt", "full"), ("context", "compressed")], ids="-".join)
def test_every_query_head_keeps_positions_of_its_own(folder, tmp_path, monkeypatch, mode):
    """Kept positions, logits, tokens and bytes are those of the model whose keys are repeated before the choice."""
    from kv_transition.engines import kvpress_sweep

    own = KVPressEngine(folder, *mode, {"paper": {"press": "snapkv_paper"}}, device="cpu")
    hand = EveryHead(expanded(folder, tmp_path / "wide"))
    prompt, cells = prompt_of(200), [Cell("paper", budget) for budget in (70, 100)]
    ids = own.tokenizer.prompt_ids(prompt, mode[0])
    theirs = hand.traces(
        ids.ids, ids.context_len, cells, mode, Ending(6, (), frozenset({1}), lambda tokens: "")
    )
    kept, decode, logits = {}, kvpress_sweep.decode_cells, {}

    def watched(loaded, groups, *rest):
        for cell, layers in groups.items():
            kept[cell] = [keys[0].numpy() for keys, _ in layers.layers]
        return decode(
            loaded, groups, *rest, note_logits=lambda cell, row: logits.setdefault(cell, []).append(row)
        )

    monkeypatch.setattr(kvpress_sweep, "decode_cells", watched)
    for cell in cells:
        kept.clear()
        logits.clear()
        whole = told(swept(own, [FULL], prompt))[FULL]
        full = kept.pop(0)
        logits.clear()
        result = swept(own, [cell], prompt)[cell]
        assert result.error is None
        repeated = [np.repeat(layer, 4, axis=0) for layer in full]
        tables = positions_by_key(repeated)
        found = [
            [frozenset(table[row.tobytes()] for row in head) for table, head in zip(*pair, strict=True)]
            for pair in zip(tables, kept[0], strict=True)
        ]
        assert found == theirs[cell].kept
        assert len({frozenset(layer) for layer in map(tuple, found)}) > 1
        for ours, expected in zip(logits[0], theirs[cell].logits, strict=True):
            assert np.abs(ours - expected).max() <= 1e-3 * expected.std()
        assert result.kv.kept_mean == cell.budget
        position_bytes = whole.kv.bytes_kept / whole.kv.kept_mean
        assert result.kv.bytes_kept == 4 * position_bytes * cell.budget


# A context that several questions share


def questions(count: int, words: int = 150) -> list[Prompt]:
    """Questions about one context."""
    chosen = list(np.random.RandomState(5).permutation(WORDS))
    context, rest = " ".join(chosen[:words]), chosen[words:]
    asked = [" ".join(rest[9 * number : 9 * number + 9]) for number in range(count)]
    return [Prompt(({"role": "user", "content": f"{context} {one}"},), len(context)) for one in asked]


def test_a_context_is_read_once_for_all_questions_about_it(engine, monkeypatch):
    own = engine.variant("context", "compressed", PARAMETERS)
    prompts = [*questions(3), prompt_of(140)]
    names = [f"example {number}" for number in range(len(prompts))]
    alone = [own.sweep(prompt, GRID, LONG, name) for prompt, name in zip(prompts, names, strict=True)]
    lengths = prefills(own, monkeypatch)
    shared = []
    for number, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
        if number + 1 < len(prompts):
            own.read_ahead(prompts[number + 1])
        shared.append(own.sweep(prompt, GRID, LONG, name))
    for one, other in zip(shared, alone, strict=True):
        assert [result.error for result in one if result.error] == []
        assert told(dict(zip(GRID, one, strict=True))) == told(dict(zip(GRID, other, strict=True)))
    draws = {tuple(result.text for result in one[-3:]) for one in shared}
    assert len(draws) == len(prompts)
    # AdaKV has prefills of its own: one for each budget.
    per_context = 1 + 2 * len(ADAKV)
    assert len(lengths) == 2 * per_context
    assert [one[0].timings.prefill_s == 0 for one in shared] == [False, True, True, False]


def test_nothing_is_held_when_the_next_question_is_about_another_context(engine):
    own = engine.variant("context", "compressed", PARAMETERS)
    first, second = questions(2)
    own.read_ahead(second)
    own.sweep(first, GRID, LONG, "first")
    assert own.contexts._value is not None
    own.sweep(second, GRID, LONG, "second")
    assert own.contexts._value is None


def test_a_context_is_not_shared_where_every_cell_has_a_prefill_of_its_own(engine):
    """A kvpress that nothing was proved on draws `random` by itself, and leaves no keys to draw from again."""
    own = engine.variant("context", "compressed", PARAMETERS)
    own.setting = {**own.setting, "kvpress": "0.5.6"}
    cells = [FULL, Cell("snapkv", 48), Cell("random", 48)]
    first, second = questions(2)
    expected = told(swept(own, cells, second))
    own.read_ahead(second)
    own.sweep(first, cells, LONG, "first")
    results = told(dict(zip(cells, own.sweep(second, cells, Decoding(6), "example"), strict=True)))
    assert errors(results) == []
    assert results == expected


def test_a_prompt_that_ends_with_its_context_takes_nothing_over(engine):
    own = engine.variant("context", "compressed", PARAMETERS)
    (first,) = questions(1)
    content = first.messages[0]["content"][: first.context_end]
    bare = Prompt(({"role": "user", "content": content},), first.context_end, wrapped=False)
    asked = replace(first, wrapped=False)
    expected = told(dict(zip(GRID, own.sweep(bare, GRID, LONG, "bare"), strict=True)))
    own.read_ahead(bare)
    own.sweep(asked, GRID, LONG, "first")
    assert told(dict(zip(GRID, own.sweep(bare, GRID, LONG, "bare"), strict=True))) == expected


def test_a_prefill_that_fails_leaves_no_tensor_behind(engine, monkeypatch):
    """On a GPU the next example would have no room."""
    import gc
    import weakref

    import torch

    from kv_transition.engines import kvpress_sweep

    held, cut = [], kvpress_sweep.SharedPrefill.cut

    def fails_late(self, module, hidden, keys, *rest):
        held.append(weakref.ref(keys))
        if module.layer_idx == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        cut(self, module, hidden, keys, *rest)

    monkeypatch.setattr(kvpress_sweep.SharedPrefill, "cut", fails_late)
    gc.collect()
    gc.disable()
    try:
        results = swept(engine, GRID, prompt_of(150))
        alive = [reference() for reference in held if reference() is not None]
    finally:
        gc.enable()
    assert len(held) % 3 == 0
    assert [result.failure for result in results.values()] == ["ENGINE_ERROR"] * len(GRID)
    assert all("out of memory" in error for error in errors(results))
    assert alive == []


def test_cells_that_do_not_fit_beside_each_other_are_answered_by_further_prefills(engine, monkeypatch):
    """Whether a cell has an answer must not depend on how many others are asked for."""
    import torch

    from kv_transition.engines import kvpress_caches

    cells = [cell for cell in GRID if cell.method not in ADAKV]
    before = told(swept(engine, cells, prompt_of(150)))
    add, held = kvpress_caches.TorchCache.add, set()

    def crowded(cache, keys, values):
        held.difference_update([other for other in held if not other.layers])
        if id(cache) not in map(id, held) and len(held) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        add(cache, keys, values)
        held.add(cache)

    monkeypatch.setattr(kvpress_caches.TorchCache, "__hash__", object.__hash__, raising=False)
    monkeypatch.setattr(kvpress_caches.TorchCache, "add", crowded)
    lengths = prefills(engine, monkeypatch)
    assert told(swept(engine, cells, prompt_of(150))) == before
    assert 2 <= len(lengths) <= len(cells)


def test_a_prefill_that_fits_for_no_cell_is_not_tried_for_each_of_them(engine, monkeypatch):
    import torch

    forward, tried = type(engine.loaded.model).forward, []

    def large(self, *given, **more):
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(engine.loaded.model), "forward", large)
    results = swept(engine, GRID, prompt_of(150))
    assert len(errors(results)) == len(GRID)
    assert len(tried) < 8
    monkeypatch.setattr(type(engine.loaded.model), "forward", forward)
    assert errors(swept(engine, GRID, prompt_of(150))) == []


def test_a_prefill_of_its_own_for_which_there_is_no_memory_takes_that_of_the_remembered_context(
    engine, monkeypatch
):
    import torch

    from kv_transition.engines import kvpress_sweep

    own = engine.variant("context", "compressed", PARAMETERS)
    first, second = questions(2)
    alone = [told(dict(zip(GRID, own.sweep(one, GRID, LONG, "one"), strict=True))) for one in (first, second)]
    read = kvpress_sweep._Sweep._read_prompt

    def crowded(sweep, caches):
        if not caches and sweep.remembers and len(sweep.kept) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(sweep, caches)

    monkeypatch.setattr(kvpress_sweep._Sweep, "_read_prompt", crowded)
    own.read_ahead(second)
    shared = [
        told(dict(zip(GRID, own.sweep(one, GRID, LONG, "one"), strict=True))) for one in (first, second)
    ]
    assert shared == alone


def test_the_host_waits_for_no_single_token(engine, monkeypatch):
    """On a GPU each look at a number waits for all that was computed before it; 16 tokens are looked at together."""
    from torch.overrides import TorchFunctionMode

    from kv_transition.engines import kvpress_decoding

    looks = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            name = getattr(function, "__name__", "")
            if name in ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__index__"):
                looks.append(name)
            return function(*args, **(kwargs or {}))

    run = kvpress_decoding._Greedy.run

    def watched(self, *given):
        self.unseen = kvpress_decoding.UNSEEN_TOKENS
        with Watch():
            run(self, *given)

    monkeypatch.setattr(kvpress_decoding._Greedy, "run", watched)
    cells = [FULL, *(Cell("snapkv", budget) for budget in (24, 48))]
    results = swept(engine, cells, prompt_of(150), Decoding(33))
    assert {result.completion_tokens for result in results.values()} == {33}
    # The first token by itself, then 16 and 16.
    assert looks == ["tolist"] * 3


def test_a_window_that_no_prompt_outgrows_is_none(tmp_path):
    model = write_model(tmp_path / "mistral", "Mistral", sliding_window=4096)
    results = swept(KVPressEngine(model, device="cpu"), [FULL, Cell("snapkv", 140)], prompt_of(150))
    assert errors(results) == []
