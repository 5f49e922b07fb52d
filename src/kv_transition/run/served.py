"""Answers from a server: single requests, many in flight, each of them safe in the journal before the next one is sent."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kv_transition.budgets import kept_tokens
from kv_transition.engines.base import BaseEngine, Decoding, EngineResult, Timings
from kv_transition.run.concurrent import Progress, answer_concurrently
from kv_transition.run.journal import Journal
from kv_transition.run.requests import ExampleRequests, Request, journal_row

if TYPE_CHECKING:
    from kv_transition.run.probe import ProbeAnswer

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
        self, lacking: Sequence[ExampleRequests], known: Mapping[str, Mapping[str, Any]], journal: Journal
    ) -> Iterator[Mapping[str, Any]]:
        """Ask what the journal lacks; yields each row when it is on the disk.

        Parameters
        ----------
        known : key -> journal row of what it has.

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
            journal.append(copies)
            yield from copies
        for row in copies:
            del todo[str(row["key"])]
        if todo:
            yield from self._probed(todo, known, journal, provenance)
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

    def _probed(
        self,
        todo: dict[str, Request],
        known: Mapping[str, Mapping[str, Any]],
        journal: Journal,
        provenance: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """The good answers to a few requests of one cell, which are asked one after the other.

        They are in the journal, and out of `todo`, before anything is said against them. Where so little is left that
        nothing is asked before the rest, the answers that the journal has are judged: else a run that was stopped for
        their sake would pass when it is started often enough.

        Only the full cache's answers are expected to end: with less of the text or of the cache a model may ramble.
        """
        from kv_transition.run.probe import EXAMPLES, probe

        head = next(iter(todo.values()))
        cell = head.cell
        first = {}
        if len(todo) > WITHOUT_PROBE:
            own = head.method, head.budget, head.replicate
            alike = [one for one in todo.values() if (one.method, one.budget, one.replicate) == own]
            first = {one.example_id: one for one in alike[:EXAMPLES]}
        label = cell.method, cell.label, cell.replicate
        results = [row["result"] for row in known.values() if _cell_of(row) == label]
        earlier = [(result["text"], result["finish_reason"]) for result in results]
        rows: list[dict[str, Any]] = []

        def keep(answer: ProbeAnswer) -> None:
            row = journal_row(first[answer.example_id], answer.result, provenance)
            journal.append([row])
            rows.append(row)
            del todo[str(row["key"])]

        probe(
            self.engine,
            [(name, one.prompt) for name, one in first.items() if one.prompt is not None],
            [cell],
            self.decoding,
            ends_expected=self.ends_expected and head.method == "full",
            keep=keep,
            earlier=earlier if len(todo) + len(earlier) > WITHOUT_PROBE else [],
        )
        return rows

    def _copied(self, request: Request) -> dict[str, Any] | None:
        """The row of a budget that is not smaller than the prompt: the full cache's answer; None where it has to be asked."""
        row, budget = self.full.get(request.example_id), request.cell.budget
        if row is None or budget is None or self.scope != "prompt" or row["result"]["failure"]:
            return None
        result = row["result"]
        # The length in `usage` proves nothing; the cache's own echo does, and without one the budget is asked for.
        length = result["kv"] and result["kv"]["prompt_tokens"]
        if not length or kept_tokens(budget, length) < length:
            return None
        kept = {
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


def _cell_of(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["method"], row["budget"], row["replicate"]


def _report(progress: Progress) -> None:
    log.info("%s", progress)
