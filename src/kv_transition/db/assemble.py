"""Building the database from an experiment's files: whole, checked against them, then moved into place."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kv_transition.data.manifest import read_manifest
from kv_transition.db.arrow_rows import BATCH_ROWS, insert_columns, sql_type, stored_rows
from kv_transition.db.connect import connect, create_schema
from kv_transition.db.dao import insert_many, quoted, sql_value
from kv_transition.errors import UserError
from kv_transition.files import atomic_path, canonical_json, sha256_text

_RUN = ("run_id", "task", "method", "budget", "budget_value", "scope", "first_token")
_REQUEST = (
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
_RESPONSE = (
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
_TELEMETRY = (
    *("request_id", "kept_mean", "kept_min", "kept_max", "kept_per_layer", "press_len", "question_tokens"),
    *("bytes_kept", "peak_tokens", "active", "verified"),
    *("timing_scope", "latency_s", "ttfb_s", "prefill_s", "compress_s", "decode_s", "notes"),
)
_FAILURE = ("request_id", "failure", "attempts", "error")
_SCORE = (
    *("request_id", "protocol", "metric", "score", "em", "f1", "pred_norm", "gold_norm", "failure"),
    *("flag_timeout", "flag_engine_error", "flag_empty_output", "flag_refusal", "flag_truncated"),
    *("flag_format_error", "one_token", "recursion_artefact"),
)
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
        # The file is thrown away on any failure, so nothing has to be rolled back or flushed.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -16384")
        create_schema(connection)
        rows = Counter(experiments=_insert_experiment(connection, settings, provenance))
        tasks: dict[str, str] = {}
        for path in _sorted(manifests):
            with _blame(path):
                rows += _insert_manifest(connection, experiment_id, path, tasks)
        for folder, shards in groupby(_sorted(responses), key=lambda path: path.parent):
            with _blame(folder):
                rows += _insert_runs(connection, list(shards), tasks)
        for path in _sorted(scores):
            with _blame(path):
                rows += _insert_scores(connection, path)
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
        raise UserError(
            f"{path}: does not fit the manifests and responses beside it ({error}); delete it and build it again"
        ) from error
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; build it first") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error!r}); delete it and build it again") from error


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
    manifest = asdict(read_manifest(path))
    dataset_id = tasks[manifest["task"]] = manifest["dataset_id"]
    entries = [entry | {"position": position} for position, entry in enumerate(manifest["entries"])]
    tables = {
        "datasets": (_DATASET, [manifest | {"experiment_id": experiment_id}]),
        "bins": (_BIN, manifest["bins"]),
        "examples": (_EXAMPLE, manifest["examples"]),
        "manifest_entries": (("example_id", "position", "bin_idx", "token_len"), entries),
    }
    for table, (columns, rows) in tables.items():
        values = [(dataset_id, *(sql_value(row[name]) for name in columns)) for row in rows]
        insert_many(connection, table, ("dataset_id", *columns), values)
    return Counter({table: len(rows) for table, (_, rows) in tables.items()})


def _insert_runs(
    connection: sqlite3.Connection, shards: Sequence[Path], tasks: Mapping[str, str]
) -> Counter[str]:
    """Insert the runs of one folder, rows in an order that does not depend on how they are cut into shards."""
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in shards], promote_options="permissive")
    table = table.sort_by([(name, "ascending") for name in ("run_id", "example_id", "replicate")])
    unknown = sorted(set(table["task"].to_pylist()) - tasks.keys())
    if unknown:
        raise UserError(f"{shards[0]}: holds answers to task {unknown[0]!r}, of which no manifest was given")
    table = _with_dataset_id(table, tasks)
    runs = _with_dataset_id(table.group_by(list(_RUN)).aggregate([]).sort_by("run_id"), tasks)
    insert_columns(connection, "runs", runs, ("dataset_id", *(name for name in _RUN if name != "task")))
    insert_columns(connection, "requests", table, _REQUEST)
    insert_columns(connection, "responses", table, _RESPONSE)
    insert_columns(connection, "telemetry", table, _TELEMETRY)
    failed = table.filter(pc.is_valid(table["failure"])).select(_FAILURE)
    insert_columns(
        connection, "failures", failed.rename_columns(["request_id", "label", "attempts", "error"])
    )
    rows = dict.fromkeys(("requests", "responses", "telemetry"), table.num_rows)
    return Counter(rows | {"runs": runs.num_rows})


def _with_dataset_id(table: pa.Table, tasks: Mapping[str, str]) -> pa.Table:
    ids = [tasks[task] for task in table["task"].to_pylist()]
    return table.append_column("dataset_id", pa.array(ids, pa.string()))


def _insert_scores(connection: sqlite3.Connection, path: Path) -> Counter[str]:
    """Insert a score file and the failure labels it gives to answers."""
    rows: Counter[str] = Counter()
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=list(_SCORE)):
        table = pa.Table.from_batches([batch])
        insert_columns(connection, "scores", table, _SCORE)
        labelled = table.filter(pc.is_valid(table["failure"]))
        connection.executemany(
            "INSERT INTO failures (request_id, label) VALUES (?, ?) ON CONFLICT (request_id) DO NOTHING",
            stored_rows(labelled.select(["request_id", "failure"])),
        )
        rows += Counter(scores=table.num_rows, failures=labelled.num_rows)
    return rows


def _check_scores(connection: sqlite3.Connection, rows: Mapping[str, int]) -> None:
    """Scores are complete and of these responses, or UserError."""
    if rows["scores"] != rows["requests"]:
        raise UserError(
            f"the score files hold {rows['scores']} rows for {rows['requests']} responses; score all tasks again"
        )
    other = connection.execute(
        """SELECT request_id FROM scores LEFT JOIN failures USING (request_id)
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
    (sound,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if sound != "ok":
        wrong.append(f"integrity check: {sound}")
    if orphan := connection.execute("PRAGMA foreign_key_check").fetchone():
        wrong.append(f"a row of {orphan['table']} points at no row of {orphan['parent']}")
    if wrong:
        raise RuntimeError(f"the database does not hold what its files do: {'; '.join(wrong)}")
    return counts
