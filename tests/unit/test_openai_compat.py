"""The HTTP engine against a real server in its own process: every way to answer, and every way not to."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from fault_server import FaultProcess
from http_settings import SECTION, prompt_of
from hypothesis import given
from hypothesis import strategies as st
from urllib3.util import connection

from kv_transition.data.prompts import Prompt, build_prompt
from kv_transition.engines.base import Cell, Decoding, EngineResult
from kv_transition.engines.chat_replies import read_reply
from kv_transition.engines.http_transport import Fault, event_data, retry_after, whole_text
from kv_transition.engines.openai_compat import OpenAICompatEngine, read_api_key
from kv_transition.engines.reference import ReferenceEngine
from kv_transition.errors import ConfigError

CELL = Cell("snapkv", 8)
DECODING = Decoding(16)
KEY = "sk-secret-0123456789-tail"
BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@contextmanager
def asking(script: dict[str, Any], methods: Any = None, key: str | None = None, **settings: Any) -> Iterator:
    """An engine at a scripted server, and the server."""
    with FaultProcess(script) as server:
        window = {"snapkv": {"window": 4}} if methods is None else methods
        section = {**SECTION, "base_url": server.base_url, **settings}
        yield OpenAICompatEngine(section, methods=window, api_key=key), server


def ask(engine: OpenAICompatEngine, name: str = "a", cell: Cell = CELL, **prompt: Any) -> EngineResult:
    return engine.generate(prompt_of(name, **prompt), cell, DECODING, name)


@BOTH
@pytest.mark.parametrize("wrapped", [True, False], ids=["chat", "plain"])
def test_an_answer_comes_with_its_text_tokens_times_and_proved_budget(stream: bool, wrapped: bool) -> None:
    with asking({"latency_s": 0.05}, stream=stream) as (engine, _):
        result = ask(engine, wrapped=wrapped)
    words = 16 if wrapped else 15
    assert (result.text, result.finish_reason, result.failure) == ("answer to a", "stop", None)
    assert (result.prompt_tokens, result.completion_tokens) == (words, 3)
    assert result.raw["total_tokens"] == words + 3
    assert (result.raw["attempts"], result.raw["notes"]) == (1, [])
    assert result.raw["timing"] == {"total_s": 0.01}
    assert result.kv is not None
    assert (result.kv.kept_mean, result.kv.verified, result.kv.active) == (8, "measured", True)
    assert result.timings.timing_scope == "request"
    assert 0.05 <= result.timings.latency_s < 2
    assert (result.timings.ttfb_s is not None) is stream
    assert not stream or 0.05 <= result.timings.ttfb_s <= result.timings.latency_s


#: fault, what happens, and a part of the words that say so.
FINAL = [
    ("400", "HTTP 400 Bad Request: no luck with status 400"),
    ("404", "HTTP 404 Not Found"),
    ("413", "HTTP 413"),
    ("302", "redirects are not followed, this one leads to http://elsewhere.example/v1"),
    ("malformed", "the reply is no JSON"),
    ("html", "the reply is text/html, not JSON: <html><body>Welcome to the gateway"),
    ("html_as_json", "the reply is no JSON: <html>"),
    ("empty_choices", "the reply has no choices"),
    ("null_tool", "the answer was cut off (finish_reason tool_calls)"),
]


@BOTH
def test_what_stays_wrong_fails_at_once_in_clear_words(stream: bool) -> None:
    faults = {fault: [fault] for fault, _ in FINAL}
    with asking({"faults": faults}, stream=stream) as (engine, server):
        results = {fault: ask(engine, fault) for fault, _ in FINAL}
        asked = server.counts("asked")
    for fault, words in FINAL:
        assert results[fault].failure == "ENGINE_ERROR", fault
        assert words in results[fault].error, results[fault].error
        assert (asked[fault], results[fault].raw["attempts"]) == (1, 1), fault


@BOTH
@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("429", "429"),
        ("500", "500"),
        ("502", "502"),
        ("503", "503"),
        ("504", "504"),
        ("drop_before", "dropped"),
        ("reset_before", "dropped"),
        ("drop_inside", "dropped"),
        ("unframed_drop", "dropped"),
    ],
)
def test_what_passes_is_asked_again_and_noted(stream: bool, fault: str, note: str) -> None:
    with asking({"faults": {"a": [fault, fault]}}, stream=stream) as (engine, server):
        result = ask(engine)
        assert (server.counts("asked")["a"], server.settled("answered", 0.05)["a"]) == (3, 1)
    assert result.text == "answer to a"
    assert (result.raw["attempts"], result.raw["notes"]) == (3, [f"{note} x2"])


def test_a_stream_without_its_end_is_never_taken_for_whole() -> None:
    with asking({"faults": {"a": ["no_finish", "abort", "error_inside"]}}) as (engine, _):
        result = ask(engine)
    assert (result.text, result.raw["attempts"]) == ("answer to a", 4)
    assert result.raw["notes"] == ["dropped x2", "503"]


class Canned:
    """Stands where the connections are: gives each request its reply, and the last reply to all further ones."""

    def __init__(self, replies: list[tuple[bytes, dict[str, Any]]]) -> None:
        self.replies, self.asked = replies, 0

    def send(self, *_: Any, **__: Any) -> requests.Response:
        self.asked += 1
        body, how = self.replies[min(self.asked, len(self.replies)) - 1]
        return response(body, **how)


def response(
    body: bytes, status: int = 200, kind: str = "text/event-stream", cut: bool = False
) -> requests.Response:
    """A response; `cut`: its connection breaks where the body ends."""
    made = requests.Response()
    made.status_code = status
    made.headers["Content-Type"] = kind
    made.headers["Content-Length"] = str(len(body) + cut)
    made.raw = urllib3.HTTPResponse(
        io.BytesIO(body), made.headers, preload_content=False, enforce_content_length=True
    )
    return made


def events(*contents: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(content).encode() for content in contents)


def delta(text: str | None, reason: str | None = None, **beside: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}], **beside}


USAGE = {"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": 1, "total_tokens": 17}}
DONE = b"data: [DONE]\n\n"
CHAT = (events(delta("hello"), delta("", "stop"), USAGE) + DONE, {})


def refusal(status: int, inside: bool) -> tuple[bytes, dict[str, Any]]:
    error = {"error": {"message": "no luck", "code": status}}
    if inside:
        return events(delta("hel"), error), {}
    return json.dumps(error).encode(), {"status": status, "kind": "application/json"}


def engine_at(replies: list[tuple[bytes, dict[str, Any]]]) -> OpenAICompatEngine:
    """An engine whose requests meet these replies."""
    engine = OpenAICompatEngine(SECTION, methods={"snapkv": {"window": 4}})
    canned = Canned(replies)
    engine._transport._adapter = lambda: canned
    return engine


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_stream_that_breaks_off_behind_its_end_and_its_counts_is_whole(reason: str) -> None:
    engine = engine_at([(events(delta("hello"), delta("", reason), USAGE), {"cut": True})])
    result = ask(engine, cell=Cell("full"))
    assert (result.text, result.finish_reason, result.completion_tokens) == ("hello", reason, 1)
    assert (result.raw["attempts"], result.raw["notes"]) == (1, ["dropped behind the answer"])


@pytest.mark.parametrize(
    "sent",
    [events(delta("hel")), events(delta("hel"), USAGE), events(delta("hello"), delta("", "stop"))],
    ids=["inside", "no reason", "no counts"],
)
def test_a_stream_that_breaks_off_before_is_asked_again(sent: bytes) -> None:
    result = ask(engine_at([(sent, {"cut": True}), CHAT]), cell=Cell("full"))
    assert (result.text, result.raw["notes"]) == ("hello", ["dropped"])


def test_silence_behind_a_whole_answer_costs_no_second_request_and_is_not_its_latency() -> None:
    def events_then_silence() -> Iterator[Any]:
        yield from (delta("hello"), delta("", "stop"), USAGE)
        time.sleep(0.3)
        raise Fault("nothing more", "timeout", transient=True)

    reply = read_reply(events_then_silence(), time.perf_counter())
    assert (reply.text, reply.notes) == ("hello", ["timeout behind the answer"])
    assert reply.latency_s < 0.2


@pytest.mark.parametrize(
    "end",
    [(events(delta("", "stop")), {}), (events(delta("", "stop"), USAGE), {"cut": True})],
    ids=["without counts", "broken off"],
)
def test_a_budget_s_echo_that_was_lost_with_the_end_is_asked_for_again(end: tuple[bytes, dict]) -> None:
    result = ask(engine_at([(events(delta("hello")) + end[0], end[1])]))
    assert (result.failure, result.raw["attempts"], result.raw["fault"]) == ("ENGINE_ERROR", 4, "dropped")
    assert result.error == "the stream ended before its kv object (4 attempts)"
    full = ask(engine_at([(events(delta("hello")) + end[0], end[1]), CHAT]), cell=Cell("full"))
    assert full.text == "hello"


def test_a_server_that_ends_its_stream_and_has_no_echo_ignored_the_budget() -> None:
    for end in (events(delta("", "stop"), USAGE), events(delta("", "stop")) + DONE):
        result = ask(engine_at([(events(delta("hello")) + end, {})]))
        assert (result.raw["attempts"], result.raw["fault"]) == (1, "budget")


@BOTH
@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "function_call"])
def test_what_a_filter_or_a_tool_call_ended_is_no_answer_even_with_a_text(stream: bool, reason: str) -> None:
    with asking({"finish": reason}, stream=stream) as (engine, server):
        result = ask(engine)
        assert server.counts("asked")["a"] == 1
    assert (result.text, result.failure) == ("", "ENGINE_ERROR")
    assert result.error == f"the answer was cut off (finish_reason {reason})"


def test_a_character_that_came_in_two_halves_is_one_and_a_lone_half_is_replaced() -> None:
    halves = delta("so \ud83d"), delta("\ude00 \ud83d"), delta("", "stop", model="m\udc00"), USAGE
    result = ask(engine_at([(events(*halves) + DONE, {})]), cell=Cell("full"))
    assert result.text == "so \U0001f600 \ufffd"
    assert result.raw["server_model"] == "m\ufffd"
    refused = {"choices": [{"delta": {"refusal": "no \ud83d"}, "finish_reason": "stop"}]}
    assert ask(engine_at([(events(refused) + DONE, {})]), cell=Cell("full")).text == "no \ufffd"
    error = {"error": {"message": "bad \udfff", "code": 400}}
    assert ask(engine_at([(events(error), {})])).error == "error in the reply: bad \ufffd"
    body = json.dumps(error).encode(), {"status": 400, "kind": "application/json"}
    assert ask(engine_at([body])).error == "HTTP 400 Bad Request: bad \ufffd"


@given(st.text(st.characters(), max_size=20))
def test_what_is_text_already_stays_as_it_is(text: str) -> None:
    whole = whole_text(text)
    assert whole.encode().decode() == whole
    if not any(0xD800 <= ord(character) < 0xE000 for character in text):
        assert whole == text


@pytest.mark.parametrize(("count", "kept"), [(2**31 - 1, 2**31 - 1), (2**31, None), (10**400, None)])
def test_a_count_that_no_model_reaches_is_unknown(count: int, kept: int | None) -> None:
    usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), count)
    last = {"choices": [], "usage": usage, "timing": {"total_s": 10**400, "queue_s": 0.5}}
    result = ask(engine_at([(events(delta("hello", "stop"), last) + DONE, {})]), cell=Cell("full"))
    assert (result.prompt_tokens, result.completion_tokens) == (kept, kept)
    assert (result.raw["total_tokens"], result.raw["timing"]) == (kept, {"queue_s": 0.5})


def test_a_stream_that_says_how_it_ended_is_whole_without_done() -> None:
    with asking({"faults": {"a": ["no_done"], "b": ["no_end"]}}) as (engine, server):
        assert [ask(engine, name).raw["attempts"] for name in ("a", "b", "c")] == [1, 1, 1]
        assert server.counts("asked").total() == 3


@BOTH
def test_an_answer_whose_connection_breaks_behind_it_is_kept(stream: bool) -> None:
    with asking({"faults": {"*": ["drop_after"]}}, stream=stream) as (engine, server):
        assert [ask(engine, name).text for name in "abc"] == [f"answer to {name}" for name in "abc"]
        assert set(server.counts("answered").values()) == {1}


def test_a_server_that_cannot_stream_is_understood() -> None:
    with asking({"faults": {"a": ["not_streamed"]}}) as (engine, _):
        result = ask(engine)
    assert (result.text, result.timings.ttfb_s) == ("answer to a", None)


def test_attempts_end_and_the_last_words_stay() -> None:
    with asking({"faults": {"a": ["503*"], "b": ["drop_before*"]}}, max_attempts=3) as (engine, server):
        refused, dropped = ask(engine, "a"), ask(engine, "b")
        assert server.counts("asked") == {"a": 3, "b": 3}
    assert refused.failure == dropped.failure == "ENGINE_ERROR"
    assert refused.error.startswith("HTTP 503 Service Unavailable: no luck")
    assert refused.error.endswith("(3 attempts)")
    assert (refused.raw["fault"], refused.raw["status"]) == ("status", 503)
    assert "closed the connection" in dropped.error


@BOTH
@pytest.mark.parametrize("fault", ["timeout", "stall_inside"])
def test_silence_is_a_timeout_and_asked_again(stream: bool, fault: str) -> None:
    with asking({"faults": {"a": [fault], "b": [f"{fault}*"]}}, stream=stream, read_timeout_s=0.4) as (
        engine,
        _,
    ):
        first = ask(engine, "a")
        result = ask(engine, "b")
    assert (first.text, first.raw["notes"]) == ("answer to a", ["timeout"])
    assert (result.failure, result.raw["attempts"], result.raw["notes"]) == ("TIMEOUT", 4, ["timeout x3"])
    assert "within 0.4 s" in result.error


@BOTH
@pytest.mark.parametrize("fault", ["trickle", "trickle_headers"])
def test_a_trickle_is_ended_by_the_total_time(stream: bool, fault: str) -> None:
    with asking({"faults": {"a": [f"{fault}*"]}}, stream=stream, total_timeout_s=0.8, read_timeout_s=0.5) as (
        engine,
        server,
    ):
        begin = time.monotonic()
        result = ask(engine)
        assert 0.7 < time.monotonic() - begin < 5, "the trickle lasts far longer"
        assert server.counts("asked")["a"] == 1
    assert (result.failure, result.error) == ("TIMEOUT", "not done within http.total_timeout_s")
    assert result.timings.latency_s is None


@pytest.mark.parametrize("asked", ["1", "date"])
def test_retry_after_is_honoured_as_seconds_and_as_date(asked: str) -> None:
    with asking({"faults": {"a": [f"429:{asked}"]}}) as (engine, _):
        begin = time.monotonic()
        assert ask(engine).text == "answer to a"
        assert time.monotonic() - begin > 0.9, "a date two seconds ahead has no fractions"


def test_retry_after_is_kept_however_short_our_own_waits_are() -> None:
    with asking({"faults": {"a": ["429:1"]}}, backoff_max_s=0.05) as (engine, _):
        begin = time.monotonic()
        assert ask(engine).text == "answer to a"
        assert time.monotonic() - begin >= 1


def test_a_wait_that_there_is_no_time_for_is_not_begun() -> None:
    with asking({"faults": {"a": ["429:3600"]}}) as (engine, server):
        begin = time.monotonic()
        result = ask(engine)
        assert time.monotonic() - begin < 30
        assert server.counts("asked")["a"] == 1
    assert (result.failure, result.raw["status"]) == ("ENGINE_ERROR", 429)
    assert re.search(r"it asks to wait 3600 s, and http\.total_timeout_s leaves \d\.?\d* s$", result.error)


def test_the_last_attempt_does_not_blame_the_time() -> None:
    with asking({"faults": {"a": ["429:0*"]}}, max_attempts=2) as (engine, _):
        assert ask(engine).error == "HTTP 429 Too Many Requests: no luck with status 429 (2 attempts)"


@pytest.mark.parametrize("inside", [False, True], ids=["as status", "inside a stream"])
def test_a_server_s_own_trouble_passes_and_what_it_cannot_do_stays(inside: bool) -> None:
    trouble = [429, 500, 502, 503, 504, 507, 508, 520, 529, 599]
    for status in (*trouble, 400, 404, 408, 501, 505):
        engine = engine_at([refusal(status, inside), CHAT])
        result = ask(engine, cell=Cell("full"))
        if status in trouble:
            assert (result.text, result.raw["notes"]) == ("hello", [str(status)]), status
        else:
            assert (result.failure, result.raw["status"]) == ("ENGINE_ERROR", status)


def test_retry_after_is_read_in_both_forms() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < retry_after(date) <= 30
    assert retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == 0
    assert (retry_after("2"), retry_after("0.5"), retry_after("-3")) == (2, 0.5, 0)
    assert [retry_after(text) for text in (None, "", "soon", "nan", "inf")] == [None] * 5


def test_a_null_text_is_an_empty_answer_where_the_model_ended_it() -> None:
    with asking({"faults": {"a": ["null"], "b": ["null_length"]}}) as (engine, _):
        ended, thought = ask(engine, "a"), ask(engine, "b")
    assert (ended.text, ended.finish_reason, ended.failure) == ("", "stop", None)
    assert (thought.text, thought.finish_reason, thought.raw["notes"]) == ("", "length", ["only reasoning"])


@BOTH
def test_wrong_usage_is_unknown_not_guessed(stream: bool) -> None:
    faults = {name: [f"usage_{name}"] for name in ("absent", "negative", "text")}
    with asking({"faults": faults}, stream=stream) as (engine, _):
        for name in faults:
            result = ask(engine, name)
            assert (result.text, result.prompt_tokens, result.completion_tokens) == (
                f"answer to {name}",
                None,
                None,
            )
            assert result.raw["total_tokens"] is None


@pytest.mark.parametrize(
    ("kv", "words"), [("none", "no kv object"), ("wrong", "kept 9 positions where 8 were asked")]
)
def test_a_budget_that_is_not_confirmed_is_never_an_answer(kv: str, words: str) -> None:
    with asking({"kv": kv}) as (engine, server):
        result = ask(engine)
        assert server.counts("asked")["a"] == 1
    assert (result.text, result.failure) == ("", "ENGINE_ERROR")
    assert result.error.startswith("server ignored the budget: ")
    assert words in result.error
    assert result.raw["fault"] == "budget"


def test_the_full_cache_needs_no_echo() -> None:
    with asking({"kv": "none"}) as (engine, _):
        result = ask(engine, cell=Cell("full"))
    assert (result.text, result.kv) == ("answer to a", None)


def test_without_the_guard_an_unconfirmed_budget_is_not_called_verified() -> None:
    with asking({"kv": "none"}, require_verified_budget=False) as (engine, _):
        assert (ask(engine).failure, ask(engine).kv) == (None, None)
    with asking({"kv": "foreign"}) as (engine, _):
        assert ask(engine).kv.verified == "reported"


def test_a_cell_that_cannot_be_sent_is_a_mistake_in_the_configuration() -> None:
    with asking({}, budget_transport={"kind": "none"}) as (engine, server):
        assert ask(engine, cell=Cell("full")).text == "answer to a"
        with pytest.raises(ConfigError, match=r"http\.budget_transport\.kind"):
            ask(engine)
        assert server.counts("asked").total() == 1


class Recorder:
    """Stands where the transport is, and keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def post(self, url: str, body: dict[str, Any], deadline: float) -> list[dict[str, Any] | None]:
        self.sent.append((url, json.loads(json.dumps(body))))
        return [{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}, None]

    def scrub(self, text: str) -> str:
        return text


def sent(
    section: dict[str, Any], prompt: Any = None, decoding: Decoding = DECODING, **kv: Any
) -> tuple[str, dict[str, Any]]:
    engine = OpenAICompatEngine({**SECTION, **section}, **kv)
    recorder = engine._transport = Recorder()
    engine.generate(prompt or prompt_of("a"), Cell("full"), decoding, "a")
    return recorder.sent[0]


def test_every_request_is_greedy_and_bounded() -> None:
    url, body = sent({})
    assert url.endswith("/v1/chat/completions")
    assert (body["temperature"], body["seed"], body["max_tokens"], body["model"]) == (0, 0, 16, "served")
    assert body["messages"] == [dict(message) for message in prompt_of("a").messages]
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert "stop" not in body


def test_what_ends_an_answer_is_sent() -> None:
    _, body = sent({}, decoding=Decoding(16, ("\n",), 2, ("\n\n",)))
    assert (body["stop"], body["min_tokens"], body["stop_token_texts"]) == (["\n"], 2, ["\n\n"])


def test_the_mode_decides_between_chat_and_plain_text() -> None:
    plain = prompt_of("a", wrapped=False)
    assert sent({}, plain)[0].endswith("/v1/completions")
    assert sent({}, plain)[1]["prompt"] == plain.messages[0]["content"]
    assert sent({"mode": "chat"}, plain)[0].endswith("/chat/completions")
    assert sent({"mode": "completions"})[1]["prompt"].startswith("Answer.\n\none two")


def test_the_end_of_the_context_moves_with_the_text_before_it() -> None:
    prompt = prompt_of("a")
    context = prompt.messages[-1]["content"][: prompt.context_end]
    for mode, before in (("chat", ""), ("completions", "Answer.\n\n")):
        _, body = sent({"mode": mode}, prompt, scope="context", first_token="compressed")
        text = body.get("prompt") or body["messages"][-1]["content"]
        assert text[: body["kv"]["context_end"]] == before + context


def test_extra_fields_are_added_and_never_replace_our_own() -> None:
    assert sent({"extra_body": {"priority": 1}})[1]["priority"] == 1
    own = ("max_completion_tokens", "ignore_eos", "stop_token_ids", "best_of", "top_k")
    for name in ("temperature", *own):
        with pytest.raises(ConfigError, match=rf"http\.extra_body: {name} cannot be set there"):
            sent({"extra_body": {name: 1}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_url": "localhost:8000"}, r"http\.base_url: give the server's address"),
        ({"base_url": "http://me:pass@host/v1"}, r"http\.base_url: holds a password"),
        ({"model": None}, r"http\.model"),
        ({"mode": "talk"}, r"http\.mode: 'talk' is unknown"),
        ({"headers": {"Authorization": "Bearer x"}}, r"http\.headers: Authorization .*http\.api_key_env"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as told:
        OpenAICompatEngine({**SECTION, **change})
    assert "pass@" not in str(told.value)


def test_the_key_comes_from_the_named_variable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert read_api_key("MY_KEY") == KEY
    assert read_api_key(None) is None
    monkeypatch.setenv("MY_KEY", "two words")
    for variable in ("MY_KEY", "NOT_SET"):
        with pytest.raises(ConfigError, match=variable) as told:
            read_api_key(variable)
        assert "two words" not in str(told.value)


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with asking({}) as (engine, _):
        assert ask(engine).text == "answer to a"


@BOTH
def test_the_key_is_sent_and_shown_nowhere(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The server echoes it in refusals, whole and in part, and in an answer."""
    faults = {"a": ["401"], "b": ["403"], "c": ["500*"], "d": ["drop_before*"], "e": ["html"], "f": ["413"]}
    script = {"faults": faults, "text": f"your key is {KEY}"}
    with asking(script, stream=stream, key=KEY) as (engine, _), caplog.at_level(logging.DEBUG):
        results = [ask(engine, name) for name in "abcdefg"]
        shown = [*results, engine, vars(engine), engine._transport, engine.provenance(), caplog.text]
    assert results[0].error.startswith("HTTP 401 Unauthorized: Incorrect key provided: ***")
    assert results[5].error == "HTTP 413 Request Entity Too Large: too long, with ***"
    assert results[-1].text == "your key is ***"
    assert results[-1].raw["notes"] == ["key removed from the answer"]
    for part in (KEY, KEY[:6], KEY[-4:]):
        assert not any(part in repr(thing) for thing in shown), part


@pytest.mark.parametrize("key", ["EMPTY", "none", "a", "fifteen-letters"])
def test_a_placeholder_is_no_secret(key: str) -> None:
    """Servers without keys want one all the same; an answer with that word is an answer."""
    with asking({"faults": {"b": ["401"]}, "text": f"the box is {key}, a fact"}, key=key) as (engine, _):
        result, refused = ask(engine, "a"), ask(engine, "b")
    assert (result.text, result.raw["notes"]) == (f"the box is {key}, a fact", [])
    assert not re.search(rf"(?<![a-z]){re.escape(key)}", refused.error.partition(": ")[2])


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    engine = OpenAICompatEngine({**SECTION, "base_url": f"http://127.0.0.1:{port}/v1"})
    result = ask(engine)
    assert (result.failure, result.error) == ("ENGINE_ERROR", "Connection refused (4 attempts)")
    assert (result.raw["fault"], result.raw["notes"]) == ("unreachable", ["unreachable x3"])


def test_a_connection_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    connect = connection.create_connection
    monkeypatch.setattr(connection, "create_connection", lambda *a, **o: opened.append(a) or connect(*a, **o))
    with asking({"faults": {"d": ["429", "drop_inside"]}}) as (engine, _):
        texts = [ask(engine, name).text for name in "abcde"]
    assert texts == [f"answer to {name}" for name in "abcde"]
    assert len(opened) == 2, "one, and one more after the drop"


EVENTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1), max_size=6
)


@given(texts=EVENTS, cuts=st.lists(st.integers(0, 400)), end=st.sampled_from(["\n", "\r\n"]))
def test_events_are_the_same_however_the_stream_is_cut(texts: list[str], cuts: list[int], end: str) -> None:
    data = [json.dumps(text) for text in texts]
    stream = "".join(f": ping{end}data: {part}{end}id: 3{end}{end}" for part in data).encode()
    marks = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[one:other] for one, other in pairwise(marks)]
    assert [json.loads(event) for event in event_data(pieces)] == texts


@given(st.integers(0, 60))
def test_an_event_that_is_cut_off_is_dropped(cut: int) -> None:
    stream = b'data: {"n": 1}\n\ndata: {"n": 2}\n\n'
    whole = stream[:cut].count(b"\n\n")
    assert [json.loads(event)["n"] for event in event_data([stream[:cut]])] == [1, 2][:whole]
    assert list(event_data([b"data: [DONE]"])) == [b"[DONE]"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "message",
                        "delta",
                        "content",
                        "text",
                        "finish_reason",
                        "usage",
                        "kv",
                        "model",
                        "refusal",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_reply_whatever_it_holds_is_more_than_a_fault(content: Any) -> None:
    event = content if isinstance(content, dict) else {"choices": [content]}
    try:
        reply = read_reply([event, None], 0.0)
    except Fault:
        return
    assert isinstance(reply.text, str)


@pytest.fixture(scope="module")
def own_server(root: Path, missing: Callable[[str], None]) -> Iterator[tuple[str, Path]]:
    """This project's own server with the tiny reader, and its folder."""
    if importlib.util.find_spec("fastapi") is None:
        missing("the server's extra is not installed (pip install '.[serve]')")
    model = root / "resources" / "tiny-reader"
    command = [sys.executable, "-m", "kv_transition.serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        ready = re.search(r"http://\S+", process.stdout.readline())
        assert ready
        yield ready[0], model
        process.terminate()


@BOTH
@pytest.mark.parametrize(
    ("scope", "first_token"), [("prompt", "full"), ("prompt", "compressed"), ("context", "compressed")]
)
def test_our_own_server_answers_as_the_engine_behind_it(
    own_server: tuple[str, Path], stream: bool, scope: Any, first_token: Any
) -> None:
    url, model = own_server
    methods = {"snapkv": {"window": 4, "kernel": 3}, "streaming_llm": {"n_sink": 2}}
    local = ReferenceEngine(model, scope=scope, first_token=first_token, methods=methods)
    section = {**SECTION, "base_url": url, "model": "tiny-reader", "stream": stream, "total_timeout_s": 60}
    engine = OpenAICompatEngine(section, scope, first_token, methods)
    facts = "The badge phrase of Maria is amber river stone. " * 8
    chat = build_prompt("phrasebook_qa", "What is the badge phrase of Maria?", facts)
    bare = build_prompt("phrasebook_qa", "What is the badge phrase of Maria?", "")
    plain = Prompt(
        ({"role": "user", "content": chat.messages[-1]["content"]},), chat.context_end, wrapped=False
    )
    asked = [(prompt, Cell("full")) for prompt in (chat, bare, plain)]
    asked += [(plain, Cell("tova", 16)), (chat, Cell("streaming_llm", 0.25)), (chat, Cell("snapkv", 4000))]
    asked += [(chat, Cell("snapkv", 16)), (chat, Cell("random", 16, 0)), (chat, Cell("random", 16, 1))]
    for prompt, cell in asked:
        ours = local.generate(prompt, cell, Decoding(8, ("stone",), 1, ("\n",)), "ex7")
        theirs = engine.generate(prompt, cell, Decoding(8, ("stone",), 1, ("\n",)), "ex7")
        assert theirs.failure is None, (cell, theirs.error)
        assert theirs.kv == ours.kv, cell
        same = ("text", "finish_reason", "prompt_tokens", "completion_tokens")
        assert [getattr(theirs, name) for name in same] == [getattr(ours, name) for name in same], cell
