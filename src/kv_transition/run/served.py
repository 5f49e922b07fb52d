"""Answers from a server: single requests, many in flight, each of them safe in the journal before the next one is sent."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kv_transition.budgets import kept_tokens
from kv_transition.engines.base import BaseEngine, Decoding, EngineResult, Timings
from kv_transition.run.concurrent import Progress, answer_concurrently
from kv_transition.run.journal import Journal
from kv_transition.run.probe import probe
from kv_transition.run.requests import ExampleRequests, Request, journal_row

log = logging.getLogger(__name__)

#: A shard with no more requests than this is its own probe.
WITHOUT_PROBE = 10


@dataclass(frozen=True)
class Served:
    """How a shard is asked of a server.

    Attributes
    ----------
    ends_expected : whether the full cache's answers should end by themselves, see
        :func:`kv_transition.run.probe.probe`.
    scope : the setting `kv.scope`.
    full : example_id -> journal row of the full cache's answer, where there is one.
    """

    engine: BaseEngine
    decoding: Decoding
    ends_expected: bool
    scope: str
    full: Mapping[str, Mapping[str, Any]]

    def rows(
        self, lacking: Sequence[ExampleRequests], known: Container[str], journal: Journal
    ) -> Iterator[Mapping[str, Any]]:
        """Ask what the journal lacks; yields each row when it is on the disk.

        Raises
        ------
        UserError
            When the first questions show that the others would fail or mean nothing; when the journal cannot be written.
        """
        todo = {
            str(request.key): request
            for example in lacking
            for request in example.asked
            if request.key not in known
        }
        provenance = self.engine.provenance()
        copies = [row for request in todo.values() if (row := self._copied(request)) is not None]
        if copies:
            log.info("%d budgets take nothing away: the full cache's answers are copied", len(copies))
            yield from self._kept(copies, journal)
        for row in copies:
            del todo[str(row["key"])]
        if len(todo) > WITHOUT_PROBE:
            first = list(todo.values())[:3]
            yield from self._kept(
                [
                    journal_row(request, result, provenance)
                    for request, result in self._probed(first)
                    if todo.pop(str(request.key))
                ],
                journal,
            )
        yield from answer_concurrently(
            todo.values(),
            self._ask,
            lambda request, result: journal_row(request, result, provenance),
            journal,
            self.engine.concurrency,
            _report,
            total=len(todo),
        )

    def _ask(self, request: Request) -> EngineResult:
        assert request.prompt is not None
        return self.engine.generate(request.prompt, request.cell, self.decoding, request.example_id)

    def _probed(self, requests: Sequence[Request]) -> Iterator[tuple[Request, EngineResult]]:
        """The good answers to a few requests, which are asked one after the other.

        Only the full cache's answers are expected to end: with less of the text or of the cache a model may ramble.
        """
        ends_expected = self.ends_expected and all(request.method == "full" for request in requests)
        for cell in dict.fromkeys(request.cell for request in requests):
            own = {request.example_id: request for request in requests if request.cell == cell}
            prompts = [(name, request.prompt) for name, request in own.items() if request.prompt is not None]
            for answer in probe(self.engine, prompts, [cell], self.decoding, ends_expected=ends_expected):
                yield own[answer.example_id], answer.result

    @staticmethod
    def _kept(rows: Sequence[Mapping[str, Any]], journal: Journal) -> Iterator[Mapping[str, Any]]:
        journal.append(rows)
        yield from rows

    def _copied(self, request: Request) -> dict[str, Any] | None:
        """The row of a budget that is not smaller than the prompt: the full cache's answer; None where it has to be asked."""
        row, budget = self.full.get(request.example_id), request.cell.budget
        if row is None or budget is None or self.scope != "prompt" or row["result"]["failure"]:
            return None
        result = row["result"]
        length = result["prompt_tokens"]
        if not length or kept_tokens(budget, length) < length:
            return None
        kept = result["kv"] and {
            **result["kv"],
            "method": request.cell.method,
            "requested": kept_tokens(budget, length),
            "active": False,
        }
        copy = {**result, "kv": kept, "timings": asdict(Timings()), "copied_from": "full", "raw": {}}
        own = {
            "key": request.key,
            "method": request.cell.method,
            "budget": request.cell.label,
            "replicate": request.replicate,
        }
        return {**row, **own, "result": copy}


def _report(progress: Progress) -> None:
    log.info("%s", progress)
