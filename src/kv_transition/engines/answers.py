"""From what each cell kept and said to results: the proof of the budget, timings, and copies of the full answer."""

from __future__ import annotations

from dataclasses import replace

from kv_transition.engines.base import Cell, EngineResult, KVUse, Timings, TimingScope
from kv_transition.engines.greedy import Answer
from kv_transition.engines.sweep import KeptCache, Split, Swept

FULL = Cell("full")


class Answers:
    """The sweep of one prompt, made into results."""

    def __init__(
        self, swept: Swept, split: Split, prompt_tokens: int, begin: float, timing_scope: TimingScope
    ) -> None:
        self.swept, self.split, self.prompt_tokens = swept, split, prompt_tokens
        self.begin, self.timing_scope = begin, timing_scope
        #: The first decoded cell of each method, and of all: there stand the timings of shared work.
        self.first_of = {cell.method: cell for cell in reversed(list(swept.answers))}
        self.first = next(iter(swept.answers), None)

    def _timings(self, cell: Cell) -> Timings:
        swept, method = self.swept, cell.method
        timings = Timings(timing_scope=self.timing_scope)
        if cell == self.first:
            timings = replace(timings, prefill_s=swept.prefill_s, decode_s=swept.decode_s)
        if cell == self.first_of[method] and cell != FULL:
            timings = replace(timings, compress_s=swept.compress_s[method])
        if self.timing_scope == "request" and swept.first_token is not None:
            ttfb_s = swept.first_token - self.begin
            timings = replace(timings, latency_s=swept.end - self.begin, ttfb_s=ttfb_s)
        return timings

    def result(self, cell: Cell) -> EngineResult:
        """The result of one cell: its own, or the full one where its budget took nothing away."""
        active = self.split.is_active(cell)
        source = cell if active else FULL
        copied = source != cell
        cache = self.swept.caches[source]
        if cache.error:
            failed = EngineResult.failed(cache.error, self.prompt_tokens, self.timing_scope)
            return replace(failed, copied_from="full") if copied else failed
        answer = self.swept.answers[source]
        return EngineResult(
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=len(answer.tokens),
            kv=self._kv_use(cell, cache, answer, active),
            timings=Timings() if copied and self.timing_scope == "sweep" else self._timings(source),
            copied_from="full" if copied else None,
        )

    def _kv_use(self, cell: Cell, cache: KeptCache, answer: Answer, active: bool) -> KVUse:
        """What the cell's arrays hold, the re-read last prompt token included where it counts."""
        kept = [positions + self.split.refed for positions in cache.kept]
        return KVUse(
            method=cell.method,
            requested=self.split.requested(cell),
            kept_per_layer=tuple(float(positions) for positions in kept),
            kept_mean=sum(kept) / len(kept),
            kept_min=float(min(kept)),
            kept_max=float(max(kept)),
            press_len=self.split.press_len,
            prompt_tokens=self.prompt_tokens,
            question_tokens=self.split.question_tokens,
            bytes_kept=cache.nbytes + self.split.refed * cache.position_bytes,
            peak_tokens=int(max(kept)) + self.split.question_tokens + len(answer.tokens),
            active=active,
            verified="measured",
        )
