"""The commands on predictions files, and which of its two forms `score` takes."""

import json
import shutil
from pathlib import Path

import pytest
from prediction_files import line, records, write_lines

from kv_transition import cli, preflight
from kv_transition.cli import main
from kv_transition.commands import console

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of two tasks: one half right, one all right."""
    write_lines(
        tmp_path / "model/qasper.jsonl", [*records(5), *(one | {"pred": "?"} for one in records(10)[5:])]
    )
    write_lines(tmp_path / "model/trec.jsonl", [line("Food", ["Food"], 9000, all_classes=["Food", "Date"])])
    return tmp_path / "model"


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# One file


def test_a_file_is_scored_and_its_rows_are_written(model: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["score", "--predictions", str(model / "qasper.jsonl"), "--out", str(tmp_path / "rows")]) == 0
    assert capsys.readouterr().out == "qasper: 50.0\n"
    rows = [json.loads(text) for text in (tmp_path / "rows").read_text().splitlines()]
    assert [one["row"] for one in rows] == list(range(10))
    assert rows[0] == {"row": 0, "length": 1000, "score": 1.0, "em": 1.0, "f1": 1.0, "failure": None}
    assert rows[9]["score"] == 0.0
    assert not (model / "result.json").exists()


@pytest.mark.parametrize("words", [["{}"], ["--task", "qasper", "{}"], ["{}", "--task", "qasper"]])
def test_the_path_may_stand_alone(model: Path, capsys: Captured, words: list[str]) -> None:
    path = str(model / "qasper.jsonl")
    assert main(["score", *(word.format(path) for word in words)]) == 0
    assert capsys.readouterr().out == "qasper: 50.0\n"


def test_the_task_is_the_files_name_unless_it_is_given(tmp_path: Path, capsys: Captured) -> None:
    mine = write_lines(tmp_path / "mine.jsonl", records(2))
    namesake = write_lines(tmp_path / "qasper_e.jsonl", records(2))
    assert main(["score", str(mine), "--task", "hotpotqa"]) == 0
    assert main(["score", str(namesake)]) == 0
    assert capsys.readouterr().out == "hotpotqa: 100.0\nqasper_e: 100.0\n"
    assert main(["score", str(mine)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {mine}: 'mine' is no task of LongBench; it has narrativeqa")
    assert error.count("\n") == 1


def test_the_bins_of_longbench_e_are_shown_with_a_dash_for_an_empty_one(
    model: Path, capsys: Captured
) -> None:
    assert main(["score", str(model / "trec.jsonl"), "--longbench-e"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "trec, LongBench-E: 0-4k –, 4-8k –, 8k+ 100.0"


def test_doubled_rows_are_warned_of_and_marked_and_scored(tmp_path: Path, capsys: Captured) -> None:
    wrong = [one | {"pred": "?"} for one in records(20)]
    path = write_lines(tmp_path / "qasper.jsonl", records(20) + wrong)
    assert main(["score", str(path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == "qasper: 50.0 (doubled rows: 20-39 repeat 0-19)\n"
    assert shown.err.startswith(f"warning: {path}: doubled rows, counted from 0: 20-39 repeat 0-19")


def test_classes_that_differ_are_warned_of(tmp_path: Path, capsys: Captured) -> None:
    lines = [line(all_classes=["Paris"]), line(all_classes=["Paris", "Rome"])]
    assert main(["score", str(write_lines(tmp_path / "trec.jsonl", lines))]) == 0
    assert "all_classes differ between lines; those of the last line are used" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [False, True])
def test_rows_that_are_not_those_of_the_records_fail_the_check(
    tmp_path: Path, capsys: Captured, folder: bool
) -> None:
    gold = write_lines(tmp_path / "gold/qasper.jsonl", [one | {"context": "..."} for one in records(12)])
    whole = write_lines(tmp_path / "a/qasper.jsonl", records(12))
    short = write_lines(tmp_path / "b/qasper.jsonl", records(10))
    source = str(gold.parent if folder else gold)
    assert main(["score", str(whole), "--gold", source]) == 0
    assert capsys.readouterr().out == "qasper: 100.0 (rows: complete and in order, of 12 records)\n"
    assert main(["score", str(short.parent if folder else short), "--gold", source]) == 1
    shown = capsys.readouterr()
    assert "2 missing (records 10-11), of 12 records" in shown.out
    assert shown.err.startswith(f"warning: {short}: rows counted from 0, against {gold}: 2 missing")


def test_a_task_without_official_records_is_named(model: Path, tmp_path: Path, capsys: Captured) -> None:
    gold = write_lines(tmp_path / "gold/qasper.jsonl", records(10))
    assert main(["score", str(model), "--gold", str(gold.parent)]) == 0
    assert f"{model / 'trec.jsonl'}: {gold.parent} has no trec.jsonl" in capsys.readouterr().err


def test_the_bins_of_longbench_e_are_checked_against_its_own_records_only(
    tmp_path: Path, capsys: Captured
) -> None:
    path = write_lines(tmp_path / "qasper.jsonl", records(10))
    of_v1 = write_lines(tmp_path / "gold/qasper.jsonl", records(12))
    assert main(["score", str(path), "--longbench-e", "--gold", str(of_v1.parent)]) == 0
    shown = capsys.readouterr()
    assert "missing" not in shown.out
    assert f"{of_v1.parent} has no qasper_e.jsonl: no LongBench-E records there, not checked" in shown.err
    write_lines(tmp_path / "gold/qasper_e.jsonl", records(10))
    assert main(["score", str(path), "--longbench-e", "--gold", str(of_v1.parent)]) == 0
    assert "complete and in order, of 10 records" in capsys.readouterr().out


def test_the_records_of_a_namesake_are_not_those_of_the_task(tmp_path: Path, capsys: Captured) -> None:
    path = write_lines(tmp_path / "qasper_e.jsonl", records(10))
    gold = write_lines(tmp_path / "gold/qasper.jsonl", records(12))
    assert main(["score", str(path), "--gold", str(gold.parent)]) == 0
    assert f"{gold.parent} has no qasper_e.jsonl" in capsys.readouterr().err


# Folders


@pytest.mark.parametrize("command", ["score", "compare", "tasks"])
def test_hidden_files_in_a_folder_are_passed_over(model: Path, capsys: Captured, command: str) -> None:
    record = {"input": "", "context": "", **line()}
    write_lines(model / "qasper.jsonl", [record])
    (model / "._qasper.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (model / ".trec.jsonl").write_bytes(b"\x00\x05\x16\x07")
    assert main([command, str(model), *([str(model)] if command == "compare" else [])]) == 0
    assert "._qasper" not in capsys.readouterr().out


def test_a_folders_scores_are_written_in_the_official_shape(model: Path, capsys: Captured) -> None:
    assert main(["score", str(model)]) == 0
    assert (model / "result.json").read_text() == '{\n    "qasper": 50.0,\n    "trec": 100.0\n}'
    assert sorted(path.name for path in model.iterdir()) == ["qasper.jsonl", "result.json", "trec.jsonl"]
    assert (
        "LongBench, English (mean of 6 category means): not computed without 2wikimqa"
        in capsys.readouterr().out
    )


def test_longbench_e_writes_the_bins_and_null_for_an_empty_one(model: Path) -> None:
    assert main(["score", str(model), "--longbench-e"]) == 0
    assert result(model)["trec"] == {"0-4k": None, "4-8k": None, "8k+": 100.0}


def test_a_folder_of_folders_is_mirrored_under_out(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, model.parent / "models/deep/second")
    shutil.copytree(model, model.parent / "models/first")
    out = tmp_path / "out"
    assert main(["score", str(model.parent / "models"), "--out", str(out)]) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = ["qasper.rows.jsonl", "result.json", "trec.rows.jsonl"]
    assert written == [f"{folder}/{name}" for folder in ("deep/second", "first") for name in names]
    assert not list((model.parent / "models").rglob("result.json"))


def test_rows_beside_the_predictions_are_not_taken_for_predictions(model: Path) -> None:
    assert main(["score", str(model), "--out", str(model)]) == 0
    assert main(["score", str(model)]) == 0
    assert set(result(model)) == {"qasper", "trec"}


def test_an_equal_result_is_left_as_it_is(model: Path, capsys: Captured) -> None:
    there = model / "result.json"
    there.write_text('{"trec": 100, "qasper": 50.0}')
    assert main(["score", str(model)]) == 0
    assert "equal to the result.json that is there (2 tasks)" in capsys.readouterr().out
    assert there.read_text() == '{"trec": 100, "qasper": 50.0}'


def test_nan_in_an_official_result_is_an_empty_bin(model: Path, capsys: Captured) -> None:
    (model / "qasper.jsonl").unlink()
    (model / "result.json").write_text('{"trec": {"0-4k": NaN, "4-8k": NaN, "8k+": 100.0}}')
    assert main(["score", str(model), "--longbench-e"]) == 0
    assert "equal to the result.json that is there (1 task)" in capsys.readouterr().out


def test_a_result_that_differs_is_compared_and_kept_unless_it_may_be_replaced(
    model: Path, capsys: Captured
) -> None:
    there = model / "result.json"
    there.write_text('{"qasper": 50.01, "lcc": 3.0}')
    assert main(["score", str(model)]) == 1
    shown = [text.split() for text in capsys.readouterr().out.splitlines()]
    assert ["qasper", "50.01", "50.0"] in shown
    assert ["lcc", "3.0", "absent"] in shown
    assert ["trec", "absent", "100.0"] in shown
    assert there.read_text() == '{"qasper": 50.01, "lcc": 3.0}'
    assert main(["score", str(model), "--overwrite"]) == 0
    assert result(model) == {"qasper": 50.0, "trec": 100.0}


def test_a_folder_that_cannot_be_written_is_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(console, "write_text", refuse)
    assert main(["score", str(model)]) == 2
    error = f"error: {model / 'result.json'}: cannot be written (Permission denied); name another place with --out\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["{model}/none"], "no such file or folder"),
        (["{model}", "--task", "trec"], "--task: the files in the folder"),
        (["{model}", "--gold", "{model}/none"], "--gold: there is no"),
        (["{model}/trec.jsonl", "--task", "trek"], "'trek' is no task of LongBench"),
        (["{model}/trec.jsonl", "--out", "{model}"], "is a folder; name a new .jsonl file"),
        (["{model}/trec.jsonl", "--out", "{model}/trec.jsonl"], "is the input; name a new .jsonl file"),
        (["{model}/empty"], "no .jsonl file in this folder or below"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    model: Path, capsys: Captured, options: list[str], words: str
) -> None:
    (model / "empty").mkdir()
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert main(["score", *(option.format(model=model) for option in options)]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert before == {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}


def test_a_broken_file_stops_the_folder_before_anything_is_written(model: Path, capsys: Captured) -> None:
    write_lines(model / "lcc.jsonl", [line(), "{"])
    assert main(["score", str(model.parent), "--out", str(model / "out")]) == 2
    shown = capsys.readouterr()
    assert (shown.err.startswith(f"error: {model / 'lcc.jsonl'}, line 2: broken JSON"), shown.out) == (
        True,
        "",
    )
    assert not (model / "out").exists()


def test_every_published_score_is_reproduced(shared: Path, tmp_path: Path, capsys: Captured) -> None:
    official = json.loads((shared / "scoring_aggregates.json").read_text())
    copy = tmp_path / "pred"
    shutil.copytree(shared / "predictions/pred", copy)
    assert main(["score", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("equal to the result.json that is there (18 tasks)") == 3
    for name, tasks in official["pred"].items():
        assert result(copy / name) == {task: one["score"] for task, one in tasks.items()}

    assert main(["score", str(shared / "predictions/pred_e"), "--longbench-e", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for name, tasks in official["pred_e"].items():
        assert result(tmp_path / name) == {task: one["bins"] for task, one in tasks.items()}
        scores = {
            cells[0]: float(cells[2])
            for text in shown.splitlines()
            if len(cells := text.split()) == 6 and cells[0] in tasks
        }
        assert scores == {task: one["overall"] for task, one in tasks.items()}
        rows = (tmp_path / name / "multi_news.rows.jsonl").read_text().splitlines()
        assert len(rows) == sum(tasks["multi_news"]["n"].values())


# Which form


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The calls of Snakemake that a command would make."""
    calls: list[tuple] = []
    monkeypatch.setattr(cli, "_build", lambda *arguments: calls.append(arguments) or 0)
    return calls


@pytest.mark.parametrize(
    "options", [[], ["--cores", "4"], ["-n"], ["--cores", "2", "results/demo/scores/phrasebook_qa.parquet"]]
)
@pytest.mark.parametrize("config", [[], ["-c", "config/default.yaml"]])
def test_without_predictions_score_is_a_stage_of_the_workflow(
    root: Path, monkeypatch: pytest.MonkeyPatch, stages: list[tuple], options: list[str], config: list[str]
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(preflight, "check_inputs", lambda settings: None)
    assert main(["score", *config, *options]) == 0
    assert stages == [("all_scores", "config/default.yaml", [], options)]


@pytest.mark.parametrize(
    "options",
    [
        ["-c", "config/default.yaml", "--predictions", "{}"],
        ["{}", "--override", "kv.kernel=7"],
        ["{}", "--cores", "2"],
        ["{}", "another"],
        ["--task", "trec"],
    ],
)
def test_both_forms_at_once_are_a_mistake_in_usage(
    model: Path, stages: list[tuple], capsys: Captured, options: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["score", *(option.format(model) for option in options)])
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert stages == []


# Compare


def test_two_folders_are_compared_and_tasks_of_one_are_named(
    model: Path, tmp_path: Path, capsys: Captured
) -> None:
    other, out = tmp_path / "other", tmp_path / "out.json"
    write_lines(other / "qasper.jsonl", records(10))
    assert main(["compare", str(model), str(other), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Only in A, not compared: trec" in shown
    assert "Only in B" not in shown
    values = json.loads(out.read_text())
    (one,) = values["tasks"]
    assert (one["task"], one["n"], one["score_a"], one["score_b"], one["difference"]) == (
        "qasper",
        10,
        50.0,
        100.0,
        50.0,
    )
    assert one["excludes_zero"] is True
    assert values["only_in_a"] == ["trec"]
    assert values["macro_mean"] is None


def test_a_row_without_limits_is_shown_with_dashes_and_null(
    model: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out.json"
    assert main(["compare", str(model), str(model), "--task", "trec", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert next(text for text in shown.splitlines() if text.startswith("trec")).split()[-4:] == ["–"] * 4
    assert json.loads(out.read_text())["tasks"][0]["lo"] is None


def test_two_files_of_any_name_are_compared_with_their_task(
    model: Path, tmp_path: Path, capsys: Captured
) -> None:
    a, b = (write_lines(tmp_path / f"{name}.jsonl", records(9)) for name in "ab")
    assert main(["compare", str(a), str(b), "--task", "hotpotqa"]) == 0
    assert "All rows differ by the same amount" in capsys.readouterr().out
    assert main(["compare", str(a), str(b)]) == 2
    assert "'a' is no task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}", "{model}/trec.jsonl"], "one is a folder, the other is not"),
        (["{model}", "{model}/none"], "one is a folder, the other is not"),
        (["{model}/trec.jsonl", "{model}/qasper.jsonl"], "no task in common"),
        (["{model}", "{model}", "--task", "lcc"], "--task: {model} has no lcc.jsonl; it has qasper, trec"),
        (["{model}", "{model}", "--conf", "95"], "--conf: 95 is no confidence level"),
        (["{model}", "{short}"], "qasper: 10 rows in {model}/qasper.jsonl, 9 in {short}/qasper.jsonl"),
        (["{model}", "{moved}"], "qasper: row 3 (from 0) has another list of reference answers"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    model: Path, tmp_path: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    lines = records(10)
    folders = {"model": model, "short": tmp_path / "short", "moved": tmp_path / "moved"}
    write_lines(folders["short"] / "qasper.jsonl", lines[:9])
    write_lines(folders["moved"] / "qasper.jsonl", [*lines[:3], *lines[4:], lines[3]])
    assert main(["compare", *(argument.format(**folders) for argument in arguments)]) == 2
    shown = capsys.readouterr()
    assert words.format(**folders) in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")


def test_real_models_differ_where_the_intervals_say_so(shared: Path, capsys: Captured) -> None:
    plain, shares = (
        shared / "predictions/pred" / f"llama3-8b-instruct{end}" for end in ("", "_S17-19-21-23")
    )
    assert main(["compare", str(plain), str(shares), "--task", "trec", "--task", "multi_news"]) == 0
    shown = capsys.readouterr().out
    assert "0 is outside the interval in 1 of 2 tasks" in shown
    assert "With Holm's adjustment over the tasks p is at most 0.05 in 1: trec." in shown
    assert "Where 0 is inside, the rows show no difference, and not that there is none." in shown


# Tasks


def test_the_tasks_of_a_folder_are_printed_one_a_line(tmp_path: Path, capsys: Captured) -> None:
    record = {"input": "", "context": "", **line()}
    for name in ("b", "a"):
        write_lines(tmp_path / f"{name}.jsonl", [record])
    assert main(["tasks", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "a\nb\n"
    assert main(["tasks", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [{}, {"notes.txt": "no task"}, {"settings.json": "{}"}])
def test_a_folder_without_tasks_is_one_line(
    tmp_path: Path, capsys: Captured, content: dict[str, str]
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert main(["tasks", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {tmp_path}: no task in it; ")
    assert shown.err.count("\n") == 1


def test_the_help_says_whose_failure_labels_the_rows_have(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "default scoring.refusal_patterns" in " ".join(capsys.readouterr().out.split())
