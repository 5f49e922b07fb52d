"""Settings of the engine kvpress: what is refused before a model is loaded, and what an answer's key holds."""

import json
from importlib import metadata

import pytest
from random_models import random_prompt, write_random_llama

from kv_transition import preflight, slices
from kv_transition.engines import kvpress_settings
from kv_transition.engines.base import Cell
from kv_transition.engines.endpoints import build_engine
from kv_transition.engines.kvpress_settings import (
    check_granularity,
    check_model_config,
    hub_model_folder,
    resolved_engine,
)
from kv_transition.errors import ConfigError, UserError
from kv_transition.methods import configured_parameters
from kv_transition.run import requests
from kv_transition.run.requests import answer_key
from kv_transition.settings import from_mapping

KVPRESS = {"kind": "kvpress", "device": "cpu"}
TWO = {"methods": ["snapkv", "streaming_llm"], "budgets": [32]}


# Which methods and engines go together

MISTAKES = {
    "kvpress's method in the reference engine": (
        {"kv": {"methods": ["lagkv"]}},
        "kv.methods: lagkv: only engine.kind kvpress applies it",
    ),
    "half precision in the reference engine": (
        {"engine": {"dtype": "bfloat16"}},
        "engine.dtype: bfloat16 needs engine.kind kvpress",
    ),
    "presses in the reference engine": (
        {"kv": {"presses": {"norm": {"press": "KnormPress"}}}},
        "kv.presses: they need engine.kind kvpress",
    ),
    "observed attention under sdpa": (
        {"engine": KVPRESS, "kv": {"methods": ["h2o"]}},
        "engine.attn_implementation: observed_attention .* set eager",
    ),
    "AdaKV under eager": (
        {
            "engine": {**KVPRESS, "attn_implementation": "eager"},
            "kv": {"methods": ["adakv_snapkv"], "window": 4},
        },
        "engine.attn_implementation: adakv_snapkv masks",
    ),
    "a press with a method's name": (
        {"engine": KVPRESS, "kv": {**TWO, "presses": {"knorm": {"press": "KnormPress"}}}},
        "kv.presses: knorm is the name of a method",
    ),
    "a window that fills the budget": (
        {"engine": KVPRESS, "kv": {"methods": ["pyramidkv"], "budgets": [32], "window": 17}},
        "kv.window: 17 is more than half",
    ),
    "a device that is none": ({"engine": {**KVPRESS, "device": "gpu"}}, "engine.device"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_contradiction_is_told_by_its_key(mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=message):
        from_mapping(changes)


GQA, MHA = ({"num_attention_heads": 8, "num_key_value_heads": heads} for heads in (2, 8))
PAPER = {"press": "snapkv_paper"}


@pytest.mark.parametrize(
    ("methods", "press", "model", "refused"),
    [
        (["mine", "snapkv"], PAPER, GQA, True),
        (["mine", "snapkv"], {"press": "PooledSnapKVPress", "aggregation": "per_query_head"}, GQA, True),
        (["mine", "snapkv"], {**PAPER, "aggregation": "mean"}, GQA, False),
        (["mine", "snapkv"], {"press": "snapkv_kvpress"}, GQA, False),
        (["mine", "snapkv"], PAPER, MHA, False),
        (["mine", "recent"], PAPER, GQA, False),
        (["snapkv"], PAPER, GQA, False),
    ],
)
def test_one_axis_of_budgets_has_one_kind_of_heads(methods, press, model, refused):
    """Four times the bytes at the same number of positions is no fair comparison."""
    if not refused:
        check_granularity(methods, {"mine": press}, model)
        return
    with pytest.raises(ConfigError, match=r"kv.presses.mine: .* 4 times the bytes that snapkv"):
        check_granularity(methods, {"mine": press}, model)


def test_a_press_by_its_class_is_a_method_with_its_parameters():
    presses = {"snap64": {"press": "SnapKVPress", "window_size": 64}}
    settings = from_mapping(
        {"engine": KVPRESS, "kv": {"methods": ["snap64", "h2o"], "budgets": [256], "presses": presses}}
        | {"engine": {**KVPRESS, "attn_implementation": "eager"}}
    )
    assert settings.kv.methods == ["snap64", "observed_attention"]
    assert "snap64/256" in settings.cells
    answer = slices.answer_slice(settings, "phrasebook_qa")
    assert answer["kv"]["methods"]["snap64"] == presses["snap64"]


def test_a_window_and_a_number_of_sinks_are_those_of_every_method_that_has_one():
    kv = {**from_mapping({}).kv.model_dump(), "window": 4, "kernel": 3, "n_sink": 2}
    resolved = configured_parameters(kv)
    assert {resolved[name]["window"] for name in ("snapkv", "pyramidkv", "adakv_snapkv")} == {4}
    assert {resolved[name]["n_sink"] for name in ("streaming_llm", "expected_attention", "lagkv")} == {2}


# What determines an answer


def key_of(engine, prompt=None):
    answer = {
        "engine": engine,
        "kv": {"scope": "prompt", "first_token": "full", "methods": {"snapkv": {"window": 8}}},
        "decoding": {"max_new_tokens": 4},
    }
    return answer_key(prompt or {"messages": "m"}, Cell("snapkv", 32), "example", answer, "model")


def test_what_a_preset_chooses_is_part_of_an_answer():
    """The name alone would give old answers a new meaning once its numbers are changed."""
    kv = {"methods": ["mine"], "budgets": [128], "presses": {"mine": {"press": "snapkv_paper"}}}
    answer = slices.answer_slice(from_mapping({"engine": KVPRESS, "kv": kv}), "phrasebook_qa")
    paper = {"window_size": 32, "kernel_size": 7, "pooling": "max", "aggregation": "per_query_head"}
    assert answer["kv"]["methods"]["mine"] == {"press": "snapkv_paper", **paper}
    kv["presses"]["mine"]["aggregation"] = "mean"
    answer = slices.answer_slice(from_mapping({"engine": KVPRESS, "kv": kv}), "phrasebook_qa")
    assert answer["kv"]["methods"]["mine"]["aggregation"] == "mean"
    kv["presses"]["mine"] = {"press": "AdaKVPress", "inner": {"press": "snapkv_kvpress"}}
    answer = slices.answer_slice(from_mapping({"engine": KVPRESS, "kv": kv}), "phrasebook_qa")
    inner = {"press": "snapkv_kvpress", "window_size": 64, "kernel_size": 5}
    assert answer["kv"]["methods"]["mine"] == {"press": "AdaKVPress", "inner": inner}


def test_a_press_without_a_class_is_refused():
    kv = {"methods": ["mine"], "budgets": [128], "presses": {"mine": {"preset": "paper"}}}
    with pytest.raises(ConfigError, match=r"kv.*presses\.mine: it names no press; add press"):
        from_mapping({"engine": KVPRESS, "kv": kv})


@pytest.mark.parametrize(
    ("press", "attention", "message"),
    [
        ({"press": "ObservedAttentionPress"}, "sdpa", "ObservedAttentionPress .* set eager"),
        ({"press": "ChunkPress", "inner": {"press": "ObservedAttentionPress"}}, "sdpa", "set eager"),
        ({"press": "AdaKVPress", "inner": {"press": "KnormPress"}}, "eager", "mine masks positions.* sdpa"),
    ],
)
def test_a_press_and_an_attention_that_do_not_go_together_are_refused(press, attention, message):
    engine = {**KVPRESS, "attn_implementation": attention}
    kv = {"methods": ["mine"], "budgets": [128], "presses": {"mine": press}}
    with pytest.raises(ConfigError, match=message):
        from_mapping({"engine": engine, "kv": kv})


def test_how_many_cells_are_decoded_at_once_is_no_part_of_an_answer():
    few, many = (from_mapping({"engine": {**KVPRESS, "decode_batch": size}, "kv": TWO}) for size in (1, 64))
    assert slices.answer_slice(few, "phrasebook_qa") == slices.answer_slice(many, "phrasebook_qa")


def test_number_format_device_attention_and_version_are_in_the_key_of_an_answer():
    whole = {
        "kind": "kvpress",
        "dtype": "float32",
        "device": "cpu",
        "attn_implementation": "sdpa",
        "kvpress": "0.5.5",
        "unknown_token_limit": 0.2,
    }
    others = [
        {**whole, name: value}
        for name, value in (
            ("dtype", "bfloat16"),
            ("device", "cuda"),
            ("attn_implementation", "eager"),
            ("kvpress", "0.5.6"),
        )
    ]
    assert len({key_of(engine) for engine in (whole, *others)}) == 5
    assert key_of({**whole, "unknown_token_limit": 1}) == key_of(whole)


def test_the_keys_of_other_engines_answers_know_nothing_of_kvpress(monkeypatch):
    """Else answers that are in a journal would be computed, or paid for, again."""
    reference = slices.engine_slice(from_mapping({}))
    assert set(reference) == {"kind", "dtype", "unknown_token_limit"}
    assert resolved_engine(reference) == reference
    monkeypatch.setattr(requests, "ENGINE_PROTOCOL", 2)
    assert key_of(reference) == "2915517bd299b4e6346f7a3db63b3891340f5d4dbcd5d25dd6357b440f2ab841"


@pytest.mark.kvpress
def test_auto_is_resolved_to_what_runs_here(monkeypatch):
    import torch

    auto = {"kind": "kvpress", "device": "auto", "dtype": "auto", "attn_implementation": "sdpa"}
    for found, device, dtype in ((False, "cpu", "float32"), (True, "cuda", "bfloat16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        resolved = resolved_engine(auto)
        assert (resolved["device"], resolved["dtype"]) == (device, dtype)
        assert resolved["kvpress"] == metadata.version("kvpress")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"engine.device: cuda .* sees no GPU"):
        resolved_engine({**auto, "device": "cuda"})


# The extra, the model


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch, tmp_path):
    found = kvpress_settings.importlib.util.find_spec
    monkeypatch.setattr(
        kvpress_settings.importlib.util,
        "find_spec",
        lambda name: None if name in kvpress_settings.PACKAGES else found(name),
    )
    message = r"needs torch, transformers, kvpress; install the extra: pip install 'kv-transition\[kvpress\]'"
    with pytest.raises(UserError, match=message):
        resolved_engine(KVPRESS)
    with pytest.raises(UserError, match=message):
        build_engine(
            {
                "engine": KVPRESS,
                "model": {"path": str(tmp_path)},
                "kv": {"scope": "prompt", "first_token": "full", "methods": {}},
            }
        )
    with pytest.raises(UserError, match=message):
        preflight.check_inputs(from_mapping({"engine": KVPRESS, "kv": TWO}))


LLAMA = {"model_type": "llama", "max_position_embeddings": 4096}
REFUSED = {
    "sliding window": ({"sliding_window": 1024}, "sliding_window 1024 is not supported"),
    "chunked attention": ({"attention_chunk_size": 512}, "attention_chunk_size 512"),
    "some sliding layers": (
        {"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]},
        "sliding_window 512",
    ),
    "linear attention": (
        {"layer_types": ["full_attention", "linear_attention"]},
        "layers of type linear_attention",
    ),
    "dynamic positions": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "positions of type dynamic"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope"}}, "positions of type longrope"),
    "several parts": ({"text_config": {"hidden_size": 8}}, "models of several parts"),
    "encoder and decoder": ({"is_encoder_decoder": True}, "encoder-decoder models"),
}


@pytest.mark.parametrize("model", REFUSED)
def test_a_model_whose_budgets_would_not_mean_what_they_say_is_refused(model):
    changes, message = REFUSED[model]
    with pytest.raises(UserError, match=f"the model: .*{message}"):
        check_model_config({**LLAMA, **changes}, "the model")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": None},
        {"sliding_window": 4096},
        {"sliding_window": 1024, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 2},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"rope_parameters": {"rope_type": "yarn"}},
    ],
    ids=str,
)
def test_a_model_that_keeps_all_positions_is_taken(changes):
    check_model_config({**LLAMA, **changes}, "the model")


@pytest.mark.kvpress
def test_a_model_is_refused_before_anything_runs(tmp_path):
    folder = write_random_llama(tmp_path / "m", model_type="llama", sliding_window=100)
    settings = from_mapping({"engine": KVPRESS, "model": {"path": str(folder)}, "kv": TWO})
    with pytest.raises(UserError, match="sliding_window 100"):
        preflight.check_inputs(settings)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        preflight.check_inputs(settings)


@pytest.mark.kvpress
def test_a_press_that_kvpress_does_not_have_is_told_by_the_command_validate():
    presses = {"mine": {"press": "NoSuchPress"}}
    kv = {"methods": ["mine"], "budgets": [32], "presses": presses}
    settings = from_mapping({"engine": KVPRESS, "kv": kv})
    with pytest.raises(UserError, match=r"kv.presses.mine: kvpress has no press 'NoSuchPress'"):
        preflight.check_contents(settings)


@pytest.mark.kvpress
def test_a_model_of_the_hub_is_taken_from_its_cache_and_never_fetched_unasked(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="fetch it with: hf download owner/model --revision abc"):
        hub_model_folder("owner/model", "abc")
    with pytest.raises(UserError, match=r"model.name: 'a b/c/d' is no name of a model on the hub"):
        hub_model_folder("a b/c/d", None)

    commit = "1" * 40
    folder = write_random_llama(tmp_path / "models--owner--model" / "snapshots" / commit)
    settings = from_mapping(
        {
            "engine": KVPRESS,
            "model": {"name": "owner/model", "path": None, "revision": commit},
            "kv": TWO,
        }
    )
    located = preflight.located(settings)
    assert located.model.path == str(folder)
    preflight.check_inputs(settings)


@pytest.mark.kvpress
def test_settings_become_an_engine(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = write_random_llama(tmp_path / "m", model_type="llama")
    weights = {
        name: weight
        for name, weight in load_file(folder / "model.safetensors").items()
        if not name.endswith("bias")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = from_mapping(
        {"engine": {**KVPRESS, "dtype": "auto"}, "model": {"path": str(folder)}, "kv": TWO}
    )
    preflight.check_inputs(settings)
    answer = slices.answer_slice(settings, "phrasebook_qa")
    engine = build_engine({**answer, "engine": resolved_engine(answer["engine"])})
    provenance = json.loads(json.dumps(engine.provenance()))
    assert provenance["class"] == "KVPressEngine"
    assert (provenance["dtype"], provenance["device"]) == ("float32", "cpu")
    assert provenance["kvpress"] == metadata.version("kvpress")
    from kv_transition.engines.base import Decoding

    result = engine.generate(random_prompt(1, 50), Cell("streaming_llm", 32), Decoding(2), "example")
    assert result.kv.kept_mean == 32
