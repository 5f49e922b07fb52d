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

from kv_transition.data.longbench_tasks import task_facts
from kv_transition.data.manifest import Manifest, read_manifest
from kv_transition.data.synthetic import TASKS as SYNTHETIC_TASKS
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
from kv_transition.eval.longbench_metrics import check_gold, recursion_artefact
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
        *((name, pa.int32()) for name in ("bin_idx", "token_len", "length")),
        *((name, pa.string()) for name in ("method", "budget")),
        ("budget_value", pa.float64()),
        ("replicate", pa.int32()),
        *((name, pa.string()) for name in ("status", "protocol", "metric")),
        *((name, pa.float64()) for name in ("score", "em", "f1")),
        *((name, pa.string()) for name in ("pred_norm", "gold_norm", "failure")),
        *((f"flag_{flag}", pa.bool_()) for flag in _FLAGS),
        *((name, pa.int32()) for name in ("prompt_tokens", "dropped_tokens", "completion_tokens")),
        *((name, pa.float64()) for name in ("kept_mean", "kept_min", "kept_max")),
        ("press_len", pa.int32()),
        ("bytes_kept", pa.int64()),
        ("active", pa.bool_()),
        ("verified", pa.string()),
        ("one_token", pa.bool_()),
        ("recursion_artefact", pa.bool_()),
    ]
)

#: Columns of the scores that are not taken over from the responses.
_COMPUTED = (
    *(
        "cluster_id",
        "bin_idx",
        "token_len",
        "length",
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
    "recursion_artefact",
)
_COPIED = tuple(name for name in SCORE_SCHEMA.names if name not in _COMPUTED)
_ANSWER = ("example_id", "status", "text", "given_score", "finish_reason", "failure", "completion_tokens")

#: The metric of a published result that came with its score and without a text.
GIVEN = "published"


@dataclass(frozen=True)
class _Example:
    """What scoring needs to know of an example of the manifest."""

    cluster_id: str
    bin_idx: int
    token_len: int
    length: int | None
    answers: list[str]
    classes: list[str]


@dataclass(frozen=True)
class _Rules:
    """The scoring rules as they apply to one task: with an answer and its example they determine the score."""

    task: str
    metric: str
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
    complete: bool = True,
) -> pa.Table:
    """Score every answer of a task.

    Parameters
    ----------
    manifest_path : the task's manifest.json.
    response_paths : the shards of all runs of the task; single shards of a run may be empty.
    scoring : "primary" (a name in METRICS, or "official": the task's own, see :func:`metric_of_task`), "metrics"
        {task: what official means}, "formats" {task: one of FORMATS}, "first_line_tasks" (tasks of which only the first
        line is scored), "refusal_patterns" (regular expressions), "code" (hash of the code). LongBench's tasks have their
        format and first-line rule by themselves.
    cache_dir : folder of the score cache.
    complete : whether every run has to hold all of the manifest's examples.

    Returns
    -------
    Table with SCORE_SCHEMA, sorted by SORT_BY. `score`, `em`, `f1` and the normalised texts are null where no
    answer came back, and where nothing was asked (`status` not "ok"), which is no failure; `one_token` is true where the answer's text is known to be one token at most;
    `recursion_artefact` where LongBench's own code may give 0 because the text exceeds Python's recursion limit. A
    published score without a text has the metric "published" and neither em, f1 nor normalised texts.

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
    if scoring["primary"] == "official" and task not in scoring["metrics"]:
        for example in examples.values():
            if example.answers:  # published scores may come without them
                check_gold(task, example.answers, example.classes)
    paths = sorted(Path(path) for path in response_paths)
    if complete:
        check_coverage(task, examples.keys(), paths)
    refusals = compile_refusals(rules.refusal_patterns)
    cache = ScoreCache(cache_dir, asdict(rules))
    tables = [_score_shard(path, rules, refusals, examples, cache) for path in paths]
    cache.save()
    _log.info("%s: %d answers scored, %d taken from the score cache", task, cache.computed, cache.cached)
    table = pa.concat_tables([SCORE_SCHEMA.empty_table(), *tables])
    if (
        GIVEN in table["metric"].unique().to_pylist()
    ):  # its failed and absent rows have no score to tell them by
        place = SCORE_SCHEMA.get_field_index("metric")
        table = table.set_column(place, SCORE_SCHEMA.field(place), pa.array([GIVEN] * len(table)))
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
            length=example.meta.get("length"),
            answers=example.answers,
            classes=example.meta.get("all_classes") or [],
        )
        for entry, example in zip(manifest.entries, manifest.examples, strict=True)
    }


def metric_of_task(task: str, primary: str, metrics: Mapping[str, str]) -> str:
    """The name of the metric that is a task's score.

    Parameters
    ----------
    primary : a name in METRICS, or "official": LongBench's metric of its tasks, exact match for the synthetic ones,
        for any other what `metrics` says, else f1.

    Raises
    ------
    UserError
        For a name that is no metric.
    """
    facts = task_facts(task)
    own = "em" if task in SYNTHETIC_TASKS else "f1"
    official = metrics.get(task) or (facts.metric if facts else own)
    metric = official if primary == "official" else primary
    if metric not in METRICS:
        raise UserError(
            f"scoring.primary: {metric!r} is no metric; choose official or one of {', '.join(sorted(METRICS))}"
        )
    return metric


def _rules_of_task(scoring: Mapping[str, Any], task: str) -> _Rules:
    facts = task_facts(task)
    metric = metric_of_task(task, scoring["primary"], scoring["metrics"])
    answer_format = scoring["formats"].get(task, facts and facts.answer_format)
    if answer_format not in (None, *FORMATS):
        raise UserError(
            f"scoring.formats.{task}: {answer_format!r} is no answer format; choose one of {', '.join(FORMATS)}"
        )
    return _Rules(
        task=task,
        metric=metric,
        answer_format=answer_format,
        first_line_only=task in scoring["first_line_tasks"] or bool(facts and facts.first_line),
        refusal_patterns=tuple(scoring["refusal_patterns"]),
        code=scoring["code"],
    )


def _check_classes(manifest_path: str | Path, task: str, examples: Mapping[str, _Example]) -> None:
    """A format "class" without class names would call every answer a format error."""
    for example_id, example in examples.items():
        if example.answers and not example.classes:
            raise UserError(
                f"{manifest_path}: example {example_id} has no meta.all_classes, which the answer format class of {task} "
                "(scoring.formats) asks for; use data with class names"
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
    for example_id, status, text, given, finish_reason, failure, tokens in zip(
        *(shard[name].to_pylist() for name in _ANSWER), strict=True
    ):
        example = examples[example_id]
        if status != "ok":
            entry = _entry(Findings())
        elif failure is None and given is not None:
            entry = _entry(Findings(), score=given)
        elif failure is None:
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
                "length": example.length,
                "metric": rules.metric if given is None else GIVEN,
                "one_token": status == "ok" and failure is None and _is_one_token(tokens, finish_reason),
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
    score = METRICS[rules.metric](scored, example.answers, example.classes)
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
        recursion_artefact=recursion_artefact(rules.metric, scored, example.answers),
    )


def _entry(findings: Findings, **scores: float | str | bool) -> Entry:
    """The computed columns of a row; scores that are not given are null."""
    entry: Entry = dict.fromkeys(("score", "em", "f1", "pred_norm", "gold_norm")) | {
        "recursion_artefact": False
    }
    flags = {f"flag_{flag}": getattr(findings, flag) for flag in _FLAGS}
    return entry | scores | {"failure": findings.label} | flags
