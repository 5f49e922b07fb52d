"""What a whole grid costs beside one run with the full cache, on the reference engine.

    python benchmarks/sweep_cost.py             a random 28 M-parameter GQA Llama, 4,096 tokens, 24 cells: under two minutes
    python benchmarks/sweep_cost.py --quick     the model that comes with the project and a short prompt
    python benchmarks/sweep_cost.py --model resources/tiny-reader --tokens 500 --new 6

Weights and prompt are random numbers: the arithmetic does not depend on them. Both are measured in turns, in wall seconds.
The ratio is the result; seconds belong to the machine. Ends with 1 if the bar is missed, which is that of 4,096 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from record import Row, save, spread

from kv_transition.engines.base import Cell
from kv_transition.engines.greedy import Ending
from kv_transition.engines.llama import Llama
from kv_transition.engines.sweep import answer_cells, read_cells, split_prompt
from kv_transition.engines.weights import LlamaConfig, read_config, read_weights
from kv_transition.methods import resolve_parameters

BAR, BAR_TOKENS = 1.5, 4096
READER = Path(__file__).resolve().parents[1] / "resources/tiny-reader"


def random_llama(seed: int = 0) -> Llama:
    """A GQA Llama with 28 M random parameters."""
    config = LlamaConfig(8, 8, 4, 64, 512, 1e-5, True, 8192, {"rope_theta": 1e4, "rope_type": "default"})
    shapes = {"model.embed_tokens.weight": (8192, 512), "model.norm.weight": (512,)}
    for layer in range(config.num_hidden_layers):
        root = f"model.layers.{layer}"
        shapes |= {f"{root}.self_attn.{part}_proj.weight": (512, 512) for part in "qo"}
        shapes |= {f"{root}.self_attn.{part}_proj.weight": (256, 512) for part in "kv"}
        shapes |= {f"{root}.mlp.{part}_proj.weight": (1408, 512) for part in ("gate", "up")}
        shapes |= {f"{root}.mlp.down_proj.weight": (512, 1408)}
        shapes |= {f"{root}.{norm}_layernorm.weight": (512,) for norm in ("input", "post_attention")}
    rng = np.random.default_rng(seed)
    weights = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else rng.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return Llama(config, weights)


def seconds(model: Llama, ids: list[int], cells: list[Cell], new_tokens: int) -> tuple[float, float]:
    """Wall and CPU seconds of one sweep, its last prompt token read from the pruned caches."""
    ending = Ending(new_tokens, (), frozenset(), lambda _: "")
    wall, cpu = time.perf_counter(), time.process_time()
    split = split_prompt(len(ids), 0, "prompt", "compressed")
    reading = read_cells(model, ids, split, cells, resolve_parameters({}), "benchmark")
    answer_cells(model, [reading], ending)
    return time.perf_counter() - wall, time.process_time() - cpu


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", help="a model folder; default: random weights")
    options.add_argument("--tokens", type=int, default=BAR_TOKENS, help="prompt tokens")
    options.add_argument("--new", type=int, default=16, help="tokens to generate")
    options.add_argument("--methods", nargs="+", default=["snapkv", "streaming_llm", "knorm", "tova"])
    options.add_argument("--budgets", nargs="+", type=int, default=[64, 128, 256, 512, 1024, 2048])
    options.add_argument("--repeats", type=int, default=5, help="turns")
    options.add_argument("--quick", action="store_true")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the grid against one full-cache run; 0 if the bar is reached."""
    given = parser().parse_args(arguments)
    if given.quick:
        given.model, given.tokens, given.new, given.repeats = str(READER), 500, 6, 2
    model = Llama(read_config(given.model), read_weights(given.model)) if given.model else random_llama()
    vocabulary = len(model.logits(np.zeros((1, model.config.hidden_size), np.float32))[0])
    ids = np.random.default_rng(1).integers(0, vocabulary, given.tokens).tolist()
    grid = [
        Cell(method, budget, replicate)
        for method, budget in itertools.product(given.methods, given.budgets)
        if budget < given.tokens
        for replicate in range(3 if method == "random" else 1)
    ]
    turns = [
        (
            seconds(model, ids, [Cell("full")], given.new),
            seconds(model, ids, [Cell("full"), *grid], given.new),
        )
        for _ in range(given.repeats)
    ]
    work = f"{len(grid)} cells + full, {given.tokens:,}-token prompt, {given.new} new tokens"
    row = compared(turns, work, barred=given.tokens >= BAR_TOKENS)
    save(
        "sweep_cost",
        [row],
        ["numpy"],
        f"{Path(given.model).name if given.model else 'Random weights, 28 M parameters'}.",
    )
    return 1 if row.met is False else 0


def compared(
    turns: Sequence[tuple[tuple[float, float], tuple[float, float]]], work: str, barred: bool
) -> Row:
    """The row of both, turn by turn (wall and CPU seconds of each)."""
    full, both = ([turn[which] for turn in turns] for which in (0, 1))
    ratio = tuple(one[0] / other[0] for one, other in zip(both, full, strict=True))
    reached = statistics.median(ratio) <= BAR
    return Row(
        f"reference engine: {work}",
        shown(both),
        shown(full),
        "full cache alone, same engine",
        ratio,
        f"<= {BAR}x" if barred else "",
        reached if barred else None,
    )


def shown(times: Sequence[tuple[float, float]]) -> str:
    """Wall seconds of all turns, and the median of the CPU seconds."""
    return (
        f"{spread([wall for wall, _ in times], 's')} (CPU {statistics.median(cpu for _, cpu in times):.3g} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
