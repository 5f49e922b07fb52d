"""The questions before a run: what would go wrong for all of them is one line, and good answers are handed on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fault_server import FaultProcess
from http_settings import SECTION, prompt_of

from kv_transition.engines.base import Cell, Decoding
from kv_transition.engines.openai_compat import OpenAICompatEngine
from kv_transition.errors import UserError
from kv_transition.run.probe import probe

CELLS = [Cell("full"), Cell("snapkv", 8), Cell("snapkv", 12)]
DECODING = Decoding(16)
KEY = "sk-secret-0123456789-tail"


@contextmanager
def probing(script: dict[str, Any], **settings: Any) -> Iterator[tuple[OpenAICompatEngine, FaultProcess]]:
    with FaultProcess(script) as server:
        section = {**SECTION, "base_url": server.base_url, "max_attempts": 2, **settings}
        yield OpenAICompatEngine(section, methods={"snapkv": {"window": 4}}, api_key=KEY), server


def ask(engine: OpenAICompatEngine, count: int = 5, **options: Any) -> list[Any]:
    return probe(
        engine,
        [(f"ex{number}", prompt_of(f"ex{number}")) for number in range(count)],
        CELLS,
        DECODING,
        **options,
    )


def test_three_examples_are_asked_at_full_and_at_one_budget_and_handed_on() -> None:
    with probing({}) as (engine, server):
        answers = ask(engine)
        assert server.settled("asked", 0.05) == {"ex0": 2, "ex1": 2, "ex2": 2}
    assert [(answer.example_id, answer.cell.label) for answer in answers][:3] == [
        ("ex0", "full"),
        ("ex0", "8"),
        ("ex1", "full"),
    ]
    assert {answer.result.text for answer in answers} == {"answer to ex0", "answer to ex1", "answer to ex2"}


def test_one_failed_request_is_not_the_end() -> None:
    with probing({"faults": {"ex1": ["400", "400"]}}) as (engine, _):
        assert {answer.example_id for answer in ask(engine)} == {"ex0", "ex2"}


def test_an_unreachable_server_is_named_without_the_key() -> None:
    with probing({}) as (engine, server):
        server.stop()
        with pytest.raises(
            UserError, match=rf"{server.base_url} cannot be reached: Connection refused"
        ) as told:
            ask(engine)
        server.start()
    assert "sk-" not in str(told.value)


def test_a_wrong_model_name_lists_the_right_ones() -> None:
    with probing({"faults": {"*": ["404*"]}, "models": ["tiny-reader", "other"]}) as (engine, server):
        with pytest.raises(
            UserError, match=r"'served' is unknown to the server, which lists tiny-reader, other"
        ):
            ask(engine)
        assert server.counts("asked").total() == 1
    with (
        probing({"faults": {"*": ["404*"]}}) as (engine, _),
        pytest.raises(UserError, match=r"has nothing at this address: HTTP 404"),
    ):
        ask(engine)


def test_a_refused_key_names_its_setting() -> None:
    with (
        probing({"faults": {"*": ["401*"]}}) as (engine, _),
        pytest.raises(UserError, match=r"refuses the key that http\.api_key_env names") as told,
    ):
        ask(engine)
    assert "sk-" not in str(told.value)


def test_a_server_that_ignores_the_budget_ends_the_run() -> None:
    with (
        probing({"kv": "none"}) as (engine, _),
        pytest.raises(UserError, match=r"snapkv at 8: server ignored the budget.*require_verified_budget"),
    ):
        ask(engine)


def test_a_server_that_does_not_answer_in_time_is_named() -> None:
    with (
        probing({"faults": {"*": ["timeout*"]}}, read_timeout_s=0.2) as (engine, _),
        pytest.raises(UserError, match=r"does not answer in time.*http\.read_timeout_s"),
    ):
        ask(engine)


def test_failures_of_every_request_end_the_run_with_the_first_of_them() -> None:
    with (
        probing({"faults": {"*": ["400*"]}}) as (engine, _),
        pytest.raises(UserError, match=r"every request before the run failed; the first: HTTP 400"),
    ):
        ask(engine)


def test_answers_that_are_all_cut_off_say_what_to_do() -> None:
    with probing({"finish": "length"}) as (engine, _):
        with pytest.raises(UserError, match=r"cut off at 16 tokens.*decoding\.max_new_tokens \(now 16\)"):
            ask(engine)
        assert len(ask(engine, ends_expected=False)) == 6


def test_answers_that_only_think_say_what_to_do() -> None:
    with (
        probing({"text": "<think> Well, let me see", "finish": "length"}) as (engine, _),
        pytest.raises(UserError, match=r"unclosed <think>.*enable_thinking: false.*decoding\.max_new_tokens"),
    ):
        ask(engine)


def test_answers_that_only_think_are_a_warning_where_none_is_expected_to_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with probing({"text": "<think> Well, let me see", "finish": "length"}) as (engine, _):
        assert len(ask(engine, ends_expected=False)) == 6
    assert "unclosed <think>" in caplog.text


def test_a_good_answer_is_handed_on_before_anything_is_said_against_the_run() -> None:
    kept: list[str] = []
    with (
        probing({"faults": {"ex1": ["401*"]}}) as (engine, _),
        pytest.raises(UserError, match="refuses the key"),
    ):
        ask(engine, keep=lambda answer: kept.append(f"{answer.example_id} {answer.cell.label}"))
    assert kept == ["ex0 full", "ex0 8"]


def test_earlier_answers_are_judged_where_too_few_are_asked() -> None:
    cut = [("and then", "length")] * 4
    with probing({}) as (engine, _):
        with pytest.raises(UserError, match="cut off at 16 tokens"):
            ask(engine, 0, earlier=cut)
        ask(engine, 1, earlier=cut)
        ask(engine, 0, earlier=[*cut, ("well", "stop")])


def test_without_examples_nothing_is_asked() -> None:
    with probing({}) as (engine, server):
        assert ask(engine, 0) == []
        assert server.counts("asked").total() == 0
