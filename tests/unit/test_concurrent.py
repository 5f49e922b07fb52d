"""Many requests at once, and nothing that was answered is lost: not by faults, signals, a full disk or kill -9."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultProcess
from http_settings import SECTION, prompt_of

from kv_transition.engines.base import Cell, Decoding, EngineResult, Timings
from kv_transition.engines.openai_compat import OpenAICompatEngine
from kv_transition.errors import UserError
from kv_transition.files import sha256_text
from kv_transition.run.concurrent import Progress, answer_concurrently
from kv_transition.run.journal import Journal

Ask = Callable[[Any], EngineResult]


def answer(text: str = "an answer", failure: str | None = None) -> EngineResult:
    return EngineResult(text, "stop", 3, 2, None, Timings(0.1, timing_scope="request"), failure=failure)


def record(task: Any, result: EngineResult) -> dict[str, Any]:
    return {"key": sha256_text(str(task)), "name": str(task), "result": asdict(result)}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()
    ]


def run(folder: Path, tasks: Any, ask: Ask, concurrency: int = 4, **options: Any) -> list[Any]:
    with Journal(folder) as journal:
        return list(answer_concurrently(tasks, ask, record, journal, concurrency, **options))


def http_ask(base_url: str, **settings: Any) -> Ask:
    engine = OpenAICompatEngine(
        {**SECTION, "base_url": base_url, **settings}, methods={"snapkv": {"window": 4}}
    )
    return lambda name: engine.generate(prompt_of(name), Cell("snapkv", 8), Decoding(16), name)


def test_every_task_has_one_row_and_is_yielded_when_it_is_on_the_disk(tmp_path: Path) -> None:
    seen = []
    with Journal(tmp_path) as journal:
        for row in answer_concurrently(range(50), lambda task: answer(str(task)), record, journal, 4):
            assert row["key"] in {line["key"] for line in lines(tmp_path)}
            seen.append(row["name"])
    assert sorted(seen, key=int) == [str(task) for task in range(50)]
    assert Counter(seen) == Counter(line["name"] for line in lines(tmp_path))


def test_no_task_is_no_row(tmp_path: Path) -> None:
    assert run(tmp_path / "new", [], lambda task: answer()) == []
    assert not (tmp_path / "new").exists()


class SlowJournal(Journal):
    """Takes long to write, as a disk that is busy."""

    unsafe: int
    appends = 0

    def append(self, rows: Any) -> None:
        time.sleep(0.01)
        super().append(rows)
        SlowJournal.appends += 1


def test_what_is_sent_and_not_on_the_disk_is_never_more_than_the_concurrency(tmp_path: Path) -> None:
    sent, most = [], []

    def ask(task: int) -> EngineResult:
        sent.append(task)
        most.append(len(sent) - len(lines(tmp_path)))
        time.sleep(0.002)
        return answer()

    SlowJournal.appends = 0
    with SlowJournal(tmp_path) as journal:
        rows = list(answer_concurrently(range(60), ask, record, journal, 4))
    assert len(rows) == 60
    assert max(most) <= 4
    assert SlowJournal.appends < 45, "rows that are ready together share an append"


def test_tasks_are_drawn_as_places_get_free(tmp_path: Path) -> None:
    drawn = []

    def tasks() -> Iterator[int]:
        for task in range(1000):
            drawn.append(task)
            yield task

    with Journal(tmp_path) as journal:
        rows = answer_concurrently(tasks(), lambda task: time.sleep(0.01) or answer(), record, journal, 4)
        next(rows)
        assert len(drawn) < 100
        rows.close()
        assert len(lines(tmp_path)) == len(drawn) < 100, "what was in flight at the end is kept"


@pytest.mark.parametrize("where", ["ask", "tasks", "record"])
def test_an_error_ends_the_run_and_keeps_what_was_answered(tmp_path: Path, where: str) -> None:
    def fail(here: str, task: int) -> None:
        if here == where and task == 20:
            raise UserError("the twentieth")

    def tasks() -> Iterator[int]:
        for task in range(100):
            fail("tasks", task)
            yield task

    def ask(task: int) -> EngineResult:
        time.sleep(0.002)
        fail("ask", task)
        return answer()

    def recorded(task: int, result: EngineResult) -> dict[str, Any]:
        fail("record", task)
        return record(task, result)

    with Journal(tmp_path) as journal, pytest.raises(UserError, match=r"^the twentieth$"):
        list(answer_concurrently(tasks(), ask, recorded, journal, 4))
    kept = {int(line["name"]) for line in lines(tmp_path)}
    assert set(range(20)) <= kept
    assert len(kept) < 30


def test_progress_says_rate_failures_and_time_left(tmp_path: Path) -> None:
    told: list[Progress] = []
    run(
        tmp_path,
        range(20),
        lambda task: answer(failure="TIMEOUT" if task < 3 else None),
        on_progress=told.append,
        total=20,
    )
    assert (told[-1].done, told[-1].failed) == (20, 3)
    assert str(Progress(50, 2, 200, 10.0)) == "50 of 200 requests, 2 failed, 5.0 a second, about 30 s left"
    assert str(Progress(0, 0, None, 0.0)) == "0 requests, 0 failed, 0.0 a second"


class FailingJournal(Journal):
    """Cannot be written while `broken`, which may heal."""

    broken, heals = False, False

    def append(self, rows: Any) -> None:
        if self.broken:
            self.broken = not self.heals
            raise UserError("cannot write the journal (No space left on device)")
        super().append(rows)


@pytest.mark.parametrize("heals", [True, False])
def test_a_journal_error_stops_the_run_and_rows_in_flight_are_tried_once_more(
    tmp_path: Path, heals: bool
) -> None:
    asked = []
    journal = FailingJournal(tmp_path)
    journal.heals = heals

    def ask(task: int) -> EngineResult:
        asked.append(task)
        journal.broken = journal.broken or task == 20
        time.sleep(0.01)
        return answer()

    with pytest.raises(UserError) as told:
        list(answer_concurrently(range(1000), ask, record, journal, 4))
    assert str(told.value).startswith("cannot write the journal (No space left on device)")
    assert len(asked) <= 28
    kept = {int(line["name"]) for line in lines(tmp_path)}
    if heals:
        assert kept == set(asked)
    else:
        assert set(range(17)) <= kept
        assert f"{len(asked) - len(kept)} answers that had come could not be written" in str(told.value)


def test_a_journal_in_the_place_of_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    asked: list[int] = []
    with pytest.raises(UserError, match=r"cannot write the journal \(Not a directory\)") as told:
        run(tmp_path / "file" / "model", range(100), lambda task: asked.append(task) or answer())
    assert 1 <= len(asked) <= 4
    assert str(told.value).endswith(
        f"; {len(asked)} answers that had come could not be written to the journal"
    )


@pytest.fixture
def small_disk(tmp_path: Path, missing: Callable[[str], None]) -> Iterator[Path]:
    """A file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        missing("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_loses_no_row_that_was_there(small_disk: Path) -> None:
    yielded: list[str] = []
    with Journal(small_disk / "model") as journal:
        rows = answer_concurrently(range(1000), lambda task: answer("x" * 500), record, journal, 8)
        with pytest.raises(UserError, match=r"\(No space left on device\)"):
            yielded.extend(row["name"] for row in rows)
    kept = {line["name"] for line in lines(small_disk / "model")}
    assert 20 < len(kept) < 200
    assert set(yielded) <= kept


def test_a_journal_on_a_read_only_disk_sends_nothing_beyond_the_first_requests(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    asked: list[int] = []
    with pytest.raises(UserError, match=r"cannot write the journal \(Read-only file system\)"):
        run(small_disk / "model", range(1000), lambda task: asked.append(task) or answer())
    assert 1 <= len(asked) <= 4


SCRIPT = """
import json, logging, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_concurrent import http_ask, record
from kv_transition.run.concurrent import answer_concurrently
from kv_transition.run.journal import Journal
from kv_transition.files import sha256_text

names = [f"ex{{number}}" for number in range({count})]
with Journal({folder!r}) as journal:
    known = journal.read({{sha256_text(name) for name in names}})
    lacking = [name for name in names if sha256_text(name) not in known or known[sha256_text(name)]["result"]["failure"]]
    print(len(lacking), flush=True)
    for row in answer_concurrently(lacking, http_ask({url!r}), record, journal, 8):
        pass
"""


def start(folder: Path, url: str, count: int) -> subprocess.Popen[str]:
    """The run in a process group of its own; it has printed how many rows the journal lacks."""
    code = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder), url=url, count=count)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]) + os.pathsep + os.environ.get("PYTHONPATH", ""),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_killed_ten_times_nothing_is_lost_or_doubled_and_at_most_eight_are_asked_again(
    tmp_path: Path,
) -> None:
    """Ten runs of 400 requests in one: each is killed at a random moment, the next goes on."""
    draw, folder = random.Random(7), tmp_path / "model"
    with FaultProcess({"latency_s": 0.05}) as server:
        for _ in range(10):
            before = server.settled("answered").total()
            process = start(folder, server.base_url, 400)
            time.sleep(draw.uniform(0.0, 0.4))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            answered = server.settled("answered")
            whole = [line for line in _whole_lines(folder)]
            assert answered.total() >= before
            assert len(set(answered)) - len({row["name"] for row in whole}) <= 8
            assert answered.total() - len(whole) <= 8 * 10
        assert start(folder, server.base_url, 400).wait() == 0
        answered = server.settled("answered")
    keys = [row["key"] for row in _whole_lines(folder)]
    assert len(keys) == len(set(keys)) == 400
    assert 400 <= answered.total() <= 400 + 10 * 8
    assert max(answered.values()) <= 1 + 10


def _whole_lines(folder: Path) -> list[dict[str, Any]]:
    """Rows of all files; a torn last line is none."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        found += [
            json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
        ]
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_waits_for_what_is_in_flight_and_keeps_it(tmp_path: Path, number: int, code: int) -> None:
    with FaultProcess({"latency_s": 0.3}) as server:
        process = start(tmp_path / "model", server.base_url, 400)
        time.sleep(0.8)
        os.killpg(process.pid, number)
        assert process.wait(timeout=5) == code
        answered = server.settled("answered")
    assert {row["name"] for row in lines(tmp_path / "model")} == set(answered)
    assert set(answered.values()) == {1}
    assert 8 <= len(answered) < 400


def test_a_signal_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    free = threading.Event()
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, range(9), lambda task: answer() if task < 4 else free.wait(20) or answer(), grace_s=0.3)
    assert time.monotonic() - begin < 15
    assert len(lines(tmp_path)) == 4
    free.set()


FAULTS = [
    "429:0.01",
    "500",
    "503",
    "drop_before",
    "drop_inside",
    "drop_after",
    "reset_before",
    "no_finish",
    "timeout",
]
LASTING = ["400", "malformed", "html", "empty_choices", "null_tool", "503*", "timeout*"]


def test_with_thirty_percent_hurt_every_example_ends_with_one_row_and_a_right_label(tmp_path: Path) -> None:
    draw = random.Random(3)
    names = [f"ex{number}" for number in range(300)]
    hurt = draw.sample(names, 90)
    faults = {name: draw.choices(FAULTS, k=draw.randint(1, 3)) for name in hurt[:60]}
    faults |= {name: [draw.choice(LASTING)] for name in hurt[60:]}
    failing = set(hurt[60:])
    with FaultProcess({"faults": faults, "latency_s": 0.005}) as server:
        rows = run(tmp_path, names, http_ask(server.base_url, read_timeout_s=0.3), 8)
        answered = server.settled("answered")
    assert Counter(row["name"] for row in rows) == Counter(names)
    assert Counter(line["name"] for line in lines(tmp_path)) == Counter(names)
    assert {row["name"] for row in rows if row["result"]["failure"]} == failing
    slow = {name for name in failing if faults[name] == ["timeout*"]}
    assert slow
    assert {row["name"] for row in rows if row["result"]["failure"] == "TIMEOUT"} == slow
    good = [row for row in rows if not row["result"]["failure"]]
    assert all(row["result"]["text"] == f"answer to {row['name']}" for row in good)
    assert all(row["result"]["error"] for row in rows if row["name"] in failing)
    assert answered == Counter(row["name"] for row in good), "what was answered and received is asked once"
    tries = {row["name"]: row["result"]["raw"]["attempts"] for row in good}
    for name in hurt[:60]:
        assert (tries[name] == 1) == (faults[name][0] == "drop_after"), (name, faults[name])
    with FaultProcess() as healed:
        rows = run(tmp_path, sorted(failing), http_ask(healed.base_url), 8)
        assert healed.settled("asked") == Counter(failing)
    assert not [row for row in rows if row["result"]["failure"]]


def test_a_server_that_dies_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    names = [f"ex{number}" for number in range(120)]
    with FaultProcess({"latency_s": 0.02}) as server:

        def restart() -> None:
            server.stop()
            time.sleep(0.3)
            server.start()

        timer = threading.Timer(0.1, restart)
        timer.start()
        ask = http_ask(server.base_url, max_attempts=12, backoff_s=0.1, backoff_max_s=0.5)
        rows = run(tmp_path, names, ask, 8)
        timer.join()
    assert Counter(row["name"] for row in rows) == Counter(names)
    assert not [row for row in rows if row["result"]["failure"]]
    assert max(row["result"]["raw"]["attempts"] for row in rows) > 1


def test_memory_does_not_grow_with_the_number_of_items(tmp_path: Path) -> None:
    peaks = []
    for count in (500, 5000):
        with Journal(tmp_path / str(count)) as journal:
            rows = answer_concurrently(range(count), lambda task: answer("x" * 2000), record, journal, 16)
            assert sum(1 for _ in rows) == count
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert peaks[1] - peaks[0] < 6, "10 MB of text went by"
