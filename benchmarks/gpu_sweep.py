"""The whole grid on a GPU, beside the full cache alone and kvpress one cell at a time, with random weights of known shapes.

    python benchmarks/gpu_sweep.py                                        1 B and 8 B shape, 8,192 and 32,768 tokens, bf16
    python benchmarks/gpu_sweep.py --model 1b --tokens 8192               one of them
    python benchmarks/gpu_sweep.py --device cpu --model tiny --quick      to see that it works

Needs no file of a model: the weights are drawn on the device. Where there is no GPU it says so in one line and ends with 0.
After --budget-seconds nothing new is begun, and what was measured is written. Measured for each shape and length: seconds
and peak memory of the full cache alone, of the sweep and of kvpress's own pipeline with each cell in turn; how many answers
are equal, with the share that kvpress's answers keep when its attention is computed in another way beside it (bf16 rounds,
and random weights forgive nothing); the same in float32, where all have to be equal; how often the host waits for the GPU
per token. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import torch
from llama_models import (
    BUDGETS,
    FULL,
    METHODS,
    SHAPES,
    grid,
    loaded_model,
    parameter_count,
    random_ids,
    random_model,
    sweep,
)
from one_by_one import OneByOne, full_runs
from record import Row, save, spread

from kv_transition.engines.base import Cell

SWEEP_BAR = 1.5
#: Eager attention holds all queries' weights at once: the noise floor is measured at no longer prompt.
EAGER_TOKENS = 4096
EXACT_TOKENS = 2048
PACKAGES = ("torch", "transformers", "kvpress")

Answers = Mapping[Cell, list[int]]


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", nargs="+", default=["1b", "8b"], choices=list(SHAPES))
    options.add_argument("--tokens", nargs="+", type=int, default=[8192, 32768], help="prompt lengths")
    options.add_argument("--new", type=int, default=32, help="tokens of every answer")
    options.add_argument("--turns", type=int, default=3, help="of the full cache alone and of the sweep")
    options.add_argument("--device", default="cuda")
    options.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    options.add_argument("--budget-seconds", type=float, default=500.0)
    options.add_argument("--quick", action="store_true", help="short prompts, few tokens")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what there is time for; 0 unless a bar is missed."""
    given = parser().parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        save("gpu_sweep", [Row("the sweep on a GPU", "no GPU here, not measured")], PACKAGES)
        return 0
    if given.quick:
        given.tokens, given.new, given.turns = [320], 6, 2
    rows: list[Row] = []
    until = time.monotonic() + given.budget_seconds
    try:
        for shape in given.model:
            for row in measure_shape(shape, given, until):
                rows.append(row)
    finally:
        # What was measured before something failed is not lost.
        save("gpu_sweep", rows, PACKAGES, note_of(given))
    return 1 if any(row.met is False for row in rows) else 0


def measure_shape(shape: str, given: argparse.Namespace, until: float) -> Iterator[Row]:
    """All rows of one model, the shortest prompt first, as far as the time goes."""
    bench = Bench(shape, given.device, given.dtype, given.new)
    steps: list[Callable[[], list[Row]]] = []
    for tokens in sorted(given.tokens):
        steps.append(partial(bench.compare, tokens, given.turns))
    steps.insert(1, partial(bench.noise, min(*given.tokens, EAGER_TOKENS)))
    if given.device == "cuda":
        steps.insert(1, partial(bench.waits, min(given.tokens)))
    if shape == given.model[0]:
        steps.append(partial(bench.exact, min(*given.tokens, EXACT_TOKENS)))
    for done, step in enumerate(steps):
        if time.monotonic() > until:
            yield Row(f"{bench.name}: {len(steps) - done} further measurements", "no time left")
            return
        begin = time.monotonic()
        try:
            yield from step()
        except torch.OutOfMemoryError as error:
            yield Row(f"{bench.name}: a measurement", f"out of memory: {str(error).splitlines()[0]}")
        print(
            f"{bench.name}: step {done + 1} took {time.monotonic() - begin:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        bench.forget()


@dataclass(frozen=True)
class Cost:
    """Seconds of every turn, and the most memory that the device held at once, in MB; nan on a CPU."""

    seconds: tuple[float, ...]
    peak_mb: float

    def __str__(self) -> str:
        memory = "" if math.isnan(self.peak_mb) else f", {self.peak_mb:,.0f} MB"
        return f"{spread(self.seconds, 's')}{memory}"


class Bench:
    """One model on one device."""

    def __init__(self, shape: str, device: str, dtype: str, new_tokens: int) -> None:
        self.shape, self.device, self.dtype, self.new = shape, device, dtype, new_tokens
        self.name = f"{shape} shape ({parameter_count(shape) / 1e9:.2g} B parameters), {dtype}"
        self.peer_name = f"kvpress {metadata.version('kvpress')}, its pipeline once per cell"
        self._use(random_model(shape, device, dtype))

    def _use(self, model: Any) -> None:
        self.loaded, self.peer = loaded_model(model), OneByOne(model)
        ids = self.ids(96)
        for run in full_runs(self.loaded).values():
            run(ids, 2)
        self.peer.answer(ids, Cell("snapkv", 64), 2)

    def ids(self, tokens: int) -> list[int]:
        """A prompt."""
        return random_ids(tokens, SHAPES[self.shape]["vocab_size"])

    def forget(self) -> None:
        """Give back what a step has left on the device."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def timed(self, work: Callable[[], Any], turns: int = 1) -> tuple[Any, Cost]:
        """What the work made in the last turn, and what it cost."""
        seconds, made = [], None
        self.forget()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(turns):
            self._finish()
            begin = time.perf_counter()
            made = work()
            self._finish()
            seconds.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else float("nan")
        return made, Cost(tuple(seconds), peak)

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def compare(self, tokens: int, turns: int) -> list[Row]:
        """Full alone in its fastest form, the sweep, and kvpress with each cell in turn, at one prompt length."""
        ids, cells = self.ids(tokens), [FULL, *grid(tokens, METHODS, BUDGETS)]
        runs = full_runs(self.loaded)
        tried = {name: self.timed(partial(run, ids, self.new), 2)[1] for name, run in runs.items()}
        fastest = min(tried, key=lambda name: min(tried[name].seconds))
        full: list[float] = []
        ours: list[float] = []
        answers: Answers = {}
        for _ in range(turns):
            _, cost = self.timed(lambda: runs[fastest](ids, self.new))
            full_peak = cost.peak_mb
            full += cost.seconds
            answers, cost = self.timed(lambda: sweep(self.loaded, ids, cells, self.new))
            ours_peak = cost.peak_mb
            ours += cost.seconds
        theirs, peer = self.timed(lambda: self.peer.answers(ids, cells, self.new))
        work = f"{self.name}, {len(cells) - 1} cells + full, {tokens:,} tokens, {self.new} new"
        sweep_cost, full_cost = Cost(tuple(ours), ours_peak), Cost(tuple(full), full_peak)
        to_full = tuple(one / other for one, other in zip(ours, full, strict=True))
        reached = statistics.median(to_full) <= SWEEP_BAR
        barred = self.device == "cuda"
        return [
            Row(
                f"{work}: beside the full cache alone",
                str(sweep_cost),
                str(full_cost),
                f"full cache alone ({fastest})",
                to_full,
                f"<= {SWEEP_BAR}x" if barred else "",
                reached if barred else None,
            ),
            Row(
                f"{work}: beside one cell at a time",
                str(sweep_cost),
                str(peer),
                self.peer_name,
                tuple(peer.seconds[0] / seconds for seconds in ours),
            ),
            Row(f"{work}: answers equal to kvpress's", agreement(answers, theirs), peer=self.peer_name),
        ]

    def noise(self, tokens: int) -> list[Row]:
        """How many of kvpress's own answers stay the same when attention is computed in another way."""
        ids, cells = self.ids(tokens), [FULL, *grid(tokens, METHODS, BUDGETS)]
        before = self.peer.answers(ids, cells, self.new)
        mine = sweep(self.loaded, ids, cells, self.new)
        model = self.loaded.model
        model.set_attn_implementation("eager")
        try:
            after = self.peer.answers(ids, cells, self.new)
        finally:
            model.set_attn_implementation("sdpa")
        work = f"{self.name}, {tokens:,} tokens"
        return [
            Row(
                f"{work}: answers equal to kvpress's; noise floor: kvpress by eager and by sdpa attention",
                agreement(mine, before),
                agreement(before, after),
                "noise floor",
            )
        ]

    def waits(self, tokens: int) -> list[Row]:
        """How often the host waits for the GPU per further token of all cells: two answer lengths, and their difference."""
        ids, cells = self.ids(tokens), [FULL, *grid(tokens, METHODS, BUDGETS)]
        short, long = 16, 48
        ours = [waits_of(partial(sweep, self.loaded, ids, cells, new)) for new in (short, long)]
        theirs = [
            waits_of(partial(self.peer.answer, ids, cells[1], new)) * len(cells) for new in (short, long)
        ]
        steps = long - short
        return [
            Row(
                f"{self.name}, {len(cells)} cells: waits of the host for the GPU, per step of all cells",
                f"{(ours[1] - ours[0]) / steps:.2f} (and {ours[0]} for the prefill and the first {short})",
                f"{(theirs[1] - theirs[0]) / steps:.2f}",
                self.peer_name,
                bar="< 1",
                met=(ours[1] - ours[0]) / steps < 1,
            )
        ]

    def exact(self, tokens: int) -> list[Row]:
        """In float32 all answers have to be equal."""
        del self.loaded, self.peer  # the memory is needed
        self.forget()
        self._use(random_model(self.shape, self.device, "float32"))
        ids, cells = self.ids(tokens), [FULL, *grid(tokens, METHODS, BUDGETS)]
        mine = sweep(self.loaded, ids, cells, self.new)
        theirs = self.peer.answers(ids, cells, self.new)
        distinct = len({tuple(answer) for answer in mine.values()})
        return [
            Row(
                f"{self.shape} shape, float32, {tokens:,} tokens: answers equal to kvpress's, token by token",
                f"{agreement(mine, theirs)}; {distinct} distinct",
                peer=self.peer_name,
                bar="all",
                met=all(mine[cell] == theirs[cell] for cell in cells),
            )
        ]


def agreement(one: Answers, other: Answers) -> str:
    """How many answers are equal, and how far the others are: tokens before the first difference."""
    equal = sum(one[cell] == other[cell] for cell in one)
    alike = [_common(one[cell], other[cell]) for cell in one]
    length = max(len(answer) for answer in one.values())
    return f"{equal} of {len(one)}, the same for {statistics.mean(alike):.1f} of {length} tokens on average"


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if mine != theirs:
            return index
    return len(one)


def waits_of(work: Callable[[], Any]) -> int:
    """Calls of CUDA that made the host wait."""
    torch.set_warn_always(True)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_warn_always(False)
    return sum("synchronizing" in str(warning.message) for warning in seen)


def note_of(given: argparse.Namespace) -> str:
    """What a reader has to know."""
    device = torch.cuda.get_device_name() if given.device == "cuda" else "CPU, a trial of the script"
    return (
        f"{device}. Random weights; the shapes are those of Llama 3.2 1B and Llama 3.1 8B, embeddings tied. {', '.join(METHODS)} at "
        f"{', '.join(map(str, BUDGETS))} tokens; the last prompt token is read from the pruned cache on both sides. kvpress is "
        "measured once; memory is the most that the device's allocator held, weights included. Answers of random weights are "
        "other answers from the first rounding that changes a token on."
    )


if __name__ == "__main__":
    sys.exit(main())
