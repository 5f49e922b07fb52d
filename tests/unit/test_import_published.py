"""Published results as response files: what the source does not hold is absent, and what was passed over is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kv_transition.analysis.queries import example_table
from kv_transition.data.counters import load_counter
from kv_transition.data.longbench_loader import write_records
from kv_transition.data.manifest import Manifest, build_manifest, write_manifest
from kv_transition.data.normalize import CountedExample, normalize_records
from kv_transition.data.published.records import make_records
from kv_transition.data.published.rows import Cell
from kv_transition.data.published.sources import read_runs
from kv_transition.eval.score import score_task, write_scores
from kv_transition.files import sha256_text
from kv_transition.run.import_published import Source, import_shard, import_warnings

TASK = "qa"
FULL, H2O = ("full", "full"), ("h2o", "256")
#: (cell, number of the record) of each row of a sound table.
SOUND = [(cell, idx) for cell in (FULL, H2O) for idx in range(6)]
SCORING = {
    "primary": "official",
    "metrics": {},
    "formats": {},
    "first_line_tasks": [],
    "refusal_patterns": [],
    "code": "x",
}


class Import:
    """A table of scores, imported: its manifest and its response files, a folder for each cell."""

    def __init__(
        self, folder: Path, rows: Sequence[tuple[Cell, int]], records: list[dict[str, Any]] | None = None
    ) -> None:
        table = folder / "scores.jsonl"
        published = {
            "layout": "scores",
            "path": str(table),
            "runs": [],
            "methods": {},
            "allow_incomplete": True,
        }
        write_records(
            table,
            [
                {"method": method, "budget": None if label == "full" else label, "task": TASK}
                | {"idx": idx, "length": 10 + idx, "score": 0.25}
                for (method, label), idx in rows
            ],
        )
        own = records is None
        if records is None:
            records, _ = make_records(TASK, read_runs(published, TASK, [FULL])[FULL], True)
        self.examples: list[CountedExample] = normalize_records(
            records, TASK, load_counter("length", None, "error")
        )
        self.manifest: Manifest = build_manifest(
            self.examples,
            experiment="exp",
            dataset="ds",
            task=TASK,
            tokenizer="length",
            protocol="published",
            n_bins=1,
            n_per_bin=None,
            selection_seed=0,
        )
        self.paths: list[Path] = []
        source = Source(published, own, {str(table): sha256_text(table.read_text())})
        for shard in range(2):
            outputs = {
                cell: folder / "responses" / "_".join(cell) / f"{shard}.parquet" for cell in (FULL, H2O)
            }
            import_shard(self.manifest, self.examples, source, outputs, shard, 2)
            self.paths += outputs.values()
        self.folder = folder

    def responses(self, cell: Cell) -> list[dict[str, Any]]:
        files = [path for path in self.paths if path.parent.name == "_".join(cell)]
        return [row for path in files for row in pq.read_table(path).to_pylist()]

    def scores(self) -> Path:
        path = self.folder / "manifest.json"
        write_manifest(path, self.manifest)
        table = score_task(
            manifest_path=path, response_paths=self.paths, scoring=SCORING, cache_dir=self.folder / "cache"
        )
        write_scores(self.folder / "scores.parquet", table)
        return self.folder / "scores.parquet"


def without(*left_out: tuple[Cell, int]) -> list[tuple[Cell, int]]:
    return [row for row in SOUND if row not in left_out]


def test_a_row_that_the_source_lacks_is_absent_and_no_failure(tmp_path: Path) -> None:
    done = Import(tmp_path, without((H2O, 4)))
    absent = [row for row in done.responses(H2O) if row["status"] != "ok"]
    assert [(row["example_id"], row["status"]) for row in absent] == [("qa-0004", "absent")]
    assert (absent[0]["failure"], absent[0]["given_score"], absent[0]["text"]) == (None, None, None)
    assert absent[0]["error"] == "no row in the published results"
    assert {row["status"] for row in done.responses(FULL)} == {"ok"}


def test_an_absent_row_never_counts_as_zero(tmp_path: Path) -> None:
    from kv_transition.analysis.cells import dataset_scores

    done = Import(tmp_path, without((H2O, 4)))
    table = example_table([done.scores()], [done.manifest])
    row = table[(table["method"] == "h2o") & (table["example_id"] == "qa-0004")].iloc[0]
    assert (row["status"], row["failure"], row["infrastructure_failed"]) == ("absent", None, 0.0)
    ids = sorted(example.cluster_id for example in done.examples)
    cells = dataset_scores(table, {("ds__qa", 0): ids}, "ds__qa", TASK)
    place = [cell.method for cell in cells.cells].index("h2o")
    for policy in ("zero", "exclude"):
        scores = cells.under(policy)[place]
        assert sorted(scores[~(scores != scores)]) == [0.25] * 5


def test_nothing_is_said_of_a_sound_source(tmp_path: Path) -> None:
    assert import_warnings(Import(tmp_path, SOUND).paths) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*SOUND[:8], SOUND[7], *SOUND[8:]], "1 doubled (line 9 repeats line 8)"),
        (without((H2O, 4)), "1 missing (record 5)"),
        ([*SOUND[:6], SOUND[7], SOUND[6], *SOUND[8:]], "1 in another order (line 8, record 1)"),
    ],
)
def test_what_was_passed_over_is_one_sentence_for_its_task_and_cell(
    tmp_path: Path, rows: list[tuple[Cell, int]], words: str
) -> None:
    warnings = import_warnings(Import(tmp_path, rows).paths)
    assert len(warnings) == 1
    assert warnings[0].startswith("qa, h2o at 256: ")
    assert words in warnings[0]
    assert "\n" not in warnings[0]


def test_rows_that_full_itself_lacks_are_said_although_the_records_are_made_of_it(tmp_path: Path) -> None:
    warnings = import_warnings(Import(tmp_path, without((FULL, 4))).paths)
    assert [text.split(":")[0] for text in warnings] == ["qa, full", "qa, h2o at 256"]
    assert "1 missing (row 4)" in warnings[0]
    assert "1 of no record (line 10: idx 4)" in warnings[1]


def test_files_that_were_answered_here_say_nothing(tmp_path: Path) -> None:
    from task_files import response, write_shard

    assert import_warnings([write_shard(tmp_path, [response("e0")])]) == []
