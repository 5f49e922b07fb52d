"""Writes published results as responses: matched with the manifest's records, checked, and never computed or paid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_transition.budgets import budget_from_label
from kv_transition.data.manifest import Manifest
from kv_transition.data.normalize import CountedExample
from kv_transition.data.published.matching import check_reference, match_rows
from kv_transition.data.published.records import as_record
from kv_transition.data.published.rows import Cell, Row, Run, cell_words
from kv_transition.data.published.sources import read_runs
from kv_transition.files import canonical_json
from kv_transition.run.requests import request_id, run_id
from kv_transition.run.responses import COLUMNS, write_responses

log = logging.getLogger(__name__)

#: What stands where a published result does not say how the cache was compressed.
UNKNOWN = "unknown"
#: Column `protocol` of published answers: their prompts are their authors'.
PROTOCOL = "published"
NO_ROW = "no row in the published results"
#: Column `status` of a record without a row: nothing is known of it, which is no failure and no score of 0.
ABSENT = "absent"
#: The run that records are made from where the results bring their own.
FULL: Cell = ("full", "full")


@dataclass(frozen=True)
class Source:
    """Where results come from.

    Attributes
    ----------
    published : the settings' section `published`.
    own_records : the task's records were made from the results themselves.
    sha256 : file -> hash of its content.
    """

    published: Mapping[str, Any]
    own_records: bool
    sha256: Mapping[str, str]


def import_shard(
    manifest: Manifest,
    examples: Sequence[CountedExample],
    source: Source,
    outputs: Mapping[Cell, str | Path],
    index: int,
    count: int,
) -> None:
    """Write one response file per cell for every `count`-th example of a manifest, beginning with the `index`-th.

    Parameters
    ----------
    examples : all examples of the task, chosen or not: a source is checked as a whole.
    outputs : (method, budget label) -> response file.

    Raises
    ------
    UserError
        When a cell is not in the source, or its rows are not those of the task's records (see `matching.match_rows`).
    """
    task = manifest.task
    own, incomplete = source.own_records, bool(source.published["allow_incomplete"])
    records = [as_record(example, own) for example in examples]
    runs = read_runs(source.published, task, list(outputs))
    for cell, path in outputs.items():
        run = runs[cell]
        matched = match_rows(task, cell, run, records, allow_incomplete=incomplete, own=own)
        notes = matched.notes
        if own and cell == FULL:  # the records lack what full lacks, so only its own numbers tell
            notes = check_reference(task, run, incomplete)[1]
        if notes:
            log.warning("%s, %s %s: passed over: %s", run.file, task, " ".join(cell), notes)
        rows = [
            _response(manifest, cell, example.example_id, matched.rows.get(example.example_id), run, source)
            for example in manifest.examples[index::count]
        ]
        metadata = {
            "task": task,
            "source": canonical_json(_provenance(run, source)),
            "method": cell[0],
            "budget": cell[1],
            "passed_over": notes,
        }
        write_responses(path, rows, metadata)


def import_warnings(paths: Iterable[str | Path]) -> list[str]:
    """What a reader of the results has to know about their import: a sentence for each task and cell, in their order.

    Parameters
    ----------
    paths : response files of any tasks, cells and shards. All shards of a cell say the same, and one that was answered here
        says nothing.
    """
    import pyarrow.parquet as pq

    found: dict[tuple[str, Cell], str] = {}
    for path in paths:
        stored = pq.read_schema(path).metadata or {}
        said = {key.decode(): value.decode("utf-8") for key, value in stored.items()}
        if said.get("passed_over"):
            found[said["task"], (said["method"], said["budget"])] = said["passed_over"]
    return [
        f"{task}, {cell_words(cell)}: the published rows are not those of the records, each once and in order: {notes}; of "
        "doubled rows the first counts, missing ones and those of no record count nowhere"
        for (task, cell), notes in found.items()
    ]


def _provenance(run: Run, source: Source) -> dict[str, str]:
    """What answered, as the column `engine` says it: a file, by its name and content."""
    root = Path(source.published["path"])
    return {
        "class": "published",
        "layout": str(source.published["layout"]),
        "source": root.name if run.file == root else run.file.relative_to(root).as_posix(),
        "sha256": source.sha256[str(run.file)],
    }


def _response(
    manifest: Manifest, cell: Cell, example_id: str, row: Row | None, run: Run, source: Source
) -> dict[str, Any]:
    """A row of a response file; what the source does not tell is null."""
    method, label = cell
    budget = budget_from_label(label)
    run_name = run_id(manifest.experiment, manifest.task, method, label)
    known: dict[str, Any] = {
        "request_id": request_id(run_name, example_id, 0),
        "run_id": run_name,
        "task": manifest.task,
        "example_id": example_id,
        "method": method,
        "budget": label,
        "budget_value": None if budget is None else float(budget),
        "replicate": 0,
        "status": ABSENT if row is None else "ok",
        "protocol": PROTOCOL,
        "verified": "no",
        "scope": UNKNOWN,
        "first_token": UNKNOWN,
        "engine": canonical_json(_provenance(run, source)),
    }
    if row is None:
        known |= {"error": NO_ROW}
    else:
        known |= {"text": row.pred, "given_score": row.score, "failure": row.failure}
        known |= {"answer_key": row.content_hash}
        known |= {"error": "so in the published results"} if row.failure else {}
    return {name: known.get(name) for name in COLUMNS}
