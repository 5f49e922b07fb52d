"""What one size costs, in a process of its own, because peak memory only ever rises; `growth.py` starts one for each.

    OMP_NUM_THREADS=1 python benchmarks/growth_points.py prompt_length 1024 --curve "full cache alone" --repeats 3

Prints a JSON list of points.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kv_transition.engines.base import Cell

CELLS_TOKENS = 2048
GRID, FULL_ALONE = "grid + full", "full cache alone"
#: Most jobs whose null rerun is measured: to have the files of 5,000 recorded as made takes Snakemake many minutes a side.
RERUN_JOBS = 1000
#: What the curve of the bare workflow's jobs has behind the name of ours.
BARE = ", bare Snakemake"
READER = Path(__file__).resolve().parents[1] / "resources/tiny-reader"
READER_TASK = "phrasebook_qa"
READER_CELLS = [
    *[("full", "full"), ("no_context", "full")],
    *[(method, str(budget)) for method in ("snapkv", "streaming_llm", "tova") for budget in (32, 128)],
]


@dataclass(frozen=True)
class Point:
    """What a size cost.

    Attributes
    ----------
    size : on the axis, as it was counted.
    wall, cpu : seconds of every repeat; `wall` is empty where only CPU seconds were measured.
    peak_mb : peak memory of the process that did the work, its repeats included.
    before_mb : its memory before the work, model and packages loaded; 0 where the work is a program of its own.
    """

    curve: str
    size: int
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    peak_mb: float
    before_mb: float = 0.0

    @property
    def above_mb(self) -> float:
        """Peak above what was held before; never 0, as its logarithm is taken."""
        return max(self.peak_mb - self.before_mb, 0.1)


def rss_mb() -> float:
    """Peak memory of this process so far: the kernel's VmHWM, as ru_maxrss begins at that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Let the peak begin at what is held now: what loading the model took for a moment is not the work's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measured(curve: str, size: int, work: Callable[[], Any], repeats: int) -> Point:
    """Do the work and say what it cost."""
    forget_peak()
    before, wall, cpu = rss_mb(), [], []
    for _ in range(repeats):
        begin, spent = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - spent)
    return Point(curve, size, tuple(wall), tuple(cpu), rss_mb(), before)


def prompt_length(size: int, curve: str, repeats: int, quick: bool) -> list[Point]:
    """The grid of budgets below the length and the full cache, or the full cache alone, at one prompt length."""
    from llama_models import grid

    return [_swept(curve, size, grid(size) if curve == GRID else [], size, repeats, quick)]


def cells(size: int, curve: str, repeats: int, quick: bool) -> list[Point]:
    """So many cells, spread over methods and budgets, and the full cache."""
    tokens = 256 if quick else CELLS_TOKENS
    return [_swept(curve, size, _spread_cells(size, tokens), tokens, repeats, quick)]


def _spread_cells(count: int, tokens: int) -> list[Cell]:
    """Methods in turn, each at budgets whose logarithms are evenly spread: few cells keep as much, on average, as many."""
    from llama_models import METHODS

    steps = -(-count // len(METHODS))
    budgets = [round(64 * (0.95 * tokens / 64) ** ((step + 0.5) / steps)) for step in range(steps)]
    return [Cell(METHODS[index % len(METHODS)], budgets[index // len(METHODS)]) for index in range(count)]


def _swept(curve: str, size: int, chosen: list[Cell], tokens: int, repeats: int, quick: bool) -> Point:
    from llama_models import FULL, loaded_model, random_ids, random_model, sweep

    loaded = loaded_model(random_model("tiny" if quick else "28m"))
    ids = random_ids(tokens, loaded.model.config.vocab_size)
    sweep(loaded, ids[:96], [FULL], 2)
    return measured(curve, size, lambda: sweep(loaded, ids, [FULL, *chosen], 16), repeats)


def examples(size: int, curve: str, repeats: int, quick: bool) -> list[Point]:
    """A shard of so many examples with one grid, on the model that comes with the project: journal and files included."""
    from kv_transition.data.counters import load_counter
    from kv_transition.data.manifest import build_manifest
    from kv_transition.data.normalize import normalize_records
    from kv_transition.data.protocol import own_protocol
    from kv_transition.data.synthetic import make_records
    from kv_transition.run.runner import Shard, infer_shard
    from kv_transition.settings import from_mapping
    from kv_transition.slices import answer_slice

    records = make_records(READER_TASK, size, 128, 512, seed=0)
    counted = normalize_records(records, READER_TASK, load_counter("model", str(READER), "error"))
    manifest = build_manifest(
        counted,
        experiment="growth",
        dataset="synthetic",
        task=READER_TASK,
        tokenizer="own",
        protocol="own-1",
        n_bins=1,
        n_per_bin=size,
        selection_seed=0,
    )
    settings = from_mapping({"model": {"path": str(READER)}, "decoding": {"max_new_tokens": 8}})
    shard = Shard(manifest, 0, 1, answer_slice(settings, READER_TASK), "0" * 64, own_protocol(READER_TASK))

    def answer() -> None:
        with tempfile.TemporaryDirectory(prefix="growth_") as folder:
            run = {
                "journal_dir": f"{folder}/journal",
                "max_failure_rate": 0.0,
                "allow_failed_reference": False,
            }
            outputs = {cell: Path(folder, *cell, "000.parquet") for cell in READER_CELLS}
            infer_shard(shard, outputs, run)

    return [measured(curve, size, answer, repeats)]


def jobs(size: int, curve: str, repeats: int, quick: bool) -> list[Point]:
    """Dry run and null rerun of a made-up experiment of about so many jobs, ours and a bare workflow in turns."""
    from dag_scale import Size, compared

    tasks = max(1, round((size / 10) ** 0.5))
    shards = max(1, round((size - 7) / tasks) - 5)
    found = compared(Size(tasks, 2, 2, shards), repeats, rerun=size <= RERUN_JOBS)
    return [
        Point(name, found.jobs, (), tuple(one.cpu for one in calls), max(one.peak_mb for one in calls))
        for what, sides in (("dry run", found.dry), ("null rerun", found.null))
        for name, calls in zip((what, what + BARE), sides, strict=True)
        if calls
    ]


def database(size: int, curve: str, repeats: int, quick: bool) -> list[Point]:
    """A database made of so many requests' files; its size on the axis is that of its rows."""
    from sqlite_cost import assemble_seconds

    turns = [assemble_seconds(size) for _ in range(repeats)]
    return [
        Point(curve, turns[0][2], (), tuple(cpu for cpu, _, _ in turns), max(peak for _, peak, _ in turns))
    ]


MEASURES: Mapping[str, Callable[[int, str, int, bool], list[Point]]] = {
    "prompt_length": prompt_length,
    "cells": cells,
    "examples": examples,
    "jobs": jobs,
    "database": database,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one size and print its points."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("series", choices=list(MEASURES))
    options.add_argument("size", type=int)
    options.add_argument("--curve", default=GRID)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--quick", action="store_true", help="a tiny model")
    given = options.parse_args(arguments)
    found = MEASURES[given.series](given.size, given.curve, given.repeats, given.quick)
    print(json.dumps([asdict(point) for point in found]))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
