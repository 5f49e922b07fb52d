"""The client's benchmarks: the server does what its log says, and a verdict is what the figures say."""

import importlib
import sys
import time
from pathlib import Path

import pytest
import requests

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """A script of benchmarks/ as a module, by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def crash(module, monkeypatch):
    """The benchmark of kill -9, with peers that need not be installed."""
    found = module("crash_cost")
    monkeypatch.setattr(found, "peer", lambda package: f"{package} 1.0")
    return found


def resumed(crash, point, again=2, wall_s=4.0, lost=0):
    return crash.Resumed(point, point + 1, again, wall_s, 3.0, lost)


def ask(base_url, question, **fields):
    messages = [{"role": "user", "content": f"Read this. question {question}"}]
    return requests.post(f"{base_url}/chat/completions", json={"messages": messages, **fields}, timeout=10)


def settled(server, log, count):
    """The log's events, when there are so many."""
    deadline = time.monotonic() + 10
    while len(server.events(log)) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return [(event.what, event.question) for event in server.events(log)]


def test_the_log_has_every_question_asked_and_answered(module, tmp_path):
    server, log = module("punctual_server"), tmp_path / "log"
    with server.Server(0.0, log=log) as base_url:
        ask(base_url, 3)
        ask(base_url, 4, kv={"budget": 256})
        told = settled(server, log, 4)
    assert told == [("asked", "3"), ("answered", "3"), ("asked", "4b"), ("answered", "4b")]


def test_an_answer_confirms_the_budget_only_where_one_was_asked_for(module):
    server = module("punctual_server")
    with server.Server(0.0) as base_url:
        assert "kv" not in ask(base_url, 1).json()
        assert ask(base_url, 1, kv={"budget": 256}).json()["kv"]["budget"] == 256
        assert "[DONE]" in ask(base_url, 1, stream=True).text


def test_one_question_is_refused_and_no_other(module, tmp_path):
    server, log = module("punctual_server"), tmp_path / "log"
    with server.Server(0.0, refuse="2", log=log) as base_url:
        assert [ask(base_url, number).status_code for number in (1, 2, 22)] == [200, 400, 200]
        told = settled(server, log, 6)
    assert ("refused", "2") in told


def test_a_server_that_fails_does_so_for_one_question_however_often_it_is_asked(crash, tmp_path):
    with crash.FailingServer(refuse="2", log=tmp_path / "log") as base_url:
        assert [ask(base_url, number).status_code for number in (2, 2, 3)] == [500, 500, 200]


def test_asking_again_for_what_was_in_flight_is_allowed_and_for_more_is_not(crash):
    def verdicts(again):
        rows = crash.rows_of_kills({crash.OURS: [resumed(crash, 60), resumed(crash, 200, again)]}, 400)
        return [row.met for row in rows if row.bar]

    assert verdicts(8) == [True]
    assert verdicts(9) == [False]


def test_what_was_asked_again_is_compared_at_the_points_that_both_have(crash):
    mine = [resumed(crash, 60, again=9), resumed(crash, 200, again=3)]
    turns = {crash.OURS: mine, crash.LM_EVAL: [resumed(crash, 200, again=201)]}
    asked_again = crash.rows_of_kills(turns, 400)[0]
    assert "at 200 answers" in asked_again.work
    assert (asked_again.ours, asked_again.met) == ("3 of 201", True)


def test_a_lost_answer_misses_the_bar(crash):
    rows = crash.rows_of_kills({crash.OURS: [resumed(crash, 200, lost=1)]}, 400)
    assert [row.met for row in rows if row.bar] == [False]


def test_the_time_of_the_rest_is_compared_at_the_points_that_both_have(crash):
    mine = [resumed(crash, 60, wall_s=100.0), resumed(crash, 200, wall_s=5.0)]
    turns = {crash.OURS: mine, crash.LM_EVAL: [resumed(crash, 200, again=201, wall_s=10.0)]}
    time_of_rest = crash.rows_of_kills(turns, 400)[-1]
    assert time_of_rest.ratio == (0.5,)
    assert time_of_rest.met


def test_a_run_that_ends_without_scores_misses_the_bar(crash):
    good, bad = crash.Refused(0, 79, True), crash.Refused(1, 79, False)
    assert [row.met for row in crash.rows_of_refusals({crash.OURS: good, crash.INSPECT: bad}, 80)] == [True]
    assert [row.met for row in crash.rows_of_refusals({crash.OURS: bad}, 80)] == [False]


@pytest.fixture
def client(module, monkeypatch):
    """The benchmark of the client, with peers that need not be installed."""
    found = module("client_cost")
    monkeypatch.setattr(found, "peer", lambda package: f"{package} 1.0")
    return found


def test_a_whole_run_of_ours_stands_beside_whole_runs_of_the_peers(client):
    whole = {client.OURS: client.Whole(5.0, 3.0, 0.4), "lm-eval": client.Whole(13.0, 8.0, 0.8)}
    rows = client.rows_of_runs([{**whole, "inspect-ai": client.Whole(8.0, 20.0, 0.2)}])
    assert [(row.ours, row.theirs, row.ratio) for row in rows if "throughput" in row.work] == [
        ("40 %", "80 %", (0.5,)),
        ("40 %", "20 %", (2.0,)),
    ]


def test_the_cost_of_ours_is_told_for_a_question_too_which_takes_two_requests(client):
    whole = {name: client.Whole(5.0, 3.0, 0.4) for name in client.HARNESSES}
    cost = client.rows_of_runs([whole])[0]
    assert cost.ours == "3 ms a request, 6 ms a question, and 5 s whatever it asks"
    assert cost.theirs == "3 ms a request, 3 ms a question, and 5 s whatever it asks"


def test_a_trial_gives_no_verdict_on_the_client(client, monkeypatch):
    missed = client.Row("slow", "9 s", bar="at most 1 s", met=False)
    monkeypatch.setattr(client, "turn", lambda concurrency, rounds: {})
    monkeypatch.setattr(client, "rows_of_clients", lambda concurrency, turns: [missed])
    monkeypatch.setattr(client, "row_of_memory", lambda items: missed)
    kept = []
    monkeypatch.setattr(client, "save", lambda name, rows, *_: kept.extend(rows))
    monkeypatch.setattr(sys, "argv", ["client_cost.py", "--quick"])
    assert client.main() == 0
    assert kept
    assert all((row.bar, row.met) == ("", None) for row in kept)
