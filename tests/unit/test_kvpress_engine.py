"""The engine kvpress: transformers' models under kvpress's presses, with one prefill for all cells that may share it.

It is held against two others that share none of its code: kvpress driven by hand, one cell at a time (kept positions,
logits of every step and tokens), and the reference engine (whole results).
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_reference_equals_kvpress import (
    KERNEL,
    WINDOW,
    KVPress,
    Trace,
    differences,
    documents,
    positions_by_key,
    positions_kept,
)

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell, Decoding
from kv_transition.engines.greedy import Ending
from kv_transition.engines.kvpress_engine import KVPressEngine
from kv_transition.engines.reference import ReferenceEngine
from kv_transition.errors import UserError

pytestmark = pytest.mark.kvpress

MODES = (("prompt", "full"), ("prompt", "compressed"), ("context", "compressed"))
SHARED_METHODS = ("snapkv", "streaming_llm", "observed_attention", "tova", "knorm", "random")
OF_KVPRESS = ("pyramidkv", "keydiff", "expected_attention", "lagkv")
ADAKV = ("adakv_snapkv", "adakv_expected_attention")
PARAMETERS = {
    **{name: {"window": WINDOW, "kernel": KERNEL} for name in ("snapkv", "pyramidkv", "adakv_snapkv")},
    **{name: {"n_future_positions": 64} for name in ("expected_attention", "adakv_expected_attention")},
    "lagkv": {"lag_size": 16},
}
FULL = Cell("full")
DECODING = Decoding(6)
#: Each once in a prompt: words that repeat have keys of the same norm in layer 0, and rounding would order them.
WORDS = [f"w{number}" for number in range(596)]
SPECIAL = ["<unk>", "<eos>", "<user>", "<answer>"]
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}<answer>"
#: initializer_range makes answers depend on the cache.
SHAPE = {
    "vocab_size": len(WORDS) + len(SPECIAL),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "max_position_embeddings": 1024,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}
SIX_TOKENS = Ending(6, (), frozenset({SHAPE["eos_token_id"]}), lambda tokens: "")


def write_model(folder: Path, architecture: str = "Llama", **changes) -> Path:
    """A model folder with random weights of a transformers architecture, and a tokenizer of one token a word."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(SPECIAL + WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def prompt_of(words: int, question: int = 7, seed: int = 0) -> Prompt:
    """A prompt of `words` different words and the template's two tokens; the last `question` words are the question."""
    chosen = np.random.RandomState(seed).permutation(WORDS)[:words]
    context, asked = " ".join(chosen[: words - question]), " ".join(chosen[words - question :])
    return Prompt(({"role": "user", "content": f"{context} {asked}"},), len(context))


def swept(engine, cells, prompt, decoding=DECODING):
    results = engine.sweep(prompt, cells, decoding, "example")
    return dict(zip(cells, results, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def engine(folder) -> KVPressEngine:
    return KVPressEngine(folder, "prompt", "compressed", PARAMETERS, device="cpu")


@pytest.fixture(scope="module")
def eager(folder) -> KVPressEngine:
    return KVPressEngine(
        folder, "prompt", "compressed", PARAMETERS, device="cpu", attn_implementation="eager"
    )


@pytest.fixture(scope="module")
def reference(folder) -> ReferenceEngine:
    return ReferenceEngine(folder, "prompt", "compressed", PARAMETERS)


# kvpress by hand


class ByHand(KVPress):
    """kvpress's other presses, as its documentation makes them."""

    def press(self, cell, keep, press_len):
        import kvpress

        ratio, window = 1 - (keep + 0.5) / press_len, min(WINDOW, press_len - 1)
        snapkv = kvpress.SnapKVPress(ratio, window_size=window, kernel_size=KERNEL)
        expected = kvpress.ExpectedAttentionPress(ratio, n_future_positions=64)
        match cell.method:
            case "pyramidkv":
                return kvpress.PyramidKVPress(1 - keep / press_len, window_size=window, kernel_size=KERNEL)
            case "keydiff":
                return kvpress.KeyDiffPress(ratio)
            case "expected_attention":
                return expected
            case "lagkv":
                return kvpress.LagKVPress(ratio, lag_size=16)
            case "adakv_snapkv":
                return kvpress.AdaKVPress(snapkv)
            case "adakv_expected_attention":
                return kvpress.AdaKVPress(expected)
        return super().press(cell, keep, press_len)

    def trace(self, ids, split, cell, ending):
        """Everything behind the compressed part is read token by token.

        kvpress's masks fit one length of all layers, and not every question has a key that none of it is drawn to.
        """
        import contextlib

        import torch
        from transformers import DynamicCache

        model, prompt, keep = (
            self.models["sdpa"],
            torch.tensor([ids[: split.press_len]]),
            split.requested(cell),
        )
        if not self.tables:
            full = DynamicCache()
            model(prompt, past_key_values=full)
            self.tables = positions_by_key([layer.keys[0].numpy() for layer in full.layers])
        cache, hooks = DynamicCache(), contextlib.nullcontext()
        if keep is not None:
            hooks = self.press(cell, keep - split.refed, split.press_len)(model)
        with hooks:
            output = model(prompt, past_key_values=cache)
        trace = Trace(positions_kept([layer.keys[0].numpy() for layer in cache.layers], self.tables))
        position, tokens = split.press_len, ids[split.press_len :]
        while len(trace.tokens) < ending.max_new_tokens and not ending.eos_ids & {*trace.tokens}:
            for token in tokens:
                positions = torch.tensor([[position]])
                output = model(torch.tensor([[token]]), past_key_values=cache, position_ids=positions)
                position += 1
            trace.logits.append(output.logits[0, -1].numpy())
            tokens = [int(trace.logits[-1].argmax())]
            trace.tokens += tokens
        return trace


@pytest.fixture
def traced(monkeypatch):
    """A sweep whose kept positions and logits are looked at on the way, and nothing else is changed."""
    from kv_transition.engines import kvpress_sweep

    decode_batch, decode_cells = kvpress_sweep._Sweep._decode, kvpress_sweep.decode_cells
    seen = {}

    def watched(sweep, caches, logits):
        traces = [Trace([layer[0][0].numpy() for layer in cache.layers]) for cache in caches]
        seen.update({cache.cell: trace for cache, trace in zip(caches, traces, strict=True)})
        monkeypatch.setattr(
            kvpress_sweep,
            "decode_cells",
            lambda *args: decode_cells(*args, note_logits=lambda cell, row: traces[cell].logits.append(row)),
        )
        decode_batch(sweep, caches, logits)
        for cache, trace in zip(caches, traces, strict=True):
            if cache.cell in sweep.answers:
                trace.tokens = sweep.answers[cache.cell].tokens

    monkeypatch.setattr(kvpress_sweep._Sweep, "_decode", watched)

    def run(engine, prompt, cells, decoding=DECODING):
        seen.clear()
        results = swept(engine, [FULL, *cells], prompt, decoding)
        assert [result.error for result in results.values() if result.error] == []
        tables = positions_by_key(seen[FULL].kept)
        return {cell: replace(trace, kept=positions_kept(trace.kept, tables)) for cell, trace in seen.items()}

    return run


ARCHITECTURES = {
    "Llama": {},
    "Qwen2": {},
    "Mistral": {"sliding_window": None},
    "Qwen3": {},
    "Phi3": {},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_cell_of_one_prefill_is_as_kvpress_makes_it_alone(tmp_path, traced, monkeypatch, architecture):
    """Kept positions of every layer and head, logits of every step, tokens.

    kvpress puts keys that no query is drawn to in the place of those that AdaKV masks. Where it finds them with little to
    spare they weigh something after all (1.6e-3 of the logits' standard deviation here at one budget): a thousand times as
    far away they weigh nothing.
    """
    import kvpress.attention_patch

    search = kvpress.attention_patch.search_hyperplane
    monkeypatch.setattr(kvpress.attention_patch, "search_hyperplane", lambda queries: 1000 * search(queries))
    model = write_model(tmp_path / "model", architecture, **ARCHITECTURES[architecture])
    methods = [method for method in (*SHARED_METHODS, *OF_KVPRESS, *ADAKV) if method != "random"]
    hand = ByHand(model)
    for attention in ("sdpa", "eager"):
        # eager computes in another order: it is its own full cache that its cells go with.
        hand.models["sdpa"] = hand.models[attention]
        own = KVPressEngine(
            model, "prompt", "compressed", PARAMETERS, device="cpu", attn_implementation=attention
        )
        left_out = (*ADAKV, "pyramidkv") if attention == "eager" else ("observed_attention",)
        cells = [
            Cell(method, budget)
            for method in methods
            if method not in left_out
            for budget in (20, 28, 36, 48)
        ]
        for length, mode in zip((70, 130, 257), MODES, strict=True):
            one = own.variant(*mode, PARAMETERS)
            prompt = prompt_of(length)
            ids = one.tokenizer.prompt_ids(prompt, mode[0])
            theirs = hand.traces(ids.ids, ids.context_len, cells, mode, SIX_TOKENS)
            ours = traced(one, prompt, cells)
            assert differences(ours, theirs) == [], (attention, mode)
            full = tuple(ours.pop(FULL).tokens)
            answers = {tuple(trace.tokens) for trace in ours.values()}
            # Answers that do not depend on the cache would prove nothing. What is read twice is rarely changed twice.
            assert len(answers) >= 20
            assert full not in answers


def test_the_comparison_notices_planted_errors(engine, traced, monkeypatch):
    """Else that nothing differs would prove nothing: caches swapped, one kept position replaced, a neighbour layer's keys,
    positions off by one."""
    from kv_transition.engines import kvpress_caches, kvpress_groups

    prompt, cells = prompt_of(130), [Cell("snapkv", 32), Cell("tova", 32)]
    good = traced(engine, prompt, cells)
    assert differences(good, traced(engine, prompt, cells)) == []

    measure = kvpress_caches.TorchCache.measure

    def planted_by(change):
        """Differences when this is done to the caches between the prefill and the answers."""

        def spoiled(cache):
            measure(cache)
            change(cache)

        with monkeypatch.context() as planted:
            planted.setattr(kvpress_caches.TorchCache, "measure", spoiled)
            return differences(traced(engine, prompt, cells), good)

    first = {}

    def swap(cache):
        if cache.cell == cells[0]:
            first["layers"], first["cache"] = list(cache.layers), cache
        elif cache.cell == cells[1]:
            first["cache"].layers[:], cache.layers[:] = cache.layers, first["layers"]

    found = planted_by(swap)
    for cell in ("snapkv 32", "tova 32"):
        assert {what.rsplit(" ", 1)[-1] for what in found if what.startswith(cell)} >= {"logits", "tokens"}

    def neighbour(cache):
        if cache.cell == cells[0]:
            cache.layers[1] = (cache.layers[2][0], cache.layers[1][1])

    def replaced(cache):
        """The last position of one head is the first one once more."""
        if cache.cell == cells[0]:
            keys, values = (part.clone() for part in cache.layers[1])
            for part in (keys, values):
                part[0, 0, -1] = part[0, 0, 0]
            cache.layers[1] = keys, values

    for change in (neighbour, replaced):
        found = planted_by(change)
        assert found
        assert all(difference.startswith("snapkv 32") for difference in found)

    with monkeypatch.context() as planted:
        arange = kvpress_groups.torch.arange
        planted.setattr(
            kvpress_groups.torch,
            "arange",
            lambda *given, **more: (
                arange(*(number + 1 for number in given), **more)
                if len(given) == 2
                else arange(*given, **more)
            ),
        )
        found = differences(traced(engine, prompt, cells), good)
        assert len([difference for difference in found if difference.endswith("logits")]) == 3


# The reference engine


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_results_are_those_of_the_reference_engine(request, reference, mode, attention):
    """Texts, ends, copies, and everything that is told of the cache; `random` draws the same positions."""
    own = request.getfixturevalue("engine" if attention == "sdpa" else "eager").variant(*mode, PARAMETERS)
    other = reference.variant(*mode, PARAMETERS)
    methods = [method for method in SHARED_METHODS if attention == "eager" or method != "observed_attention"]
    cells = [Cell(method, budget) for method in methods for budget in (16, 24, 48, 128, 0.4, 0.75)]
    cells += [Cell("random", 48, replicate) for replicate in (1, 2)]
    active = set()
    for length in (60, 131, 300):
        ours = swept(own, [FULL, *cells], prompt_of(length, seed=length))
        theirs = swept(other, [FULL, *cells], prompt_of(length, seed=length))
        for cell, result in ours.items():
            expected = theirs[cell]
            assert replace(result, timings=expected.timings) == expected, (cell, length)
            active |= {cell} if result.kv.active else set()
    assert len(active) == len(cells)
    assert len({result.text for result in ours.values()}) > len(cells) // 2


def test_the_tiny_reader_answers_as_in_the_reference_engine(root):
    model = root / "resources" / "tiny-reader"
    own = KVPressEngine(model, "prompt", "compressed", device="cpu", attn_implementation="eager")
    other = ReferenceEngine(model, "prompt", "compressed")
    # knorm: all keys of layer 0 have the same norm in this model, and rounding chooses among them.
    methods = [method for method in SHARED_METHODS if method != "knorm"]
    cells = [FULL, *(Cell(method, budget) for method in methods for budget in (16, 64, 128, 256))]
    compared, same = 0, 0
    for number, prompt in enumerate(documents(16, 64, 512)):
        ours = own.sweep(prompt, cells, Decoding(16), f"document {number}")
        theirs = other.sweep(prompt, cells, Decoding(16), f"document {number}")
        for one, expected in zip(ours, theirs, strict=True):
            assert one.kv.kept_per_layer == expected.kv.kept_per_layer
            compared, same = compared + 1, same + (one.text == expected.text)
    assert compared == 16 * len(cells)
    assert same == compared


# The full cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_full_cache_answers_as_transformers_generates(request, engine, attention):
    own = request.getfixturevalue("engine" if attention == "sdpa" else "eager")
    for mode in MODES:
        for length in (30, 131):
            prompt = prompt_of(length, seed=length)
            ids = own.loaded.tokens(own.tokenizer.prompt_ids(prompt).ids)
            generated = own.loaded.model.generate(
                ids, max_new_tokens=6, do_sample=False, eos_token_id=list(own.tokenizer.eos_ids)
            )
            text = own.tokenizer.decode(generated[0, ids.shape[1] :].tolist())
            result = own.variant(*mode, {}).generate(prompt, FULL, DECODING, "example")
            assert result.text == text
            assert result.kv.kept_mean + result.kv.question_tokens == ids.shape[1]
            assert result.timings.latency_s >= result.timings.ttfb_s > 0


def test_a_cell_does_not_depend_on_the_others(engine):
    cells = [
        Cell(method, budget) for method in ("snapkv", "knorm", "lagkv", "adakv_snapkv") for budget in (24, 48)
    ]
    prompt = prompt_of(131)
    together = swept(engine, [FULL, *cells], prompt)
    for cell in (FULL, *cells):
        assert engine.generate(prompt, cell, DECODING, "example").text == together[cell].text
    reordered = swept(engine, [*reversed(cells), FULL], prompt)
    assert {cell: result.text for cell, result in reordered.items()} == {
        cell: result.text for cell, result in together.items()
    }


def test_an_empty_context_is_answered_from_the_question_alone(engine, reference):
    prompt = Prompt(({"role": "user", "content": "w1 w2 w3"},), None)
    for mode in MODES:
        ours = engine.variant(*mode, {}).generate(prompt, FULL, DECODING, "example")
        theirs = reference.variant(*mode, {}).generate(prompt, FULL, DECODING, "example")
        assert (ours.text, ours.kv) == (theirs.text, theirs.kv)


# Budgets


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_every_budget_is_kept_exactly_in_every_layer(engine, mode):
    own = engine.variant(*mode, PARAMETERS)
    prompt = prompt_of(101)
    longest = own.tokenizer.prompt_ids(prompt, mode[0]).context_len or 103
    methods = [*SHARED_METHODS, *OF_KVPRESS, *ADAKV]
    cells = [
        Cell(method, budget)
        for method in methods
        if method not in ("observed_attention", "pyramidkv")
        for budget in (16, 17, 33, 64, longest - 1)
    ]
    for cell, result in swept(own, cells, prompt, Decoding(1)).items():
        assert result.error is None, cell
        assert result.kv.kept_per_layer == (cell.budget,) * 4, cell
        assert result.kv.bytes_kept == cell.budget * 4 * 2 * 2 * 16 * 4, cell
        assert (result.kv.active, result.kv.verified) == (True, "measured")


def test_pyramidkv_spreads_the_budget_over_the_layers_and_keeps_its_mean(engine):
    result = engine.generate(prompt_of(200), Cell("pyramidkv", 150), DECODING, "example")
    kept = result.kv.kept_per_layer
    assert list(kept) == sorted(kept, reverse=True)
    assert len(set(kept)) == 4
    assert abs(result.kv.kept_mean - 150) <= 0.5
    assert (result.kv.kept_max, result.kv.kept_min) == (kept[0], kept[-1])


def test_layers_of_different_lengths_have_masks_of_their_own_in_eager_attention_too(engine, eager):
    for mode in MODES:
        answers = [
            own.variant(*mode, PARAMETERS).generate(prompt_of(200), Cell("pyramidkv", 150), DECODING, "id")
            for own in (engine, eager)
        ]
        assert [answer.error for answer in answers] == [None, None]
        assert answers[0].text == answers[1].text
        assert answers[0].kv == answers[1].kv


def test_the_heads_of_adakv_share_a_budget_and_its_masks_do_not_outlive_the_answer(engine):
    prompt = prompt_of(131)
    before = engine.generate(prompt, FULL, DECODING, "example")
    first = engine.generate(prompt, Cell("adakv_snapkv", 24), DECODING, "example")
    assert first.kv.kept_per_layer == (24.0,) * 4
    assert first.text != before.text
    assert all(module.masked_key_indices is None for module in engine.loaded.attention)
    assert engine.generate(prompt, FULL, DECODING, "example").text == before.text


def test_other_number_formats_keep_the_budget_too(folder):
    half = KVPressEngine(folder, "prompt", "compressed", PARAMETERS, device="cpu", dtype="bfloat16")
    cells = [
        Cell(method, 24) for method in ("snapkv", "knorm", "expected_attention", "adakv_snapkv", "random")
    ]
    for result in swept(half, cells, prompt_of(131)).values():
        assert result.error is None
        assert result.kv.kept_per_layer == (24,) * 4
        assert result.kv.bytes_kept == 24 * 4 * 2 * 2 * 16 * 2
    assert half.provenance()["dtype"] == "bfloat16"


# Failures


class BrokenPress:
    """Stands in for a press of kvpress that does something wrong."""

    def __init__(self, compress):
        self.compress = compress

    def score(self, *given):
        raise NotImplementedError

    def post_init_from_model(self, model):
        pass


def broken(monkeypatch, compress):
    from kv_transition.engines import kvpress_presses

    fixed = {**kvpress_presses.FIXED, "tova": lambda ratio, of: BrokenPress(compress)}
    monkeypatch.setattr(kvpress_presses, "FIXED", fixed)


def raising(*given, **more):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def keeps_too_many(module, hidden, keys, values, attentions, kwargs):
    return keys[:, :, :25].contiguous(), values[:, :, :25].contiguous()


@pytest.mark.parametrize(
    ("compress", "message"),
    [(raising, "RuntimeError: CUDA out of memory"), (keeps_too_many, r"tova kept \[25, 25, 25, 25\] .* 23")],
)
def test_a_press_that_fails_or_keeps_another_number_is_one_failed_row(engine, monkeypatch, compress, message):
    import re

    prompt, cells = prompt_of(131), [FULL, Cell("snapkv", 24), Cell("tova", 24), Cell("knorm", 24)]
    before = swept(engine, cells, prompt)
    broken(monkeypatch, compress)
    results = swept(engine, cells, prompt)
    failed = results.pop(Cell("tova", 24))
    assert (failed.failure, failed.text, failed.kv) == ("ENGINE_ERROR", "", None)
    assert re.search(message, failed.error)
    assert all(result.text == before[cell].text for cell, result in results.items())


def test_a_press_that_writes_into_what_all_cells_share_spoils_the_example_and_is_told(engine, monkeypatch):
    def scribbles(module, hidden, keys, values, attentions, kwargs):
        keys[:, :, 0] = 0
        return keys[:, :, :23].contiguous(), values[:, :, :23].contiguous()

    broken(monkeypatch, scribbles)
    results = swept(engine, [FULL, Cell("tova", 24)], prompt_of(131))
    assert {result.failure for result in results.values()} == {"ENGINE_ERROR"}
    assert "tova changed the keys" in results[FULL].error


def test_an_example_that_does_not_fit_into_memory_fails_and_the_next_one_runs(engine, monkeypatch):
    prompt, cells = prompt_of(131), [FULL, Cell("snapkv", 24), Cell("adakv_snapkv", 24)]
    before = swept(engine, cells, prompt)
    with monkeypatch.context() as broken_once:
        broken_once.setattr(type(engine.loaded.model), "forward", raising)
        results = swept(engine, cells, prompt)
    assert all("out of memory" in result.error for result in results.values())
    after = swept(engine, cells, prompt)
    assert [result.text for result in after.values()] == [result.text for result in before.values()]


def test_prompts_longer_than_the_model_reads_fail_by_themselves(tmp_path):
    own = KVPressEngine(write_model(tmp_path / "short", max_position_embeddings=100), device="cpu")
    results = swept(own, [FULL, Cell("knorm", 16)], prompt_of(131))
    assert all("the model reads 1 to 100" in result.error for result in results.values())


# Models that are refused


def test_an_architecture_that_kvpress_does_not_know_is_used_where_it_computes_the_same_attention(
    tmp_path, caplog
):
    own = KVPressEngine(write_model(tmp_path / "gemma", "Gemma"), device="cpu")
    assert "GemmaForCausalLM is not among the models" in caplog.text
    result = own.generate(prompt_of(60), Cell("snapkv", 24), DECODING, "example")
    assert result.kv.kept_per_layer == (24,) * 4


@pytest.mark.parametrize("architecture", ["Olmo2", "Cohere", "Granite"])
def test_an_architecture_whose_queries_kvpress_reads_otherwise_is_refused(tmp_path, architecture):
    """Normed queries, interleaved rotation, another scale: scores would be wrong without a word."""
    changes = {"attention_multiplier": 1.0} if architecture == "Granite" else {}
    if architecture == "Cohere":
        changes = {"use_qk_norm": True}
    model = write_model(tmp_path / "model", architecture, **changes)
    with pytest.raises(UserError, match=f"does not compute the attention of {architecture}ForCausalLM"):
        KVPressEngine(model, device="cpu")


def test_a_model_without_decoder_layers_of_the_usual_kind_is_refused(tmp_path):
    import transformers

    model = write_model(tmp_path / "model")
    config = transformers.GPT2Config(vocab_size=600, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(model)
    with pytest.raises(UserError, match="GPT2LMHeadModel is not built as kvpress expects"):
        KVPressEngine(model, device="cpu")


def test_weights_that_are_missing_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    model = write_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.2.self_attn.k_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack model.layers.2.self_attn.k_proj.weight"):
        KVPressEngine(model, device="cpu")
    (model / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="transformers cannot load this model"):
        KVPressEngine(model, device="cpu")


def test_methods_and_attention_that_do_not_go_together_are_refused(engine, eager):
    prompt = prompt_of(60)
    with pytest.raises(UserError, match="only eager computes"):
        engine.generate(prompt, Cell("h2o", 24), DECODING, "example")
    with pytest.raises(UserError, match="eager attention does not do"):
        eager.generate(prompt, Cell("adakv_snapkv", 24), DECODING, "example")
    with pytest.raises(UserError, match="'no_such' is unknown"):
        engine.generate(prompt, Cell("no_such", 24), DECODING, "example")


def test_the_reference_engine_names_the_engine_that_has_the_method(reference):
    with pytest.raises(UserError, match=r"keydiff is not among the methods .*engine.kind: kvpress"):
        reference.generate(prompt_of(60), Cell("keydiff", 24), DECODING, "example")


# Presses by their class


def with_presses(engine, **presses) -> KVPressEngine:
    return engine.variant("prompt", "compressed", {**PARAMETERS, **presses})


def test_a_press_given_by_its_class_is_a_method_of_its_own(engine):
    own = with_presses(
        engine,
        norm={"press": "KnormPress"},
        snap={"press": "SnapKVPress", "window_size": WINDOW, "kernel_size": KERNEL},
        ada={"press": "AdaKVPress", "inner": {"press": "SnapKVPress", "window_size": WINDOW}},
        chunks={"press": "ChunkKVPress", "chunk_length": 4, "inner": {"press": "KnormPress"}},
    )
    prompt = prompt_of(131)
    cells = [Cell(name, 32) for name in ("norm", "knorm", "snap", "snapkv", "ada", "adakv_snapkv", "chunks")]
    results = {cell.method: result for cell, result in swept(own, cells, prompt).items()}
    # It keeps whole chunks, so this number is not among its budgets; that is told, and nothing is rounded.
    assert "chunks kept [28, 28, 28, 28]" in results.pop("chunks").error
    assert [result.error for result in results.values() if result.error] == []
    assert results["norm"].text == results["knorm"].text
    assert results["snap"].text == results["snapkv"].text
    assert results["ada"].text == results["adakv_snapkv"].text
    assert {result.kv.kept_mean for result in results.values()} == {32.0}


@pytest.mark.parametrize(
    ("press", "message"),
    [
        ({"press": "NoSuchPress"}, "kv.presses.mine: kvpress has no press 'NoSuchPress'"),
        ({"press": "ThinKPress"}, "ThinKPress cannot be used here: it removes dimensions"),
        ({"press": "KnormPress", "windo": 3}, "kv.presses.mine.windo: KnormPress has no such parameter"),
        ({"press": "KnormPress", "compression_ratio": 0.5}, "the budgets decide that"),
        ({"press": "AdaKVPress", "inner": {"press": "Nope"}}, "kv.presses.mine.inner: kvpress has no press"),
        ({"press": "AdaKVPress"}, "kv.presses.mine: AdaKVPress refuses its parameters"),
        ({"press": "DuoAttentionPress"}, "DuoAttentionPress cannot be used here: what it keeps"),
        (
            {"press": "AdaKVPress", "inner": {"press": "snapkv_paper"}},
            "for every query head; set aggregation: mean",
        ),
    ],
    ids=str,
)
def test_a_press_that_cannot_be_used_is_refused_by_its_key(engine, press, message):
    with pytest.raises(UserError, match=message):
        with_presses(engine, mine=press)


def test_a_window_that_would_fill_the_budget_is_refused(engine):
    own = with_presses(engine, wide={"press": "snapkv_kvpress"})
    with pytest.raises(UserError, match=r"kv.presses.wide: its window_size 64 is more than half"):
        own.generate(prompt_of(131), Cell("wide", 100), DECODING, "example")
    inner = {"press": "AdaKVPress", "inner": {"press": "SnapKVPress", "window_size": 64}}
    with pytest.raises(UserError, match=r"kv.presses.deep: its window_size 64 is more than half"):
        with_presses(engine, deep=inner).generate(prompt_of(131), Cell("deep", 100), DECODING, "example")


def test_an_even_kernel_of_a_press_is_refused(engine):
    with pytest.raises(UserError, match=r"kv.presses.mine.kernel_size: 4 is even"):
        with_presses(engine, mine={"press": "SnapKVPress", "kernel_size": 4})


@pytest.mark.parametrize("name", ["PyramidKVPress", "KVzipPress", "KVgradPress", "KVComposePress"])
def test_a_press_that_divides_a_budget_among_layers_keeps_it_on_average(engine, name):
    window = {"window_size": 4} if name == "PyramidKVPress" else {}
    own = with_presses(engine, mine={"press": name, **window})
    kv = own.generate(prompt_of(180), Cell("mine", 100), DECODING, "example").kv
    assert abs(kv.kept_mean - 100) <= 0.5
    assert kv.kept_min < kv.kept_max


def test_a_press_that_draws_at_random_draws_the_same_for_the_same_prompt(engine):
    """One key of the journal has one answer."""
    import torch

    own = with_presses(engine, drawn={"press": "RandomPress"})
    cells = [Cell("drawn", 48), Cell("drawn", 24)]
    before = torch.random.get_rng_state()
    once, again = (swept(own, cells, prompt_of(180)) for _ in range(2))
    assert {cell: result.text for cell, result in once.items()} == {
        cell: result.text for cell, result in again.items()
    }
    alone = own.generate(prompt_of(180), cells[1], DECODING, "another example")
    assert alone.text == once[cells[1]].text
    assert len({swept(own, cells[:1], prompt_of(180, seed=seed))[cells[0]].text for seed in range(4)}) > 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_answers_whose_logits_are_not_numbers_are_failed_rows(tmp_path):
    """In float16 large numbers overflow; an empty answer with a proved budget would be scored."""
    from safetensors.numpy import load_file, save_file

    model = write_model(tmp_path / "model")
    (weights,) = model.glob("*.safetensors")
    tensors = load_file(weights)
    prompt = prompt_of(131)
    word = SPECIAL + WORDS
    tensors["model.embed_tokens.weight"][word.index(prompt.messages[0]["content"].split()[5])] *= 1e6
    save_file(tensors, weights, metadata={"format": "pt"})
    half = KVPressEngine(model, "prompt", "full", PARAMETERS, device="cpu", dtype="float16")
    cells = [FULL, *(Cell(method, 24) for method in ("snapkv", "streaming_llm", "adakv_snapkv"))]
    for cell, result in swept(half, cells, prompt).items():
        assert result.failure == "ENGINE_ERROR", cell
        assert "not numbers" in result.error
        assert result.text == ""
    assert all(result.failure is None for result in swept(half, cells, prompt_of(60, seed=3)).values())
    wide = KVPressEngine(model, "prompt", "full", PARAMETERS, device="cpu", dtype="float32")
    assert all(result.failure is None for result in swept(wide, cells, prompt).values())


@pytest.mark.parametrize(
    ("name", "window", "kernel", "pooling"),
    [
        ("snapkv_paper", 32, 7, "max"),
        ("snapkv_kvcache_factory", 8, 7, "max"),
        ("snapkv_kvpress", 64, 5, "average"),
    ],
)
def test_a_preset_keeps_what_its_published_formula_keeps(tmp_path, traced, name, window, kernel, pooling):
    """Every query head its own KV head, as in the papers' models: votes of the window's queries, pooled, the best kept."""
    import torch
    from transformers import AutoModelForCausalLM

    model = write_model(tmp_path / "model", num_key_value_heads=8)
    own = KVPressEngine(model, "prompt", "full", {"preset": {"press": name}}, device="cpu")
    prompt, budget = prompt_of(200), 140
    kept = traced(own, prompt, [Cell("preset", budget)])[Cell("preset", budget)].kept
    ids = own.tokenizer.prompt_ids(prompt).ids
    weights = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")(
        torch.tensor([ids]), output_attentions=True
    ).attentions
    for layer, attention in zip(kept, weights, strict=True):
        votes = attention[0, :, -window:, :-window].sum(1).detach().numpy()
        padded = np.pad(votes, ((0, 0), (kernel // 2, kernel // 2)))
        around = np.stack([padded[:, shift : shift + votes.shape[1]] for shift in range(kernel)])
        pooled = around.max(0) if pooling == "max" else around.mean(0)
        for head, scores in zip(layer, pooled, strict=True):
            best = np.sort(scores)[-(budget - window) :]
            assert set(range(len(ids) - window, len(ids))) <= head
            # Neighbours of a peak tie under max-pooling: whatever is kept scores at least as much as the last of the best.
            assert len(head) == budget
            assert min(scores[at] for at in head if at < len(scores)) >= best[0] * (1 - 1e-5)


# The server


def test_the_server_gives_the_engines_own_answer(folder, engine):
    from test_serve_process import Server

    options = ("--engine", "kvpress", "--device", "cpu", "--model", str(folder))
    prompt = prompt_of(131)
    with Server(*options) as server, server.client() as client:
        (model,) = client.models.list().data
        assert {"lagkv", "adakv_snapkv", "snapkv", "full"} <= set(model.methods)
        for cell in (FULL, Cell("snapkv", 32), Cell("pyramidkv", 60), Cell("adakv_snapkv", 32)):
            kv = {"method": cell.method, "first_token": "compressed"}
            if cell.budget:
                kv["budget"] = cell.budget
            answer = client.chat.completions.create(
                model="llama", messages=list(prompt.messages), max_tokens=6, extra_body={"kv": kv}
            )
            expected = engine.generate(prompt, cell, DECODING, "example")
            assert answer.choices[0].message.content == expected.text
            assert answer.kv["kept_per_layer"] == list(expected.kv.kept_per_layer)
            assert answer.kv["engine"]["class"] == "KVPressEngine"
            assert answer.kv["engine"]["attn_implementation"] == "sdpa"
