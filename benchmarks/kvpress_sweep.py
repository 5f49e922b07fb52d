"""What a whole grid costs beside one run with the full cache, and beside kvpress, one cell at a time.

    python benchmarks/kvpress_sweep.py                  28 M parameters, 4,096 tokens, 24 cells + full: about 8 minutes
    python benchmarks/kvpress_sweep.py --quick          a tiny model and a short prompt, to see that it works
    python benchmarks/kvpress_sweep.py --peer-turns 2   kvpress is asked in two of the turns only

One random GQA Llama in float32 on the CPU, one prompt, 16 new tokens, no early end. Every turn measures the full cache
alone in each way that there is (the fastest, by its median, is the yardstick), then our sweep of all cells, then kvpress's
own pipeline with each cell in turn. Tokens of all cells and logits of every step are compared with the pipeline's. Peak
memory is that of a process of its own for each. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from growth_points import rss_mb
from llama_models import (
    BUDGETS,
    FULL,
    METHODS,
    grid,
    loaded_model,
    parameter_count,
    random_ids,
    random_model,
    sweep,
)
from numpy.typing import NDArray
from one_by_one import OneByOne, full_runs
from record import Row, save, spread, without_bar

from kv_transition.engines.base import Cell

SWEEP_BAR, PEER_BAR, LOGITS_BAR, DISTINCT_BAR = 1.5, 12.0, 1e-3, 20
PACKAGES = ("torch", "transformers", "kvpress", "numpy")
#: How the processes whose memory is measured are told what to run.
OURS, PEER = "our sweep", "kvpress, one cell at a time"

Answers = Mapping[Cell, list[int]]
Logits = NDArray[np.float32]


@dataclass
class Clock:
    """Wall and CPU seconds of every turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, run: Callable[[], Any]) -> Any:
        """Run it, and note what it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        made = run()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return made

    def __str__(self) -> str:
        return f"{spread(self.wall)} s (CPU {statistics.median(self.cpu):.3g} s)"


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="28m", choices=("tiny", "28m"))
    options.add_argument("--tokens", type=int, default=4096, help="prompt tokens")
    options.add_argument("--new", type=int, default=16, help="tokens of every answer")
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--peer-turns", type=int, default=5, help="turns in which kvpress is asked")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--memory-of", help=argparse.SUPPRESS)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and say whether every bar is reached."""
    given = parser().parse_args(arguments)
    if given.quick:
        given.model, given.tokens, given.turns, given.peer_turns = "tiny", 320, 2, 1
    torch.set_num_threads(given.threads)
    model = random_model(given.model)
    ids = random_ids(given.tokens, model.config.vocab_size)
    cells = [FULL, *grid(given.tokens, given.methods, given.budgets)]
    if given.memory_of:
        print(peak_memory(given.memory_of, model, ids, cells, given.new))
        return 0
    run = Comparison(model, ids, cells, given.new)
    run.turns(given.turns, min(given.peer_turns, given.turns))
    rows = [*run.rows(given.model), memory_row(arguments, run.fastest)]
    if given.quick:
        rows = [without_bar(row) if row.ratio else row for row in rows]
    save("kvpress_sweep", rows, PACKAGES, note_of(given, run))
    return 1 if any(row.met is False for row in rows) else 0


class Comparison:
    """Full alone, our sweep and kvpress one cell at a time, in turns.

    Attributes
    ----------
    full : way to run the full cache -> its times.
    ours, theirs : the times of the sweep and of kvpress.
    answers, peer_answers : tokens of each cell, of the first turn.
    """

    def __init__(self, model: Any, ids: Sequence[int], cells: Sequence[Cell], new_tokens: int) -> None:
        self.loaded, self.peer = loaded_model(model), OneByOne(model)
        self.ids, self.cells, self.new = list(ids), list(cells), new_tokens
        self.runs = full_runs(self.loaded)
        self.full = {name: Clock() for name in self.runs}
        self.ours, self.theirs = Clock(), Clock()
        self.answers: Answers = {}
        self.peer_answers: Answers = {}
        self.full_answers: dict[str, list[int]] = {}
        self.farthest: float | None = None

    @property
    def fastest(self) -> str:
        """The way to run the full cache that took the least, by its median."""
        return min(self.full, key=lambda name: statistics.median(self.full[name].wall))

    def turns(self, turns: int, peer_turns: int) -> None:
        """Measure; the first turns are those with kvpress in them."""
        short = self.ids[:96]
        for run in self.runs.values():
            run(short, 2)  # what is made once is made here
        sweep(self.loaded, short, [FULL], 2)
        self.peer.answer(short, FULL, 2)
        for turn in range(turns):
            for name, run in self.runs.items():
                self.full_answers[name] = self.full[name].time(partial(run, self.ids, self.new))
            with logits_of(self.loaded.model) as seen:
                self.answers = self.ours.time(lambda: sweep(self.loaded, self.ids, self.cells, self.new))
            if turn < peer_turns:
                with logits_of(self.loaded.model) as theirs:
                    self.peer_answers = self.theirs.time(
                        lambda: self.peer.answers(self.ids, self.cells, self.new)
                    )
                if turn == 0 and seen:
                    self.farthest = farthest(theirs, seen)
            print(f"turn {turn + 1} of {turns}", file=sys.stderr, flush=True)

    def rows(self, shape: str) -> list[Row]:
        """The rows about time and exactness."""
        work = (
            f"{len(self.cells) - 1} cells + full, {len(self.ids):,}-token prompt, {self.new} new tokens, "
            f"{parameter_count(shape) / 1e6:.3g} M parameters, float32, {torch.get_num_threads()} threads"
        )
        fastest = self.fastest
        base, kvpress_name = self.full[fastest], f"kvpress {metadata.version('kvpress')}"
        to_full = ratios(self.ours.wall, base.wall)
        to_peer = ratios(self.theirs.wall, self.ours.wall)
        rows = [
            Row(
                f"{work}: beside the full cache alone",
                str(self.ours),
                str(base),
                f"full cache alone ({fastest})",
                to_full,
                f"<= {SWEEP_BAR}x",
                statistics.median(to_full) <= SWEEP_BAR,
            ),
            Row(
                f"{work}: beside one cell at a time",
                str(self.ours),
                str(self.theirs),
                f"{kvpress_name}, its pipeline once per cell",
                to_peer,
                f">= {PEER_BAR:g}x faster",
                statistics.median(to_peer) >= PEER_BAR,
            ),
            self._tokens_row(kvpress_name),
        ]
        if self.farthest is not None:
            rows.append(
                Row(
                    "logits of every step of every cell of theirs, largest difference to the nearest of ours",
                    f"{self.farthest:.1e} of their standard deviation",
                    peer=kvpress_name,
                    bar=f"<= {LOGITS_BAR:g}",
                    met=self.farthest <= LOGITS_BAR,
                )
            )
        rows += [Row(f"full cache alone: {name}", str(clock)) for name, clock in self.full.items()]
        return rows

    def _tokens_row(self, kvpress_name: str) -> Row:
        equal = sum(self.answers[cell] == self.peer_answers[cell] for cell in self.cells)
        distinct = len({tuple(tokens) for tokens in self.answers.values()})
        as_full = sum(self.answers[cell] == self.answers[FULL] for cell in self.cells if cell != FULL)
        same_full = all(tokens == self.answers[FULL] for tokens in self.full_answers.values())
        wanted = min(DISTINCT_BAR, len(self.cells))
        return Row(
            "answers equal to those of one cell at a time, token by token",
            f"{equal} of {len(self.cells)} ({distinct} distinct, {as_full} equal to full)",
            peer=kvpress_name,
            bar=f"all, at least {wanted} distinct, none equal to full",
            met=equal == len(self.cells) and distinct >= wanted and not as_full and same_full,
        )


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """Turn by turn, as far as both were measured."""
    return tuple(one / other for one, other in zip(above, below, strict=False))


@contextmanager
def logits_of(model: Any) -> Iterator[list[Logits]]:
    """Note the rows of logits that the model's head computes."""
    rows: list[Logits] = []

    def note(module: Any, args: Any, output: Any) -> None:
        rows.extend(output.detach()[:, -1].float().cpu().numpy())

    hook = model.lm_head.register_forward_hook(note)
    try:
        yield rows
    finally:
        hook.remove()


def farthest(theirs: Sequence[Logits], ours: Sequence[Logits]) -> float:
    """The largest distance from any of their rows of logits to the nearest of ours, in units of its standard deviation.

    Which row of a batch is which cell is not asked: rows as long as a vocabulary are near each other only where they are the
    same, and the tokens of each cell are compared by themselves.
    """
    mine = np.stack(ours)
    best = [int(row.argmax()) for row in ours]
    by_token: dict[int, list[int]] = {}
    for index, token in enumerate(best):
        by_token.setdefault(token, []).append(index)
    distances = []
    for row in theirs:
        near = by_token.get(int(row.argmax()), range(len(best)))
        distances.append(float(np.abs(mine[list(near)] - row).max(axis=1).min() / row.std()))
    return max(distances)


def peak_memory(name: str, model: Any, ids: Sequence[int], cells: Sequence[Cell], new_tokens: int) -> float:
    """Peak memory of this process in MB, after it has run one of them."""
    loaded = loaded_model(model)
    if name == OURS:
        sweep(loaded, ids, cells, new_tokens)
    elif name == PEER:
        # One cell is as good as all: what a cell leaves behind is freed before the next.
        OneByOne(model).answers(ids, cells[:2], new_tokens)
    else:
        full_runs(loaded)[name](ids, new_tokens)
    return rss_mb()


def memory_row(arguments: Sequence[str] | None, fastest: str) -> Row:
    """Peak memory of a process that does one of them and nothing else."""
    options = list(sys.argv[1:] if arguments is None else arguments)

    def measured(name: str) -> float:
        command = [sys.executable, __file__, *options, "--memory-of", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.split()[-1])

    full, ours, theirs = (measured(name) for name in (fastest, OURS, PEER))
    return Row(
        f"peak memory of the process (full cache alone: {full:,.0f} MB)",
        f"{ours:,.0f} MB",
        f"{theirs:,.0f} MB",
        PEER,
        (ours / theirs,),
    )


def note_of(given: argparse.Namespace, run: Comparison) -> str:
    """What a reader has to know."""
    return (
        f"A random GQA Llama, seeds fixed, {', '.join(given.methods)} at {', '.join(map(str, given.budgets))}; the last prompt "
        f"token is read from the pruned cache on both sides. {len(run.ours.wall)} turns, kvpress in {len(run.theirs.wall)} of "
        "them; wall seconds, medians and ranges."
    )


if __name__ == "__main__":
    sys.exit(main())
