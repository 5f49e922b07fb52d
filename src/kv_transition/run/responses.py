"""Response files: the journal's rows of one run and shard as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kv_transition.budgets import budget_from_label
from kv_transition.engines.base import EngineResult
from kv_transition.engines.text_level import Shortened
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
    "status": "string",
    "protocol": "string",
    "wrapped": "bool",
    "dropped_tokens": "int32",
    "excess_tokens": "int32",
    "text": "string",
    "given_score": "float64",
    "finish_reason": "string",
    "prompt_tokens": "int32",
    "completion_tokens": "int32",
    "total_tokens": "int32",
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
    "notes": "string",
    "failure": "string",
    "error": "string",
    "engine": "string",
    "host": "string",
    "created": "string",
}

TIMINGS = ("latency_s", "ttfb_s", "prefill_s", "compress_s", "decode_s")


def response_row(
    experiment: str,
    task: str,
    request: Request,
    row: Mapping[str, Any] | None,
    kv_settings: Mapping[str, Any],
) -> dict[str, Any]:
    """One row of a response file, from a request and its journal row (None where nothing was asked)."""
    run = run_id(experiment, task, request.method, request.budget)
    budget, prompt = budget_from_label(request.budget), request.prompt
    flat: dict[str, Any] = {"press_len": request.full_tokens}
    if row is not None:
        result = row["result"]
        flat = {**(result["kv"] or {}), **result["timings"], **result}
        flat |= {name: row[name] for name in ("attempts", "host", "created")}
        raw = result["raw"]
        flat |= {"total_tokens": raw.get("total_tokens"), "notes": "; ".join(raw.get("notes") or ()) or None}
        flat["engine"] = canonical_json(row["engine"])
        if request.text is not None:
            flat |= _of_text(request.text, int(request.full_tokens or 0), flat)
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
        "status": request.status,
        "protocol": request.protocol,
        "wrapped": prompt and prompt.wrapped,
        "dropped_tokens": prompt and prompt.dropped_tokens,
        "excess_tokens": prompt and prompt.excess_tokens,
        "scope": kv_settings["scope"],
        "first_token": kv_settings["first_token"],
        "verified": flat.get("verified", "no"),
    }
    return {
        name: _fitting(own[name] if name in own else flat.get(name), kind) for name, kind in COLUMNS.items()
    }


def _fitting(value: Any, kind: str) -> Any:
    """What a column can hold of what a server sent: half a surrogate pair is replaced, a count beyond the type is none."""
    if kind == "string" and isinstance(value, str) and not value.isascii():
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if kind.startswith("int") and isinstance(value, int):
        half = 1 << int(kind.removeprefix("int")) - 1
        return value if -half <= value < half else None
    return value


def within_budget(request: Request, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A journal row, as a failure where a server read more tokens than the text method's budget gave it.

    The journal keeps the answer as it came: its key has the prompt and not the budget, and asking again changes nothing.
    """
    result = row["result"]
    counted = result["prompt_tokens"]
    if result["failure"] or request.text is None or (counted or 0) <= request.text.kept_tokens:
        return row
    words = (
        f"the server counts {counted} tokens where {request.text.kept_tokens} were sent: model.path is not its tokenizer or "
        "template"
    )
    failed = EngineResult.failed(words, counted, result["timings"]["timing_scope"]).as_row()
    return {**row, "result": {**failed, "raw": result["raw"]}}


def _of_text(text: Shortened, full_tokens: int, engine: Mapping[str, Any]) -> dict[str, Any]:
    """What a text method's row says otherwise than the engine, for which its prompt was one with the whole cache.

    The cache holds the prompt that was sent and no more, and the engine's own count of it is the proof: as good as its
    word for the cache, which a foreign server can only report. The answer to the whole text is the full one, and its time
    is spent there.
    """
    kept = text.kept_tokens
    found: dict[str, Any] = {"press_len": full_tokens, "active": kept < full_tokens}
    if kept == full_tokens:
        found |= {"copied_from": "full", **dict.fromkeys(TIMINGS), "timing_scope": "sweep"}
    if engine["failure"] is not None:
        return found
    # In scope context the engine counts the positions of the context alone, and their bytes.
    counted, counted_bytes = engine.get("kept_mean"), engine.get("bytes_kept")
    proof = "measured" if engine.get("verified") == "measured" else "reported"
    return found | {
        **dict.fromkeys(("kept_mean", "kept_min", "kept_max"), float(kept)),
        "kept_per_layer": [float(kept)] * len(engine.get("kept_per_layer") or ()) or None,
        "question_tokens": 0,
        "bytes_kept": round(counted_bytes / counted * kept) if counted and counted_bytes else None,
        "verified": proof if engine["prompt_tokens"] == kept else "no",
    }


def write_responses(path: str | Path, rows: Iterable[Mapping[str, Any]], metadata: Mapping[str, str]) -> None:
    """Write the rows of one run and shard, ordered by example and replicate; a shard may be empty."""
    import pyarrow as pa

    values: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for row in rows:
        for name, column in values.items():
            column.append(row[name])
    types = {"list<float64>": pa.list_(pa.float64()), "bool": pa.bool_(), "string": pa.string()}
    columns = {
        name: pa.array(values[name], type=types.get(kind) or getattr(pa, kind)())
        for name, kind in COLUMNS.items()
    }
    write_parquet(path, pa.table(columns), sort_by=["example_id", "replicate"], metadata=metadata)
