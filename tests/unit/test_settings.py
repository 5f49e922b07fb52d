"""One setting, one meaning: whichever way it is written, and a clear line for each mistake."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kv_transition import config_files
from kv_transition.errors import ConfigError
from kv_transition.files import canonical_json
from kv_transition.settings import Settings, deep_merge, from_mapping, load_settings, parse_override
from kv_transition.slices import answer_slice


def test_the_generated_default_configuration_is_up_to_date(root: Path) -> None:
    assert (root / "config/default.yaml").read_text() == config_files.default_yaml(), "run `make config`"


def test_the_generated_schema_is_up_to_date(root: Path) -> None:
    assert (root / "config/schema.json").read_text() == config_files.schema_json(), "run `make config`"


def test_the_default_configuration_says_what_the_models_say(root: Path) -> None:
    assert from_mapping(yaml.safe_load((root / "config/default.yaml").read_text())) == Settings()


def test_every_key_is_described() -> None:
    schema = Settings.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    assert all(key.get("description") for section in sections for key in section["properties"].values())


def test_resolved_settings_resolve_to_themselves() -> None:
    settings = from_mapping({"kv": {"budgets": ["64", 32]}, "experiment": {"id": 7}})
    assert from_mapping(settings.resolved()) == settings
    assert from_mapping(settings.resolved()).config_hash == settings.config_hash


KEYS = st.sampled_from(
    [
        ("kv", "budgets", [16, 64]),
        ("kv", "budgets", [0.1, 0.25]),
        ("kv", "methods", ["snapkv", "random"]),
        ("kv", "window", 4),
        ("kv", "scope", "context"),
        ("kv", "no_context", False),
        ("experiment", "id", "e2"),
        ("experiment", "id", 5),
        ("dataset", "max_tokens", 512),
        ("dataset", "max_tokens", None),
        ("dataset", "path", None),
        ("engine", "unknown_token_limit", 0.5),
        ("decoding", "max_new_tokens_by_task", {"multi_news": 64}),
        ("analysis", "tau", [0.9]),
        ("run", "shards", 3),
    ]
)


def _leaves_as_text(value: object) -> object:
    """What Snakemake's `--config section={...}` makes of a value: every leaf becomes text."""
    if isinstance(value, dict):
        return {key: _leaves_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_leaves_as_text(item) for item in value]
    return json.dumps(value) if not isinstance(value, str) else value


@given(KEYS)
def test_file_overlay_command_line_and_environment_forms_of_a_setting_are_equal(setting: tuple) -> None:
    section, key, value = setting
    in_file = from_mapping({section: {key: value}})
    default = Settings().resolved()
    forms = [
        from_mapping(deep_merge(default, {section: {key: value}})),
        from_mapping(deep_merge(default, {section: {key: _leaves_as_text(value)}})),
        from_mapping(deep_merge(default, parse_override(f"{section}.{key}={json.dumps(value)}"))),
        from_mapping({section: {key: f"${{NOT_SET_ANYWHERE:-{json.dumps(value)}}}"}})
        if not isinstance(value, str | dict)
        else in_file,
    ]
    for form in forms:
        assert form == in_file
        assert form.config_hash == in_file.config_hash
        assert canonical_json(form.resolved()) == canonical_json(in_file.resolved())


def test_budgets_and_methods_are_canonical() -> None:
    settings = from_mapping(
        {"kv": {"budgets": ["64", 16, 64.0], "methods": ["h2o", "observed_attention", "full"]}}
    )
    assert settings.kv.budgets == [16, 64]
    assert settings.kv.methods == ["observed_attention"]


def test_the_uncompressed_references_are_always_cells() -> None:
    settings = from_mapping({"kv": {"methods": ["tova"], "budgets": [32]}})
    assert settings.cells == ["full/full", "no_context/full", "tova/32"]
    named = from_mapping(
        {"kv": {"methods": ["full", "no_context", "tova"], "budgets": [32], "no_context": False}}
    )
    assert named.cells == settings.cells
    without = from_mapping({"kv": {"methods": ["tova"], "budgets": [32], "no_context": False}})
    assert without.cells == ["full/full", "tova/32"]


MISTAKES = {
    "kv.windo=8": "kv.windo: unknown key; did you mean window",
    "nonsense=1": "nonsense: unknown key",
    "kv.window=wide": "kv.window: .*integer.*'wide'",
    "binning.n_bins=true": "binning.n_bins: ",
    "kv.methods=[snap]": "kv.methods: 'snap' is unknown; known are snapkv",
    "kv.budgets=[0]": "kv.budgets: 0 is no budget",
    "kv.budgets=[1.0]": "kv.budgets: 1.0 is no budget",
    "kv.budgets=[16, 0.5]": "kv.budgets: tokens and shares are mixed",
    "kv.window=9": "kv.window: 9 is more than half of the smallest of kv.budgets",
    "kv={scope: context, first_token: full}": "kv.first_token: .*must be compressed",
    "dataset.path=${NO_SUCH_VARIABLE}": "dataset.path: the environment variable NO_SUCH_VARIABLE is not set",
    "dataset.source=local": "dataset.path: ",
    "dataset.tasks=[]": "dataset.tasks: ",
    "experiment.id=a/b": "experiment.id: ",
    "experiment.id=2.5": "experiment.id: ",
    "analysis.tau=[1.5]": "analysis.tau: ",
    "analysis.tau=[0.9, 0.9]": "analysis.tau: a level is named twice",
    "kv.methods=[full]": "kv.methods: name at least one method: snapkv",
    "scoring.refusal_patterns=['(']": "scoring.refusal_patterns: .*no regular expression",
    "decoding.stop=['']": "decoding.stop",
    "decoding.max_new_tokens_by_task={multi_news: 0}": "decoding.max_new_tokens_by_task.multi_news",
    "dataset.name=a__b": "dataset.name: ",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(mistake: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("experiment: {id: mine}\n")
    with pytest.raises(ConfigError, match=MISTAKES[mistake]) as error:
        load_settings(tmp_path / "mine.yaml", [mistake])
    assert "\n" not in str(error.value)


def test_variables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_BUDGETS", "[16, 32]")
    settings = from_mapping({"kv": {"budgets": "${MY_BUDGETS}"}, "model": {"name": "my-${MODEL_SIZE:-7b}"}})
    assert settings.kv.budgets == [16, 32]
    assert settings.model.name == "my-7b"


def test_invalid_yaml_names_the_file_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("kv:\n  window: ${A\n  budgets: [16, 32\nmodel: x: y\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml, line \d+"):
        load_settings(file)


def test_a_file_changes_only_what_it_names(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (tmp_path / "mine.yaml").write_text("kv: {window: 4}\n")
    expected = Settings().resolved()
    expected["kv"]["window"] = 4
    assert load_settings(tmp_path / "mine.yaml") == expected


def test_what_decides_an_answer_does_not_name_the_chosen_methods_or_budgets() -> None:
    few = from_mapping({"kv": {"methods": ["tova"], "budgets": [64]}, "run": {"shards": 9}})
    assert answer_slice(few, "phrasebook_qa") == answer_slice(Settings(), "phrasebook_qa")
    assert answer_slice(from_mapping({"kv": {"kernel": 7}}), "x") != answer_slice(Settings(), "x")


@pytest.mark.parametrize(
    ("http", "key"),
    [
        ({"api_key_env": "sk-proj-SECRETKEY123"}, "http.api_key_env"),
        ({"headers": {"X-Auth-Token": "SECRETKEY123"}}, "http.headers"),
        ({"headers": {"Ocp-Apim-Subscription-Key": "SECRETKEY123"}}, "http.headers"),
        ({"headers": {"x-goog-api-key": "SECRETKEY123"}}, "http.headers"),
        ({"extra_body": {"options": [{"api_key": "SECRETKEY123"}]}}, "http.extra_body"),
        ({"base_url": "http://me:SECRETKEY123@host/v1"}, "http.base_url"),
        ({"base_url": "http://host/v1?code=SECRETKEY123"}, "http.base_url"),
        (
            {"budget_transport": {"kind": "endpoint", "endpoints": {"16": "http://u:SECRETKEY123@host/v1"}}},
            "http.budget_transport.endpoints",
        ),
    ],
)
def test_a_secret_in_the_configuration_is_refused_and_not_repeated(http: dict, key: str) -> None:
    with pytest.raises(ConfigError) as told:
        from_mapping({"engine": {"kind": "openai_compat"}, "http": http})
    assert str(told.value).startswith(f"{key}:")
    assert "SECRETKEY123" not in str(told.value)


def test_fields_that_only_sound_like_secrets_are_allowed() -> None:
    fields = {
        "chat_template_kwargs": {"enable_thinking": False},
        "max_completion_tokens": 5,
        "stop_token_ids": [1],
    }
    http = {"api_key_env": "MY_API_KEY", "headers": {"X-Title": "kv"}, "extra_body": fields}
    assert from_mapping({"engine": {"kind": "openai_compat"}, "http": http}).http.extra_body == fields


@pytest.mark.parametrize(
    "transport",
    [
        {"kind": "endpoint", "endpoints": {"16": "http://host/v1"}},
        {"kind": "extra_body", "fields": "vllm_kvcompress"},
    ],
)
def test_a_transport_that_does_not_name_the_method_takes_one_method(transport: dict) -> None:
    config = {"engine": {"kind": "openai_compat"}, "http": {"budget_transport": transport}}
    with pytest.raises(ConfigError, match="would get the same answers"):
        from_mapping({**config, "kv": {"methods": ["snapkv", "streaming_llm"]}})
    from_mapping({**config, "kv": {"methods": ["snapkv", "recent"]}})
