"""What assembling the database costs beside pandas, which writes the same rows without keys, checks or indexes.

    python benchmarks/sqlite_cost.py            a million rows in all tables, and a flat table of a million rows: 3 minutes
    python benchmarks/sqlite_cost.py --quick    40,000 rows: checks that it works, no verdict

A study of 42 cells a task is made up; every request is a row of requests, responses, telemetry and scores. Ours is the
workflow's own function: keys, references, labels and row counts are proved, and the file is whole or absent. pandas'
side reads the same Parquet files and writes the same columns into the same tables by `to_sql`, 50,000 rows at a time.
The flat table (8 columns, primary key) goes through the same code as the analysis tables. Each side runs in a process of
its own, in turns: CPU seconds of the process, start and imports included, and its largest memory. Ends with 1 if a bar is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from record import Row, save, spread, without_bar

SPEED_BAR, MEMORY_BAR = 1.2, 0.5
REQUESTS, FLAT_ROWS, CHUNK = 250_000, 1_000_000, 50_000
NOTE = (
    "Ours proves keys, references and row counts, makes the indexes and moves the whole file into place; pandas is asked for "
    "none of this, nor for the rows of the manifests (1 in 80). Ours alone sets SQLite's synchronous = OFF, "
    "journal_mode = MEMORY and locking_mode = EXCLUSIVE, and for the study larger pages and a larger cache; pandas' "
    "connection has the defaults. CPU seconds of a process, imports included."
)


class Cost(NamedTuple):
    """What a side took."""

    cpu_s: float
    peak_mb: float
    rows: int


# Each side, in a process of its own


def assemble_ours(folder: Path, database: Path) -> int:
    """The workflow's function; returns the rows of all tables."""
    from kv_transition.db.assemble import assemble

    counts = assemble(
        db_path=database,
        settings={"experiment": {"id": "study"}},
        provenance={},
        manifests=sorted(folder.glob("data/*/manifest.json")),
        responses=sorted(folder.glob("responses/**/*.parquet")),
        scores=sorted(folder.glob("scores/*.parquet")),
        tables={},
    )
    return sum(counts.values())


def assemble_pandas(folder: Path, database: Path) -> int:
    """The same rows of the tables of requests by pandas; what manifests hold is left out."""
    import pandas as pd

    from kv_transition.db.assemble import FAILURE, REQUEST, RESPONSE, RUN, SCORE, TELEMETRY

    rows = 0

    def put(name: str, frame: pd.DataFrame) -> None:
        nonlocal rows
        rows += len(frame)
        frame.to_sql(name, connection, index=False, chunksize=CHUNK)

    connection = sqlite3.connect(database)
    stored = {*RUN, *REQUEST, *RESPONSE, *TELEMETRY, *FAILURE} - {"dataset_id"}
    answers = pd.read_parquet(folder / "responses", columns=sorted({"task", *stored}))
    answers["dataset_id"] = "made_up__" + answers["task"]
    answers["kept_per_layer"] = [
        None if kept is None else json.dumps(kept.tolist()) for kept in answers["kept_per_layer"]
    ]
    put("runs", answers[["dataset_id", *RUN]].drop_duplicates())
    for name, columns in (("requests", REQUEST), ("responses", RESPONSE), ("telemetry", TELEMETRY)):
        put(name, answers[list(columns)])
    put("failures", answers.loc[answers["failure"].notna(), list(FAILURE)])
    del answers
    put("scores", pd.read_parquet(folder / "scores", columns=list(SCORE)))
    connection.commit()
    connection.close()
    return rows


def flat_ours(folder: Path, database: Path) -> int:
    """A flat table by the code that the analysis tables go through, into a table with a primary key."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kv_transition.db.arrow_rows import BATCH_ROWS, insert_columns, sql_type
    from kv_transition.files import atomic_path

    file = pq.ParquetFile(folder / "flat.parquet")
    columns = ", ".join(f"{field.name} {sql_type(field.type)}" for field in file.schema_arrow)
    with atomic_path(database) as temporary:
        connection = sqlite3.connect(temporary)
        for setting in ("journal_mode = MEMORY", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute(f"CREATE TABLE flat ({columns}, PRIMARY KEY (dataset, method, example))")
        for batch in file.iter_batches(BATCH_ROWS):
            insert_columns(connection, "flat", pa.Table.from_batches([batch]))
        (rows,) = connection.execute("SELECT count(*) FROM flat").fetchone()
        connection.commit()
        connection.close()
    return int(rows)


def flat_pandas(folder: Path, database: Path) -> int:
    """The flat table by pandas, without a key."""
    import pandas as pd

    frame = pd.read_parquet(folder / "flat.parquet")
    connection = sqlite3.connect(database)
    frame.to_sql("flat", connection, index=False, chunksize=CHUNK)
    connection.commit()
    connection.close()
    return len(frame)


SIDES: dict[str, Callable[[Path, Path], int]] = {
    side.__name__: side for side in (assemble_ours, assemble_pandas, flat_ours, flat_pandas)
}


def in_child(side: str, folder: Path) -> Cost:
    """Run a side in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as output:
        command = [sys.executable, __file__, "--side", side, str(folder), str(Path(output, "x.sqlite"))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(*json.loads(done.stdout))


def run_side(side: str, folder: Path, database: Path) -> None:
    """In the child: run, then print CPU seconds, peak MB and rows."""
    rows = SIDES[side](folder, database)
    print(json.dumps([time.process_time(), peak_mb(), rows]))


def peak_mb() -> float:
    """Largest memory of this process; what getrusage says can be the parent's from before the start."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


# Made-up files


def write_flat(path: Path, rows: int) -> None:
    """A table of scores as analyses read them, sorted by its key."""
    import numpy as np
    import pyarrow as pa

    from kv_transition.files import write_parquet

    rng = np.random.default_rng(7)
    index = np.arange(rows)
    write_parquet(
        path,
        pa.table(
            {
                "dataset": [f"made_up__task{i // 100_000:03d}" for i in index],
                "method": [f"method{i // 1_000 % 100:02d}" for i in index],
                "example": [f"example{i % 1_000:06d}" for i in index],
                "bin_idx": index % 8,
                "n": rng.integers(1, 400, rows),
                "mean": rng.random(rows),
                "lo": pa.array(rng.random(rows), mask=rng.random(rows) < 0.05),
                "unreliable": rng.random(rows) < 0.1,
            }
        ),
    )


def assemble_seconds(requests: int) -> tuple[float, float, int]:
    """CPU seconds, peak MB and rows of all tables when about `requests` requests are assembled (four rows each)."""
    from made_up_files import write_study

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "study")
        write_study(folder, requests)
        return in_child("assemble_ours", folder)


# The comparison


def race(work: str, sides: tuple[str, str], folder: Path, turns: int) -> list[Row]:
    """Both sides in turns: a row for speed and one for memory."""
    pairs = [(in_child(sides[0], folder), in_child(sides[1], folder)) for _ in range(turns)]
    peer = f"pandas {metadata.version('pandas')} to_sql, no keys"
    what = f"{work}, {pairs[0][0].rows:,} rows"
    speeds = [tuple(one.rows / one.cpu_s / 1e3 for one in pair) for pair in pairs]
    peaks = [tuple(one.peak_mb for one in pair) for pair in pairs]
    faster = tuple(ours / theirs for ours, theirs in speeds)
    smaller = tuple(ours / theirs for ours, theirs in peaks)
    return [
        Row(
            what,
            spread([ours for ours, _ in speeds], "k rows/CPU s"),
            spread([theirs for _, theirs in speeds], "k rows/CPU s"),
            peer,
            faster,
            f">= {SPEED_BAR}x",
            statistics.median(faster) >= SPEED_BAR,
        ),
        Row(
            f"{what}: memory",
            spread([ours for ours, _ in peaks], "MB"),
            spread([theirs for _, theirs in peaks], "MB"),
            peer,
            smaller,
            f"<= {MEMORY_BAR}x",
            statistics.median(smaller) <= MEMORY_BAR,
        ),
    ]


def main() -> int:
    """Make up the files, run the sides in turns, keep the rows; 0 if the bars are reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows, one turn, no verdict")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", nargs=3, metavar=("NAME", "FOLDER", "DATABASE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        run_side(given.side[0], Path(given.side[1]), Path(given.side[2]))
        return 0
    from made_up_files import write_study

    share, turns = (25, 1) if given.quick else (1, given.turns)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "study")
        write_study(folder, REQUESTS // share)
        write_flat(folder / "flat.parquet", FLAT_ROWS // share)
        rows = race("Study into SQLite", ("assemble_ours", "assemble_pandas"), folder, turns)
        rows += race("Flat table into SQLite", ("flat_ours", "flat_pandas"), folder, turns)
    if given.quick:
        rows = list(map(without_bar, rows))
    save("sqlite_cost", rows, ("pandas", "pyarrow"), NOTE)
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
