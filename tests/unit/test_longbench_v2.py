"""LongBench v2: its rows become records, whatever file they are in, and lose nothing."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.longbench_loader import list_longbench_tasks, read_records, write_records
from kv_transition.data.longbench_v2 import TEXTS, to_record
from kv_transition.errors import UserError


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "_id": "66f3",
        "domain": "Single-Document QA",
        "sub_domain": "Legal",
        "difficulty": "hard",
        "length": "medium",
        "question": "Who pays? ",
        "choice_A": "The buyer",
        "choice_B": "The seller",
        "choice_C": "Nobody",
        "choice_D": "Both\n",
        "answer": "C",
        "context": " A contract.\n",
    }
    return base | changes


RECORD = {
    "input": "Who pays?\nA) The buyer\nB) The seller\nC) Nobody\nD) Both",
    "context": " A contract.\n",
    "answers": ["C"],
    "length": None,
    "dataset": "longbench_v2",
    "language": None,
    "all_classes": ["A", "B", "C", "D"],
    "_id": "66f3",
    "extra": {
        "domain": "Single-Document QA",
        "sub_domain": "Legal",
        "difficulty": "hard",
        "length_group": "medium",
        "question": "Who pays? ",
        "choices": ["The buyer", "The seller", "Nobody", "Both\n"],
    },
}


def error_of(path: Path, task: str = "longbench_v2") -> str:
    with pytest.raises(UserError) as error:
        read_records(path, task)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_row_becomes_a_question_with_four_lettered_choices() -> None:
    assert to_record(row()) == RECORD


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    changes=st.fixed_dictionaries({c: texts for c in TEXTS if c not in ("answer", "length")}),
    answer=st.sampled_from("ABCD"),
    length=st.sampled_from(["short", "medium", "long"]),
)
def test_every_text_of_a_row_is_in_its_record_untouched(
    changes: dict[str, str], answer: str, length: str
) -> None:
    record = to_record(row(**changes, answer=answer, length=length))
    extra = record["extra"]
    back = {
        **{column: extra[column] for column in ("domain", "sub_domain", "difficulty", "question")},
        **dict(zip(("choice_A", "choice_B", "choice_C", "choice_D"), extra["choices"], strict=True)),
        "context": record["context"],
    }
    assert back == changes
    assert (record["answers"], extra["length_group"]) == ([answer], length)


@pytest.mark.parametrize("name", ["data.json", "longbench_v2.json", "longbench_v2.jsonl"])
def test_a_folder_or_archive_with_its_file_has_the_task_longbench_v2(tmp_path: Path, name: str) -> None:
    rows = [row(), row(_id="b")]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / name).write_text(lines if name.endswith("l") else json.dumps(rows, indent=4))
    with zipfile.ZipFile(tmp_path / "v2.zip", "w") as archive:
        archive.write(tmp_path / name, f"data/{name}")
    for source in (tmp_path, tmp_path / "v2.zip", tmp_path / name):
        assert list_longbench_tasks(source) == ["longbench_v2"]
        assert read_records(source, "longbench_v2") == [RECORD, RECORD | {"_id": "b"}]


def test_the_columns_may_come_in_any_order_behind_a_long_context(tmp_path: Path) -> None:
    backwards = dict(reversed(row(context='x "choice" ' * 300_000).items()))
    (tmp_path / "data.json").write_text(json.dumps([backwards]))
    assert list_longbench_tasks(tmp_path) == ["longbench_v2"]
    assert read_records(tmp_path, "longbench_v2")[0]["extra"] == RECORD["extra"]


@pytest.mark.parametrize("before", [2**20 - 1, 2**20 - 5, 2**20 - 10, 2**20])
def test_the_columns_are_found_across_the_blocks_in_which_a_file_is_read(tmp_path: Path, before: int) -> None:
    others = [column for column in TEXTS if column not in ("choice_A", "context", "length")]
    rest = "".join(f',"{column}":"A"' for column in ("choice_A", *others))
    start = '[{"context":"'
    text = start + "x" * (before - len(start) - 2) + '"' + rest + ',"length":"long"}]'
    assert text.index('"choice_A"') == before
    (tmp_path / "data.json").write_text(text)
    assert list_longbench_tasks(tmp_path) == ["longbench_v2"]


def test_a_data_json_of_other_records_is_the_task_data(tmp_path: Path) -> None:
    record = {"input": "", "context": 'It says "choice_A".', "answers": ["a"]}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    assert list_longbench_tasks(tmp_path) == ["data"]
    assert read_records(tmp_path, "data") == [record]
    assert "it has data" in error_of(tmp_path)


def test_its_records_can_be_written_and_read_again(tmp_path: Path) -> None:
    write_records(tmp_path / "longbench_v2.jsonl", [RECORD])
    assert read_records(tmp_path, "longbench_v2") == [RECORD]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {k: v for k, v in row().items() if k != "choice_C"},
            "row 2: missing choice_C of LongBench v2; it has _id",
        ),
        (row(answer="E"), "row 2: answer must be one of A, B, C, D, found 'E'"),
        (row(answer=["A"]), "row 2: answer must be a text, found list"),
        (row(length=1200), "row 2: length must be a text, found int"),
        (row(length="tiny"), "row 2: length must be one of short, medium, long, found 'tiny'"),
        (row(choice_D=None), "row 2: choice_D must be a text, found NoneType"),
        (row(_id=7), "row 2: _id must be a text or null, found 7"),
        (row(_id="first"), "rows 1 and 2 have the same _id 'first'"),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    (tmp_path / "data.json").write_text(json.dumps([row(_id="first"), bad]))
    assert str(tmp_path / "data.json") in error_of(tmp_path)
    assert message in error_of(tmp_path)
