"""A budget reaches the server as its field map says, and counts only when the reply agrees with the request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell, KVUse
from kv_transition.engines.budget_transports import Asked, BudgetTransport, asked_of, kv_use
from kv_transition.errors import ConfigError
from kv_transition.methods import resolve_parameters

URL = "http://localhost:8000/v1"
PROMPT = Prompt(({"role": "user", "content": "context question"},), 7)


def asked(cell: Cell, scope: Any = "prompt", first_token: Any = "full") -> Asked:
    return asked_of(cell, PROMPT, "ex1", scope, first_token, resolve_parameters({}))


def echo_of(request: Asked, kept: int, prompt_tokens: int = 100, **changes: Any) -> dict[str, Any]:
    refed = int(request.scope == "prompt" and request.first_token == "compressed")
    return {
        "method": request.cell.method,
        "budget": request.cell.budget,
        "scope": request.scope,
        "first_token": request.first_token,
        "params": dict(request.parameters),
        "prompt_tokens": prompt_tokens,
        "press_len": prompt_tokens - refed,
        "question_tokens": 0,
        "kept_per_layer": [kept] * 3,
        "bytes_kept": 4096,
        "active": kept < prompt_tokens,
        "verified": "measured",
        "engine": {"class": "ReferenceEngine"},
    } | changes


def test_our_server_is_told_method_budget_and_hyper_parameters() -> None:
    transport = BudgetTransport({"kind": "extra_body", "fields": "kv_transition"}, URL)
    assert transport.fields(asked(Cell("snapkv", 64))) == {
        "kv": {
            "method": "snapkv",
            "budget": 64,
            "scope": "prompt",
            "first_token": "full",
            **resolve_parameters({})["snapkv"],
        }
    }
    assert transport.fields(asked(Cell("full")))["kv"] == {
        "method": "full",
        "scope": "prompt",
        "first_token": "full",
    }


def test_random_is_told_its_seed_and_replicate_and_scope_context_where_the_context_ends() -> None:
    fields = asked(Cell("random", 0.25, 2), "context", "compressed").fields
    assert (fields["seed"], fields["replicate"], fields["context_end"]) == ("ex1", 2, 7)
    assert "seeds" not in fields
    assert not {"seed", "replicate", "context_end"} & asked(Cell("tova", 64)).fields.keys()


def test_kvcompress_takes_whole_tokens_only() -> None:
    transport = BudgetTransport({"kind": "extra_body", "fields": "vllm_kvcompress"}, URL)
    assert transport.fields(asked(Cell("snapkv", 64))) == {"max_cache_tokens": 64}
    assert transport.fields(asked(Cell("full"))) == {}
    with pytest.raises(ConfigError, match=r"f0\.5 is a share.*whole tokens"):
        transport.fields(asked(Cell("snapkv", 0.5)))


def test_xargs_are_flat_and_prefixed() -> None:
    transport = BudgetTransport({"kind": "extra_body", "fields": "vllm_xargs"}, URL)
    sent = transport.fields(asked(Cell("streaming_llm", 64)))["vllm_xargs"]
    assert sent["kv_method"] == "streaming_llm"
    assert sent["kv_budget"] == 64
    assert sent["kv_n_sink"] == resolve_parameters({})["streaming_llm"]["n_sink"]


def test_an_endpoint_table_sends_each_budget_to_its_server() -> None:
    table = {"kind": "endpoint", "endpoints": {"64": "http://localhost:8064/v1/"}}
    transport = BudgetTransport(table, URL)
    assert transport.address(Cell("snapkv", 64)) == "http://localhost:8064/v1"
    assert transport.address(Cell("full")) == URL
    assert transport.fields(asked(Cell("snapkv", 64))) == {}
    with pytest.raises(ConfigError, match=r"http\.budget_transport\.endpoints: no server for budget 128"):
        transport.address(Cell("snapkv", 128))


def test_without_a_transport_no_budget_is_asked() -> None:
    transport = BudgetTransport({"kind": "none"}, URL)
    assert transport.address(Cell("full")) == URL
    with pytest.raises(ConfigError, match=r"http\.budget_transport\.kind: none sends no budget"):
        transport.address(Cell("snapkv", 64))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"kind": "header"}, r"kind: 'header' is unknown"),
        ({"kind": "extra_body", "fields": "mine"}, r"fields: 'mine' is unknown"),
        ({"kind": "endpoint"}, r"endpoints: empty"),
    ],
)
def test_an_unknown_transport_is_refused_by_its_key(section: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"http\.budget_transport\.{key}"):
        BudgetTransport(section, URL)


@given(
    budget=st.integers(2, 400) | st.floats(0.01, 0.99),
    prompt_tokens=st.integers(10, 300),
    first_token=st.sampled_from(["full", "compressed"]),
    change=st.integers(-2, 2),
)
def test_exactly_the_budget_is_proved_and_nothing_else(
    budget: int | float, prompt_tokens: int, first_token: str, change: int
) -> None:
    request = asked(Cell("tova", budget), "prompt", first_token)
    least = 1 if first_token == "full" else 2
    share = int(budget * prompt_tokens + 1e-9) if isinstance(budget, float) else budget
    right = min(max(share, least), prompt_tokens)
    kept = right + change
    echo = echo_of(request, kept, prompt_tokens, active=right < prompt_tokens)
    found = kv_use(echo, request, prompt_tokens, 5)
    if change == 0:
        assert isinstance(found, KVUse)
        assert (found.verified, found.kept_mean, found.kept_min) == ("measured", kept, kept)
        assert found.active == (kept < prompt_tokens)
        assert found.peak_tokens == kept + 5
    else:
        assert isinstance(found, str)
        assert f"kept {kept:g} positions where {right} were asked" in found or kept < 0


@pytest.mark.parametrize(
    "change",
    [
        {"method": "tova"},
        {"budget": 32},
        {"scope": "context"},
        {"first_token": "compressed"},
        {"params": {"window": 9, "kernel": 5}},
        {"kept_per_layer": [64, 64, 65]},
        {"kept_per_layer": []},
        {"kept_per_layer": ["64"]},
        {"kept_per_layer": None},
        {"prompt_tokens": 101},
        {"press_len": 99},
        {"press_len": float("nan")},
        {"active": False},
        {"bytes_kept": -1},
        {"bytes_kept": 2**63},
        {"bytes_kept": 10**400},
        {"press_len": 2**31, "prompt_tokens": 2**31},
        {"kept_per_layer": [10**400] * 3},
        {"peak_tokens": 2**31},
        {"peak_tokens": "many"},
    ],
)
def test_an_echo_that_differs_in_one_thing_proves_nothing(change: dict) -> None:
    request = asked(Cell("snapkv", 64))
    assert isinstance(kv_use(echo_of(request, 64), request, 100, 5), KVUse)
    assert isinstance(kv_use(echo_of(request, 64, **change), request, 100, 5), str), change


def test_bytes_are_kept_to_the_last_one() -> None:
    request = asked(Cell("snapkv", 64))
    found = kv_use(echo_of(request, 64, bytes_kept=2**63 - 1), request, 100, 5)
    assert isinstance(found, KVUse)
    assert found.bytes_kept == 2**63 - 1


def test_a_peak_that_no_column_holds_is_not_made_up_from_the_counts() -> None:
    request = asked(Cell("snapkv", 64))
    assert (
        kv_use(echo_of(request, 64), request, 100, 2**31 - 1) == "2147483711 tokens at the end are too many"
    )
    assert isinstance(kv_use(echo_of(request, 64, peak_tokens=70), request, 100, 2**31 - 1), KVUse)


def test_only_our_own_engines_measure() -> None:
    request = asked(Cell("snapkv", 64))
    for change in ({"engine": {"class": "Other"}}, {"engine": None}, {"verified": "reported"}):
        found = kv_use(echo_of(request, 64, **change), request, 100, 5)
        assert isinstance(found, KVUse)
        assert found.verified == "reported"


def test_a_foreign_server_need_not_name_what_it_has_no_word_for() -> None:
    request = asked(Cell("snapkv", 64))
    echo = echo_of(request, 64, engine=None)
    bare = {
        name: value
        for name, value in echo.items()
        if name not in ("method", "scope", "first_token", "params")
    }
    found = kv_use(bare, request, None, None)
    assert isinstance(found, KVUse)
    assert found.verified == "reported"
    assert isinstance(kv_use({**bare, "budget": None}, request, None, None), str)


def test_the_full_cache_is_measured_too() -> None:
    request = asked(Cell("full"), "prompt", "compressed")
    found = kv_use(echo_of(request, 100), request, 100, 3)
    assert isinstance(found, KVUse)
    assert (found.requested, found.kept_mean, found.active) == (None, 100, False)
