"""The database: what assembling puts into it, what it refuses, and how rows are read and written."""

import json
import math
import sqlite3
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from task_files import DATASET, failed, response, write_manifest, write_shard, write_shard_at

from kv_transition import files
from kv_transition.analysis.costs import COSTS
from kv_transition.analysis.effect_models import EFFECT_MODELS
from kv_transition.analysis.lossless import LOSSLESS
from kv_transition.analysis.macro import MACRO
from kv_transition.analysis.noise import NOISE_FLOOR
from kv_transition.analysis.paired_tests import PAIRED_TESTS
from kv_transition.db import arrow_rows, dao
from kv_transition.db import assemble as assemble_module
from kv_transition.db.assemble import assemble
from kv_transition.db.connect import connect, create_schema
from kv_transition.errors import UserError
from kv_transition.eval.score import score_task, write_scores

IDS = ("e0", "e1", "e2", "e3")
SETTINGS = {"experiment": {"id": "exp"}, "model": {"name": "tiny", "api_key_env": "MY_KEY"}}
PROVENANCE = {"git": "abc", "packages": {"numpy": "2.4"}}
SCORING = {
    "primary": "f1",
    "metrics": {},
    "formats": {},
    "refusal_patterns": [],
    "first_line_tasks": [],
    "code": "v1",
}

CELL_KEYS = ("dataset", "task", "method", "bin_idx", "budget", "budget_value", "policy")
ABOUT = ("protocol", "metric", "length_unit")
BIN_STATS = (
    *(
        *CELL_KEYS,
        "n",
        "n_clusters",
        "n_missing",
        *("n_infeasible", "n_not_applicable", "infeasible_frac"),
        "n_empty_output",
        "n_refusal",
        "n_truncated",
        "n_format_error",
    ),
    *("n_timeout", "n_engine_error", "active_frac", "unreliable", "verified_frac", "kept_min", "kept_mean"),
    *("kept_max", "token_len_min", "token_len_median", "token_len_max", "bin_name", "mean", "se", "lo", "hi"),
    *("boot_lo", "boot_hi", "em_mean", "f1_mean", *ABOUT),
)
RETENTION = (
    *(
        *CELL_KEYS,
        "n_pairs",
        "n_clusters",
        "active_frac",
        "R",
        "R_lo",
        "R_hi",
        "status",
        "gate",
        "R0",
        "R0_lo",
    ),
    *(
        "R0_hi",
        "R0_status",
        "diff",
        "diff_se",
        "diff_lo",
        "diff_hi",
        "diff_p",
        "degenerate",
        "ni_p",
        "tost_p",
    ),
    *("delta", "mde", "boot_lo", "boot_hi", "boot_zero_den_frac", *ABOUT),
)
TRANSITION = (
    *("dataset", "task", "method", "bin_idx", "policy", "tau", "T_point", "T_lower", "T_upper"),
    *(
        "T_point_tokens",
        "T_lower_tokens",
        "T_upper_tokens",
        "censored_point",
        "censored_lower",
        "censored_upper",
    ),
    *(
        "log2_T_interp",
        "T_interp",
        "interp_label",
        "interp_lo",
        "interp_hi",
        "interp_lo_label",
        "interp_hi_label",
    ),
    *("status", "p_upper", "p_lower", "budgets", "max_decrease", "n_pairs", "token_len_median", "flags"),
    *ABOUT,
)


def cell_row(method, budget, **values):
    label = "full" if budget is None else str(budget)
    keys = {"dataset": DATASET, "task": "trivia", "method": method, "bin_idx": -1, "policy": "zero"}
    return keys | {"budget": label, "budget_value": budget} | values


#: Name -> (columns, rows): a row each, but for means over tasks, of which one task has none.
FURTHER_TABLES = {
    "paired_tests": (
        list(PAIRED_TESTS),
        [
            {"dataset": DATASET, "task": "trivia", "policy": "zero", "kind": "full", "bin_idx": -1}
            | {"method_a": "full", "budget_a": "full", "method_b": "snapkv", "budget_b": "64", "diff": -0.5}
        ],
    ),
    "lossless": (list(LOSSLESS), [cell_row("snapkv", 64, status="not_demonstrated", tested=[64.0])]),
    "effect_models": (
        list(EFFECT_MODELS),
        [
            {"dataset": DATASET, "task": "trivia", "policy": "zero", "model": "collapse", "method": "snapkv"}
            | {"term": "alpha1", "estimate": 1.0, "label": "relative"}
        ],
    ),
    "macro": (list(MACRO), []),
    "costs": (list(COSTS), [cell_row("snapkv", 64, latency_median=0.05)]),
    "noise_floor": (
        list(NOISE_FLOOR),
        [
            {"dataset": DATASET, "task": "trivia", "dtype": "bfloat16", "attention": "sdpa", "n": 4}
            | {"other_attention": "eager", "status": "ok", "R": 0.98}
        ],
    ),
}


def write_analysis(path, columns, rows):
    """An analysis file with the columns in which `rows` say nothing null."""
    names = [*columns, *(name for row in rows for name in row if name not in columns)]
    files.write_parquet(path, {name: [row.get(name) for row in rows] for name in dict.fromkeys(names)})
    return path


class Experiment:
    """All files of an experiment: four examples; full, SnapKV with a failure and a copied row, random three times."""

    def __init__(self, folder):
        self.db = folder / "kv_transition.sqlite"
        self.folder = folder
        manifest = write_manifest(folder / "data" / "trivia" / "manifest.json")
        snapkv = [response(e, "snapkv", 64) for e in IDS]
        snapkv[1] = failed(snapkv[1])
        snapkv[2] |= {"copied_from": "full", "active": False, "prefill_s": None, "decode_s": None}
        snapkv[3] |= {"text": ""}
        runs = [
            [response(e) for e in IDS],
            snapkv,
            [response(e, "random", 8, replicate) for e in IDS for replicate in range(3)],
        ]
        self.inputs = {
            "settings": SETTINGS,
            "provenance": PROVENANCE,
            "manifests": [manifest],
            "responses": [write_shard(folder / "responses", rows) for rows in runs],
            "scores": [folder / "scores" / "trivia.parquet"],
            "tables": {
                "bin_stats": write_analysis(
                    folder / "bin_stats.parquet",
                    BIN_STATS,
                    [
                        cell_row("full", None, n=4, mean=1.0, unreliable=False),
                        cell_row("snapkv", 64, n=4, mean=0.5, unreliable=True),
                    ],
                ),
                "retention": write_analysis(
                    folder / "retention.parquet", RETENTION, [cell_row("snapkv", 64, R=0.5, status="ok")]
                ),
                "transition": write_analysis(
                    folder / "transition.parquet",
                    TRANSITION,
                    [
                        {
                            "dataset": DATASET,
                            "task": "trivia",
                            "method": "snapkv",
                            "bin_idx": -1,
                            "policy": "zero",
                        }
                        | {"tau": tau, "T_point": ">64", "p_upper": [0.5, math.nan], "budgets": [8.0, 64.0]}
                        for tau in (0.9, 0.95)
                    ],
                ),
                **{
                    name: write_analysis(folder / f"{name}.parquet", columns, rows)
                    for name, (columns, rows) in FURTHER_TABLES.items()
                },
            },
        }
        self.score()

    def score(self):
        table = score_task(
            manifest_path=self.inputs["manifests"][0],
            response_paths=self.inputs["responses"],
            scoring=SCORING,
            cache_dir=self.folder / "cache",
        )
        write_scores(self.inputs["scores"][0], table)

    def assemble(self, **changes):
        return assemble(db_path=self.db, **(self.inputs | changes))

    def query(self, sql):
        with closing(connect(self.db, read_only=True)) as connection:
            return [tuple(row) for row in connection.execute(sql)]

    def dump(self):
        with closing(sqlite3.connect(self.db)) as connection:
            return list(connection.iterdump())


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "exp")


# Assembling


def test_every_table_has_the_rows_of_its_files(experiment):
    assert experiment.assemble() == {
        "experiments": 1,
        "datasets": 1,
        "examples": 4,
        "bins": 2,
        "manifest_entries": 4,
        "runs": 3,
        "requests": 20,
        "responses": 20,
        "telemetry": 20,
        "failures": 2,
        "scores": 20,
        "bin_stats": 2,
        "retention": 1,
        "transition_summary": 2,
        "paired_tests": 1,
        "lossless": 1,
        "effect_models": 1,
        "macro": 0,
        "costs": 1,
        "noise_floor": 1,
    }


def test_the_database_is_sound_and_its_rows_point_at_each_other(experiment):
    experiment.assemble()
    assert experiment.query("PRAGMA integrity_check") == [("ok",)]
    assert experiment.query("PRAGMA foreign_key_check") == []
    assert experiment.query("PRAGMA journal_mode") == [("delete",)]


def test_every_answer_can_be_read_with_its_score_run_and_example(experiment):
    experiment.assemble()
    sql = """SELECT example_id, bin_idx, token_len, cluster_id, text, score, failure, kept_mean, active
             FROM scored_answers WHERE method = 'snapkv' ORDER BY example_id"""
    assert experiment.query(sql) == [
        ("e0", 0, 10, "c0", "Gold 0.", 1.0, None, 64.0, True),
        ("e1", 0, 11, "c1", None, None, "TIMEOUT", None, True),
        ("e2", 1, 12, "c2", "Gold 2.", 1.0, None, 64.0, False),
        ("e3", 1, 13, "c3", "", 0.0, "EMPTY_OUTPUT", 64.0, True),
    ]


def test_replicates_are_requests_of_one_run(experiment):
    experiment.assemble()
    sql = (
        "SELECT replicate, count(*) FROM requests WHERE run_id = 'exp__trivia__random__8' GROUP BY replicate"
    )
    assert experiment.query(sql) == [(0, 4), (1, 4), (2, 4)]


def test_a_copied_answer_says_so_and_has_no_times(experiment):
    experiment.assemble()
    sql = """SELECT example_id, copied_from, active, prefill_s, decode_s FROM responses
             JOIN telemetry USING (request_id) JOIN requests USING (request_id) WHERE copied_from IS NOT NULL"""
    assert experiment.query(sql) == [("e2", "full", False, None, None)]


def test_failures_keep_the_last_error_and_the_attempts(experiment):
    experiment.assemble()
    sql = "SELECT label, attempts, error FROM failures ORDER BY label DESC"
    assert experiment.query(sql) == [("TIMEOUT", 3, "no answer after 60 s"), ("EMPTY_OUTPUT", None, None)]


def test_settings_and_provenance_are_stored_and_read_as_values(experiment):
    experiment.assemble()
    assert experiment.query("SELECT experiment_id, settings, settings_hash, provenance FROM experiments") == [
        ("exp", SETTINGS, files.sha256_text(files.canonical_json(SETTINGS)), PROVENANCE)
    ]


def test_bins_and_datasets_are_those_of_the_manifest(experiment):
    experiment.assemble()
    assert experiment.query("SELECT dataset_id, task, tokenizer, n_bins, bin_edges FROM datasets") == [
        (DATASET, "trivia", "words", 2, [11, 13])
    ]
    assert experiment.query("SELECT bin_idx, lower, upper, selected, selected_median FROM bins") == [
        (0, 10, 11, 2, 10.5),
        (1, 12, 13, 2, 12.5),
    ]


def test_the_schema_has_every_documented_analysis_column(experiment):
    experiment.assemble()
    for table, columns in (
        ("bin_stats", BIN_STATS),
        ("retention", RETENTION),
        ("transition_summary", TRANSITION),
    ):
        names = [name for (name,) in experiment.query(f"SELECT name FROM pragma_table_info('{table}')")]
        assert sorted(names) == sorted(columns)


def test_a_further_column_of_an_analysis_file_is_kept(experiment):
    rows = [cell_row("snapkv", 64, isotonic=[0.5, None], note="x", is_odd=True, count=3, share=0.5)]
    write_analysis(experiment.inputs["tables"]["retention"], RETENTION, rows)
    experiment.assemble()
    assert experiment.query("SELECT isotonic, note, is_odd, count, share FROM retention") == [
        ([0.5, None], "x", True, 3, 0.5)
    ]


def test_the_content_does_not_depend_on_shards_or_the_order_of_files(experiment):
    experiment.assemble()
    expected = experiment.dump()
    full, snapkv, random = experiment.inputs["responses"]
    rows = pq.read_table(random).to_pylist()
    cut = [
        write_shard_at(random.with_name(f"00{i}.parquet"), part)
        for i, part in enumerate((rows[7:], rows[:7], []))
    ]
    experiment.assemble(responses=[*cut, snapkv, full])
    assert experiment.dump() == expected


def test_equal_files_give_the_same_database_bytes(experiment):
    experiment.assemble()
    first = experiment.db.read_bytes()
    experiment.assemble()
    assert experiment.db.read_bytes() == first


def test_several_tasks_share_a_database(experiment):
    manifest = write_manifest(experiment.folder / "data" / "other" / "manifest.json", task="other")
    shard = write_shard(experiment.folder / "responses", [response(e, task="other") for e in IDS])
    scores = experiment.folder / "scores" / "other.parquet"
    write_scores(
        scores,
        score_task(
            manifest_path=manifest,
            response_paths=[shard],
            scoring=SCORING,
            cache_dir=experiment.folder / "cache",
        ),
    )
    counts = experiment.assemble(
        manifests=[*experiment.inputs["manifests"], manifest],
        responses=[*experiment.inputs["responses"], shard],
        scores=[*experiment.inputs["scores"], scores],
    )
    assert (counts["datasets"], counts["examples"], counts["requests"]) == (2, 8, 24)
    assert experiment.query("SELECT task, count(*) FROM scored_answers GROUP BY task") == [
        ("other", 4),
        ("trivia", 20),
    ]


# What assembling refuses


def copy_of(source, path, **changes):
    """A file with the rows of another, the last one with changes."""
    rows = pq.read_table(source).to_pylist()
    rows[-1] |= changes
    files.write_parquet(path, pa.Table.from_pylist(rows, pq.read_schema(source)))
    return path


def broken(experiment, name):
    """Inputs spoilt in one way each, and what the message has to say."""
    inputs = experiment.inputs
    full = inputs["responses"][0]
    other = experiment.folder / "other.parquet"
    if name == "absent":
        return {"tables": {"bin_stats": experiment.folder / "none.parquet"}}, r"none\.parquet: no such file"
    if name == "unreadable":
        other.write_bytes(b"PAR1")
        return {"scores": [other]}, r"other\.parquet: not readable"
    if name == "no manifest":
        return {"manifests": []}, "answers to task 'trivia', of which no manifest was given"
    if name == "no such example":
        write_shard_at(other, [response("zz", "tova", 8)])
        return {"responses": [*inputs["responses"], other]}, "does not fit .*FOREIGN KEY"
    if name == "doubled":
        write_shard_at(other, [response("e0")])
        return {
            "responses": [*inputs["responses"], other]
        }, "does not fit .*UNIQUE constraint failed: runs.run_id"
    if name == "doubled in a run":
        extra = write_shard_at(full.with_name("001.parquet"), [response("e0")])
        return {"responses": [*inputs["responses"], extra]}, "UNIQUE constraint failed: requests"
    if name == "scored twice":
        return {"scores": [*inputs["scores"], copy_of(inputs["scores"][0], other)]}, (
            r"trivia\.parquet: does not fit .*UNIQUE constraint failed: scores.request_id"
        )
    if name == "scores of unknown requests":
        return {"scores": [copy_of(inputs["scores"][0], other, request_id="r")]}, (
            r"other\.parquet: does not fit .*FOREIGN KEY"
        )
    if name == "scores missing":
        return {"scores": []}, "the score files hold 0 rows for 20 responses; score all tasks again"
    if name == "scores of others":
        rows = [failed(response(e)) for e in IDS]
        write_shard_at(full, rows)
        return {}, "the scores are not of these responses: request .* has another failure"
    if name == "lacking column":
        write_analysis(inputs["tables"]["retention"], RETENTION[:-1], [])
        return {}, r"retention\.parquet: lacks the columns length_unit"
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    [
        *("absent", "unreadable", "no manifest", "no such example", "doubled", "doubled in a run"),
        *("scored twice", "scores of unknown requests"),
        *("scores missing", "scores of others", "lacking column"),
    ],
)
def test_files_that_do_not_fit_are_named_and_the_old_database_stays(experiment, name):
    experiment.assemble()
    before = experiment.db.read_bytes()
    changes, message = broken(experiment, name)
    with pytest.raises(UserError, match=message):
        experiment.assemble(**changes)
    assert experiment.db.read_bytes() == before
    assert [path.name for path in experiment.folder.iterdir() if "sqlite" in path.name] == [
        experiment.db.name
    ]


def test_a_database_that_lost_rows_on_the_way_is_not_moved_into_place(experiment, monkeypatch):
    def lose_one(connection, table, columns, rows, same):
        kept = list(rows)[1:] if table == "telemetry" else rows
        return dao.insert_many(connection, table, columns, kept, same)

    monkeypatch.setattr(arrow_rows, "insert_many", lose_one)
    with pytest.raises(RuntimeError, match="telemetry has 17 rows, its files 20"):
        experiment.assemble()
    assert not experiment.db.exists()


def test_an_interrupted_assembly_leaves_the_old_database(experiment, monkeypatch):
    experiment.assemble()
    before = experiment.db.read_bytes()

    def interrupted(connection, expected):
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble_module, "_verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment.assemble()
    assert experiment.db.read_bytes() == before
    assert not list(experiment.folder.glob(".*.tmp"))


def test_a_database_left_open_in_wal_mode_is_replaced_whole(experiment):
    experiment.assemble()
    with closing(sqlite3.connect(experiment.db)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        old.execute("DELETE FROM retention")
        old.commit()
        assert experiment.db.with_name("kv_transition.sqlite-wal").exists()
        experiment.assemble()
        assert [path.name for path in experiment.folder.iterdir() if "sqlite" in path.name] == [
            experiment.db.name
        ]
        assert experiment.query("SELECT count(*) FROM retention") == [(1,)]
    assert experiment.query("SELECT count(*) FROM retention") == [(1,)]


# Opening


def test_a_read_only_database_refuses_changes(experiment):
    experiment.assemble()
    with (
        closing(connect(experiment.db, read_only=True)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("DELETE FROM retention")


def test_an_absent_or_foreign_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.sqlite: no such database"):
        connect(tmp_path / "none.sqlite", read_only=True)
    (tmp_path / "text.sqlite").write_text("This is a long enough text, but it is no database." * 100)
    with pytest.raises(UserError, match=r"text\.sqlite: not a usable SQLite database"):
        connect(tmp_path / "text.sqlite", read_only=True)
    with pytest.raises(UserError, match="cannot be opened"):
        connect(tmp_path / "no folder" / "new.sqlite")


def test_odd_characters_in_a_path_are_no_obstacle(tmp_path):
    path = tmp_path / "50% #1 ?mode=ro é" / "x.sqlite"
    path.parent.mkdir()
    with closing(connect(path)) as connection:
        create_schema(connection)
    assert path.stat().st_size > 0


# Reading and writing rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBER = st.floats(width=64)
COLUMNS = {
    pa.string(): TEXT,
    pa.float64(): NUMBER,
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.list_(pa.float64()): st.lists(NUMBER, max_size=3),
    pa.list_(pa.string()): st.lists(TEXT, max_size=3),
}


@st.composite
def arrow_columns(draw):
    """Columns of up to six rows, with nulls, and often with one value in all rows."""
    n = draw(st.integers(0, 6))
    columns = []
    for kind, value in COLUMNS.items():
        one = st.none() | value
        values = draw(st.lists(one, min_size=n, max_size=n) | one.map(lambda same: [same] * n))
        columns.append(pa.array(values, kind))
    return pa.table(columns, names=[f"c{i}" for i in range(len(columns))])


def as_stored(value):
    """What comes back of a value: nan is null, in lists too."""
    if isinstance(value, list):
        return json.dumps([as_stored(item) for item in value], separators=(",", ":"), ensure_ascii=False)
    return None if isinstance(value, float) and math.isnan(value) else value


@given(arrow_columns(), st.integers(0, 2))
@example(pa.table({"c0": ["it's\0so"] * 3, "c1": [0.1 + 0.2] * 3}), 0)
@example(pa.table({"c0": pa.array([[0.5, math.nan], None, [0.5, math.nan]])}), 1)
def test_every_value_of_an_arrow_table_comes_back_as_it_was(table, start):
    rows = table.slice(start)
    names = ", ".join(f"{field.name} {arrow_rows.sql_type(field.type)}" for field in table.schema)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE t ({names})")
        arrow_rows.insert_columns(connection, "t", rows)
        found = connection.execute("SELECT * FROM t").fetchall()
    expected = [tuple(as_stored(value) for value in row.values()) for row in rows.to_pylist()]
    assert [tuple(map(repr, row)) for row in found] == [
        tuple(repr(int(v)) if isinstance(v, bool) else repr(v) for v in row) for row in expected
    ]


@pytest.fixture
def opened(experiment):
    experiment.assemble()
    with closing(connect(experiment.db)) as connection:
        yield connection


def test_entries_come_in_manifest_order_with_their_examples(opened):
    rows = list(dao.manifest_entries_with_examples(opened, DATASET))
    assert [row["example_id"] for row in rows] == list(IDS)
    assert rows[2] == {
        "example_id": "e2",
        "bin_idx": 1,
        "token_len": 12,
        "question": "Question 2?",
        "context": "Text 2",
        "answers": ["gold 2", "alias"],
        "meta": {"task": "trivia", "language": "en", "all_classes": None},
        "cluster_id": "c2",
    }
    assert list(dao.manifest_entries_with_examples(opened, "none")) == []


def test_runs_and_their_requests_are_counted(opened):
    assert dao.run_exists(opened, "exp__trivia__random__8")
    assert dao.count_requests_for_run(opened, "exp__trivia__random__8") == 12
    assert not dao.run_exists(opened, "exp__trivia__random__16")
    assert dao.count_requests_for_run(opened, "exp__trivia__random__16") == 0


def test_analysis_tables_are_read_whole_or_filtered_with_lists_and_booleans_as_such(opened):
    assert [row["method"] for row in dao.read_bin_stats(opened)] == ["full", "snapkv"]
    (row,) = dao.read_bin_stats(opened, dataset=DATASET, method="snapkv", policy="zero")
    assert (row["unreliable"], row["mean"], row["budget_value"]) == (True, 0.5, 64.0)
    assert dao.read_bin_stats(opened, policy="exclude") == []
    assert [row["R"] for row in dao.read_retention(opened, method="snapkv")] == [0.5]
    assert len(dao.read_transitions(opened)) == 2
    (row,) = dao.read_transitions(opened, method="snapkv", tau=0.95)
    assert (row["T_point"], row["p_upper"], row["budgets"]) == (">64", [0.5, None], [8.0, 64.0])


def test_scored_answers_are_read_by_run(opened):
    rows = list(dao.read_scored_answers(opened, run_id="exp__trivia__snapkv__64"))
    assert sorted(row["example_id"] for row in rows) == list(IDS)
    assert {row["task"] for row in rows} == {"trivia"}


def test_rows_can_be_written_one_by_one(opened):
    run = {"run_id": "mine", "dataset_id": DATASET, "method": "mine", "budget": "8", "budget_value": 8}
    dao.upsert_run(opened, run)
    dao.upsert_run(opened, run | {"scope": "prompt"})
    request = {"request_id": "r", "run_id": "mine", "dataset_id": DATASET, "example_id": "e0", "replicate": 0}
    dao.insert_request(opened, request)
    dao.insert_response(opened, {"request_id": "r", "text": "hello"})
    dao.upsert_telemetry(opened, {"request_id": "r", "kept_per_layer": [8.0, 7.5], "active": True})
    dao.upsert_telemetry(opened, {"request_id": "r", "latency_s": 0.5})
    dao.upsert_failure(opened, {"request_id": "r", "label": "TIMEOUT", "attempts": 1})
    dao.upsert_failure(opened, {"request_id": "r", "label": "ENGINE_ERROR"})
    found = opened.execute(
        """SELECT scope, text, kept_per_layer, active, latency_s, label, failures.attempts FROM runs
           JOIN requests USING (run_id) JOIN responses USING (request_id) JOIN telemetry USING (request_id)
           JOIN failures USING (request_id) WHERE run_id = 'mine'"""
    ).fetchone()
    assert tuple(found) == ("prompt", "hello", [8.0, 7.5], True, 0.5, "ENGINE_ERROR", 1)


def test_what_belongs_to_a_request_comes_once_and_not_without_it(opened):
    (known,) = opened.execute("SELECT request_id FROM requests LIMIT 1").fetchone()
    for table in ("responses", "scores", "telemetry"):
        columns = [row["name"] for row in opened.execute(f"PRAGMA table_info({table})")][1:]
        copied = f"INSERT INTO {table} SELECT ?, {', '.join(columns)} FROM {table} WHERE request_id = ?"
        with pytest.raises(sqlite3.IntegrityError, match=f"UNIQUE constraint failed: {table}.request_id"):
            opened.execute(copied, [known, known])
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            opened.execute(copied, ["unknown", known])


def test_a_request_needs_its_run_and_comes_once(opened):
    row = {"request_id": "r", "run_id": "none", "dataset_id": DATASET, "example_id": "e0", "replicate": 0}
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        dao.insert_request(opened, row)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        dao.insert_request(opened, row | {"run_id": "exp__trivia__full__full"})
