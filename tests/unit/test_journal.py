"""The journal loses nothing that it said was written, and says what it drops."""

import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kv_transition.errors import UserError
from kv_transition.files import sha256_text
from kv_transition.run.journal import Journal, Rows, has_answer


def row(name: str, text: str = "an answer", failure: str | None = None) -> dict:
    return {"key": sha256_text(name), "result": {"text": text, "failure": failure}}


def keys(*names: str) -> set[str]:
    return {sha256_text(name) for name in names}


def test_an_appended_row_is_read_back_by_another_reader(tmp_path: Path) -> None:
    with Journal(tmp_path / "model") as journal:
        journal.append([row("a", 'tabs\t, "quotes", ünïcode 漢字 and \n newlines'), row("b")])
    found = Journal(tmp_path / "model").read(keys("a", "c"))
    assert found == {sha256_text("a"): row("a", 'tabs\t, "quotes", ünïcode 漢字 and \n newlines')}


def test_rows_that_were_computed_are_those_that_a_later_reader_finds(tmp_path: Path) -> None:
    computed = [row("a", "half a pair: \ud83d"), row("b", failure="TIMEOUT")]
    with Journal(tmp_path) as journal:
        journal.append(computed)
        read = journal.read(keys("a", "b"))
    held = Rows()
    for one in computed:
        held.add(one)
    assert dict(held) == dict(read) == {one["key"]: one for one in computed}


def test_rows_that_are_not_wanted_are_left_out_and_a_newer_row_replaces_the_older() -> None:
    held = Rows()
    for one in (row("a"), row("b", failure="TIMEOUT"), row("c", "first"), row("c", "second")):
        held.add(one)
    held.keep(has_answer)
    assert set(held) == keys("a", "c")
    assert held[sha256_text("c")]["result"]["text"] == "second"
    assert sha256_text("b") not in held


def test_every_writer_has_a_file_of_its_own(tmp_path: Path) -> None:
    with Journal(tmp_path) as one, Journal(tmp_path) as other:
        one.append([row("a")])
        other.append([row("b")])
        one.append([row("c")])
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert len(Journal(tmp_path).read(keys("a", "b", "c"))) == 3


def test_a_reader_makes_no_files(tmp_path: Path) -> None:
    Journal(tmp_path / "new").read(keys("a"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cut", [1, 20, 90])
def test_a_torn_last_line_is_dropped_and_said(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(tmp_path) as journal:
        journal.append([row("a"), row("b")])
    file = next(tmp_path.glob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-cut])
    with caplog.at_level(logging.WARNING):
        assert set(Journal(tmp_path).read(keys("a", "b"))) == keys("a")
    assert "torn" in caplog.text


def test_a_good_answer_wins_over_a_failed_one_whichever_came_first(tmp_path: Path) -> None:
    for first, second in (("TIMEOUT", None), (None, "TIMEOUT")):
        folder = tmp_path / str(first)
        with Journal(folder) as journal:
            journal.append([row("a", failure=first)])
            journal.append([row("a", failure=second)])
        assert Journal(folder).read(keys("a"))[sha256_text("a")]["result"]["failure"] is None


def test_of_two_good_answers_the_first_counts_so_that_files_can_be_remade(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([row("a", "first"), row("a", "second")])
    assert Journal(tmp_path).read(keys("a"))[sha256_text("a")]["result"]["text"] == "first"


def test_a_full_disk_is_one_clear_line_and_leaves_no_torn_row(tmp_path: Path) -> None:
    """A file-size limit of the process stands in for the disk: writes fail part-way in the same manner."""
    journal = Journal(tmp_path)
    journal.append([row("a")])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        with pytest.raises(UserError, match="cannot write the journal"):
            journal.append([row("b", "x" * 10_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    journal.append([row("c")])
    assert set(Journal(tmp_path).read(keys("a", "b", "c"))) == keys("a", "c")


def test_a_journal_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the journal"):
        Journal(tmp_path / "file" / "model").append([row("a")])


def test_a_killed_writer_loses_nothing_it_had_appended(tmp_path: Path) -> None:
    script = f"""
import sys
from kv_transition.run.journal import Journal
from kv_transition.files import sha256_text
journal = Journal({str(tmp_path)!r})
for number in range(10**6):
    journal.append([{{"key": sha256_text(str(number)), "result": {{"text": "x" * 200, "failure": None}}}}])
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = [process.stdout.readline() for _ in range(25)][-1]
        os.kill(process.pid, signal.SIGKILL)
    said = range(int(last) + 1)
    assert len(Journal(tmp_path).read({sha256_text(str(number)) for number in said})) == len(said)
