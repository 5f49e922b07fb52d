"""Made-up files of a study, in the form in which the stages write them: manifests, response shards, scores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kv_transition import files
from kv_transition.data.manifest import build_manifest, write_manifest
from kv_transition.data.normalize import CountedExample
from kv_transition.db.assemble import SCORE
from kv_transition.run.requests import request_id, run_id
from kv_transition.run.responses import COLUMNS

EXPERIMENT, DATASET, PROTOCOL = "study", "made_up", "own-1"
METHODS = ("expected_attention", "keydiff", "knorm", "observed_attention", "snapkv", "streaming_llm", "tova")
BUDGETS = (64, 128, 256, 512, 1024, 2048)
#: Requests for each example: every method at every budget.
CELLS = len(METHODS) * len(BUDGETS)
TASK_EXAMPLES = 320
LAYERS = 3
FAILED = 0.01
WORDS = ("amber", "birch", "cedar", "delta", "ember", "falcon", "garnet", "heron", "icicle", "juniper")
TYPES = {"list<float64>": pa.list_(pa.float64())}
ENGINE = (
    '{"class":"ReferenceEngine","dtype":"float32","numpy":"2.4","protocol":2,"tokenizer_hash":"'
    + "a1" * 32
    + '"}'
)


@dataclass(frozen=True)
class StudyFiles:
    """The files of a study by kind, and how many rows the tables of a database get from them."""

    manifests: list[Path]
    responses: list[Path]
    scores: list[Path]
    requests: int
    failures: int


def write_study(folder: Path, requests: int) -> StudyFiles:
    """Write a study of about that many requests: 42 cells a task, up to 320 examples in each."""
    examples = max(1, round(requests / CELLS))
    found = StudyFiles([], [], [], 0, 0)
    total = failures = 0
    for task_idx, start in enumerate(range(0, examples, TASK_EXAMPLES)):
        rng = np.random.default_rng([7, task_idx])
        task = f"task{task_idx:03d}"
        ids = _write_manifest(folder, task, min(TASK_EXAMPLES, examples - start), found)
        scores = []
        for method in METHODS:
            for budget in BUDGETS:
                rows = _responses(rng, task, ids, method, budget)
                path = folder / "responses" / task / method / str(budget) / "000.parquet"
                files.write_parquet(path, rows, sort_by=["example_id", "replicate"])
                found.responses.append(path)
                scores.append(_scores(rng, rows))
                total += rows.num_rows
                failures += rows.num_rows - rows["failure"].null_count
        path = folder / "scores" / f"{task}.parquet"
        files.write_parquet(path, pa.concat_tables(scores), sort_by=["run_id", "example_id", "replicate"])
        found.scores.append(path)
    return StudyFiles(found.manifests, found.responses, found.scores, total, failures)


def _write_manifest(folder: Path, task: str, n: int, found: StudyFiles) -> list[str]:
    """Write the manifest of a task; returns its example ids."""
    examples = [
        CountedExample(
            example_id=_hash(f"{task}|{i}")[:24],
            question=f"What was said {i} times?",
            context="It was said again. " * 20,
            answers=[WORDS[i % len(WORDS)]],
            meta={"task": task, "language": "en", "all_classes": None},
            cluster_id=_hash(f"{task}|cluster|{i}")[:16],
            token_len=100 + i,
        )
        for i in range(n)
    ]
    manifest = build_manifest(
        examples,
        experiment=EXPERIMENT,
        dataset=DATASET,
        task=task,
        tokenizer="words",
        protocol=PROTOCOL,
        n_bins=min(8, n),
        n_per_bin=n,
        selection_seed=7,
    )
    path = folder / "data" / task / "manifest.json"
    write_manifest(path, manifest)
    found.manifests.append(path)
    return [example.example_id for example in examples]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _responses(rng: np.random.Generator, task: str, ids: list[str], method: str, budget: int) -> pa.Table:
    """The answers of one run: a hundredth of them failed."""
    n, run = len(ids), run_id(EXPERIMENT, task, method, str(budget))
    words = rng.integers(0, len(WORDS), (n, 5))
    tokens = rng.integers(5, 17, n)
    failed = rng.random(n) < FAILED
    seconds = np.round(rng.random((3, n)), 6)
    one_each = {
        "request_id": [request_id(run, example, 0) for example in ids],
        "example_id": ids,
        "answer_key": [_hash(f"{run}|{example}") for example in ids],
        "prompt_hash": [_hash(example) for example in ids],
        "text": pa.array([" ".join(WORDS[i] for i in row) for row in words], mask=failed),
        "completion_tokens": pa.array(tokens, pa.int32(), mask=failed),
        "prompt_tokens": 100 + np.arange(n),
        "press_len": 99 + np.arange(n),
        "peak_tokens": budget + tokens,
        "created": [f"2026-01-02T03:{i // 60 % 60:02d}:{i % 60:02d}Z" for i in range(n)],
        "failure": pa.array(np.full(n, "TIMEOUT"), mask=~failed),
        "error": pa.array(np.full(n, "no answer after 60 s"), mask=~failed),
        **dict(zip(("prefill_s", "compress_s", "decode_s"), seconds, strict=True)),
    }
    same = {
        **{
            "run_id": run,
            "task": task,
            "method": method,
            "budget": str(budget),
            "budget_value": float(budget),
        },
        **{"replicate": 0, "status": "ok", "protocol": PROTOCOL, "wrapped": True, "finish_reason": "stop"},
        **{"dropped_tokens": 0, "excess_tokens": 0, "question_tokens": 0, "bytes_kept": 1536 * budget},
        **dict.fromkeys(("kept_mean", "kept_min", "kept_max"), float(budget)),
        **{"kept_per_layer": [float(budget)] * LAYERS, "active": True, "verified": "measured"},
        **{"scope": "prompt", "first_token": "compressed", "timing_scope": "sweep", "attempts": 1},
        **{"engine": ENGINE, "host": "node1"},
    }
    return pa.table(
        {
            name: pa.array(one_each[name] if name in one_each else [same.get(name)] * n).cast(
                TYPES.get(kind, kind)
            )
            for name, kind in COLUMNS.items()
        }
    )


def _scores(rng: np.random.Generator, responses: pa.Table) -> pa.Table:
    """Scores of the answers of a run."""
    n, failure = responses.num_rows, responses["failure"]
    failed = np.array(failure.is_valid())
    score = np.round(rng.random(n), 10)
    columns = {
        **{
            name: responses[name]
            for name in ("request_id", "run_id", "task", "example_id", "replicate", "protocol")
        },
        "metric": pa.array(["f1"] * n),
        **{name: pa.array(score, mask=failed) for name in ("score", "em", "f1")},
        "pred_norm": responses["text"],
        "gold_norm": pa.array([WORDS[i] for i in rng.integers(0, len(WORDS), n)]),
        "failure": failure,
        "flag_timeout": pa.array(failed),
    }
    return pa.table(columns | {name: pa.array(np.zeros(n, bool)) for name in SCORE if name not in columns})
