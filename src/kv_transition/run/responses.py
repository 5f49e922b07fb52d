"""Response files: the journal's rows of one run and shard as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kv_transition.budgets import budget_from_label
from kv_transition.files import canonical_json, write_parquet
from kv_transition.run.requests import Request, request_id, run_id

#: Column -> Arrow type. Everything that depends on the run (times, host) comes from the journal row.
COLUMNS = {
    "request_id": "string",
    "run_id": "string",
    "task": "string",
    "example_id": "string",
    "method": "string",
    "budget": "string",
    "budget_value": "float64",
    "replicate": "int32",
    "answer_key": "string",
    "prompt_hash": "string",
    "protocol": "string",
    "wrapped": "bool",
    "dropped_tokens": "int32",
    "excess_tokens": "int32",
    "text": "string",
    "given_score": "float64",
    "finish_reason": "string",
    "prompt_tokens": "int32",
    "completion_tokens": "int32",
    "kept_mean": "float64",
    "kept_min": "float64",
    "kept_max": "float64",
    "kept_per_layer": "list<float64>",
    "press_len": "int32",
    "question_tokens": "int32",
    "bytes_kept": "int64",
    "peak_tokens": "int32",
    "active": "bool",
    "verified": "string",
    "copied_from": "string",
    "scope": "string",
    "first_token": "string",
    "timing_scope": "string",
    "latency_s": "float64",
    "ttfb_s": "float64",
    "prefill_s": "float64",
    "compress_s": "float64",
    "decode_s": "float64",
    "attempts": "int32",
    "failure": "string",
    "error": "string",
    "engine": "string",
    "host": "string",
    "created": "string",
}


def response_row(
    experiment: str, task: str, request: Request, row: Mapping[str, Any], kv_settings: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of a response file, from a request and its journal row."""
    run = run_id(experiment, task, request.method, request.budget)
    budget = budget_from_label(request.budget)
    result = row["result"]
    flat = {**result, **(result["kv"] or {}), **result["timings"]}
    own = {
        "request_id": request_id(run, request.example_id, request.replicate),
        "run_id": run,
        "task": task,
        "example_id": request.example_id,
        "method": request.method,
        "budget": request.budget,
        "budget_value": None if budget is None else float(budget),
        "replicate": request.replicate,
        "answer_key": request.key,
        "prompt_hash": request.prompt_hash,
        "protocol": request.protocol,
        "wrapped": request.wrapped,
        "dropped_tokens": request.dropped_tokens,
        "excess_tokens": request.excess_tokens,
        "scope": kv_settings["scope"],
        "first_token": kv_settings["first_token"],
        "attempts": row["attempts"],
        "engine": canonical_json(row["engine"]),
        "host": row["host"],
        "created": row["created"],
        "verified": flat.get("verified", "no"),
    }
    return {name: own[name] if name in own else flat.get(name) for name in COLUMNS}


def write_responses(path: str | Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str]) -> None:
    """Write the rows of one run and shard, ordered by example and replicate; a shard may be empty."""
    import pyarrow as pa

    types = {"list<float64>": pa.list_(pa.float64()), "bool": pa.bool_(), "string": pa.string()}
    columns = {
        name: pa.array([row[name] for row in rows], type=types.get(kind) or getattr(pa, kind)())
        for name, kind in COLUMNS.items()
    }
    write_parquet(path, pa.table(columns), sort_by=["example_id", "replicate"], metadata=metadata)
