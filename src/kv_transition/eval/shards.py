"""Response shards as scoring reads them, and the gate they pass: complete runs, or nothing is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kv_transition.data.excerpts import first_few
from kv_transition.errors import UserError

_KEYS = ("task", "method", "budget", "replicate", "example_id")


@dataclass
class _Run:
    """The answers to one (method, budget, replicate) and the files they came from."""

    examples: Counter[str] = field(default_factory=Counter)
    files: dict[Path, None] = field(default_factory=dict)


def read_shard(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a response shard; UserError if it is absent, broken or lacks one of them."""
    try:
        file = pq.ParquetFile(path)
        absent = sorted(set(columns) - set(file.schema_arrow.names))
        if absent:
            raise UserError(f"{path}: not a response shard, it lacks the columns {', '.join(absent)}")
        return file.read(columns=list(columns))
    except FileNotFoundError:
        raise UserError(f"{path}: no such response shard; run the inference of this task first") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a readable response shard ({reason}); delete it and run it again"
        ) from None


def check_coverage(task: str, expected: Collection[str], paths: Sequence[Path]) -> None:
    """Raise UserError unless every run answered exactly the manifest's examples, each once.

    Parameters
    ----------
    task : name of the task, which every row must carry.
    expected : example ids of the manifest.
    paths : the task's shards. Shards in one folder belong together: single ones may be empty, all may not.
    """
    runs: dict[tuple[str, str, int], _Run] = {}
    rows_of_folder: Counter[Path] = Counter()
    for path in paths:
        keys = read_shard(path, _KEYS).to_pydict()
        rows_of_folder[path.parent] += len(keys["example_id"])
        foreign = sorted(set(keys["task"]) - {task})
        if foreign:
            raise UserError(
                f"{path}: holds answers to task {foreign[0]!r}, expected {task!r} as in the manifest"
            )
        cells = zip(keys["method"], keys["budget"], keys["replicate"], strict=True)
        for cell, example_id in zip(cells, keys["example_id"], strict=True):
            run = runs.setdefault(cell, _Run())
            run.examples[example_id] += 1
            run.files[path] = None
    if expected:
        for folder, rows in rows_of_folder.items():
            if not rows:
                raise UserError(
                    f"{folder}: no answers at all, expected {len(expected)}; run this task's inference"
                )
    for (method, budget, replicate), run in sorted(runs.items()):
        _check_run(f"{task}, {method} at {budget}, replicate {replicate}", expected, run)


def _check_run(name: str, expected: Collection[str], run: _Run) -> None:
    missing = sorted(set(expected) - run.examples.keys())
    doubled = sorted(example_id for example_id, times in run.examples.items() if times > 1)
    foreign = sorted(run.examples.keys() - set(expected))
    findings = [
        f"{len(ids)} {what} ({first_few(ids)})"
        for what, ids in (("missing", missing), ("doubled", doubled), ("not in the manifest", foreign))
        if ids
    ]
    if findings:
        files = first_few([str(path) for path in run.files])
        raise UserError(
            f"{name}: the answers are not those of the manifest's {len(expected)} examples: {'; '.join(findings)}; "
            f"in {files}; delete these files and run the inference again"
        )
