"""Predictions files in LongBench's format: what is read, how it is scored, which rows are found to be doubled."""

import json
import random
from math import fsum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_files import line, records, write_lines

from kv_transition.data.predictions import Prediction, read_gold, read_predictions
from kv_transition.errors import UserError
from kv_transition.eval.completeness import check_against_gold, doubled_rows
from kv_transition.eval.longbench_e import e_bins
from kv_transition.eval.prediction_folders import Job, averages, score_file
from kv_transition.eval.predictions import classes_differ, score_predictions
from kv_transition.eval.task_scores import ScoredRow, task_score


def error_of(path: Path) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as error:
        read_predictions(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def read(folder: Path, *lines: object) -> list[Prediction]:
    return read_predictions(write_lines(folder / "qasper.jsonl", lines))


def row(score: float, length: int | None = 0) -> ScoredRow:
    return ScoredRow(row=0, length=length, score=score, em=0.0, f1=0.0, failure=None)


# Reading


def test_a_file_is_read_in_order_and_further_columns_are_ignored(tmp_path: Path) -> None:
    rows = read(tmp_path, line("a\u2028b", ["x", "y"], 7, _id="1"), line(all_classes=["Food", "Date"]))
    assert rows == [
        Prediction("a\u2028b", ("x", "y"), (), 7, 0),
        Prediction("Paris", ("Paris",), ("Food", "Date"), 100, 1),
    ]


def test_length_and_classes_may_be_absent(tmp_path: Path) -> None:
    assert read(tmp_path, {"pred": "a", "answers": []}) == [Prediction("a", (), (), None, 0)]


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.text(max_size=5)), st.integers()
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows) -> None:
    path = tmp_path_factory.mktemp("read") / "qasper.jsonl"
    path.write_text("".join(json.dumps(line(*values)) + "\n" for values in rows))
    found = [(one.pred, list(one.answers), one.length) for one in read_predictions(path)]
    assert found == [(pred, answers, length) for pred, answers, length in rows]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("{", "broken JSON"),
        ("", "the line is blank; remove it"),
        ("[1]", "expected a JSON object, found list"),
        ({"answers": ["a"]}, "missing pred; it has answers"),
        ({"pred": "a"}, "missing answers; it has pred"),
        (line(None), 'pred is null, which cannot be scored; ask the model again, or write ""'),
        (line(3), "pred must be a text, found 3"),
        (line(answers="Paris"), "answers is one text"),
        (line(answers=[1]), "answers must be a list of texts, found [1]"),
        (line(answers=None), "answers must be a list of texts, found null"),
        (line(all_classes="Food"), "all_classes is one text"),
        (line(length="8k"), 'length must be a whole number or null, found "8k"'),
        (line(length=True), "length must be a whole number"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, second: object, words: str) -> None:
    path = write_lines(tmp_path / "qasper.jsonl", [line(), second, line()])
    assert error_of(path).startswith(f"{path}, line 2: ")
    assert words in error_of(path)


def test_a_file_that_holds_nothing_or_no_text_is_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n \n")
    binary.write_bytes(b"\x7fELF\x02\xff\x00")
    assert error_of(empty).startswith(f"{empty}: the file is empty")
    assert error_of(binary).startswith(f"{binary}, line 1: not UTF-8 (byte 5)")
    assert error_of(tmp_path / "none.jsonl").startswith(f"{tmp_path / 'none.jsonl'}: cannot be read")


# Scoring


def test_only_the_first_line_of_a_few_shot_answer_counts_in_every_score(tmp_path: Path) -> None:
    lines = [line("\nParis\nRome is in Italy")]
    predictions = read(tmp_path, *lines)
    few_shot, other = (score_predictions(task, predictions)[0] for task in ("triviaqa", "qasper"))
    assert (few_shot.score, few_shot.em, few_shot.f1) == (1.0, 1.0, 1.0)
    assert other.score < 1
    assert other.em == 0
    assert other.f1 < 1


@pytest.mark.parametrize(
    ("task", "pred", "label"),
    [
        ("qasper", "", "EMPTY_OUTPUT"),
        ("qasper", "I cannot answer this.", "REFUSAL"),
        ("qasper", "<think>Well", "TRUNCATED"),
        ("passage_count", "seven", "FORMAT_ERROR"),
        ("trec", "A colour", "FORMAT_ERROR"),
        ("trec_e", "Food\nType: A colour", None),
        ("qasper", "Rome", None),
    ],
)
def test_an_answer_has_the_label_of_what_went_wrong(
    tmp_path: Path, task: str, pred: str, label: str | None
) -> None:
    predictions = read(tmp_path, line(pred, ["Food"], all_classes=["Food", "Date"]))
    assert score_predictions(task, predictions)[0].failure == label


def test_class_names_are_those_of_the_last_line(tmp_path: Path) -> None:
    # "Food" alone is the gold's substring class of the first line only.
    lines = [
        line("Food", ["Food"], all_classes=["Food"]),
        line("Date", ["Date"], all_classes=["Date", "Food item"]),
    ]
    predictions = read(tmp_path, *lines)
    assert classes_differ(predictions)
    assert [one.score for one in score_predictions("trec", predictions)] == [0.0, 1.0]
    assert not classes_differ(predictions[:1])


def test_an_unknown_task_lists_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'trek' is no task of LongBench; it has narrativeqa, .*trec"):
        score_predictions("trek", read(tmp_path, line()))


def test_reference_answers_that_no_answer_can_reach_are_named_with_their_line(tmp_path: Path) -> None:
    retrieval = write_lines(tmp_path / "r.jsonl", [line("1", ["Paragraph 1"]), line("2", ["the second one"])])
    with pytest.raises(UserError, match=r"r.jsonl, line 2: .*the second one"):
        score_file(Job(retrieval, "passage_retrieval_en"))
    classes = write_lines(tmp_path / "c.jsonl", [line(all_classes=["Paris"]), line()])
    with pytest.raises(UserError, match=r"c.jsonl, line 2: .*all_classes"):
        score_file(Job(classes, "trec"))


def test_a_task_score_adds_in_order_as_the_official_evaluation_does() -> None:
    scores = [0.0, 0.01, 0.78, 0.15, 0.13, 0.01, 0.32, 0.57]
    assert task_score(scores) == 24.63
    assert round(100 * fsum(scores) / 8, 2) == 24.62  # the exact sum, which it is not


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60))
def test_a_task_score_is_the_mean_within_rounding(hundredths: list[int]) -> None:
    score = task_score(value / 100 for value in hundredths)
    assert score == round(score, 2)
    assert abs(score - sum(hundredths) / len(hundredths)) <= 0.005 + 1e-9


# LongBench-E


def test_bins_go_by_the_stated_length_and_an_empty_one_is_none() -> None:
    rows = [row(1.0, 0), row(0.0, 3999), row(0.25, 4000), row(0.5, 7999)]
    assert e_bins(rows) == {"0-4k": 50.0, "4-8k": 37.5, "8k+": None}
    assert e_bins([*rows, row(0.1, 8000)])["8k+"] == 10.0


def test_bins_round_as_numpy_does() -> None:
    hundredths = "0 0 9 53 47 25 92 44 98 87 1 82 98 86 96 100 75 35 36 66 48 20 74 69 48 98 91 35 19 83 76 61 3 14 82 82 76 54 66 80"
    scores = [int(value) / 100 for value in hundredths.split()]
    assert e_bins([row(score) for score in scores])["0-4k"] == 57.72
    assert (
        round(100 * float(np.mean(scores)), 2) == 57.73
    )  # Python's rounding, which the official code does not use


def test_a_row_without_length_has_no_bin() -> None:
    with pytest.raises(UserError, match="line 1: no length"):
        e_bins([row(1.0, None)])


# Doubled rows


def predictions_of(lines: list[dict]) -> list[Prediction]:
    return [
        Prediction(one["pred"], tuple(one["answers"]), (), one["length"], number)
        for number, one in enumerate(lines)
    ]


def doubles(lines: list[dict]) -> str:
    return str(doubled_rows(predictions_of(lines)))


def answered_anew(lines: list[dict]) -> list[dict]:
    return [one | {"pred": f"another {one['pred']}"} for one in lines]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (records(200) * 2, "200-399 repeat 0-199"),
        (records(200) * 3, "200-399 repeat 0-199, 400-599 repeat 0-199"),
        (records(200) + records(34), "200-233 repeat 0-33"),
        (records(34) + answered_anew(records(200)), "34-67 repeat 0-33"),
        (records(150) + answered_anew(records(150)), "150-299 repeat 0-149"),
        (records(90) + records(100)[80:] + records(200)[100:], "90-99 repeat 80-89"),
    ],
)
def test_blocks_that_were_written_twice_are_found(lines: list[dict], words: str) -> None:
    assert doubles(lines) == words


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 9))
def test_no_block_overlaps_what_it_repeats(values: list[int], copies: int) -> None:
    lines = [line(answers=[str(value)]) for value in values * copies]
    rows = predictions_of(lines)
    for block in doubled_rows(rows).blocks:
        assert block.first + block.rows <= block.start
        assert [row.gold for row in rows[block.first :][: block.rows]] == [
            row.gold for row in rows[block.start :][: block.rows]
        ]


def test_rows_of_several_writers_are_found_one_by_one() -> None:
    lines = records(100) * 2
    random.Random(1).shuffle(lines)
    found = doubled_rows(predictions_of(lines))
    assert len(found.singles) + sum(block.rows for block in found.blocks) == 100
    first = {number: one["pred"] for number, one in reversed(list(enumerate(lines)))}
    assert all(first[number] == first[earlier] for number, earlier in found.singles)


@pytest.mark.parametrize(
    "lines",
    [
        records(200),
        [*records(200), records(200)[17]],  # a benchmark that holds a question twice
        [line("yes", [random.Random(i).choice(["yes", "no"])], None) for i in range(200)],
        [line("yes", [random.Random(i).choice(["yes", "no"])], 100) for i in range(200)],
        [line()] * 50,
        [line()],
    ],
    ids=["distinct", "one twice", "two answers, no lengths", "two answers, one length", "all equal", "one"],
)
def test_rows_that_look_alike_by_chance_are_no_doubles(lines: list[dict]) -> None:
    assert not doubled_rows(predictions_of(lines))


def test_no_real_file_is_called_doubled_and_each_is_when_it_is(shared: Path) -> None:
    files = sorted((shared / "predictions").rglob("*.jsonl"))
    assert len(files) == 66
    for file in files:
        predictions = read_predictions(file)
        n = len(predictions)
        assert not doubled_rows(predictions), file
        for tail in (n, 34):  # the whole file again, its first rows again
            again = predictions + predictions[:tail]
            copies = [Prediction(p.pred, p.answers, (), p.length, row) for row, p in enumerate(again)]
            assert str(doubled_rows(copies)) == f"{n}-{n + tail - 1} repeat 0-{tail - 1}", file


# Official records


def gold_check(lines: list[dict], n: int = 10) -> str:
    gold = [one.gold for one in predictions_of(records(n))]
    return str(check_against_gold(predictions_of(lines), gold))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (records(10), "complete and in order"),
        (records(8), "2 missing (records 8-9)"),
        (records(10) + records(3), "3 doubled (rows 10-12)"),
        ([*records(9), records(1)[0]], "1 missing (records 9); 1 doubled (rows 9)"),
        ([*records(10), line()], "1 of no record (rows 10)"),
        ([records(2)[1], records(1)[0], *records(10)[2:]], "1 out of order (rows 1)"),
        (
            [one for one in records(10) if one["length"] % 2],
            "5 missing (records 0, 2, 4 and 2 more)",
        ),
    ],
)
def test_rows_are_checked_against_the_official_records(lines: list[dict], words: str) -> None:
    assert gold_check(lines) == f"{words}, of 10 records"


def test_records_that_look_alike_are_told_apart_by_their_number() -> None:
    gold = [one.gold for one in predictions_of([line(), line(), line("x", ["y"])])]
    rows = predictions_of([line(), line("x", ["y"]), line(), line()])
    check = check_against_gold(rows, gold)
    assert (check.doubled, check.moved, check.missing) == ((3,), (2,), ())


def test_the_official_records_find_a_doubled_row_in_a_real_file(shared: Path) -> None:
    predictions = read_predictions(shared / "predictions/pred/qwen3-8b_CXT3500/narrativeqa.jsonl")
    check = check_against_gold(predictions, read_gold(shared / "longbench_gold/narrativeqa.jsonl"))
    assert (check.doubled, check.missing, check.complete) == ((169,), (199,), False)


# Averages


def test_averages_need_all_their_tasks() -> None:
    english = [
        "narrativeqa",
        "qasper",
        "multifieldqa_en",
        "hotpotqa",
        "2wikimqa",
        "musique",
        "gov_report",
        "qmsum",
        "multi_news",
        "trec",
        "triviaqa",
        "samsum",
        "passage_count",
        "passage_retrieval_en",
    ]
    code = ["lcc", "repobench-p"]
    chinese = ["multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"]
    of_english, of_chinese, of_tables = averages(dict.fromkeys(english, 40.0) | dict.fromkeys(code, 100.0))
    assert of_english.value == 50.0  # six categories count the same
    assert of_tables.value == 47.5  # sixteen tasks count the same
    assert of_chinese.value is None
    assert set(of_chinese.missing) == set(chinese)


def test_averages_are_those_of_a_published_table() -> None:
    # GPT-3.5-Turbo-16k in LongBench's README: English 44.0, Chinese 44.5.
    scores = {
        "narrativeqa": 23.6, "qasper": 43.3, "multifieldqa_en": 52.3, "multifieldqa_zh": 61.2, "hotpotqa": 51.6,
        "2wikimqa": 37.7, "musique": 26.9, "dureader": 28.7, "gov_report": 29.5, "qmsum": 23.4, "multi_news": 26.7,
        "vcsum": 16.0, "trec": 68.0, "triviaqa": 91.4, "samsum": 41.7, "lsht": 29.2, "passage_count": 4.5,
        "passage_retrieval_en": 71.0, "passage_retrieval_zh": 77.5, "lcc": 54.7, "repobench-p": 53.6,
    }  # fmt: skip
    english, chinese, _ = averages(scores)
    assert english.value == pytest.approx(44.0, abs=0.05)
    assert chinese.value == pytest.approx(44.5, abs=0.05)
