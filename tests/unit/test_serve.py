"""What the server takes and refuses, how its text is cut into pieces, and who waits for what: without a network."""

import argparse
import asyncio
import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import random_prompt, write_random_llama
from tokenizers import Tokenizer, models

from kv_transition.budgets import kept_tokens
from kv_transition.data.prompts import Prompt, prompt_hash
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.engines.base import Cell, Decoding
from kv_transition.engines.reference import ReferenceEngine
from kv_transition.errors import UserError
from kv_transition.serve import command
from kv_transition.serve.answering import Finished, Piece, Started, answer
from kv_transition.serve.api_errors import ApiError
from kv_transition.serve.requests import read_request
from kv_transition.serve.streaming import TextStream, stop_beginning
from kv_transition.serve.worker import Worker

CHAT = {"model": "m", "messages": [{"role": "user", "content": "w1 w2 w3"}]}
SNAPKV = {"method": "snapkv", "budget": 64}


def read(chat=True, **fields):
    body = CHAT if chat else {"model": "m", "prompt": "w1 w2 w3"}
    return read_request(json.dumps({**body, **fields}).encode(), chat, "m")


def refused(chat=True, **fields):
    with pytest.raises(ApiError) as caught:
        read(chat, **fields)
    return caught.value


# What a request means


def test_without_kv_the_answer_comes_from_the_full_cache():
    ask = read()
    assert (ask.cell, ask.scope, ask.first_token, ask.parameters) == (Cell("full"), "prompt", "full", {})
    assert ask.prompt == Prompt(({"role": "user", "content": "w1 w2 w3"},), None)
    assert (ask.max_tokens, ask.min_tokens, ask.stop, ask.stream) == (None, 0, (), False)


def test_kv_names_the_cell_and_its_hyper_parameters():
    ask = read(kv={**SNAPKV, "window": 16, "scope": "context", "first_token": "compressed", "context_end": 5})
    assert (ask.cell, ask.parameters) == (Cell("snapkv", 64), {"window": 16, "kernel": 5})
    assert (ask.scope, ask.first_token, ask.prompt.context_end) == ("context", "compressed", 5)


def test_an_alias_is_answered_under_the_methods_own_name():
    assert read(kv={"method": "h2o", "budget": 0.25}).cell == Cell("observed_attention", 0.25)


def test_random_is_seeded_by_the_request_and_its_replicate():
    ask = read(kv={"method": "random", "budget": 8, "seed": "example 7", "replicate": 2})
    assert (ask.cell, ask.seed, ask.parameters) == (Cell("random", 8, 2), "example 7", {})


def test_a_completions_prompt_is_the_models_whole_input():
    assert read(chat=False).prompt == Prompt(({"role": "user", "content": "w1 w2 w3"},), None, wrapped=False)
    assert read(chat=False, prompt=["w1"]).prompt.messages[0]["content"] == "w1"


def test_parts_of_type_text_are_joined_and_the_developer_is_the_system():
    messages = [
        {"role": "developer", "content": "w1"},
        {"role": "user", "content": [{"type": "text", "text": "w2 "}, {"type": "text", "text": "w3"}]},
    ]
    assert read(messages=messages).prompt.messages == (
        {"role": "system", "content": "w1"},
        {"role": "user", "content": "w2 w3"},
    )


def test_the_newer_name_of_max_tokens_means_the_same():
    assert read(max_completion_tokens=5).max_tokens == read(max_tokens=5).max_tokens == 5


def test_stop_is_a_text_or_up_to_four():
    assert read(stop="a").stop == ("a",)
    assert read(stop=["a", "b", "c", "d"]).stop == ("a", "b", "c", "d")
    assert read(stop=None).stop == read(stop=[]).stop == ()


HARMLESS = {
    "user": "someone",
    "n": 1,
    "top_p": 0.9,
    "seed": 3,
    "temperature": 0,
    "stream_options": {"include_usage": True},
    "logit_bias": {},
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "response_format": {"type": "text"},
    "tools": None,
    "store": False,
    "metadata": {"a": "b"},
    "something_new": [1],
}


def test_fields_that_change_nothing_are_accepted():
    ask = read(**HARMLESS)
    assert (ask.cell, ask.include_usage) == (Cell("full"), True)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"kv": {"method": "snapvk", "budget": 64}},
            "kv.method",
            "'snapvk' is unknown; known are full, snapkv",
        ),
        ({"kv": {"method": "no_context"}}, "kv.method", "unknown"),
        ({"kv": {"method": "recent", "budget": 64}}, "kv.method", "'recent' is unknown"),
        ({"kv": {**SNAPKV, "windows": 8}}, "kv.windows", "no such option; known are method, budget"),
        ({"kv": {"method": "snapkv"}}, "kv.budget", "is missing; snapkv needs one"),
        ({"kv": {"budget": 64}}, "kv.budget", "the full cache has no budget"),
        ({"kv": {"method": "full", "budget": 64}}, "kv.budget", "the full cache has no budget"),
        *(
            ({"kv": {"method": "tova", "budget": wrong}}, "kv.budget", "whole tokens from 2 up")
            for wrong in (0, 1, -3, 1.0, 0.0, 2.5, True, "64", "f0.5", [64], 10**30, 10**400)
        ),
        ({"kv": {**SNAPKV, "kernel": 4}}, "kv.kernel", "4 is even"),
        ({"kv": {**SNAPKV, "window": 0}}, "kv.window", "greater than or equal to 1"),
        ({"kv": {**SNAPKV, "window": 8.0}}, "kv.window", "valid integer"),
        ({"kv": {**SNAPKV, "window": 33}}, "kv.window", "more than half of budget 64"),
        ({"kv": {"method": "streaming_llm", "budget": 6}}, "kv.n_sink", "more than half of budget 6"),
        (
            {"kv": {"method": "tova", "budget": 8, "window": 4}},
            "kv.window",
            "tova has no such hyper-parameter",
        ),
        (
            {"kv": {**SNAPKV, "scope": "context", "context_end": 2}},
            "kv.first_token",
            "first_token: compressed",
        ),
        ({"kv": {**SNAPKV, "scope": "context", "first_token": "compressed"}}, "kv.context_end", "is missing"),
        ({"kv": {**SNAPKV, "context_end": 9}}, "kv.context_end", "has 8 characters"),
        ({"kv": {**SNAPKV, "context_end": -1}}, "kv.context_end", "greater than or equal to 0"),
        ({"kv": {**SNAPKV, "scope": "all"}}, "kv.scope", "'prompt' or 'context'"),
        ({"kv": {**SNAPKV, "seed": 7}}, "kv.seed", "valid string"),
        ({"kv": {**SNAPKV, "replicate": -1}}, "kv.replicate", "greater than or equal to 0"),
        ({"kv": "snapkv@64"}, "kv", "valid dictionary"),
        *(({name: SNAPKV}, name, "described by the field kv") for name in ("KV", "kv_cache", " kv", "kvs")),
        ({"budget": 64}, "budget", "write kv.budget"),
        ({"method": "snapkv"}, "method", "write kv.method"),
        ({"extra_body": {"kv": SNAPKV}}, "extra_body", "top level of the body"),
        ({"temperature": 0.7}, "temperature", "decoding is greedy"),
        ({"n": 2}, "n", "one answer"),
        ({"n": True}, "n", "one answer"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"max_tokens": 10**400}, "max_tokens", "less than or equal"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "contradicts"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens", "more than max_tokens"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": ""}, "stop.0", "at least 1 character"),
        ({"stop_token_texts": "a"}, "stop_token_texts", "valid list"),
        ({"stream": 1}, "stream", "valid boolean"),
        ({"model": 5}, "model", "valid string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hello"}, "messages", "valid list"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "is missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "valid string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
            "only parts of type text",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", ""),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_named_by_its_field(fields, param, message):
    error = refused(**fields)
    assert (error.status, error.param, error.kind) == (400, param, "invalid_request_error")
    assert message in error.message
    assert "\n" not in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1]], [], 5])
def test_several_prompts_and_token_ids_are_refused(prompt):
    assert refused(chat=False, prompt=prompt).param == "prompt"


def test_another_models_name_is_not_found():
    error = refused(model="gpt-4")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"\xff\xfe\xfa",
        b'{"temperature": NaN}',
        b"[" * 100_000,
        b'{"max_tokens": ' + b"1" * 5000 + b"}",
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_a_body_that_is_no_json_object_is_refused(raw):
    with pytest.raises(ApiError) as caught:
        read_request(raw, True, "m")
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
top_level = st.sampled_from(
    ["kv", "messages", "prompt", "model", "stop", "stream", "n", "temperature", "max_tokens", "min_tokens"]
)
inside_kv = st.sampled_from(
    ["method", "budget", "scope", "window", "kernel", "n_sink", "seed", "replicate", "context_end"]
)


@given(
    fields=st.dictionaries(top_level | st.text(max_size=9), values, max_size=4),
    kv=st.none() | st.dictionaries(inside_kv, values, max_size=4),
    chat=st.booleans(),
)
def test_whatever_is_sent_is_either_understood_or_refused_in_words(fields, kv, chat):
    body = {**CHAT, "prompt": "w1", **fields, **({} if kv is None else {"kv": kv})}
    try:
        ask = read_request(json.dumps(body).encode(), chat, "m")
    except ApiError as refusal:
        status = refusal.status
        json.dumps(refusal.body()).encode()
    else:
        status = 200
        assert (ask.cell.method == "full") == (ask.cell.budget is None)
    assert status in (200, 400, 404)


@given(budget=st.integers(2, 2**31 - 1) | st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_every_budget_of_a_configuration_is_a_budget_of_a_request(budget):
    assert read(kv={"method": "knorm", "budget": budget}).cell.budget == budget


# Text in pieces

WORDS = ["a", "b", "ab", "\n", "é", "日", " c", "😀", "<0x0A>"]


def pieces_of(tokens, decode, stop, final, byte_ids=()):
    stream = TextStream(decode, stop, byte_ids)
    pieces = [stream.push(tokens[:count]) for count in range(1, len(tokens))]
    return [*pieces, stream.finish(final)]


def cut(text, stop):
    return text[: min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))]


@given(
    data=st.binary(max_size=24) | st.text(max_size=12).map(str.encode),
    stop=st.lists(st.text("ab\né", min_size=1), max_size=3),
)
def test_pieces_of_bytes_join_to_the_whole_answer(data, stop):
    """As a byte-level tokenizer does: one token is one byte, and what is no character yet is a replacement sign."""

    def decode(tokens):
        return bytes(tokens).decode(errors="replace")

    tokens = list(data)
    # The engine ends an answer as soon as a stop string is in its text.
    met = [
        count
        for count in range(len(tokens) + 1)
        if cut(decode(tokens[:count]), stop) != decode(tokens[:count])
    ]
    tokens = tokens[: met[0]] if met else tokens
    final = cut(decode(tokens), stop)
    assert "".join(pieces_of(tokens, decode, stop, final)) == final


def byte_fallback(tokens):
    """As SentencePiece does: a run of single bytes is read as a whole, and is all replacement signs when it is wrong."""
    text, run = "", b""
    for token in [*tokens, ""]:
        if isinstance(token, int):
            run += bytes([token])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(run)
        text, run = text + token, b""
    return text


@given(
    tokens=st.lists(
        st.sampled_from(WORDS) | st.integers(0, 255) | st.sampled_from(list("\n日".encode())), max_size=14
    )
)
def test_single_bytes_are_held_back_until_the_next_word(tokens):
    final = byte_fallback(tokens)
    assert "".join(pieces_of(tokens, byte_fallback, (), final, byte_ids=set(range(256)))) == final


def test_tokens_of_single_bytes_are_known_by_their_names(tmp_path):
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "<0xFF>": 2, "a": 3, "<0xZZ>": 4}
    Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)).save(
        str(tmp_path / "tokenizer.json")
    )
    assert ModelTokenizer(tmp_path).byte_ids == {1, 2}


def test_a_stop_string_over_several_tokens_is_never_partly_sent():
    tokens = ["one ", "E", "N", "D", " more"]
    stream = TextStream("".join, ["END"], ())
    assert [stream.push(tokens[:count]) for count in (1, 2, 3)] == ["one ", "", ""]
    assert stream.finish("one ") == ""


def test_what_only_looked_like_a_stop_string_is_sent_later():
    stream = TextStream("".join, ["END"], ())
    assert [stream.push(tokens) for tokens in (["E"], ["E", "N"], ["E", "N", "!"])] == ["", "", "EN!"]


def test_text_is_sent_as_soon_as_it_is_certain():
    stream = TextStream(" ".join, [], ())
    assert [stream.push(["a"]), stream.push(["a", "b"]), stream.finish("a b c")] == ["a", " b", " c"]


def test_an_answer_that_contradicts_what_was_sent_is_an_error():
    stream = TextStream("".join, [], ())
    stream.push(["a"])
    with pytest.raises(ValueError, match="already sent"):
        stream.finish("b")


@given(text=st.text("ab", max_size=8), stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_held_back_end_is_the_longest_beginning_of_a_stop_string(text, stop):
    held = stop_beginning(text, stop)
    ends = [
        size for size in range(len(text) + 1) for one in stop if size < len(one) and text.endswith(one[:size])
    ]
    assert held == max(ends, default=0)


# The worker


def in_loop(story, queue=1):
    """Run a coroutine function with a worker of `queue` waiting places."""

    async def told():
        return await asyncio.wait_for(story(Worker(queue)), 20)

    return asyncio.run(told())


def test_jobs_are_answered_in_their_order_and_one_at_a_time():
    async def story(worker):
        order, at_once = [], []

        def work(job):
            at_once.append(threading.get_ident())
            order.append(job.number)
            job.emit("done")

        jobs = []
        for number in range(5):
            job = worker.submit(worker.take_place(), work_of(work, number))
            jobs.append(job)
        for job in jobs:
            assert await job.next_event() == "done"
        return order, set(at_once)

    def work_of(work, number):
        def run(job):
            job.number = number
            work(job)

        return run

    order, threads = in_loop(story, queue=9)
    assert order == [0, 1, 2, 3, 4]
    assert len(threads) == 1


def test_one_runs_the_queue_waits_and_the_next_is_told_when_to_come_again():
    async def story(worker):
        go = threading.Event()
        jobs = [
            worker.submit(worker.take_place(), lambda job: (go.wait(), job.emit("done"))) for _ in range(2)
        ]
        with pytest.raises(ApiError) as caught:
            worker.take_place()
        go.set()
        for job in jobs:
            await job.next_event()
        await asyncio.sleep(0.05)
        worker.take_place()
        return caught.value

    error = in_loop(story)
    assert (error.status, error.code, error.kind) == (429, "queue_full", "rate_limit_error")
    assert int(error.headers["Retry-After"]) >= 1


def test_a_waiting_job_that_is_cancelled_frees_its_place_at_once_and_never_runs():
    async def story(worker):
        go, ran = threading.Event(), []
        running = worker.submit(worker.take_place(), lambda job: (go.wait(), job.emit("done")))
        waiting = worker.submit(worker.take_place(), lambda job: ran.append(job))
        worker.cancel(waiting)
        worker.cancel(waiting)
        worker.take_place()
        with pytest.raises(ApiError):
            worker.take_place()
        go.set()
        await running.next_event()
        await asyncio.sleep(0.05)
        return ran

    assert in_loop(story) == []


def test_a_place_given_back_before_its_job_is_free():
    async def story(worker):
        for _ in range(9):
            place = worker.take_place()
            place.release()
            place.release()
        return worker.places_taken

    assert in_loop(story) == 0


def test_closing_tells_those_who_wait_and_those_who_run_and_refuses_later_ones():
    async def story(worker):
        begun = threading.Event()

        def until_cancelled(job):
            begun.set()
            while not job.cancelled:
                time.sleep(0.001)

        jobs = [worker.submit(worker.take_place(), until_cancelled) for _ in range(2)]
        begun.wait()
        worker.close()
        statuses = [(await job.next_event()).status for job in jobs]
        with pytest.raises(ApiError) as caught:
            worker.take_place()
        return [*statuses, caught.value.status]

    assert in_loop(story) == [503, 503, 503]


def test_an_error_inside_a_job_is_told_without_its_words_and_the_next_job_runs():
    async def story(worker):
        def fail(job):
            raise RuntimeError("the secret prompt")

        failed = worker.submit(worker.take_place(), fail)
        following = worker.submit(worker.take_place(), lambda job: job.emit("done"))
        return await failed.next_event(), await following.next_event()

    error, following = in_loop(story)
    assert (error.status, following) == (500, "done")
    assert "secret" not in error.message


# From a request to an answer


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return ReferenceEngine(write_random_llama(tmp_path_factory.mktemp("models") / "m"))


class Listener(SimpleNamespace):
    """A job that keeps its events; cancelled after so many pieces of text."""

    def __init__(self, pieces=10**9):
        super().__init__(events=[], cancelled=False, accepted=time.perf_counter(), waited_s=0.0, left=pieces)

    def emit(self, event):
        self.events.append(event)
        self.left -= isinstance(event, Piece)
        self.cancelled = self.left <= 0


def asked(engine, prompt, listener=None, **fields):
    body = {"messages": list(prompt.messages), **fields}
    job = listener or Listener()
    answer(engine, read(**body), job)
    return job.events


PROMPT = random_prompt(seed=1, context_words=90)
CONTEXT = {"scope": "context", "first_token": "compressed", "context_end": PROMPT.context_end}


def test_one_loaded_model_serves_every_scope_first_token_and_hyper_parameter(engine):
    """The answer is that of an engine built for just this request."""
    texts = set()
    for kv in (
        {"method": "snapkv", "budget": 16},
        {"method": "snapkv", "budget": 16, "window": 2, "kernel": 1},
        {"method": "snapkv", "budget": 16, "first_token": "compressed"},
        {"method": "snapkv", "budget": 16, **CONTEXT},
        {"method": "streaming_llm", "budget": 0.2, "n_sink": 0},
        {"method": "random", "budget": 16, "seed": "x", "replicate": 1},
    ):
        own = {name: kv[name] for name in ("window", "kernel", "n_sink") if name in kv}
        alone = ReferenceEngine(
            engine.path, kv.get("scope", "prompt"), kv.get("first_token", "full"), {kv["method"]: own}
        )
        prompt = PROMPT if "context_end" in kv else Prompt(PROMPT.messages, None)
        cell = Cell(kv["method"], kv["budget"], kv.get("replicate", 0))
        expected = alone.generate(prompt, cell, Decoding(6), kv.get("seed", ""))
        finished = asked(engine, PROMPT, max_tokens=6, kv=kv)[-1]
        assert (finished.rest, finished.completion_tokens) == (expected.text, expected.completion_tokens)
        assert finished.kv["kept_per_layer"] == list(expected.kv.kept_per_layer)
        texts.add(finished.rest)
    assert len(texts) == 6
    assert (engine.scope, engine.first_token) == ("prompt", "full")


def test_the_echo_tells_what_the_cache_held(engine):
    finished = asked(engine, PROMPT, max_tokens=3, kv={"method": "h2o", "budget": 0.25})[-1]
    kept = kept_tokens(0.25, 98)
    kv = finished.kv
    assert (kv["method"], kv["budget"], kv["requested"]) == ("observed_attention", 0.25, kept)
    assert kv["kept_per_layer"] == [kept] * 3
    assert (kv["kept_min"], kv["kept_mean"], kv["kept_max"]) == (kept,) * 3
    assert (kv["press_len"], kv["prompt_tokens"], kv["question_tokens"]) == (98, 98, 0)
    assert (kv["bytes_kept"], kv["peak_tokens"]) == (kept * 3 * 2 * 2 * 16 * 4, kept + 3)
    assert (kv["applied"], kv["active"], kv["verified"]) == (True, True, "measured")
    assert (kv["scope"], kv["first_token"], kv["params"]) == ("prompt", "full", {})
    assert kv["engine"]["class"] == "ReferenceEngine"


def test_a_budget_above_the_prompt_is_applied_and_takes_nothing_away(engine):
    full, above = (
        asked(engine, PROMPT, max_tokens=3, kv=kv)[-1] for kv in ({}, {"method": "tova", "budget": 5000})
    )
    assert full.rest == above.rest
    assert (full.kv["applied"], full.kv["active"], full.kv["budget"]) == (False, False, None)
    assert (above.kv["applied"], above.kv["active"], above.kv["kept_mean"]) == (True, False, 98)


def test_random_is_seeded_by_the_prompt_where_the_request_names_no_seed(engine):
    kv = {"method": "random", "budget": 16}
    bare = Prompt(PROMPT.messages, None)
    finished = asked(engine, bare, max_tokens=6, kv=kv)[-1]
    assert finished.kv["params"] == {"seed": prompt_hash(bare), "replicate": 0}
    again = asked(engine, bare, max_tokens=6, kv={**kv, "seed": prompt_hash(bare)})[-1]
    assert again.rest == finished.rest


def test_streamed_pieces_join_to_the_answer_that_is_not_streamed(engine):
    for fields in ({}, {"stop": ["w1", " w"]}, {"kv": {"method": "knorm", "budget": 16}}):
        whole = asked(engine, PROMPT, max_tokens=12, **fields)[-1]
        events = asked(engine, PROMPT, max_tokens=12, stream=True, **fields)
        assert isinstance(events[0], Started)
        pieces = [event.text for event in events if isinstance(event, Piece)]
        assert "".join(pieces) + events[-1].rest == whole.rest
        assert (events[-1].finish_reason, events[-1].kv) == (whole.finish_reason, whole.kv)
    assert len(pieces) > 3


def test_a_cancelled_answer_stops_within_a_token(engine):
    listener = Listener(pieces=3)
    events = asked(engine, PROMPT, listener, max_tokens=200, stream=True)
    assert sum(isinstance(event, Piece) for event in events) == 3
    assert not any(isinstance(event, Finished) for event in events)


def test_min_tokens_and_stop_token_texts_reach_the_decoding(engine):
    bare = Prompt(PROMPT.messages, None)
    words = asked(engine, bare, max_tokens=8)[-1].rest.split()
    ended = asked(engine, bare, max_tokens=8, stop_token_texts=[words[3]])[-1]
    assert (ended.rest.split()[-1], ended.finish_reason) == (words[3], "stop")
    later = asked(engine, bare, max_tokens=8, stop_token_texts=[words[3]], min_tokens=6)[-1]
    expected = engine.generate(bare, Cell("full"), Decoding(8, (), 6, (words[3],)), "")
    assert later.completion_tokens > 6 > ended.completion_tokens
    assert later.rest == expected.text


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "code"),
    [
        (random_prompt(1, 700), {}, "messages", "context_length_exceeded"),
        (PROMPT, {"max_tokens": 503}, "messages", "context_length_exceeded"),
        (Prompt(({"role": "user", "content": "Call me w1"},), None), {}, "messages", "unknown_tokens"),
        (PROMPT, {"min_tokens": 600}, "min_tokens", None),
        (PROMPT, {"kv": {"method": "snapkv", "budget": 0.1}}, "kv.window", None),
        (PROMPT, {"kv": {"method": "streaming_llm", "budget": 0.9, "n_sink": 98}}, "kv.n_sink", None),
    ],
    ids=str,
)
def test_a_prompt_that_cannot_be_answered_as_asked_is_refused(engine, prompt, fields, param, code):
    with pytest.raises(ApiError) as caught:
        asked(engine, prompt, **fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_an_answer_may_fill_the_model_to_its_last_position(engine):
    assert asked(engine, PROMPT, max_tokens=502)[-1].prompt_tokens == 98


def test_an_empty_completions_prompt_is_refused(engine):
    with pytest.raises(ApiError, match="prompt: is empty"):
        answer(engine, read(chat=False, prompt=""), Listener())


def test_a_failing_engine_is_the_servers_fault(engine, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(engine.model, "prefill", fail)
    with pytest.raises(ApiError, match="MemoryError: no room") as caught:
        asked(engine, PROMPT)
    assert (caught.value.status, caught.value.kind) == (500, "server_error")


# The command


def options(*words):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    return parser.parse_args(["serve", "--model", "m", *words])


def test_the_server_listens_to_this_machine_only_unless_told_otherwise():
    assert (options().host, options().port, options().queue, options().api_key_env) == (
        "127.0.0.1",
        8000,
        64,
        None,
    )


@pytest.mark.parametrize(
    "words", [["--port", "70000"], ["--queue", "0"], ["--grace", "nan"], ["--max-body-mb", "0"]]
)
def test_an_option_out_of_range_is_a_mistake_in_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        options(*words)
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_key_that_is_asked_for_and_not_set_is_refused(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match=r"--api-key-env: the environment variable NO_SUCH_KEY is not set"):
        command.run(options("--api-key-env", "NO_SUCH_KEY"))


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        command.run(options("--port", "0", "--model", str(tmp_path / "absent")))


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UserError, match=r"fastapi is not installed.*kv-transition\[serve\]"):
        command.run(options())
