"""Building the database from an experiment's files: whole, checked against them, then moved into place."""

from __future__ import annotations

import operator
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kv_transition.data.manifest import read_manifest
from kv_transition.db.arrow_rows import (
    BATCH_ROWS,
    Same,
    Stored,
    insert_columns,
    insert_stored,
    sql_type,
    stored_columns,
    stored_rows,
    stored_values,
)
from kv_transition.db.connect import connect, create_tables
from kv_transition.db.dao import insert_many, quoted, sql_value
from kv_transition.db.proof import Sources, check_references, make_indexes, misfit
from kv_transition.errors import UserError
from kv_transition.files import atomic_path, canonical_json, sha256_text

RUN = ("run_id", "method", "budget", "budget_value", "scope", "first_token")
_ORDER = ("run_id", "example_id", "replicate")
REQUEST = (
    *("request_id", "run_id", "dataset_id", "example_id", "replicate"),
    *(
        "answer_key",
        "prompt_hash",
        "status",
        "protocol",
        "wrapped",
        "dropped_tokens",
        "excess_tokens",
        "attempts",
        "engine",
        "host",
        "created",
    ),
)
RESPONSE = (
    *(
        "request_id",
        "text",
        "given_score",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "copied_from",
    ),
)
TELEMETRY = (
    *("request_id", "kept_mean", "kept_min", "kept_max", "kept_per_layer", "press_len", "question_tokens"),
    *("bytes_kept", "peak_tokens", "active", "verified"),
    *("timing_scope", "latency_s", "ttfb_s", "prefill_s", "compress_s", "decode_s", "notes"),
)
FAILURE = ("request_id", "failure", "attempts", "error")
SCORE = (
    *("request_id", "protocol", "metric", "score", "em", "f1", "pred_norm", "gold_norm", "failure"),
    *("flag_timeout", "flag_engine_error", "flag_empty_output", "flag_refusal", "flag_truncated"),
    *("flag_format_error", "one_token", "recursion_artefact"),
)
#: The tables with a row for every row of the response files, and their columns.
_OF_RESPONSES = {"requests": REQUEST, "responses": RESPONSE, "telemetry": TELEMETRY}
#: The tables that are filled unchecked, each behind those whose rows it refers to. (A failure is a response's or a score's.)
_PER_REQUEST = ("runs", "requests", "responses", "telemetry", "scores", "failures")
_DATASET = (
    *("experiment_id", "dataset", "task", "tokenizer", "protocol", "n_bins", "n_per_bin", "selection_seed"),
    *("bin_edges", "warnings"),
)
_EXAMPLE = ("example_id", "question", "context", "answers", "meta", "cluster_id")
_BIN = (
    *("bin_idx", "lower", "upper", "available", "selected"),
    *(
        "available_min",
        "available_median",
        "available_max",
        "selected_min",
        "selected_median",
        "selected_max",
    ),
)


def assemble(
    *,
    db_path: str | Path,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    manifests: Sequence[str | Path],
    responses: Sequence[str | Path],
    scores: Sequence[str | Path],
    tables: Mapping[str, str | Path],
) -> dict[str, int]:
    """Build the database anew; a failure leaves an existing one as it was.

    Parameters
    ----------
    db_path : the SQLite file.
    settings : resolved configuration without secrets; its experiment.id names the experiment.
    provenance : versions, hashes and machine, JSON values.
    manifests, responses, scores : the experiment's files. A run's response shards lie in one folder.
    tables : the analysis tables by name (the file `transition` is the table transition_summary); columns unknown to the
        schema are added to it.

    Returns
    -------
    Rows of each table.

    Raises
    ------
    UserError
        When a file is absent, broken or does not fit the others.
    RuntimeError
        When the finished database fails its own check.
    """
    target = Path(db_path)
    experiment_id = settings["experiment"]["id"]
    with atomic_path(target) as temporary, closing(connect(temporary)) as connection:
        # The file is thrown away on any failure, so nothing has to be flushed or outlast a crash.
        for setting in ("journal_mode = MEMORY", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA cache_size = -65536")
        create_tables(connection)
        rows = Counter(experiments=_insert_experiment(connection, settings, provenance))
        tasks: dict[str, str] = {}
        for path in _sorted(manifests):
            with _blame(path):
                rows += _insert_manifest(connection, experiment_id, path, tasks)
        sources = Sources()
        with _unchecked(connection):
            for folder, shards in groupby(_sorted(responses), key=lambda path: path.parent):
                with _blame(folder):
                    rows += _insert_runs(connection, list(shards), tasks, sources)
            for path in _sorted(scores):
                with _blame(path):
                    rows += _insert_scores(connection, path, sources)
            make_indexes(connection, sources)
            check_references(connection, _PER_REQUEST, sources)
        _check_scores(connection, rows)
        for name, source in tables.items():
            table = "transition_summary" if name == "transition" else name
            with _blame(Path(source)):
                rows[table] = _insert_table(connection, table, Path(source))
        connection.commit()
        counts = _verify(connection, rows)
    for suffix in ("-journal", "-wal", "-shm"):
        # Of the database that was replaced: SQLite would take them for this one's.
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    return counts


def _sorted(paths: Sequence[str | Path]) -> list[Path]:
    """Paths by folder, then by name."""
    return sorted((Path(path) for path in paths), key=lambda path: (path.parent, path.name))


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    """Turn what is wrong with a file's content into a UserError that names the file."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise misfit(path, error) from error
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; build it first") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error!r}); delete it and build it again") from error


@contextmanager
def _unchecked(connection: sqlite3.Connection) -> Iterator[None]:
    """Do not look up what a row refers to when it is inserted. (SQLite heeds the switch outside of transactions.)"""
    connection.commit()
    connection.execute("PRAGMA foreign_keys = OFF")
    yield
    connection.commit()
    connection.execute("PRAGMA foreign_keys = ON")


def _insert_experiment(
    connection: sqlite3.Connection, settings: Mapping[str, Any], provenance: Mapping[str, Any]
) -> int:
    text = canonical_json(settings)
    row = (settings["experiment"]["id"], text, sha256_text(text), canonical_json(provenance))
    return insert_many(
        connection, "experiments", ("experiment_id", "settings", "settings_hash", "provenance"), [row]
    )


def _insert_manifest(
    connection: sqlite3.Connection, experiment_id: str, path: Path, tasks: dict[str, str]
) -> Counter[str]:
    """Insert a manifest's dataset, bins and examples; note its dataset_id in `tasks`. Returns its rows per table."""
    manifest = read_manifest(path)
    dataset_id = tasks[manifest.task] = manifest.dataset_id
    entries = [vars(entry) | {"position": position} for position, entry in enumerate(manifest.entries)]
    tables = {
        "datasets": (_DATASET, [vars(manifest) | {"experiment_id": experiment_id}]),
        "bins": (_BIN, [vars(one) for one in manifest.bins]),
        "examples": (_EXAMPLE, [vars(example) for example in manifest.examples]),
        "manifest_entries": (("example_id", "position", "bin_idx", "token_len"), entries),
    }
    for table, (columns, rows) in tables.items():
        values = [(dataset_id, *(sql_value(row[name]) for name in columns)) for row in rows]
        insert_many(connection, table, ("dataset_id", *columns), values)
    return Counter({table: len(rows) for table, (_, rows) in tables.items()})


def _insert_runs(
    connection: sqlite3.Connection, shards: Sequence[Path], tasks: Mapping[str, str], sources: Sources
) -> Counter[str]:
    """Insert the runs of one folder, rows in an order that does not depend on how they are cut into shards."""
    parts = [pq.ParquetFile(path, memory_map=True).read(use_threads=False) for path in shards]
    table = pa.concat_tables(parts, promote_options="permissive") if len(parts) > 1 else parts[0]
    table = _sorted_rows(table.combine_chunks())
    held = table["task"].unique().to_pylist()
    if unknown := sorted(set(held) - tasks.keys()):
        raise UserError(f"{shards[0]}: holds answers to task {unknown[0]!r}, of which no manifest was given")
    runs = _distinct(table.select(("task", *RUN)))
    of_runs = stored_columns(runs.combine_chunks().to_batches()[0])
    of_runs["dataset_id"] = _dataset_ids(of_runs.pop("task"), tasks)
    insert_stored(connection, "runs", of_runs, runs.num_rows)
    sources.add("runs", runs.num_rows, shards[0].parent)
    for batch in table.to_batches(BATCH_ROWS):
        stored = stored_columns(batch)
        stored["dataset_id"] = _dataset_ids(stored["task"], tasks)
        for name, columns in _OF_RESPONSES.items():
            insert_stored(connection, name, {column: stored[column] for column in columns}, batch.num_rows)
    for name in _OF_RESPONSES:
        sources.add(name, table.num_rows, shards[0].parent)
    failed = table.select(FAILURE).filter(pc.is_valid(table["failure"]))
    insert_columns(
        connection, "failures", failed.rename_columns(["request_id", "label", "attempts", "error"])
    )
    return Counter(dict.fromkeys(_OF_RESPONSES, table.num_rows) | {"runs": runs.num_rows})


def _sorted_rows(table: pa.Table) -> pa.Table:
    """The rows by run, example and replicate, as the shards of a run have them already."""
    keys = list(zip(*(table[name].to_pylist() for name in _ORDER), strict=True))
    if all(map(operator.lt, keys, keys[1:])):
        return table
    return table.sort_by([(name, "ascending") for name in _ORDER])


def _dataset_ids(names: Stored, tasks: Mapping[str, str]) -> Stored:
    return Same(tasks[names.value]) if isinstance(names, Same) else [tasks[name] for name in names]


def _distinct(table: pa.Table) -> pa.Table:
    """Each row once, by run_id."""
    if all(isinstance(stored_values(column.combine_chunks()), Same) for column in table.columns):
        return table.slice(0, 1)
    return table.group_by(table.column_names).aggregate([]).sort_by("run_id")


def _insert_scores(connection: sqlite3.Connection, path: Path, sources: Sources) -> Counter[str]:
    """Insert a score file and the failure labels it gives to answers."""
    rows: Counter[str] = Counter()
    for batch in pq.ParquetFile(path, memory_map=True).iter_batches(BATCH_ROWS, columns=list(SCORE)):
        table = pa.Table.from_batches([batch])
        insert_columns(connection, "scores", table)
        labelled = table.filter(pc.is_valid(table["failure"]))
        connection.executemany(
            "INSERT INTO failures (request_id, label) VALUES (?, ?) ON CONFLICT (request_id) DO NOTHING",
            stored_rows(labelled.select(["request_id", "failure"])),
        )
        rows += Counter(scores=table.num_rows, failures=labelled.num_rows)
    sources.add("scores", rows["scores"], path)
    return rows


def _check_scores(connection: sqlite3.Connection, rows: Mapping[str, int]) -> None:
    """Scores are complete and of these responses, or UserError."""
    if rows["scores"] != rows["requests"]:
        raise UserError(
            f"the score files hold {rows['scores']} rows for {rows['requests']} responses; score all tasks again"
        )
    other = connection.execute(
        """SELECT request_id FROM failures LEFT JOIN scores USING (request_id)
           WHERE scores.failure IS NOT failures.label LIMIT 1"""
    ).fetchone()
    if other:
        raise UserError(
            f"the scores are not of these responses: request {other['request_id']} has another failure there; "
            "score all tasks again"
        )


def _insert_table(connection: sqlite3.Connection, name: str, path: Path) -> int:
    """Insert an analysis file, all its columns."""
    file = pq.ParquetFile(path)
    known = {row["name"] for row in connection.execute(f"PRAGMA table_info({quoted(name)})")}
    absent = sorted(known - set(file.schema_arrow.names))
    if absent:
        raise UserError(f"{path}: lacks the columns {', '.join(absent)}; delete it and build it again")
    for field in file.schema_arrow:
        if field.name not in known:
            connection.execute(
                f"ALTER TABLE {quoted(name)} ADD COLUMN {quoted(field.name)} {sql_type(field.type)}"
            )
    for batch in file.iter_batches(BATCH_ROWS):
        insert_columns(connection, name, pa.Table.from_batches([batch]))
    return int(file.metadata.num_rows)


def _verify(connection: sqlite3.Connection, expected: Mapping[str, int]) -> dict[str, int]:
    """Row counts, after checking that they are the files' and that the database is sound; else RuntimeError."""
    tables = [
        row["name"]
        for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")
    ]
    counts = {
        table: int(connection.execute(f"SELECT count(*) FROM {quoted(table)}").fetchone()[0])
        for table in tables
    }
    wrong = [
        f"{table} has {counts[table]} rows, its files {expected[table]}"
        for table in tables
        if counts[table] != expected[table]
    ]
    # Not integrity_check: that the indexes say what the tables do is how SQLite has just made them.
    (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if sound != "ok":
        wrong.append(f"integrity check: {sound}")
    if wrong:
        raise RuntimeError(f"the database does not hold what its files do: {'; '.join(wrong)}")
    return counts
