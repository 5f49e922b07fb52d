"""What a whole grid costs beside one run with the full cache, on the reference engine.

    python benchmarks/sweep_cost.py                     a random 27 M-parameter GQA Llama, 4,096-token prompt, 24 cells
    python benchmarks/sweep_cost.py --model resources/tiny-reader --tokens 500 --new 6

Weights and prompt are random numbers: the arithmetic does not depend on them. The ratio is the result; seconds
belong to the machine.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np

from kv_transition.engines.base import Cell
from kv_transition.engines.greedy import Ending
from kv_transition.engines.llama import Llama
from kv_transition.engines.sweep import split_prompt, sweep_cells
from kv_transition.engines.weights import LlamaConfig, read_config, read_weights
from kv_transition.methods import resolve_parameters


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
    sweep_cells(model, ids, split, cells, resolve_parameters({}), ending, "benchmark")
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Time the grid against one full-cache run, and print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model folder; default: random weights")
    parser.add_argument("--tokens", type=int, default=4096, help="prompt tokens")
    parser.add_argument("--new", type=int, default=16, help="tokens to generate")
    parser.add_argument("--methods", nargs="+", default=["snapkv", "streaming_llm", "knorm", "tova"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = (
        Llama(read_config(options.model), read_weights(options.model)) if options.model else random_llama()
    )
    vocabulary = len(model.logits(np.zeros((1, model.config.hidden_size), np.float32))[0])
    ids = np.random.default_rng(1).integers(0, vocabulary, options.tokens).tolist()
    grid = [
        Cell(method, budget, replicate)
        for method, budget in itertools.product(options.methods, options.budgets)
        if budget < options.tokens
        for replicate in range(3 if method == "random" else 1)
    ]
    full = [Cell("full")]
    rows = {
        name: min(seconds(model, ids, cells, options.new) for _ in range(options.repeats))
        for name, cells in (("full", full), ("full + grid", full + grid))
    }
    for name, (wall, cpu) in rows.items():
        print(f"{name:<12} {wall * 1e3:9.1f} ms   {cpu * 1e3:9.1f} CPU ms")
    ratio = rows["full + grid"][0] / rows["full"][0]
    print(f"{len(grid)} cells + full cost {ratio:.2f} times one full-cache run")


if __name__ == "__main__":
    main()
