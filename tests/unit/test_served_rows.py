"""Asking a server: what is copied instead, what the first questions leave in the journal, and when they end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from http_settings import prompt_of

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import BaseEngine, Cell, Decoding, EngineResult, KVUse, Timings
from kv_transition.errors import UserError
from kv_transition.files import sha256_text
from kv_transition.run.journal import Journal
from kv_transition.run.requests import ExampleRequests, Request, journal_row
from kv_transition.run.served import Served

DECODING = Decoding(16)


def answer(
    text: str = "well", reason: str = "stop", tokens: int = 16, kv: KVUse | None = None
) -> EngineResult:
    return EngineResult(text, reason, tokens, 3, kv, Timings(timing_scope="request"))


def whole_cache(tokens: int) -> KVUse:
    kept = float(tokens)
    return KVUse(
        "full", None, (kept,), kept, kept, kept, tokens, tokens, 0, tokens * 64, tokens + 3, False, "reported"
    )


def timed_out() -> EngineResult:
    return EngineResult(
        *("", None, None, None, None, Timings()), failure="TIMEOUT", error="slow", raw={"fault": "timeout"}
    )


class Server(BaseEngine):
    """Answers by the example's name and remembers whom it was asked about."""

    concurrency = 2

    def __init__(self, reply: Callable[[str], EngineResult] = lambda name: answer()) -> None:
        self.reply, self.asked = reply, list[str]()

    def generate(self, prompt: Prompt, cell: Cell, decoding: Decoding, example_id: str) -> EngineResult:
        self.asked.append(example_id)
        return self.reply(example_id)


def questions(count: int, method: str = "full", budget: str = "full") -> list[ExampleRequests]:
    found = []
    for name in (f"ex{number}" for number in range(count)):
        key, prompt = sha256_text(f"{name} {method} {budget}"), prompt_of(name)
        request = Request(name, method, budget, 0, "own-1", prompt, "hash", key)
        found.append(ExampleRequests(name, prompt, (request,)))
    return found


def ask(
    folder: Path, server: Server, asked: list[ExampleRequests], full: dict[str, Any] | None = None
) -> list[Any]:
    """One run; like the runner it asks for what the journal lacks."""
    with Journal(folder) as journal:
        keys = {str(request.key) for example in asked for request in example.asked}
        known = {key: row for key, row in journal.read(keys).items() if not row["result"]["failure"]}
        served = Served(server, DECODING, ends_expected=True, scope="prompt", full=full or {})
        return list(served.rows(asked, known, journal))


def kept(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


@pytest.mark.parametrize(("kv", "copied"), [(whole_cache(16), True), (whole_cache(90), False), (None, False)])
def test_only_a_length_that_the_cache_itself_tells_lets_a_budget_be_copied(
    tmp_path: Path, kv: KVUse | None, copied: bool
) -> None:
    (full,), server = questions(1), Server()
    row = journal_row(full.requests[0], answer("the full one", kv=kv), {})
    (got,) = ask(tmp_path, server, questions(1, "snapkv", "64"), {"ex0": row})
    assert got["result"]["copied_from"] == ("full" if copied else None)
    assert server.asked == ([] if copied else ["ex0"])


def test_answers_before_the_run_are_in_the_journal_when_they_end_it(tmp_path: Path) -> None:
    cut = Server(lambda name: answer("and then", "length"))
    with pytest.raises(UserError, match="cut off at 16 tokens"):
        ask(tmp_path, cut, questions(20))
    assert kept(tmp_path) == 3
    with pytest.raises(UserError, match="cut off"):
        ask(tmp_path, cut, questions(20))
    assert cut.asked == [f"ex{number}" for number in range(6)], "no answer is paid for twice"


def test_a_good_answer_before_a_fault_that_ends_the_run_is_kept(tmp_path: Path) -> None:
    def reply(name: str) -> EngineResult:
        lost = EngineResult.failed("refused", timing_scope="request")
        return answer() if name == "ex0" else EngineResult(**{**vars(lost), "raw": {"fault": "unreachable"}})

    with pytest.raises(UserError, match="cannot be reached"):
        ask(tmp_path, Server(reply), questions(20))
    assert kept(tmp_path) == 1


def test_a_run_started_again_and_again_does_not_pass_with_nothing_but_cut_answers(tmp_path: Path) -> None:
    cut = Server(lambda name: answer("and then", "length"))
    for _ in range(8):
        with pytest.raises(UserError, match="cut off"):
            ask(tmp_path, cut, questions(20))
    assert kept(tmp_path) < 20


def test_one_ended_answer_in_the_journal_lets_the_rest_be_asked(tmp_path: Path) -> None:
    mostly = Server(lambda name: answer("so", "stop" if name == "ex0" else "length"))
    ask(tmp_path, mostly, questions(12))
    assert len(ask(tmp_path, mostly, questions(14))) == 2


def test_a_few_questions_are_their_own_probe(tmp_path: Path) -> None:
    rows = ask(tmp_path, Server(lambda name: answer("and then", "length")), questions(10))
    assert len(rows) == kept(tmp_path) == 10


def test_every_row_is_yielded_once_whether_asked_before_the_run_or_in_it(tmp_path: Path) -> None:
    server = Server()
    rows = ask(tmp_path, server, questions(20))
    assert sorted(row["example_id"] for row in rows) == sorted(server.asked)
    assert len(set(server.asked)) == kept(tmp_path) == 20


def test_a_timeout_of_one_example_is_no_reason_to_stop(tmp_path: Path) -> None:
    rows = ask(tmp_path, Server(lambda name: timed_out() if name == "ex1" else answer()), questions(20))
    assert [row["example_id"] for row in rows if row["result"]["failure"]] == ["ex1"]
    with pytest.raises(UserError, match=r"does not answer in time.*http\.read_timeout_s"):
        ask(tmp_path / "other", Server(lambda name: timed_out()), questions(20))


@pytest.mark.parametrize("text", ["<think> hmm", "and then"])
def test_a_compressed_cache_may_ramble_or_think_to_the_end(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = ask(tmp_path, Server(lambda name: answer(text, "length")), questions(20, "snapkv", "8"))
    assert len(rows) == 20
    assert "every answer before the run is" in caplog.text
