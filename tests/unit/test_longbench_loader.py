"""Records from folders, archives and files; every mistake in them is named with file and line, or row."""

import csv
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.longbench_loader import (
    find_task,
    list_longbench_tasks,
    read_records,
    write_records,
)
from kv_transition.errors import UserError


def record(**changes: Any) -> dict[str, Any]:
    base = {
        "input": "Who?",
        "context": "A story.",
        "answers": ["me"],
        "length": 2,
        "dataset": "qa",
        "language": "en",
        "all_classes": None,
        "_id": "a",
    }
    return base | changes


def write(folder: Path, *lines: Any, name: str = "qa.jsonl", end: str = "\n") -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / name).write_bytes("".join(text + end for text in texts).encode())
    return folder


def error_of(folder: Path, task: str = "qa") -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as error:
        read_records(folder, task)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_gives_its_tasks_and_records(tmp_path: Path) -> None:
    rows = [record(), record(_id="b")]
    write(tmp_path, *rows)
    write(tmp_path, record(), name="news.jsonl")
    (tmp_path / "notes.txt").write_text("no task")
    assert list_longbench_tasks(tmp_path) == ["news", "qa"]
    assert read_records(tmp_path, "qa") == rows


@pytest.mark.parametrize("inner", ["", "data/", "LongBench/data/"])
def test_an_archive_gives_its_tasks_from_any_inner_folder(tmp_path: Path, inner: str) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(f"{inner}qa.jsonl", json.dumps(record()))
        archive.writestr(f"__MACOSX/{inner}._qa.jsonl", "rubbish")
        archive.writestr("README.md", "text")
    assert list_longbench_tasks(tmp_path / "data.zip") == ["qa"]
    assert read_records(tmp_path / "data.zip", "qa") == [record()]


def test_a_task_that_an_archive_holds_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a/qa.jsonl", json.dumps(record()))
        archive.writestr("b/qa.jsonl", json.dumps(record()))
    with pytest.raises(UserError, match=r"b/qa\.jsonl and a/qa\.jsonl"):
        list_longbench_tasks(tmp_path / "data.zip")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("qa.jsonl", json.dumps(record()))
    content = (tmp_path / "data.zip").read_bytes().replace(b"A story.", b"A glory.")
    (tmp_path / "data.zip").write_bytes(content)
    assert "data.zip:qa.jsonl" in error_of(tmp_path / "data.zip")


def test_a_task_s_own_file_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, record())
    assert read_records(tmp_path / "qa.jsonl", "qa") == [record()]


def test_one_file_does_not_serve_other_tasks(tmp_path: Path) -> None:
    write(tmp_path, record())
    with pytest.raises(UserError, match=r"qa\.jsonl"):
        read_records(tmp_path / "qa.jsonl", "news")


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in error_of(tmp_path / "nowhere")


def test_a_path_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.tar").write_text("text")
    assert "neither a folder nor a zip archive" in error_of(tmp_path / "data.tar")


@pytest.mark.parametrize("task", ["QA", "news", "qa.jsonl"])
def test_a_missing_task_lists_the_tasks_that_are_there(tmp_path: Path, task: str) -> None:
    write(write(tmp_path, record()), record(), name="other.jsonl")
    assert f"no {task}.jsonl (case counts); it has other, qa" in error_of(tmp_path, task)
    with pytest.raises(UserError):
        find_task(tmp_path, task)


def test_a_json_file_of_one_array_is_a_task(tmp_path: Path) -> None:
    rows = [record(), record(_id="b")]
    (tmp_path / "qa.json").write_text(json.dumps(rows, indent=1))
    write(tmp_path, record(), name="news.jsonl")
    assert list_longbench_tasks(tmp_path) == ["news", "qa"]
    assert read_records(tmp_path, "qa") == read_records(tmp_path / "qa.json", "qa") == rows
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "qa.json", "inner/qa.json")
    assert list_longbench_tasks(tmp_path / "data.zip") == ["qa"]
    assert read_records(tmp_path / "data.zip", "qa") == rows


def test_a_json_file_without_an_array_is_no_task_and_said_so_when_asked_for(tmp_path: Path) -> None:
    write(tmp_path, record(), name="news.jsonl")
    (tmp_path / "qa.json").write_text('{"qa": 128}')
    assert list_longbench_tasks(tmp_path) == ["news"]
    assert "qa.json: expected one JSON array of records" in error_of(tmp_path)
    assert "qa.json: expected a JSON array" in error_of(tmp_path / "qa.json")


def test_hidden_files_of_a_folder_are_no_tasks(tmp_path: Path) -> None:
    write(tmp_path, record())
    for name in ("._qa.jsonl", ".news.jsonl", "._qa.json"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07[")
    assert list_longbench_tasks(tmp_path) == ["qa"]


def test_a_task_that_a_folder_holds_in_two_forms_is_refused(tmp_path: Path) -> None:
    write(tmp_path, record())
    (tmp_path / "qa.json").write_text(json.dumps([record()]))
    with pytest.raises(UserError, match=r"qa\.jsonl and qa\.json are both files of task qa; keep one"):
        list_longbench_tasks(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"input": "Who?", ', "qa.json: broken JSON"),
        ("[]", "qa.json: no records"),
        ("[1]", "qa.json, row 1: expected a JSON object, found int"),
        (json.dumps([record(), record(answers="me")]), "qa.json, row 2: answers is one text"),
        (json.dumps([record(), record()]), "qa.json: rows 1 and 2 have the same _id 'a'"),
    ],
)
def test_a_mistake_in_an_array_is_named_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "qa.json").write_text(text)
    assert message in error_of(tmp_path)


def test_an_array_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_bytes(
        json.dumps([record(context="café")], ensure_ascii=False).encode("latin-1")
    )
    assert "qa.json: not UTF-8" in error_of(tmp_path)


def test_the_tasks_of_a_path_that_is_no_hub_id_are_looked_for_on_this_machine_only(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "nowhere"):
        with pytest.raises(UserError, match=r"dataset\.path: there is no .*nowhere"):
            list_longbench_tasks(source)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf\r\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "qa.jsonl").write_bytes(content)
    assert "empty" in error_of(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("tail", ["", "\n", "\r\n \r\n\n"])
@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
def test_line_ends_a_mark_at_the_start_and_blank_lines_at_the_end_do_not_matter(
    tmp_path: Path, end: str, tail: str, head: bytes
) -> None:
    write(tmp_path, record(), record(_id="b"), end=end)
    file = tmp_path / "qa.jsonl"
    file.write_bytes(head + file.read_bytes() + tail.encode())
    assert read_records(tmp_path, "qa") == [record(), record(_id="b")]


@given(context=st.text(st.characters(exclude_categories=["Cs"])))
def test_texts_are_read_exactly_whatever_separators_they_hold(tmp_path_factory: Any, context: str) -> None:
    folder = write(tmp_path_factory.mktemp("f"), record(context=context), record(_id="b"))
    assert read_records(folder, "qa")[0]["context"] == context


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "Who?", ', "line 2: broken JSON"),
        ("[" * 100_000, "line 2: broken JSON"),
        ("  ", "line 2: the line is blank"),
        ("[1, 2]", "line 2: expected a JSON object, found list"),
        ({"input": "Who?"}, "line 2: missing context, answers; it has input"),
        (record(answers="me"), "line 2: answers is one text, expected a list"),
        (record(answers=None), "line 2: answers must be a list of texts"),
        (record(answers=["me", 3]), "line 2: answers must be a list of texts"),
        (record(context=None), "line 2: context must be a text, found null"),
        (record(input=3), "line 2: input must be a text, found 3"),
        (record(length="3"), "line 2: length must be a whole number"),
        (record(length=True), "line 2: length must be a whole number"),
        (record(language=["en"]), "line 2: language must be a text or null"),
        (record(_id=7), "line 2: _id must be a text or null"),
        (record(extra=[1]), "line 2: extra must be a JSON object or null, found [1]"),
        (record(all_classes="x"), "line 2: all_classes is one text, expected a list"),
        (record(all_classes=[1]), "line 2: all_classes must be a list of texts or null"),
        (
            '{"input": "\\ud83d", "context": "", "answers": []}',
            "line 2: a \\ud800-\\udfff escape stands alone",
        ),
        (record(_id="first"), "lines 1 and 2 have the same _id 'first'"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path: Path, line: Any, message: str) -> None:
    write(tmp_path, record(_id="first"), line, record(_id="last"))
    assert f"{tmp_path / 'qa.jsonl'}" in error_of(tmp_path)
    assert message in error_of(tmp_path)


@pytest.mark.parametrize("codec", ["latin-1", "utf-16"])
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, codec: str) -> None:
    (tmp_path / "qa.jsonl").write_bytes(json.dumps(record(context="café"), ensure_ascii=False).encode(codec))
    assert "line 1: not UTF-8" in error_of(tmp_path)


def test_optional_columns_may_be_absent_or_null(tmp_path: Path) -> None:
    bare = {"input": "", "context": "", "answers": []}
    nulls = record(length=None, dataset=None, language=None, _id=None)
    write(tmp_path, bare, nulls, bare | {"other": 1})
    assert read_records(tmp_path, "qa") == [bare, nulls, bare | {"other": 1}]


@pytest.mark.parametrize("extra", [None, {}, {"domain": "law", "choices": ["a", "b"]}])
def test_extra_keeps_whatever_object_a_record_brings(tmp_path: Path, extra: Any) -> None:
    rows = [record(extra=extra)]
    write_records(tmp_path / "qa.jsonl", rows)
    assert read_records(tmp_path, "qa") == rows


def test_records_without_answers_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_records(write(tmp_path, record(answers=[]), record(_id="b")), "qa")
    assert "1 records have no answer" in caplog.text


def test_written_records_are_read_back(tmp_path: Path) -> None:
    rows = [record(context="猫\u2028\r\n é"), record(_id="b")]
    write_records(tmp_path / "qa.jsonl", rows)
    assert read_records(tmp_path / "qa.jsonl", "qa") == rows


def test_whole_official_tasks_are_read(shared: Path) -> None:
    assert list_longbench_tasks(shared / "longbench") == ["multi_news", "multifieldqa_zh"]
    for task in list_longbench_tasks(shared / "longbench"):
        records = read_records(shared / "longbench", task)
        gold = (shared / "longbench_gold" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(records) == 200
        assert [r["answers"] for r in records] == [json.loads(line)["answers"] for line in gold]


def test_samples_of_every_official_task_are_read(shared: Path) -> None:
    folder = shared / "longbench_subset"
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        expected = Counter(row["task"] for row in csv.DictReader(file))
    assert {task: len(read_records(folder, task)) for task in list_longbench_tasks(folder)} == expected
