"""Published results: every layout becomes rows of runs, and rows are matched with their records or refused by name."""

from __future__ import annotations

import csv
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.counters import load_counter
from kv_transition.data.longbench_loader import read_records, write_records
from kv_transition.data.normalize import normalize_records
from kv_transition.data.published.matching import Record, match_rows
from kv_transition.data.published.records import as_record, make_records
from kv_transition.data.published.rows import Row, Run, cell_of, method_name
from kv_transition.data.published.sources import read_runs, source_files
from kv_transition.errors import UserError

FULL = ("full", "full")
H2O = ("h2o", "256")
SETTINGS: dict[str, Any] = {"runs": [], "methods": {}, "allow_incomplete": False}
QUESTIONS = [(["amber"], 7), (["blue", "azure"], 9), (["coral"], 4), (["dune"], 7)]


def table(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return SETTINGS | {"layout": "scores", "path": str(path), "methods": {"hf": "full"}}


def score_rows(n: int = 4, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"method": method, "budget": budget, "task": "qa", "idx": idx, "length": 10 + idx, "score": 0.25}
        | changes
        for method, budget in (("hf", ""), ("h2o", 256))
        for idx in range(n)
    ]


def prediction(number: int, pred: str = "x", **more: Any) -> dict[str, Any]:
    answers, length = QUESTIONS[number]
    return {"pred": pred, "answers": answers, "all_classes": None, "length": length} | more


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, rows)


# ---- tables of scores


def test_a_table_becomes_a_run_for_each_method_and_budget(tmp_path: Path) -> None:
    published = table(tmp_path / "scores.csv", score_rows())
    runs = read_runs(published, "qa", [FULL, ("h2o", "256")])
    assert list(runs) == [FULL, ("h2o", "256")]
    assert [(row.index, row.length, row.score) for row in runs["h2o", "256"].rows] == [
        (idx, 10 + idx, 0.25) for idx in range(4)
    ]
    assert [row.line for row in runs["h2o", "256"].rows] == [6, 7, 8, 9]


def test_the_same_table_as_parquet_and_jsonl_holds_the_same_rows(tmp_path: Path) -> None:
    import pandas as pd

    rows = score_rows()
    published = table(tmp_path / "scores.csv", rows)
    for row in rows:
        row["budget"] = row["budget"] or None
    pd.DataFrame(rows).to_parquet(tmp_path / "scores.parquet")
    jsonl(tmp_path / "scores.jsonl", rows)

    def content(suffix: str) -> list[str]:
        source = published | {"path": str(tmp_path / f"scores.{suffix}")}
        return [
            row.content_hash
            for run in read_runs(source, "qa", [FULL, ("h2o", "256")]).values()
            for row in run.rows
        ]

    assert content("csv") == content("parquet") == content("jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 25.0}, "line 2: score is 25.0, expected 0 to 1; divide the column by 100"),
        ({"score": -0.1}, "line 2: score must be a number from 0 to 1"),
        ({"score": "good"}, "line 2: score must be a number from 0 to 1"),
        ({"score": ""}, "line 2: score is empty"),
        ({"idx": "1.5"}, "line 2: idx must be a whole number"),
        ({"idx": ""}, "line 2: idx is empty"),
        ({"method": "h2o", "budget": ""}, "line 2: h2o has no budget"),
        ({"method": "hf", "budget": "256"}, "line 2: full has a budget"),
        ({"method": "h2o", "budget": "0"}, "line 2: '0' is no budget"),
        ({"failure": "REFUSAL"}, "line 2: failure is"),
        ({"task": "QA"}, "no row of task qa (case counts); it has QA"),
    ],
)
def test_a_bad_value_is_named_by_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    published = table(tmp_path / "scores.csv", score_rows(**change))
    with pytest.raises(UserError) as error:
        read_runs(published, "qa", [FULL])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_column_is_named_before_anything_runs(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key not in ("score", "idx")} for row in score_rows()]
    published = table(tmp_path / "scores.csv", rows)
    with pytest.raises(UserError, match=r"missing the columns score, idx \(or example_id\)"):
        source_files(published, "qa", [FULL])


def test_a_failed_request_may_lack_its_score(tmp_path: Path) -> None:
    published = table(tmp_path / "scores.csv", score_rows(score="", failure="TIMEOUT"))
    rows = read_runs(published, "qa", [FULL])[FULL].rows
    assert {(row.score, row.failure) for row in rows} == {(None, "TIMEOUT")}


def test_a_cell_that_the_source_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    published = table(tmp_path / "scores.csv", score_rows())
    with pytest.raises(
        UserError, match=r"no results of h2o 512; it has full at full; h2o at 256; adapt kv\.methods"
    ):
        read_runs(published, "qa", [FULL, ("h2o", "512")])
    with pytest.raises(UserError, match=r"set kv\.no_context: false"):
        read_runs(published, "qa", [FULL, ("no_context", "full")])


@pytest.mark.parametrize(("held", "asked"), [("H2O", "observed_attention"), ("observed_attention", "h2o")])
def test_h2o_and_observed_attention_are_two_methods_and_the_refusal_says_why(
    tmp_path: Path, held: str, asked: str
) -> None:
    rows = [row | {"method": held} if row["method"] == "h2o" else row for row in score_rows()]
    with pytest.raises(UserError) as error:
        read_runs(table(tmp_path / "scores.csv", rows), "qa", [FULL, (asked, "256")])
    message = str(error.value)
    assert f"no results of {asked} 256; it has full at full; {held.lower()} at 256; h2o and" in message
    assert "divided by the number of queries" in message
    assert f"kv.methods: [{held.lower()}]" in message
    assert f"published.methods: {{{held.lower()}: {asked}}}" in message
    assert "\n" not in message


def test_another_method_is_not_told_about_h2o(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"h2o at 256; adapt kv\.methods"):
        read_runs(table(tmp_path / "scores.csv", score_rows()), "qa", [FULL, ("snapkv", "256")])


def test_a_run_that_is_not_asked_for_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = table(tmp_path / "scores.csv", score_rows())
    with caplog.at_level(logging.INFO):
        assert list(read_runs(published, "qa", [FULL])) == [FULL]
    assert "h2o 256" in caplog.text


# ---- names


def test_a_published_h2o_stays_h2o_unless_it_is_renamed() -> None:
    assert method_name("H2O", {}) == "h2o"
    assert method_name("H2O", {"h2o": "observed_attention"}) == "observed_attention"


@pytest.mark.parametrize("name", ["FullKV", "no_press", "full"])
def test_the_run_without_compression_is_known_by_its_usual_names(name: str) -> None:
    assert method_name(name, {}) == "full"


@given(st.text(min_size=1))
def test_a_name_becomes_a_folder_name(name: str) -> None:
    assert not set(method_name(name, {})) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.parametrize(
    ("budget", "label"), [("256", "256"), ("256.0", "256"), (256, "256"), (0.25, "f0.25")]
)
def test_a_budget_is_labelled_as_everywhere(budget: object, label: str) -> None:
    assert cell_of("h2o", budget, "line 1") == ("h2o", label)


# ---- folders of answers


def longbench(tmp_path: Path, full: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    jsonl(tmp_path / "whole/qa.jsonl", full)
    jsonl(tmp_path / "half/qa.jsonl", other)
    runs = [
        {"method": "full", "budget": None, "path": "whole"},
        {"method": "Mine", "budget": 0.5, "path": "half"},
    ]
    return SETTINGS | {"layout": "longbench", "path": str(tmp_path), "runs": runs}


MINE = ("mine", "f0.5")


def test_longbench_folders_are_the_runs_they_are_said_to_be(tmp_path: Path) -> None:
    rows = [prediction(number, f"answer {number}") for number in range(4)]
    published = longbench(tmp_path, rows, rows)
    assert source_files(published, "qa", [MINE]) == [tmp_path / "half/qa.jsonl"]
    run = read_runs(published, "qa", [FULL, MINE])[MINE]
    assert [(row.pred, list(row.answers or ()), row.length) for row in run.rows] == [
        (row["pred"], row["answers"], row["length"]) for row in rows
    ]


def test_a_null_answer_is_named_by_file_and_line(tmp_path: Path) -> None:
    published = longbench(tmp_path, [prediction(0), prediction(1) | {"pred": None}], [])
    with pytest.raises(UserError, match=r"whole/qa\.jsonl, line 2: pred is null, which cannot be scored"):
        read_runs(published, "qa", [FULL])


def kvcache_factory(root: Path, **files: list[dict[str, Any]]) -> dict[str, Any]:
    for name, rows in files.items():
        budget, method = name.split("_")
        jsonl(root / f"llama-3-8b_{budget.removeprefix('b')}" / "qa" / f"{method}.json", rows)
    (root / "llama-3-8b_64/qa/metrics.json").write_text('{"qa": 12.5}')
    return SETTINGS | {"layout": "kvcache_factory", "path": str(root)}


def test_kvcache_factory_budgets_come_from_folders_and_full_has_none(tmp_path: Path) -> None:
    rows = [prediction(number, _id=f"id{number}", input="?", context="c") for number in range(4)]
    published = kvcache_factory(
        tmp_path, b64_SnapKV=rows, b64_FullKV=rows, b128_SnapKV=rows, b128_FullKV=rows
    )
    runs = read_runs(published, "qa", [FULL, ("snapkv", "64"), ("snapkv", "128")])
    assert runs["snapkv", "128"].file == tmp_path / "llama-3-8b_128/qa/SnapKV.json"
    assert [row.example_id for row in runs[FULL].rows] == ["id0", "id1", "id2", "id3"]


def test_hidden_files_beside_kvcache_factory_s_are_passed_over(tmp_path: Path) -> None:
    rows = [prediction(number) for number in range(4)]
    published = kvcache_factory(tmp_path, b64_SnapKV=rows, b64_FullKV=rows)
    (tmp_path / "llama-3-8b_64/qa/._SnapKV.json").write_bytes(b"\x00\x05\x16\x07")
    assert len(read_runs(published, "qa", [FULL, ("snapkv", "64")])["snapkv", "64"].rows) == 4


def test_two_runs_without_compression_have_to_agree(tmp_path: Path) -> None:
    rows = [prediction(number, _id=f"id{number}") for number in range(4)]
    changed = [*rows[:3], rows[3] | {"pred": "other"}]
    published = kvcache_factory(tmp_path, b64_FullKV=rows, b128_FullKV=changed)
    with pytest.raises(UserError, match=r"FullKV\.json both hold answers that differ of full"):
        read_runs(published, "qa", [FULL])


def kvpress(folder: Path, press: str, ratio: float, answers: list[str], **config: Any) -> None:
    folder.mkdir(parents=True)
    settings = {"dataset": "longbench", "data_dir": "qa", "press_name": press, "compression_ratio": ratio}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | config))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answers", "predicted_answer", "length", "task", "compression_ratio"])
        for number, answer in enumerate(answers):
            gold, length = QUESTIONS[number]
            listed = "[" + " ".join(map(repr, gold)) + "]"  # as numpy writes it
            writer.writerow(["?", listed, answer, length, "qa", ratio])


def test_kvpress_ratios_are_shares_removed_and_become_shares_kept(tmp_path: Path) -> None:
    kvpress(tmp_path / "a", "no_press", 0.0, ["one", "two", "", "four"])
    kvpress(tmp_path / "b", "snapkv", 0.7, ["1", "2", "3", "4"])
    kvpress(tmp_path / "c", "knorm", 0.0, ["1", "2", "3", "4"])
    published = SETTINGS | {"layout": "kvpress", "path": str(tmp_path)}
    runs = read_runs(published, "qa", [FULL, ("snapkv", "f0.3")])
    assert [row.pred for row in runs[FULL].rows] == ["one", "two", "", "four"]
    assert [row.answers for row in runs["snapkv", "f0.3"].rows] == [tuple(gold) for gold, _ in QUESTIONS]
    assert [row.length for row in runs[FULL].rows] == [length for _, length in QUESTIONS]


@pytest.mark.parametrize(
    "answers",
    [["it's", 'a "b"'], ["a, b", "c' 'd"], ["[x]"], [], ["line\nbreak", "tab\t"], ["ümlaut 中"], ["\\"]],
)
@pytest.mark.parametrize("separator", [", ", " ", "\n "])
def test_lists_in_csv_files_are_read_back(tmp_path: Path, answers: list[str], separator: str) -> None:
    kvpress(tmp_path / "a", "no_press", 0.0, [])
    with (tmp_path / "a/predictions.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["?", "[" + separator.join(map(repr, answers)) + "]", "x", 3, "qa", 0.0])
    published = SETTINGS | {"layout": "kvpress", "path": str(tmp_path)}
    assert read_runs(published, "qa", [FULL])[FULL].rows[0].answers == tuple(answers)


def test_tasks_of_one_kvpress_file_are_told_apart_by_their_column(tmp_path: Path) -> None:
    kvpress(tmp_path / "a", "no_press", 0.0, ["one"], data_dir="4096", dataset="ruler")
    with (tmp_path / "a/predictions.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["?", "['y']", "other", 3, "vt", 0.0])
    published = SETTINGS | {"layout": "kvpress", "path": str(tmp_path)}
    assert [row.pred for row in read_runs(published, "vt", [FULL])[FULL].rows] == ["other"]
    assert [row.pred for row in read_runs(published, "qa", [FULL])[FULL].rows] == ["one"]


# ---- matching

RECORDS = [
    Record(f"e{number}", f"id{number}", number, tuple(answers), length)
    for number, (answers, length) in enumerate(QUESTIONS)
]


def rows_of(order: list[int], by: str) -> list[Row]:
    rows = []
    for line, number in enumerate(order, start=1):
        answers, length = QUESTIONS[number]
        named = {"id": {"example_id": f"id{number}"}, "idx": {"index": number}, "place": {}}[by]
        rows.append(Row(line, pred=f"answer {number}", answers=tuple(answers), length=length, **named))
    return rows


def match(rows: list[Row], allow_incomplete: bool = False, own: bool = False) -> dict[str, str | None]:
    matched = match_rows(
        "qa", H2O, Run(Path("h2o.jsonl"), rows), RECORDS, allow_incomplete=allow_incomplete, own=own
    )
    return {example_id: row.pred for example_id, row in matched.rows.items()}


BY = pytest.mark.parametrize("by", ["id", "idx", "place"])


@BY
def test_complete_rows_are_matched(by: str) -> None:
    assert match(rows_of([0, 1, 2, 3], by)) == {f"e{number}": f"answer {number}" for number in range(4)}


@BY
@pytest.mark.parametrize(
    ("order", "named"),
    [
        ([0, 1, 1, 2, 3], "1 doubled (line 3 repeats line 2)"),
        ([0, 1, 3], "1 missing (record 3)"),
        ([1, 0, 2, 3], "1 in another order (line 2, record 1)"),
        ([0, 0, 2, 3], "1 doubled (line 2 repeats line 1); 1 missing (record 2)"),
    ],
)
def test_incomplete_rows_are_refused_by_name_and_passed_over_when_allowed(
    by: str, order: list[int], named: str
) -> None:
    with pytest.raises(UserError) as error:
        match(rows_of(order, by))
    assert named in str(error.value)
    assert "h2o.jsonl" in str(error.value)
    assert "published.allow_incomplete" in str(error.value)
    allowed = match(rows_of(order, by), allow_incomplete=True)
    assert allowed == {f"e{number}": f"answer {number}" for number in sorted(set(order))}


@BY
@pytest.mark.parametrize("allow_incomplete", [False, True])
def test_other_reference_answers_are_always_refused(by: str, allow_incomplete: bool) -> None:
    rows = rows_of([0, 1, 2, 3], by)
    rows[2] = Row(**{**vars(rows[2]), "answers": ("another",)})
    with pytest.raises(UserError, match=r"line 3.*another task's file or another version"):
        match(rows, allow_incomplete)


def test_another_length_is_another_version_of_the_data() -> None:
    rows = [Row(line, index=line - 1, score=0.5, length=1) for line in range(1, 5)]
    with pytest.raises(UserError, match=r"line 1 has the length 1, the record 7"):
        match(rows)


@given(st.permutations(range(4)), st.sampled_from(["id", "idx", "place"]))
def test_any_order_that_is_allowed_gives_every_record_its_own_row(order: list[int], by: str) -> None:
    allowed = match(rows_of(order, by), allow_incomplete=True)
    assert allowed == {f"e{number}": f"answer {number}" for number in range(4)}


def test_rows_without_ids_that_look_alike_are_not_guessed() -> None:
    alike = [Record(f"e{number}", f"e{number}", number, ("yes",), 5) for number in range(3)]
    rows = [Row(line, pred=str(line), answers=("yes",), length=5) for line in (1, 2)]
    with pytest.raises(UserError, match="cannot be told"):
        match_rows("qa", H2O, Run(Path("f"), rows), alike, allow_incomplete=True, own=False)


def test_of_records_that_look_alike_the_first_row_answers_the_first() -> None:
    alike = [Record(f"e{number}", f"e{number}", number, ("yes",), 5) for number in range(3)]
    rows = [Row(line, pred=str(line), answers=("yes",), length=5) for line in (1, 2, 3)]
    matched = match_rows("qa", H2O, Run(Path("f"), rows), alike, allow_incomplete=False, own=False)
    assert {key: row.pred for key, row in matched.rows.items()} == {"e0": "1", "e1": "2", "e2": "3"}


def test_rows_that_name_no_record_are_refused() -> None:
    with pytest.raises(UserError, match="name no record"):
        match([Row(line, pred="x") for line in range(1, 5)])


def test_ids_of_another_kind_give_way_to_place_and_answers() -> None:
    rows = [Row(**{**vars(row), "example_id": f"other{row.line}"}) for row in rows_of([0, 1, 2, 3], "place")]
    assert len(match(rows)) == 4


# ---- records made from the rows


def own_records(rows: list[Row], allow_incomplete: bool = False) -> list[dict[str, Any]]:
    return make_records("qa", Run(Path("full.csv"), rows), allow_incomplete)[0]


def numbered(*numbers: int) -> list[Row]:
    return [Row(line, index=number, score=0.5, length=10) for line, number in enumerate(numbers, start=2)]


def test_records_have_the_ids_lengths_and_answers_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    write_records(path, own_records(rows_of([0, 1, 2, 3], "place")))
    read = read_records(path, "qa")
    assert [(row["_id"], row["answers"], row["length"]) for row in read] == [
        (f"qa-000{number}", answers, length) for number, (answers, length) in enumerate(QUESTIONS)
    ]


def test_unpublished_reference_answers_are_nothing_to_warn_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_records(tmp_path / "qa.jsonl", own_records(numbered(0, 1)))
    read_records(tmp_path / "qa.jsonl", "qa")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (numbered(0, 1, 1), "1 doubled (line 4 repeats line 3)"),
        (numbered(0, 2), "1 missing (row 1)"),
        (numbered(1, 0), "1 in another order (line 3)"),
    ],
)
def test_a_reference_run_with_faults_is_refused(rows: list[Row], named: str) -> None:
    with pytest.raises(UserError) as error:
        own_records(rows)
    assert named in str(error.value)
    assert [record["_id"] for record in own_records(rows, True)] == sorted(
        {f"qa-{row.index:04d}" for row in rows}
    )


def test_a_file_that_was_written_twice_is_seen_without_ids() -> None:
    rows = [
        Row(line, pred="x", answers=(f"gold {line % 40}",), length=100 + line % 40) for line in range(1, 71)
    ]
    with pytest.raises(UserError, match=r"30 doubled \(line 41 repeats line 1"):
        own_records(rows)
    assert len(own_records(rows, True)) == 40


def test_records_that_share_a_few_nominal_lengths_are_no_block_that_was_written_twice() -> None:
    lengths = [4096] * 60 + [8192] * 60 + [4096] * 60 + [8192] * 60
    rows = [Row(line, example_id=f"id{line}", score=0.5, length=n) for line, n in enumerate(lengths, start=1)]
    assert len(own_records(rows)) == 240


def test_real_files_without_doubles_raise_no_alarm(shared: Path) -> None:
    for file in sorted((shared / "predictions/pred/llama3-8b-instruct").glob("*.jsonl")):
        published = SETTINGS | {
            "layout": "longbench",
            "path": str(file.parent),
            "runs": [{"method": "full", "budget": None, "path": "."}],
        }
        run = read_runs(published, file.stem, [FULL])[FULL]
        assert len(own_records(run.rows)) == len(run.rows)


def test_rows_without_a_length_cannot_be_binned() -> None:
    with pytest.raises(UserError, match=r"full\.csv, line 1: no length"):
        own_records([Row(1, index=0, score=0.5)])


def test_tokens_are_never_taken_for_the_words_of_a_length(tmp_path: Path) -> None:
    rows = [{**row, "token_len": 5000 + row["idx"]} for row in score_rows()]
    both = read_runs(table(tmp_path / "both.csv", rows), "qa", [FULL])[FULL]
    assert [record["length"] for record in own_records(both.rows)] == [10, 11, 12, 13]
    mixed = [{**row, "length": ""} if row["idx"] == 2 else row for row in rows]
    tokens = [{key: value for key, value in row.items() if key != "length"} for row in rows]
    for name, spoilt, line in (("mixed.csv", mixed, 4), ("tokens.csv", tokens, 2)):
        run = read_runs(table(tmp_path / name, spoilt), "qa", [FULL])[FULL]
        with pytest.raises(UserError, match=rf"line {line}: no length.*token_len counts tokens"):
            make_records("qa", run, False)


def test_a_row_that_full_lacks_is_refused_or_left_out() -> None:
    examples = normalize_records(own_records(numbered(0, 1)), "qa", load_counter("length", None, "error"))
    records = [as_record(example, own=True) for example in examples]
    run = Run(Path("h2o.csv"), numbered(0, 1, 2))
    with pytest.raises(UserError, match=r"1 rows have no counterpart in full \(line 4: idx 2\)"):
        match_rows("qa", H2O, run, records, allow_incomplete=False, own=True)
    matched = match_rows("qa", H2O, run, records, allow_incomplete=True, own=True)
    assert sorted(matched.rows) == ["qa-0000", "qa-0001"]
    assert "of no record" in matched.notes


# ---- real material


def test_real_records_match_real_predictions_by_place_and_answers(shared: Path, tmp_path: Path) -> None:
    task = "multi_news"
    records = read_records(shared / "longbench", task)
    counter = load_counter("length", None, "error")
    examples = [as_record(example, own=False) for example in normalize_records(records, task, counter)]
    source = shared / f"predictions/pred/llama3-8b-instruct/{task}.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    jsonl(tmp_path / f"a/{task}.jsonl", rows)
    random.Random(1).shuffle(rows)
    jsonl(tmp_path / f"b/{task}.jsonl", rows)
    runs = [{"method": "full", "budget": None, "path": "a"}, {"method": "moved", "budget": 0.5, "path": "b"}]
    published = SETTINGS | {"layout": "longbench", "path": str(tmp_path), "runs": runs}
    full, moved = read_runs(published, task, [FULL, ("moved", "f0.5")]).values()
    straight = match_rows(task, FULL, full, examples, allow_incomplete=False, own=False).rows
    assert len(straight) == len(records) == 200
    with pytest.raises(UserError, match="in another order"):
        match_rows(task, ("moved", "f0.5"), moved, examples, allow_incomplete=False, own=False)
    back = match_rows(task, ("moved", "f0.5"), moved, examples, allow_incomplete=True, own=False).rows
    assert {key: row.pred for key, row in back.items()} == {key: row.pred for key, row in straight.items()}
