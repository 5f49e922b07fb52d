"""Runs one shard of a task: the journal first, the model only for what the journal lacks."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_transition.budgets import UNCOMPRESSED
from kv_transition.data.longbench_tasks import task_facts
from kv_transition.data.manifest import Manifest, read_manifest
from kv_transition.data.normalize import Example
from kv_transition.data.prompts import Prompt
from kv_transition.data.protocol import TaskProtocol, load_protocol
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.engines.base import BaseEngine, Decoding, PromptCells, check_vocabulary
from kv_transition.engines.contexts import context_of
from kv_transition.engines.endpoints import build_engine
from kv_transition.engines.kvpress_settings import resolved_engine
from kv_transition.engines.text_level import TEXT_METHODS
from kv_transition.errors import UserError
from kv_transition.files import canonical_json
from kv_transition.run.journal import BackgroundWriter, Journal, has_answer
from kv_transition.run.requests import ExampleRequests, Request, journal_row, requests_of_example
from kv_transition.run.responses import response_row, within_budget, write_responses
from kv_transition.run.served import Served

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 10.0
FULL = ("full", "full")
#: The settings' section `http`, where a server is asked, and engine.decode_batch.
BESIDE = ("http", "decode_batch")


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` parts of a task's manifest; which examples those are, :func:`shard_numbers` says.

    Attributes
    ----------
    answer : the settings' answer slice of the task.
    model_sha256 : hash of the model's files, part of every journal key.
    protocol : makes the prompts and ends the answers.
    """

    manifest: Manifest
    index: int
    count: int
    answer: Mapping[str, Any]
    model_sha256: str
    protocol: TaskProtocol

    @classmethod
    def read(
        cls,
        manifest_path: str | Path,
        index: int,
        tables: Sequence[str | Path],
        params: Any,
        beside: Mapping[str, Any] | None = None,
    ) -> Shard:
        """The shard of a workflow job.

        Parameters
        ----------
        tables : the file with LongBench's prompt tables, none where the protocol needs none.
        params : with the attributes answer, shards and model_sha256.
        beside : settings that say how an answer is had and are no part of it, by the names of `BESIDE`.
        """
        manifest = read_manifest(manifest_path)
        section = params.answer["protocol"]
        table = next(iter(tables), None)
        return cls(
            manifest=manifest,
            index=index,
            count=params.shards,
            answer={**params.answer, **(beside or {})},
            model_sha256=params.model_sha256,
            protocol=load_protocol(section, table, manifest.task, section["model_name"]),
        )

    @property
    def settled(self) -> dict[str, Any]:
        """The answer slice with the decoding that the protocol makes of it, and what `auto` stands for on this machine."""
        return {
            **self.answer,
            "engine": resolved_engine(self.answer["engine"]),
            "decoding": self.protocol.decoding(self.answer["decoding"]),
        }

    @property
    def needs_proof(self) -> bool:
        """Whether a server has to confirm the budget of its answers."""
        http = self.answer.get("http") if self.answer["engine"]["kind"] == "openai_compat" else None
        return bool(http and http["require_verified_budget"])

    def counts(self, row: Mapping[str, Any]) -> bool:
        """Whether a journal row is an answer of this shard; one without the proof that it needs is asked for again."""
        proved = row["budget"] == "full" or row["result"]["kv"] is not None
        return has_answer(row) and (proved or not self.needs_proof)

    def answered(self, request: Request, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """A request's journal row as the settings judge it; None where nothing was asked."""
        row = None if request.key is None else known[request.key]
        return within_budget(request, row) if row and self.needs_proof else row

    def examples(self) -> list[Example]:
        """The shard's examples, in the manifest's order."""
        examples = self.manifest.examples
        numbers = shard_numbers(examples, self.count, self.answer["kv"]["scope"])
        return [example for example, number in zip(examples, numbers, strict=True) if number == self.index]

    def requests(self, cells: Sequence[tuple[str, str]]) -> list[ExampleRequests]:
        """Every request of the shard, example by example."""
        answer, tokenizer = self.settled, None
        by_tokens = self.protocol.needs_tokenizer or any(method in TEXT_METHODS for method, _ in cells)
        if by_tokens and answer["model"]["path"]:
            tokenizer = ModelTokenizer(answer["model"]["path"])
        return [
            requests_of_example(self.protocol, example, cells, answer, self.model_sha256, tokenizer)
            for example in self.examples()
        ]

    def served(self, engine: BaseEngine, journal: Journal) -> Served:
        """How the shard is asked of a server; the full cache's answers are those that the journal has."""
        facts = task_facts(self.manifest.task)
        full = {str(request.key): request for example in self.requests([FULL]) for request in example.asked}
        return Served(
            engine,
            Decoding.of(self.settled["decoding"]),
            ends_expected=self.protocol.name == "own" and not (facts and facts.first_line),
            scope=self.answer["kv"]["scope"],
            full={full[key].example_id: row for key, row in journal.read(full.keys()).items()},
        )

    def journal(self, root: str | Path) -> Journal:
        """The journal of the shard's model and engine."""
        return Journal(Path(root) / f"{self.answer['engine']['kind']}-{self.model_sha256[:16]}")


def shard_numbers(examples: Sequence[Example], count: int, scope: str) -> list[int]:
    """The shard of each example, 0 to `count` - 1: by turns, in scope `context` with all questions about a context in one."""
    if scope != "context":
        return [number % count for number in range(len(examples))]
    contexts = {
        cluster: number for number, cluster in enumerate(dict.fromkeys(e.cluster_id for e in examples))
    }
    return [contexts[example.cluster_id] % count for example in examples]


def infer_shard(
    shard: Shard,
    outputs: Mapping[tuple[str, str], str | Path],
    run: Mapping[str, Any],
    make_engine: Callable[[dict[str, Any]], BaseEngine] = build_engine,
) -> int:
    """Answer every request of a shard and write one response file per cell.

    Parameters
    ----------
    outputs : (method, budget label) -> response file.
    run : the settings' section `run` (journal_dir, max_failure_rate, allow_failed_reference).
    make_engine : builds the engine; called only when the journal lacks an answer.

    Returns
    -------
    The number of answers that were computed, that is of new journal rows.

    Raises
    ------
    UserError
        When more requests failed than the settings allow; good answers are in the journal all the same.
    """
    if shard.manifest.protocol != shard.protocol.label:
        raise UserError(
            f"{shard.manifest.task}: the manifest's lengths are of prompts of protocol {shard.manifest.protocol}, and "
            f"protocol.kind asks with {shard.protocol.label}; start from the records, or set protocol.kind to the manifest's"
        )
    work = shard.requests(list(outputs))
    keys = {str(request.key) for example in work for request in example.asked}
    with shard.journal(run["journal_dir"]) as journal:
        known = journal.read(keys, shard.counts)
        known.keep(shard.counts)
        asked = sum(len(example.asked) for example in work)
        lacking = [example for example in work if any(request.key not in known for request in example.asked)]
        missing = len(keys - known.keys())
        log.info("%s: %d requests, %d answers to compute", shard.manifest.task, asked, missing)
        if lacking:
            engine = make_engine(shard.settled)
            if engine.concurrency:
                answers = shard.served(engine, journal).rows(lacking, known, journal)
            else:
                answers = _compute(lacking, known, engine, shard.settled, journal)
            for answer in answers:
                known.add(answer)
    limit = float(shard.answer["engine"]["unknown_token_limit"])
    for row in known.values():
        check_vocabulary(row["result"]["raw"], limit, row["example_id"])
    _check_failures(shard, work, known, run)
    _write(shard, work, known, outputs)
    return missing


@dataclass(frozen=True, slots=True)
class _Step:
    """What the journal lacks of one prompt of an example."""

    example_id: str
    prompt: Prompt
    requests: list[Request]

    @property
    def asked(self) -> PromptCells:
        """What the engine is asked."""
        return PromptCells(self.example_id, self.prompt, [request.cell for request in self.requests])


def _compute(
    lacking: Sequence[ExampleRequests],
    known: Container[str],
    engine: BaseEngine,
    answer: Mapping[str, Any],
    journal: Journal,
) -> Iterator[Mapping[str, Any]]:
    """Yield the journal rows of one prompt after another; when the last one is drawn, all are on the disk."""
    decoding = Decoding.of(answer["decoding"])
    provenance = engine.provenance()
    started = reported = time.monotonic()
    failures = 0
    steps = _steps(lacking, known)
    if answer["kv"]["scope"] == "context":
        steps = _by_context(steps)
    with BackgroundWriter(journal) as writer:
        done = 0
        for swept in engine.sweep_all([step.asked for step in steps], decoding):
            # What was computed together is written together: nothing waits for a disk between two prompts.
            answered = steps[done : done + len(swept)]
            done += len(swept)
            rows = [
                journal_row(request, result, provenance)
                for step, results in zip(answered, swept, strict=True)
                for request, result in zip(step.requests, results, strict=True)
            ]
            writer.append(rows)
            yield from rows
            failures += sum(row["result"]["failure"] is not None for row in rows)
            now = time.monotonic()
            if now - reported > PROGRESS_EVERY_S or done == len(steps):
                reported = now
                left = (now - started) / done * (len(steps) - done)
                log.info(
                    "%d of %d prompts, %d failed requests, about %.0f s left",
                    *(done, len(steps), failures, left),
                )


def _steps(lacking: Sequence[ExampleRequests], known: Container[str]) -> list[_Step]:
    """What the journal lacks, one step for each prompt of each example, and each answer once."""
    # Without their contexts two examples may ask the same.
    taken: set[str | None] = set()
    steps: list[_Step] = []
    for example in lacking:
        groups: dict[tuple[str | None, int | None], _Step] = {}
        for request in example.asked:
            if request.prompt is not None and request.key not in known and request.key not in taken:
                taken.add(request.key)
                same = request.prompt_hash, request.prompt.context_end
                step = groups.setdefault(same, _Step(example.example_id, request.prompt, []))
                step.requests.append(request)
        steps += groups.values()
    return steps


def _by_context(steps: Sequence[_Step]) -> list[_Step]:
    """The same steps with the questions about one context together, in the place of the first of them."""
    groups: dict[object, list[_Step]] = {}
    for number, step in enumerate(steps):
        context = context_of(step.prompt)
        groups.setdefault(number if context is None else context, []).append(step)
    return [step for group in groups.values() for step in group]


def _write(
    shard: Shard,
    work: Sequence[ExampleRequests],
    known: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[tuple[str, str], str | Path],
) -> None:
    manifest = shard.manifest
    # How a server was reached is in each row (`engine`): what was asked elsewhere is written again with the same bytes.
    answer = {name: value for name, value in shard.settled.items() if name not in BESIDE}
    metadata = {
        "answer": canonical_json({**answer, "model_sha256": shard.model_sha256}),
        "task": manifest.task,
    }
    requests: dict[tuple[str, str], list[Request]] = defaultdict(list)
    for example in work:
        for request in example.requests:
            requests[request.method, request.budget].append(request)
    # One cell after another: the rows of all cells together would be the largest thing in memory.
    for cell, path in outputs.items():
        rows = (
            response_row(
                manifest.experiment,
                manifest.task,
                request,
                shard.answered(request, known),
                shard.answer["kv"],
            )
            for request in requests[cell]
        )
        write_responses(path, rows, metadata)


def _check_failures(
    shard: Shard,
    work: Sequence[ExampleRequests],
    known: Mapping[str, Mapping[str, Any]],
    run: Mapping[str, Any],
) -> None:
    failed: dict[tuple[str, str], list[str]] = defaultdict(list)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for example in work:
        rows = [(request, shard.answered(request, known)) for request in example.asked]
        errors = [
            ((request.method, request.budget), f"{row['result']['failure']}: {row['result']['error']}")
            for request, row in rows
            if row and row["result"]["failure"]
        ]
        if run["allow_failed_reference"] and any(cell == FULL for cell, _ in errors):
            # What the full cache cannot answer, no budget can: the whole example is let through.
            continue
        for request, _ in rows:
            counts[request.method, request.budget] += 1
        for cell, error in errors:
            failed[cell].append(error)
    for cell, errors_of_cell in failed.items():
        reference = cell[0] in UNCOMPRESSED
        if reference and run["allow_failed_reference"]:
            continue
        limit = 0.0 if reference else run["max_failure_rate"]
        if len(errors_of_cell) > limit * counts[cell]:
            key = "run.allow_failed_reference" if reference else "run.max_failure_rate"
            raise UserError(
                f"{shard.manifest.task} {cell[0]} {cell[1]}: {len(errors_of_cell)} of {counts[cell]} requests failed, which {key} does not allow; "
                f"the first: {errors_of_cell[0]}. Good answers are in the journal; run the same command again to retry the others"
            )
