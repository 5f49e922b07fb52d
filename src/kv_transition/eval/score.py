"""Score a task: its response shards in, one row per request out, refused unless every run is complete."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from kv_transition.data.manifest import Manifest, read_manifest
from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import (
    FORMATS,
    INFRASTRUCTURE,
    Findings,
    compile_refusals,
    findings_of_answer,
    findings_of_failure,
    first_line,
)
from kv_transition.eval.metrics import METRICS, exact_match, f1, normalize_answer
from kv_transition.eval.score_cache import Entry, ScoreCache
from kv_transition.eval.shards import check_coverage, read_shard
from kv_transition.files import write_parquet

_log = logging.getLogger(__name__)

#: Order of the rows. A method's budget values are all null (full, no_context) or all set.
SORT_BY = ("method", "budget_value", "example_id", "replicate")

_FLAGS = ("timeout", "engine_error", "empty_output", "refusal", "truncated", "format_error")

SCORE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("request_id", "run_id", "task", "example_id", "cluster_id")),
        *((name, pa.int32()) for name in ("bin_idx", "token_len")),
        *((name, pa.string()) for name in ("method", "budget")),
        ("budget_value", pa.float64()),
        ("replicate", pa.int32()),
        ("metric", pa.string()),
        *((name, pa.float64()) for name in ("score", "em", "f1")),
        *((name, pa.string()) for name in ("pred_norm", "gold_norm", "failure")),
        *((f"flag_{flag}", pa.bool_()) for flag in _FLAGS),
        *((name, pa.int32()) for name in ("prompt_tokens", "completion_tokens")),
        *((name, pa.float64()) for name in ("kept_mean", "kept_min", "kept_max")),
        ("press_len", pa.int32()),
        ("bytes_kept", pa.int64()),
        ("active", pa.bool_()),
        ("verified", pa.string()),
        ("one_token", pa.bool_()),
    ]
)

#: Columns of the scores that are not taken over from the responses.
_COMPUTED = (
    *(
        "cluster_id",
        "bin_idx",
        "token_len",
        "metric",
        "score",
        "em",
        "f1",
        "pred_norm",
        "gold_norm",
        "failure",
    ),
    *(f"flag_{flag}" for flag in _FLAGS),
    "one_token",
)
_COPIED = tuple(name for name in SCORE_SCHEMA.names if name not in _COMPUTED)
_ANSWER = ("example_id", "text", "finish_reason", "failure", "completion_tokens")


@dataclass(frozen=True)
class _Example:
    """What scoring needs to know of an example of the manifest."""

    cluster_id: str
    bin_idx: int
    token_len: int
    answers: list[str]
    classes: list[str]


@dataclass(frozen=True)
class _Rules:
    """The scoring rules as they apply to one task: with an answer and its example they determine the score."""

    task: str
    primary: str
    answer_format: str | None
    first_line_only: bool
    refusal_patterns: tuple[str, ...]
    code: str


def score_task(
    *,
    manifest_path: str | Path,
    response_paths: Sequence[str | Path],
    scoring: Mapping[str, Any],
    cache_dir: str | Path,
) -> pa.Table:
    """Score every answer of a task.

    Parameters
    ----------
    manifest_path : the task's manifest.json.
    response_paths : the shards of all runs of the task; single shards of a run may be empty.
    scoring : "primary" (a name in METRICS), "formats" {task: one of FORMATS}, "first_line_tasks" (tasks of which
        only the first line is scored), "refusal_patterns" (regular expressions), "code" (hash of the code).
    cache_dir : folder of the score cache.

    Returns
    -------
    Table with SCORE_SCHEMA, sorted by SORT_BY. `score`, `em`, `f1` and the normalised texts are null where no
    answer came back; `one_token` is true where the answer's text is known to be one token at most.

    Raises
    ------
    UserError
        When a run's example ids are not exactly the manifest's, each once, or an input is not what it should be.
    """
    manifest = read_manifest(manifest_path)
    task, examples = manifest.task, _examples(manifest)
    rules = _rules_of_task(scoring, task)
    if rules.answer_format == "class":
        _check_classes(manifest_path, task, examples)
    paths = sorted(Path(path) for path in response_paths)
    check_coverage(task, examples.keys(), paths)
    refusals = compile_refusals(rules.refusal_patterns)
    cache = ScoreCache(cache_dir, asdict(rules))
    tables = [_score_shard(path, rules, refusals, examples, cache) for path in paths]
    cache.save()
    _log.info("%s: %d answers scored, %d taken from the score cache", task, cache.computed, cache.cached)
    table = pa.concat_tables([SCORE_SCHEMA.empty_table(), *tables])
    return table.sort_by([(name, "ascending") for name in SORT_BY]).combine_chunks()


def write_scores(path: str | Path, table: pa.Table) -> None:
    """Write a task's scores."""
    write_parquet(path, table, sort_by=SORT_BY)


def _examples(manifest: Manifest) -> dict[str, _Example]:
    """A manifest's examples by id."""
    return {
        entry.example_id: _Example(
            cluster_id=example.cluster_id,
            bin_idx=entry.bin_idx,
            token_len=entry.token_len,
            answers=example.answers,
            classes=example.meta.get("all_classes") or [],
        )
        for entry, example in zip(manifest.entries, manifest.examples, strict=True)
    }


def _rules_of_task(scoring: Mapping[str, Any], task: str) -> _Rules:
    primary = scoring["primary"]
    if primary not in METRICS:
        raise UserError(
            f"scoring.primary: {primary!r} is no metric; choose one of {', '.join(sorted(METRICS))}"
        )
    answer_format = scoring["formats"].get(task)
    if answer_format not in (None, *FORMATS):
        raise UserError(
            f"scoring.formats.{task}: {answer_format!r} is no answer format; choose one of {', '.join(FORMATS)}"
        )
    return _Rules(
        task=task,
        primary=primary,
        answer_format=answer_format,
        first_line_only=task in scoring["first_line_tasks"],
        refusal_patterns=tuple(scoring["refusal_patterns"]),
        code=scoring["code"],
    )


def _check_classes(manifest_path: str | Path, task: str, examples: Mapping[str, _Example]) -> None:
    """A format "class" without class names would call every answer a format error."""
    for example_id, example in examples.items():
        if not example.classes:
            raise UserError(
                f"{manifest_path}: example {example_id} has no meta.all_classes, which scoring.formats.{task}: "
                "class asks for; remove the format or use data with class names"
            )


def _score_shard(
    path: Path,
    rules: _Rules,
    refusals: re.Pattern[str],
    examples: Mapping[str, _Example],
    cache: ScoreCache,
) -> pa.Table:
    """One row of SCORE_SCHEMA for each row of a shard."""
    shard = read_shard(path, [*_COPIED, *(name for name in _ANSWER if name not in _COPIED)])
    rows: list[Entry] = []
    for example_id, text, finish_reason, failure, tokens in zip(
        *(shard[name].to_pylist() for name in _ANSWER), strict=True
    ):
        example = examples[example_id]
        if failure is None:
            answer = text or ""  # an engine may give null for an answer without any text
            entry = cache.get(
                [answer, finish_reason, example.answers, example.classes],
                partial(_score_answer, answer, finish_reason, example, rules, refusals),
            )
        elif failure in INFRASTRUCTURE:
            entry = _entry(findings_of_failure(failure))
        else:
            raise UserError(
                f"{path}: example {example_id} has the failure {failure!r}, expected none, "
                f"{' or '.join(INFRASTRUCTURE)}; delete the file and run it again"
            )
        rows.append(
            {
                **entry,
                "cluster_id": example.cluster_id,
                "bin_idx": example.bin_idx,
                "token_len": example.token_len,
                "metric": rules.primary,
                "one_token": failure is None and _is_one_token(tokens, finish_reason),
            }
        )
    columns = [
        shard[field.name].cast(field.type)
        if field.name in _COPIED
        else pa.array((row[field.name] for row in rows), field.type, size=len(rows))
        for field in SCORE_SCHEMA
    ]
    return pa.table(columns, schema=SCORE_SCHEMA)


def _is_one_token(completion_tokens: int | None, finish_reason: str | None) -> bool:
    """Whether the answer, without the end token that `completion_tokens` counts, is one token or none."""
    return completion_tokens is not None and completion_tokens - (finish_reason == "stop") <= 1


def _score_answer(
    text: str, finish_reason: str | None, example: _Example, rules: _Rules, refusals: re.Pattern[str]
) -> Entry:
    """Scores and findings of one answer: what the cache keeps."""
    scored = first_line(text) if rules.first_line_only else text
    score = METRICS[rules.primary](scored, example.answers, example.classes)
    best_f1, best_answer = f1(scored, example.answers)
    findings = findings_of_answer(
        text,
        finish_reason=finish_reason,
        score=score,
        refusals=refusals,
        answer_format=rules.answer_format,
        classes=example.classes,
        first_line_only=rules.first_line_only,
    )
    return _entry(
        findings,
        score=score,
        em=exact_match(scored, example.answers),
        f1=best_f1,
        pred_norm=normalize_answer(scored),
        gold_norm=normalize_answer(best_answer),
    )


def _entry(findings: Findings, **scores: float | str) -> Entry:
    """The computed columns of a row; scores that are not given are null."""
    entry: Entry = dict.fromkeys(("score", "em", "f1", "pred_norm", "gold_norm"))
    flags = {f"flag_{flag}": getattr(findings, flag) for flag in _FLAGS}
    return entry | scores | {"failure": findings.label} | flags
