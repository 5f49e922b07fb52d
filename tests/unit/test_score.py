"""Scoring a task: the coverage gate, the scores and the score cache."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
from task_files import failed, response, write_manifest, write_shard, write_shard_at

from kv_transition import files
from kv_transition.errors import UserError
from kv_transition.eval.metrics import METRICS
from kv_transition.eval.score import SCORE_SCHEMA, score_task, write_scores
from kv_transition.eval.score_cache import ScoreCache

IDS = ("e0", "e1", "e2", "e3")
SCORING = {
    "primary": "f1",
    "metrics": {},
    "formats": {},
    "refusal_patterns": ["i'm sorry"],
    "first_line_tasks": [],
    "code": "v1",
}


@pytest.fixture
def task(tmp_path):
    """Score the given shards against a manifest of four examples."""
    manifest = write_manifest(tmp_path / "manifest.json")

    def score(*shards, **scoring):
        return score_task(
            manifest_path=manifest,
            response_paths=list(shards),
            scoring=SCORING | scoring,
            cache_dir=tmp_path / "cache",
        )

    return score


@pytest.fixture
def run(tmp_path):
    """Write one run's answers to all four examples; `changes` maps example ids to other column values."""

    def write(method="full", budget=None, replicates=1, **changes):
        rows = [
            response(example_id, method, budget, replicate, **changes.get(example_id, {}))
            for example_id in IDS
            for replicate in range(replicates)
        ]
        return write_shard(tmp_path / "responses", rows)

    return write


def score_one(folder, name, text, **scoring):
    """Score one answer to the only example of a task, whose reference answers are "gold 0" and "alias"."""
    folder.mkdir(exist_ok=True)
    manifest = write_manifest(folder / "manifest.json", n=1, task=name)
    shard = write_shard(folder / "responses", [response("e0", task=name, text=text)])
    return score_task(
        manifest_path=manifest,
        response_paths=[shard],
        scoring=SCORING | scoring,
        cache_dir=folder / "cache",
    )


def rows_of(table, **where):
    return [row for row in table.to_pylist() if all(row[name] == value for name, value in where.items())]


# Scores


def test_every_request_has_one_row_in_the_stated_order(task, run):
    table = task(
        run("snapkv", 64), run("random", 8, replicates=3), run("snapkv", 8), run("no_context"), run()
    )
    assert table.schema == SCORE_SCHEMA
    keys = [(row["method"], row["budget"], row["example_id"], row["replicate"]) for row in table.to_pylist()]
    assert len(set(keys)) == len(keys) == 4 * (1 + 3 + 1 + 1 + 1)
    assert [key[:2] for key in keys[::4]] == [
        ("full", "full"),
        ("no_context", "full"),
        *[("random", "8")] * 3,
        ("snapkv", "8"),
        ("snapkv", "64"),
    ]
    assert [key[2:] for key in keys[8:12]] == [("e0", 0), ("e0", 1), ("e0", 2), ("e1", 0)]


def test_a_row_holds_the_scores_the_texts_compared_and_the_place_of_its_example(task, run):
    (row,) = rows_of(task(run(e2={"text": "It is GOLD.", "completion_tokens": 4})), example_id="e2")
    assert row["em"] == 0.0
    assert row["f1"] == row["score"] == pytest.approx(2 / 5)
    assert (row["metric"], row["pred_norm"], row["gold_norm"]) == ("f1", "it is gold", "gold 2")
    assert (row["bin_idx"], row["token_len"], row["cluster_id"]) == (1, 12, "c2")
    assert row["failure"] is None


def test_the_primary_metric_is_the_score(task, run):
    table = task(run(e2={"text": "gold"}), primary="em")
    assert [(row["metric"], row["score"], row["f1"]) for row in rows_of(table, example_id="e2")] == [
        ("em", 0.0, pytest.approx(2 / 3))
    ]


def test_an_unknown_primary_metric_is_refused(task, run):
    with pytest.raises(
        UserError, match=r"scoring\.primary: 'bleu' is no metric; choose official or one of .*em, f1"
    ):
        task(run(), primary="bleu")


@pytest.mark.parametrize(
    ("name", "metrics", "metric"),
    [
        ("hotpotqa", {}, "qa_f1"),
        ("gov_report_e", {}, "rouge_l"),
        ("hotpotqa", {"hotpotqa": "rouge_l"}, "rouge_l"),
        ("phrasebook_qa", {}, "em"),
        ("my_task", {}, "f1"),
        ("my_task", {"my_task": "code_sim"}, "code_sim"),
    ],
)
def test_the_official_metric_is_that_of_the_task(tmp_path, name, metrics, metric):
    text = "The gold, 0 it is.\nNot this."
    table = score_one(tmp_path, name, text, primary="official", metrics=metrics)
    assert table["metric"].to_pylist() == [metric]
    assert table["score"].to_pylist() == [METRICS[metric](text, ["gold 0", "alias"], [])]


def test_few_shot_tasks_of_longbench_score_their_first_line_without_being_named(tmp_path):
    table = score_one(tmp_path, "triviaqa", "\nGold 0\nPassage: and so on", primary="official")
    assert (table["score"][0].as_py(), table["em"][0].as_py()) == (1.0, 1.0)


def test_a_gold_answer_that_the_official_metric_cannot_score_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"passage_retrieval_en.*'gold 0' names no paragraph"):
        score_one(tmp_path, "passage_retrieval_en", "Paragraph 7", primary="official")


def test_answers_whose_official_score_hangs_on_the_recursion_limit_are_marked(tmp_path):
    short = score_one(tmp_path / "a", "gov_report", "gold 0", primary="official")
    long = score_one(tmp_path / "b", "gov_report", "gold 0" + " word" * 1200, primary="official")
    assert not short["recursion_artefact"][0].as_py()
    assert long["recursion_artefact"][0].as_py()
    assert long["score"][0].as_py() > 0


def test_a_published_score_is_taken_as_it_is_and_has_no_text_to_compare(task, run):
    shard = run(e1={"text": None, "given_score": 0.25, "finish_reason": None, "completion_tokens": None})
    row = rows_of(task(shard), example_id="e1")[0]
    assert (row["score"], row["metric"], row["failure"]) == (0.25, "published", None)
    assert row["em"] is row["f1"] is row["pred_norm"] is row["gold_norm"] is None


def test_first_line_tasks_score_the_first_line_only(task, run):
    shard = run(e0={"text": "\ngold 0\nQuestion: and", "finish_reason": "length"})
    (whole,) = rows_of(task(shard), example_id="e0")
    (first,) = rows_of(task(shard, first_line_tasks=["trivia"]), example_id="e0")
    assert (whole["em"], whole["score"], whole["failure"]) == (0.0, pytest.approx(2 / 3), "TRUNCATED")
    assert (first["em"], first["score"], first["failure"]) == (1.0, 1.0, None)


def test_thinking_is_scored_as_it_stands(task, run):
    (row,) = rows_of(task(run(e0={"text": "<think>hm</think> gold 0"})), example_id="e0")
    assert (row["em"], row["failure"]) == (0.0, None)


def test_a_failed_request_has_a_label_and_no_score(tmp_path, task):
    rows = [
        failed(response("e0"), "TIMEOUT"),
        failed(response("e1"), "ENGINE_ERROR"),
        response("e2", text="I'm sorry"),
        response("e3"),
    ]
    table = task(write_shard(tmp_path, rows))
    assert table["failure"].to_pylist() == ["TIMEOUT", "ENGINE_ERROR", "REFUSAL", None]
    assert table["score"].to_pylist() == table["f1"].to_pylist() == [None, None, 0.0, 1.0]
    assert table["em"].null_count == table["pred_norm"].null_count == 2
    assert table["flag_timeout"].to_pylist() == [True, False, False, False]
    assert table["flag_empty_output"].to_pylist() == [False] * 4


def test_a_label_never_changes_a_score(task, run):
    shard = run(e0={"text": "gold 0", "finish_reason": "length"}, e1={"text": None})
    table = task(shard, formats={"trivia": "option"})
    assert table["score"].to_pylist() == [1.0, 0.0, 1.0, 1.0]
    assert table["failure"].to_pylist() == ["TRUNCATED", "EMPTY_OUTPUT", "FORMAT_ERROR", "FORMAT_ERROR"]


@pytest.mark.parametrize(
    ("completion_tokens", "finish_reason", "one_token"),
    [
        (1, "length", True),
        (2, "stop", True),  # the end token is counted
        (1, "stop", True),
        (2, "length", False),
        (3, "stop", False),
        (1, None, True),
        (None, "stop", False),
    ],
)
def test_one_token_answers_are_marked(task, run, completion_tokens, finish_reason, one_token):
    shard = run(e0={"completion_tokens": completion_tokens, "finish_reason": finish_reason})
    assert task(shard)["one_token"].to_pylist() == [one_token, False, False, False]


def test_the_class_format_needs_class_names(tmp_path, task, run):
    with pytest.raises(
        UserError, match=r"example e0 has no meta\.all_classes, .*class of trivia \(scoring\.formats\)"
    ):
        task(run(), formats={"trivia": "class"})
    manifest = write_manifest(tmp_path / "classes.json", classes=["Gold", "Food"])
    table = score_task(
        manifest_path=manifest,
        response_paths=[run(e1={"text": "gold 1"})],
        scoring=SCORING | {"formats": {"trivia": "class"}},
        cache_dir=tmp_path / "cache",
    )
    assert table["flag_format_error"].to_pylist() == [False, True, False, False]


def test_an_unknown_answer_format_is_refused(task, run):
    with pytest.raises(UserError, match=r"scoring\.formats\.trivia: 'word' is no answer format"):
        task(run(), formats={"trivia": "word"})


def test_written_scores_are_the_same_bytes_again_and_read_back_as_they_were(tmp_path, task, run):
    table = task(run("snapkv", 64), run(), run("random", 8, replicates=3))
    for name in ("a", "b"):
        write_scores(tmp_path / name, table)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_table(tmp_path / "a").equals(table)


def test_scores_do_not_depend_on_how_answers_are_cut_into_shards(tmp_path, task, run):
    whole = run("snapkv", 64)
    rows = [response(example_id, "snapkv", 64) for example_id in IDS]
    folder = tmp_path / "cut"
    cut = [write_shard(folder, rows[3:], "001"), write_shard(folder, rows[:3], "000")]
    assert task(*cut).equals(task(whole))


# Coverage gate


def test_a_missing_answer_stops_scoring_and_is_named(tmp_path, task):
    shard = write_shard(tmp_path, [response(e, "snapkv", 64) for e in ("e0", "e2")])
    with pytest.raises(
        UserError, match=r"trivia, snapkv at 64, replicate 0: .* 2 missing \(e1, e3\); in .*000"
    ) as error:
        task(shard)
    assert str(shard) in str(error.value)


def test_a_doubled_answer_stops_scoring_and_is_named(tmp_path, task):
    shards = [
        write_shard(tmp_path, [response(e) for e in IDS], "000"),
        write_shard(tmp_path, [response("e3")], "001"),
    ]
    with pytest.raises(
        UserError, match=r"full at full.* 1 doubled \(e3\); in .*000\.parquet, .*001\.parquet"
    ):
        task(*shards)


def test_an_answer_to_a_foreign_example_stops_scoring(tmp_path, task):
    with pytest.raises(UserError, match=r"1 not in the manifest \(zz\)"):
        task(write_shard(tmp_path, [response(e) for e in (*IDS, "zz")]))


def test_each_replicate_has_to_be_complete(tmp_path, task):
    rows = [response(e, "random", 8, replicate) for e in IDS for replicate in (0, 1)]
    with pytest.raises(UserError, match=r"random at 8, replicate 1: .*1 missing \(e3\)"):
        task(write_shard(tmp_path, rows[:-1]))


def test_many_missing_answers_are_counted_not_listed(tmp_path):
    manifest = write_manifest(tmp_path / "manifest.json", n=50)
    shard = write_shard(tmp_path, [response("e0")])
    with pytest.raises(UserError, match=r"49 missing \(e1, e10, e11 and 46 more\)"):
        score_task(
            manifest_path=manifest, response_paths=[shard], scoring=SCORING, cache_dir=tmp_path / "cache"
        )


def test_an_empty_shard_is_fine_but_a_run_without_answers_is_not(tmp_path, task, run):
    full = run("snapkv", 64)
    assert task(full, write_shard_at(full.with_name("001.parquet"), [])).num_rows == 4
    nothing = write_shard_at(tmp_path / "responses/trivia/tova/64/000.parquet", [])
    with pytest.raises(UserError, match=r"tova/64: no answers at all, expected 4"):
        task(full, nothing)


def test_answers_to_another_task_are_refused(tmp_path, task):
    with pytest.raises(UserError, match="holds answers to task 'qasper', expected 'trivia'"):
        task(write_shard(tmp_path, [response("e0", task="qasper")]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such response shard"),
        (b"PAR1 no", "not a readable response shard"),
        (b"", "not a readable"),
    ],
)
def test_an_unreadable_shard_is_named(tmp_path, task, content, message):
    path = tmp_path / "000.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        task(path)


def test_a_shard_without_its_columns_is_named(tmp_path, task):
    path = tmp_path / "000.parquet"
    files.write_parquet(path, {"task": ["trivia"], "text": ["x"]})
    with pytest.raises(UserError, match="lacks the columns budget, example_id, method, replicate"):
        task(path)


def test_an_unknown_failure_in_a_shard_is_refused(tmp_path, task):
    with pytest.raises(
        UserError, match="example e0 has the failure 'LOST', expected none, TIMEOUT or ENGINE_ERROR"
    ):
        task(write_shard(tmp_path, [response(e, failure="LOST" if e == "e0" else None) for e in IDS]))


def test_an_absent_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: there is no such manifest"):
        score_task(
            manifest_path=tmp_path / "none.json", response_paths=[], scoring=SCORING, cache_dir=tmp_path
        )


# Score cache


def counts(caplog):
    """(computed, cached) of the last scoring, from its log line."""
    record = next(r for r in reversed(caplog.records) if "taken from the score cache" in r.message)
    return record.args[1:]


def test_rescoring_after_new_budgets_computes_only_the_new_answers(task, run, caplog):
    caplog.set_level(logging.INFO)
    old = run("snapkv", 64)
    first = task(old)
    assert counts(caplog) == (4, 0)
    new = run("snapkv", 8, e0={"text": "another"}, e1={"text": "answer"})
    both = task(old, new)
    assert counts(caplog) == (2, 6)  # two answers are new, two of the new run's are the old texts
    assert first.equals(both.slice(4))
    assert task(old, new).equals(both)
    assert counts(caplog) == (0, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"code": "v2"},
        {"primary": "em"},
        {"formats": {"trivia": "number"}},
        {"refusal_patterns": []},
        {"first_line_tasks": ["trivia"]},
    ],
)
def test_another_way_of_scoring_computes_everything_again(task, run, caplog, change):
    caplog.set_level(logging.INFO)
    shard = run()
    task(shard)
    task(shard, **change)
    assert counts(caplog) == (4, 0)


def test_a_rule_for_another_task_leaves_the_cache_valid(task, run, caplog):
    caplog.set_level(logging.INFO)
    shard = run()
    task(shard)
    task(shard, formats={"trec": "class"}, first_line_tasks=["trec"])
    assert counts(caplog) == (0, 4)


def test_changed_texts_finish_reasons_and_answers_are_computed_again(tmp_path, task, run, caplog):
    caplog.set_level(logging.INFO)
    task(run())
    task(run(e0={"finish_reason": "length"}, e1={"text": "x"}))
    assert counts(caplog) == (2, 2)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("gold 3", "gold three"))
    task(run())
    assert counts(caplog) == (1, 3)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"\xff" + data])
def test_a_broken_cache_file_is_warned_about_and_written_anew(tmp_path, task, run, caplog, damage):
    caplog.set_level(logging.INFO)
    shard = run()
    expected = task(shard)
    (file,) = (tmp_path / "cache").rglob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert task(shard).equals(expected)
    assert counts(caplog) == (4, 0)
    assert any(record.levelname == "WARNING" and str(file) in record.message for record in caplog.records)
    assert file.read_bytes() == whole
    task(shard)
    assert counts(caplog) == (0, 4)


def test_a_broken_cache_file_is_warned_about_once(tmp_path, task, run, caplog):
    shard = run()
    task(shard)
    (file,) = (tmp_path / "cache").rglob("*.jsonl")
    broken = file.with_name("0.jsonl")
    broken.write_text("{")
    for _ in range(2):
        task(shard)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert list((tmp_path / "cache").rglob("*.jsonl")) == [file]


def test_several_runs_may_share_a_cache_folder(tmp_path):
    def score(worker):
        cache = ScoreCache(tmp_path, {"code": "v1"})
        values = [cache.get(["text", i], lambda i=i: {"score": i / 7}) for i in range(worker, worker + 50)]
        cache.save()
        return [value["score"] for value in values]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(score, range(0, 200, 25)))
    assert results == [[i / 7 for i in range(worker, worker + 50)] for worker in range(0, 200, 25)]
    cache = ScoreCache(tmp_path, {"code": "v1"})
    assert [cache.get(["text", i], dict)["score"] for i in range(225)] == [i / 7 for i in range(225)]
    assert (cache.computed, cache.cached) == (0, 225)
    assert not list(tmp_path.rglob("*.tmp"))
