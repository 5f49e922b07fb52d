"""The server as its clients meet it: a process of its own on this machine, the tiny reader, openai's client and curl."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest

from kv_transition.data.prompts import Prompt, build_prompt
from kv_transition.data.synthetic import make_records
from kv_transition.engines.base import Cell, Decoding
from kv_transition.engines.evictions import EVICTIONS
from kv_transition.engines.reference import ReferenceEngine

MODEL = Path(__file__).resolve().parents[2] / "resources" / "tiny-reader"
TASK = "phrasebook_qa"
RECORDS = make_records(TASK, 3, 100, 200, seed=5)
PROMPTS = [build_prompt(TASK, record["input"], record["context"]) for record in RECORDS]
#: Long enough to be met while it runs, on any machine.
LONG = {"max_tokens": 20_000, "min_tokens": 20_000}


class Server:
    """A running server."""

    def __init__(self, *options: str, **environment: str) -> None:
        # A file: a pipe that nobody reads would block the server when it is full.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kv_transition.serve", "--model", str(MODEL), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        )
        self.ready = self.process.stdout.readline()
        assert self.ready, self.ended()
        self.base = self.ready.split()[-1]
        self.port = int(self.base.rsplit(":", 1)[1].split("/")[0])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base, api_key=key, max_retries=0, timeout=30)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def post(self, body: dict, path: str = "/v1/chat/completions") -> tuple[int, dict, dict]:
        """Status, headers and JSON of one request."""
        connection = self.connection()
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        result = response.status, dict(response.getheaders()), json.loads(response.read())
        connection.close()
        return result

    def begin(self, body: dict) -> http.client.HTTPConnection:
        """A connection that has sent a request and not read the answer."""
        connection = self.connection()
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        return connection

    def end(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and log of a server that is told to end."""
        self.process.send_signal(how)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Exit code and log of a server that ends."""
        code = self.process.wait(30)
        self.log.seek(0)
        return code, self.log.read()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def chat(prompt: Prompt = PROMPTS[0], **fields) -> dict:
    return {"model": "tiny-reader", "messages": list(prompt.messages), "max_tokens": 8, **fields}


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as one:
        yield one


@pytest.fixture(scope="module")
def engine():
    return ReferenceEngine(MODEL)


# openai's own client


def test_the_ready_line_names_model_and_address(server):
    assert server.ready == f"serving tiny-reader on http://127.0.0.1:{server.port}/v1\n"


def test_a_chat_is_answered_and_kv_is_an_attribute_of_the_answer(client):
    completion = client.chat.completions.create(
        **chat(), extra_body={"kv": {"method": "snapkv", "budget": 48, "window": 16}}
    )
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason in ("stop", "length")
    assert completion.kv["kept_per_layer"] == [48, 48, 48]
    assert (completion.kv["applied"], completion.kv["verified"]) == (True, "measured")
    assert completion.kv["params"] == {"window": 16, "kernel": 5}
    usage = completion.usage
    assert usage.prompt_tokens == completion.kv["prompt_tokens"]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert set(completion.timing) == {"queue_s", "prefill_s", "ttft_s", "total_s"}
    assert 0 <= completion.timing["queue_s"] < completion.timing["ttft_s"] <= completion.timing["total_s"]


def test_plain_text_is_completed_without_a_chat_template(client, engine):
    text = PROMPTS[0].messages[-1]["content"]
    completion = client.completions.create(model="tiny-reader", prompt=text, max_tokens=5)
    prompt = Prompt(({"role": "user", "content": text},), None, wrapped=False)
    assert completion.choices[0].text == engine.generate(prompt, Cell("full"), Decoding(5), "").text
    assert completion.object == "text_completion"


@pytest.mark.parametrize("usage", [False, True])
def test_a_streamed_chat_is_the_same_answer_in_pieces(client, usage):
    kv = {"kv": {"method": "tova", "budget": 64}}
    whole = client.chat.completions.create(**chat(), extra_body=kv)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(client.chat.completions.create(**chat(), stream=True, extra_body=kv, **options))
    first, *middle = (chunk.choices[0].delta for chunk in chunks if chunk.choices)
    assert (first.role, first.content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in middle) == whole.choices[0].message.content
    assert len(middle) > 3
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] == whole.choices[0].finish_reason
    assert chunks[-1].kv == whole.kv
    assert chunks[-1].timing["total_s"] > 0
    assert all(not hasattr(chunk, "kv") for chunk in chunks[:-1])
    assert chunks[-1].usage == (whole.usage if usage else None)
    assert bool(chunks[-1].choices) is not usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_streamed_text_is_the_same_completion_in_pieces(client):
    asked = {"model": "tiny-reader", "prompt": PROMPTS[0].messages[-1]["content"], "max_tokens": 6}
    chunks = list(client.completions.create(**asked, stream=True))
    whole = client.completions.create(**asked)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].kv == whole.kv


def test_a_stop_string_is_applied_and_no_part_of_it_is_sent(client):
    words = client.chat.completions.create(**chat()).choices[0].message.content.split()
    stop = f"{words[1]} {words[2]}"
    whole = client.chat.completions.create(**chat(), stop=stop)
    assert whole.choices[0].message.content.split() == words[:1]
    assert whole.choices[0].finish_reason == "stop"
    chunks = client.chat.completions.create(**chat(), stop=stop, stream=True)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )


def test_the_models_list_tells_the_length_and_the_methods(client):
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == ("tiny-reader", 32768)
    assert set(model.methods) == {"full", *EVICTIONS}
    assert model.methods["snapkv"]["parameters"] == {"window": 8, "kernel": 5}
    assert model.methods["observed_attention"]["aliases"] == ["h2o"]
    assert client.models.retrieve("tiny-reader").id == "tiny-reader"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        (
            {"extra_body": {"kv": {"method": "snapvk", "budget": 64}}},
            openai.BadRequestError,
            None,
            "kv.method",
        ),
        ({"extra_body": {"kv_cache": {}}}, openai.BadRequestError, None, "kv_cache"),
        ({"temperature": 1}, openai.BadRequestError, None, "temperature"),
        ({"max_tokens": 40_000}, openai.BadRequestError, "context_length_exceeded", "messages"),
        (
            {"messages": [{"role": "user", "content": "Call me Ishmael"}]},
            openai.BadRequestError,
            "unknown_tokens",
            "messages",
        ),
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_mistakes_are_openais_exceptions(client, fields, error, code, param, stream):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{**chat(), **fields}, stream=stream)
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        code,
        param,
        "invalid_request_error",
    )


def test_an_overlong_prompt_is_told_by_its_code(client):
    content = "the phrase of " * 11_000
    with pytest.raises(openai.BadRequestError, match="shorten the prompt") as caught:
        client.chat.completions.create(**chat(Prompt(({"role": "user", "content": content},), None)))
    assert caught.value.code == "context_length_exceeded"


# The same answers as in the workflow


CELLS = [(method, budget) for method in EVICTIONS for budget in (32, 0.5)]


@pytest.mark.parametrize(
    "mode", [("prompt", "full"), ("prompt", "compressed"), ("context", "compressed")], ids="-".join
)
def test_every_method_and_budget_answers_as_the_local_engine_does(client, mode):
    scope, first_token = mode
    local = ReferenceEngine(MODEL, scope, first_token)
    texts = set()
    for number, prompt in enumerate(PROMPTS):
        for method, budget in CELLS:
            cell = Cell(method, budget, replicate=number)
            expected = local.generate(prompt, cell, Decoding(12), f"example {number}")
            kv = {
                "method": method,
                "budget": budget,
                "scope": scope,
                "first_token": first_token,
                "seed": f"example {number}",
                "replicate": number,
                "context_end": prompt.context_end,
            }
            got = client.chat.completions.create(**chat(prompt, max_tokens=12), extra_body={"kv": kv})
            assert got.choices[0].message.content == expected.text
            assert got.choices[0].finish_reason == expected.finish_reason
            assert got.usage.completion_tokens == expected.completion_tokens
            for field in (
                "requested",
                "kept_mean",
                "press_len",
                "question_tokens",
                "bytes_kept",
                "peak_tokens",
                "active",
            ):
                assert got.kv[field] == getattr(expected.kv, field)
            texts.add(expected.text)
    assert len(texts) > 10


# HTTP


def raw(server, *parts: bytes) -> bytes:
    """What comes back for bytes on the wire, until the server closes or says no more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
        connection.settimeout(2)
        answer = b""
        while b"}}" not in answer:
            try:
                more = connection.recv(65536)
            except TimeoutError:
                break
            if not more:
                break
            answer += more
    return answer


def test_an_answer_is_sent_at_once(server):
    """Small packets must not wait for the client's acknowledgement, which takes 40 ms."""
    connection, delays = server.connection(), []
    for _ in range(20):
        begin = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(chat()))
        answer = json.loads(connection.getresponse().read())
        delays.append(time.perf_counter() - begin - answer["timing"]["total_s"])
    assert sorted(delays)[10] < 0.03


def test_paths_and_methods_that_do_not_exist_get_an_error_in_the_same_shape(server):
    status, _, body = server.post({}, "/v1/embeddings")
    assert (status, body["error"]["type"]) == (404, "invalid_request_error")
    connection = server.connection()
    connection.request("GET", "/v1/chat/completions")
    response = connection.getresponse()
    assert (response.status, set(json.loads(response.read()))) == (405, {"error"})


def test_health_is_told(server):
    connection = server.connection()
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}


def test_broken_json_is_refused_in_the_same_shape(server):
    connection = server.connection()
    connection.request("POST", "/v1/chat/completions", "{broken")
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (400, "invalid_json")


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server):
    answer = raw(server, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert b" 413 " in answer.splitlines()[0]
    assert b'"body_too_large"' in answer


def test_a_body_without_a_length_is_cut_off_at_the_limit(server):
    piece = b"100000\r\n" + b"a" * 2**20 + b"\r\n"
    answer = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 9)
    assert b" 413 " in answer.splitlines()[0]


def test_curl_gets_an_answer_a_stream_and_413(server, tmp_path, missing):
    if shutil.which("curl") is None:
        missing("curl is not installed")
    url = f"{server.base}/chat/completions"

    def curl(*options):
        return subprocess.run(
            ["curl", "-sS", "-w", "\n%{http_code}", url, *options], capture_output=True, text=True, timeout=30
        ).stdout.rsplit("\n", 1)

    body, status = curl("-d", json.dumps(chat(kv={"method": "streaming_llm", "budget": 40})))
    assert (status, json.loads(body)["kv"]["kept_mean"]) == ("200", 40)
    body, status = curl("-N", "-d", json.dumps(chat(stream=True)))
    assert (status, body.endswith("data: [DONE]\n\n")) == ("200", True)
    large = tmp_path / "large.json"
    large.write_text(json.dumps(chat(user="a" * 9 * 2**20)))
    for more in ((), ("-H", "Transfer-Encoding: chunked")):
        body, status = curl("-H", "Content-Type: application/json", *more, "--data-binary", f"@{large}")
        assert (status, json.loads(body)["error"]["code"]) == ("413", "body_too_large")


# Many clients


def rss(server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def test_two_hundred_clients_at_once_each_get_an_answer_or_are_told_to_come_again(server):
    long_text = "the phrase of the is . " * 20_000
    body = chat(user=long_text)

    def wave() -> list[int]:
        with ThreadPoolExecutor(200) as pool:
            results = list(pool.map(lambda _: server.post(body), range(200)))
        for status, headers, content in results:
            if status == 429:
                assert int(headers["retry-after"]) >= 1
                assert content["error"]["code"] == "queue_full"
        return [status for status, _, _ in results]

    first = wave()
    before = rss(server)
    for _ in range(2):
        assert set(first := wave()) <= {200, 429}
        assert first.count(200) >= 65
    assert rss(server) < before + 80 * 2**20
    assert server.post(chat())[0] == 200


def until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def served_within(server, seconds: float) -> None:
    begin = time.monotonic()
    until(lambda: server.post(chat(max_tokens=1))[0] == 200)
    assert time.monotonic() - begin < seconds


@pytest.fixture(scope="module")
def narrow():
    """A server where one request may wait."""
    with Server("--queue", "1") as running:
        yield running


def test_a_stream_whose_client_leaves_makes_room_at_once(narrow):
    for _ in range(3):
        stream = narrow.client().chat.completions.create(
            **{**chat(), "max_tokens": 20_000}, stream=True, extra_body={"min_tokens": 20_000}
        )
        next(iter(stream))
        stream.close()
        served_within(narrow, 5)


def test_clients_that_leave_without_an_answer_make_room_at_once(narrow):
    running = narrow.begin(chat(**LONG))
    time.sleep(0.3)
    waiting = narrow.begin(chat(**LONG))
    until(lambda: narrow.post(chat())[0] == 429)
    waiting.close()
    until(lambda: (third := narrow.begin(chat(**LONG))) and (third.close() is None))
    running.close()
    served_within(narrow, 5)


def test_a_client_that_never_ends_its_body_gives_its_place_back_when_it_leaves(narrow):
    stuck = [socket.create_connection(("127.0.0.1", narrow.port)) for _ in range(2)]
    for connection in stuck:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
    until(lambda: narrow.post(chat())[0] == 429)
    for connection in stuck:
        connection.close()
    served_within(narrow, 5)


# The end


def streamed_words(connection: http.client.HTTPConnection) -> list[dict]:
    response = connection.getresponse()
    assert response.status == 200
    lines = response.read().decode().split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")], lines[-2]


def test_sigterm_finishes_what_runs_and_what_waits_and_takes_no_more():
    with Server() as ending:
        connections = [
            ending.begin(chat(max_tokens=1500, min_tokens=1500, stream=stream)) for stream in (True, False)
        ]
        time.sleep(0.5)
        results = []
        reader = threading.Thread(target=lambda: results.append(streamed_words(connections[0])))
        reader.start()
        ending.process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        with pytest.raises(OSError):
            ending.post(chat())
        reader.join(30)
        ((chunks, last),) = results
        assert last == "data: [DONE]"
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        waiting = connections[1].getresponse()
        assert waiting.status == 200
        assert json.loads(waiting.read())["usage"]["completion_tokens"] == 1500
        code, log = ending.ended()
        assert code == 0
        assert "Traceback" not in log


def test_what_does_not_finish_within_the_grace_is_told_so():
    with Server("--grace", "0.3") as ending:
        streaming = ending.begin(chat(**LONG, stream=True))
        time.sleep(0.3)
        waiting = ending.begin(chat())
        time.sleep(0.3)
        ending.process.send_signal(signal.SIGTERM)
        chunks, last = streamed_words(streaming)
        assert (chunks[-1]["error"]["code"], "[DONE]" in last) == ("shutting_down", False)
        assert waiting.getresponse().status == 503
        assert ending.ended()[0] == 0


def test_a_second_signal_ends_the_grace():
    with Server() as ending:
        streaming = ending.begin(chat(**LONG, stream=True))
        time.sleep(0.3)
        ending.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ending.process.send_signal(signal.SIGTERM)
        chunks, _ = streamed_words(streaming)
        assert chunks[-1]["error"]["code"] == "shutting_down"
        code, log = ending.ended()
        assert (code, "Traceback" in log) == (0, False)


def test_an_idle_server_ends_at_once_and_without_complaint():
    with Server() as idle:
        kept_alive = idle.connection()
        kept_alive.request("GET", "/health")
        kept_alive.getresponse().read()
        begin = time.monotonic()
        code, log = idle.end(signal.SIGINT)
        assert (code, "Traceback" in log) == (0, False)
        assert time.monotonic() - begin < 5


# The key and the log


def test_the_key_is_needed_and_told_to_nobody():
    with Server("--api-key-env", "SERVE_TEST_KEY", SERVE_TEST_KEY="sesame-open") as locked:
        with pytest.raises(openai.AuthenticationError) as caught:
            locked.client("sesame-close").chat.completions.create(**chat())
        assert caught.value.code == "invalid_api_key"
        assert "sesame" not in str(caught.value)
        with pytest.raises(openai.AuthenticationError):
            locked.client("sesame-close").models.list()
        status, headers, _ = locked.post(chat())
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert locked.client("sesame-open").chat.completions.create(**chat()).choices
        connection = locked.connection()
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        code, log = locked.end()
    assert code == 0
    assert "sesame" not in log


def test_the_log_has_one_line_for_each_request_and_no_word_of_a_prompt():
    with Server() as logging:
        logging.post(chat(kv={"method": "snapkv", "budget": 32}))
        logging.post(chat(kv={"method": "Amaryllis", "budget": 32}))
        logging.post(chat(Prompt(({"role": "user", "content": "Amaryllis"},), None)))
        list(logging.client().chat.completions.create(**chat(), stream=True))
        logging.post({}, "/v1/forged%0Aline")
        _, log = logging.end()
    lines = log.splitlines()
    assert [line.split()[4] for line in lines] == ["200", "400", "400", "200", "404"]
    assert all(line.split()[3].startswith("/v1/") for line in lines)
    assert "snapkv@32" in lines[0]
    assert "Amaryllis" not in log
    assert RECORDS[0]["context"].split()[0] not in log


def test_a_port_that_is_taken_is_a_mistake_in_usage(server):
    ended = subprocess.run(
        [sys.executable, "-m", "kv_transition.serve", "--model", str(MODEL), "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: --host 127.0.0.1 --port {server.port}: cannot listen there")
