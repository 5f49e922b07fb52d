"""The noise floor: how far scores move when only the arithmetic of the full cache changes.

One row per task: answers of the run's full cache beside those of the same examples with the other implementation of
attention. A difference in retention that is no larger is no evidence of a loss by eviction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_transition.analysis.intervals import difference_interval, fieller_interval, mean_interval
from kv_transition.analysis.tables import Row, columns, frame, write_table
from kv_transition.data.manifest import read_manifest
from kv_transition.eval.score import score_task
from kv_transition.eval.shards import read_shard

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the table. n : examples compared; n_failed : left out, because one of the two ways has no answer (`error`:
#: the first of them). changed_share : share of texts that differ. mean_diff : the second way's mean score less the run's.
#: R : the second mean over the run's, the retention of the full cache against itself. status : "ok"; "float32" (nothing
#: was computed a second time); "failed" (no pair of answers); "other_machine" (dtype or device of the two ways differ).
NOISE_FLOOR = {
    **columns("string", "dataset task dtype device attention other_attention"),
    **columns("int32", "n n_failed n_clusters n_changed"),
    **columns("float64", "changed_share changed_lo changed_hi mean_score mean_score_other"),
    **columns("float64", "mean_diff diff_lo diff_hi mean_abs_diff R R_lo R_hi"),
    **columns("string", "protocol metric status error"),
}
COMPUTATION = ("dtype", "device", "attn_implementation")
_ANSWER = ("example_id", "text", "failure", "error")


def write_noise_floor(
    tasks: Sequence[tuple[str | Path, Sequence[str | Path], str | Path]],
    scoring: Mapping[str, Any],
    cache_dir: str | Path,
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Compare the two ways of every task and write the table.

    Parameters
    ----------
    tasks : (manifest, response files of the run's full cache, response file of the second way) of each.
    scoring, cache_dir : as `score_task` takes them.
    cfg : the table's analysis slice; `conf` is the level of the intervals.
    """
    rows = [
        compare_task(manifest, answers, other, scoring, cache_dir, float(cfg["conf"]))
        for manifest, answers, other in tasks
    ]
    write_table(frame(rows, NOISE_FLOOR), NOISE_FLOOR, ("dataset", "task"), cfg, out)


def compare_task(
    manifest: str | Path,
    answers: Sequence[str | Path],
    other: str | Path,
    scoring: Mapping[str, Any],
    cache_dir: str | Path,
    conf: float,
) -> Row:
    """The row of one task; parameters as of :func:`write_noise_floor`."""
    of_run, of_other = _computations(answers), _computations([other])
    dtype, device, attention = of_run[0]
    scored = [_scored(manifest, paths, scoring, cache_dir) for paths in (answers, [other])]
    known = read_manifest(manifest)
    facts: Row = {
        "dataset": known.dataset_id,
        "task": known.task,
        "dtype": dtype,
        "device": device,
        "attention": attention,
        "other_attention": of_other[0][2],
        "protocol": known.protocol,
        "metric": scored[0]["metric"].iloc[0] if len(scored[0]) else None,
    }
    if {way[:2] for way in of_run} != {way[:2] for way in of_other}:
        return {**compare([], []), **facts, "status": "other_machine"}
    if not len(scored[1]):
        return {**compare([], []), **facts, "status": "float32" if dtype == "float32" else "failed"}
    first = scored[0].set_index("example_id")
    return {**compare(_records(first.loc[scored[1]["example_id"]]), _records(scored[1]), conf), **facts}


def compare(run: Sequence[Row], other: Sequence[Row], conf: float = 0.95) -> Row:
    """The numbers of one task.

    Parameters
    ----------
    run, other : the same examples in the same order: {text, score, cluster_id, failure, error} of each way.
    conf : level of the intervals.
    """
    both = list(zip(run, other, strict=True))
    failed = [next((way for way in reversed(pair) if way["failure"]), None) for pair in both]
    errors = [f"{way['failure']}: {way['error']}" for way in failed if way]
    pairs = [pair for pair, way in zip(both, failed, strict=True) if way is None]
    counts: Row = {"n": len(pairs), "n_failed": len(errors), "error": errors[0] if errors else None}
    if not pairs:
        numbers = [name for name, kind in NOISE_FLOOR.items() if kind == "float64"]
        return {**counts, **dict.fromkeys(numbers, nan), "n_clusters": 0, "n_changed": 0, "status": "failed"}
    clusters = [own["cluster_id"] for own, _ in pairs]
    changed = np.array([own["text"] != second["text"] for own, second in pairs], dtype=np.float64)
    scores, others = (np.array([pair[way]["score"] for pair in pairs], dtype=np.float64) for way in (0, 1))
    share = mean_interval(changed, clusters, conf)
    difference = difference_interval(others, scores, clusters, conf)
    ratio = fieller_interval(others, scores, clusters, conf)
    return {
        **counts,
        "n_clusters": len(set(clusters)),
        "n_changed": int(changed.sum()),
        "changed_share": share.point,
        "changed_lo": share.lo,
        "changed_hi": share.hi,
        "mean_score": float(scores.mean()),
        "mean_score_other": float(others.mean()),
        "mean_diff": difference.point,
        "diff_lo": difference.lo,
        "diff_hi": difference.hi,
        "mean_abs_diff": float(np.abs(others - scores).mean()),
        "R": ratio.point,
        "R_lo": ratio.lo,
        "R_hi": ratio.hi,
        "status": "ok",
    }


def _computations(paths: Sequence[str | Path]) -> list[tuple[str, ...]]:
    """(dtype, device, attention) of response files, as resolved on the machines that answered; each once."""
    import pyarrow.parquet as pq

    found = set()
    for path in paths:
        metadata = pq.read_schema(path).metadata or {}
        engine = json.loads(metadata[b"answer"])["engine"]
        found.add(tuple(str(engine[name]) for name in COMPUTATION))
    return sorted(found)


def _scored(
    manifest: str | Path, paths: Sequence[str | Path], scoring: Mapping[str, Any], cache_dir: str | Path
) -> pd.DataFrame:
    """Answers with their scores, one row per example."""
    import pandas as pd

    texts = pd.concat([read_shard(Path(path), _ANSWER).to_pandas() for path in paths], ignore_index=True)
    scores = score_task(
        manifest_path=manifest, response_paths=paths, scoring=scoring, cache_dir=cache_dir, complete=False
    ).to_pandas()
    kept = scores[["example_id", "cluster_id", "metric", "score"]]
    merged: pd.DataFrame = kept.merge(texts, on="example_id", validate="one_to_one")
    return merged.sort_values("example_id")


def _records(table: pd.DataFrame) -> list[Row]:
    """Rows with None where a text is null."""
    return [
        {str(name): None if value is None or value != value else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]
