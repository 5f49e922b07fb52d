"""A small task on disk, made by hand: manifest and response shards of a few runs, as the stages write them."""

import hashlib
from pathlib import Path

import pyarrow as pa

from kv_transition import files
from kv_transition.data import manifest as manifest_file
from kv_transition.data.manifest import build_manifest
from kv_transition.data.normalize import CountedExample

EXPERIMENT, DATASET, TASK = "exp", "ds__trivia", "trivia"

RESPONSE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("request_id", "run_id", "task", "example_id", "method", "budget")),
        ("budget_value", pa.float64()),
        ("replicate", pa.int32()),
        *((name, pa.string()) for name in ("answer_key", "prompt_hash", "status", "protocol")),
        ("wrapped", pa.bool_()),
        *((name, pa.int32()) for name in ("dropped_tokens", "excess_tokens")),
        ("text", pa.string()),
        ("given_score", pa.float64()),
        ("finish_reason", pa.string()),
        *((name, pa.int32()) for name in ("prompt_tokens", "completion_tokens", "total_tokens")),
        *((name, pa.float64()) for name in ("kept_mean", "kept_min", "kept_max")),
        ("kept_per_layer", pa.list_(pa.float64())),
        *((name, pa.int32()) for name in ("press_len", "question_tokens")),
        ("bytes_kept", pa.int64()),
        ("peak_tokens", pa.int32()),
        ("active", pa.bool_()),
        *(
            (name, pa.string())
            for name in ("verified", "copied_from", "scope", "first_token", "timing_scope")
        ),
        *((name, pa.float64()) for name in ("latency_s", "ttfb_s", "prefill_s", "compress_s", "decode_s")),
        ("attempts", pa.int32()),
        *((name, pa.string()) for name in ("notes", "failure", "error", "engine", "host", "created")),
    ]
)


def write_manifest(path: Path, n: int = 4, task: str = TASK, classes: list[str] | None = None) -> Path:
    """Examples e0, e1, ... in two bins; e<i> has i + 10 tokens and the answers "gold <i>" and "alias"."""
    examples = [
        CountedExample(
            example_id=f"e{i}",
            question=f"Question {i}?",
            context=f"Text {i}",
            answers=[f"gold {i}", "alias"],
            meta={"task": task, "language": "en", "all_classes": classes},
            cluster_id=f"c{i}",
            token_len=10 + i,
        )
        for i in range(n)
    ]
    manifest = build_manifest(
        examples,
        experiment=EXPERIMENT,
        dataset="ds",
        task=task,
        tokenizer="words",
        protocol="own-1",
        n_bins=2,
        n_per_bin=n,
        selection_seed=7,
    )
    manifest_file.write_manifest(path, manifest)
    return path


def response(
    example_id: str, method: str = "full", budget: int | None = None, replicate: int = 0, **changes
) -> dict:
    """One answer, right unless `changes` say otherwise."""
    label = "full" if budget is None else str(budget)
    task = changes.get("task", TASK)
    run_id = f"{EXPERIMENT}__{task}__{method}__{label}"
    key = hashlib.sha256(f"{run_id}|{example_id}|{replicate}".encode()).hexdigest()
    return {
        "request_id": key[:32],
        "run_id": run_id,
        "task": task,
        "example_id": example_id,
        "method": method,
        "budget": label,
        "budget_value": budget,
        "replicate": replicate,
        "answer_key": f"answer-{key[:8]}",
        "prompt_hash": f"prompt-{example_id}",
        "status": "ok",
        "protocol": "own-1",
        "wrapped": True,
        "dropped_tokens": 0,
        "excess_tokens": 0,
        "text": f"Gold {example_id[1:]}.",
        "given_score": None,
        "finish_reason": "stop",
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": None,
        "kept_mean": float(budget or 12),
        "kept_min": float(budget or 12),
        "kept_max": float(budget or 12),
        "kept_per_layer": [float(budget or 12)] * 2,
        "press_len": 12,
        "question_tokens": 0,
        "bytes_kept": 4096,
        "peak_tokens": 15,
        "active": budget is not None,
        "verified": "measured",
        "copied_from": None,
        "scope": "prompt",
        "first_token": "compressed",
        "timing_scope": "sweep",
        "latency_s": None,
        "ttfb_s": None,
        "prefill_s": 0.5,
        "compress_s": 0.01,
        "decode_s": 0.1,
        "attempts": 1,
        "notes": None,
        "failure": None,
        "error": None,
        "engine": '{"class":"ReferenceEngine"}',
        "host": "node1",
        "created": "2026-01-02T03:04:05Z",
    } | changes


def failed(row: dict, failure: str = "TIMEOUT", error: str = "no answer after 60 s") -> dict:
    """The same request, without an answer."""
    nothing = dict.fromkeys(
        ("text", "finish_reason", "completion_tokens", "kept_mean", "kept_min", "kept_max")
    )
    return row | nothing | {"kept_per_layer": None, "failure": failure, "error": error, "attempts": 3}


def write_shard(folder: Path, rows: list[dict], shard: str = "000") -> Path:
    """Write answers of one run where the runner would, below `folder`."""
    where = f"{rows[0]['task']}/{rows[0]['method']}/{rows[0]['budget']}" if rows else f"{TASK}/none/none"
    return write_shard_at(folder / where / f"{shard}.parquet", rows)


def write_shard_at(path: Path, rows: list[dict]) -> Path:
    files.write_parquet(
        path, pa.Table.from_pylist(rows, RESPONSE_SCHEMA), sort_by=["example_id", "replicate"]
    )
    return path
