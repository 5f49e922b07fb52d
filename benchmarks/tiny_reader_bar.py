"""Does the tiny reader meet its bar? Answers fresh documents with the reference engine and prints the tables.

    python benchmarks/tiny_reader_bar.py --model resources/tiny-reader > resources/tiny-reader/RESULTS.md

The bar, for each task, at 200 documents per length bin: exact match at the full cache at least 0.95 (phrasebook_qa)
and 0.90 (phrasebook_multi_qa) in every bin, at most 0.05 without the context; from 256 tokens up, SnapKV beats
StreamingLLM and random eviction by more than 0.2 (paired 95 % lower limit) at a common active budget; SnapKV's
interpolated T_0.9 in the longest bin is at least twice that in the shortest.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray

from kv_transition.data.prompts import build_prompt
from kv_transition.data.synthetic import TASKS, make_records
from kv_transition.engines.base import BaseEngine, Cell, Decoding
from kv_transition.engines.endpoints import build_engine
from kv_transition.eval.metrics import exact_match, f1

BINS = ((64, 128), (129, 256), (257, 512), (513, 1024))
BUDGETS = (16, 32, 64, 128, 256, 512)
BASELINES = ("streaming_llm", "random")
FULL_BAR = {"phrasebook_qa": 0.95, "phrasebook_multi_qa": 0.90}
SEED = 77

Scores = dict[tuple[str, int], NDArray[np.float64]]


def reference_engine(model: str) -> BaseEngine:
    """The numpy engine with the default experiment's settings."""
    kv = {"scope": "prompt", "first_token": "compressed", "methods": {"snapkv": {"window": 8, "kernel": 5}}}
    engine = {"kind": "reference", "dtype": "float32", "unknown_token_limit": 0.2}
    return build_engine({"engine": engine, "model": {"name": "tiny-reader", "path": model}, "kv": kv})


def answer_bin(model: str, task: str, bin_idx: int, n: int, methods: list[str]) -> Scores:
    """Scores (n, 2) of EM and F1 for each (method, budget); ("full", 0) and ("no_context", 0) too."""
    engine = reference_engine(model)
    cells = [Cell("full")]
    for method in methods:
        for budget in BUDGETS:
            cells += [Cell(method, budget, replicate) for replicate in range(3 if method == "random" else 1)]
    decoding = Decoding(max_new_tokens=16)
    scores: dict[tuple[str, int], list[NDArray[np.float64]]] = defaultdict(list)
    for record in make_records(task, n, *BINS[bin_idx], SEED):
        gold = record["answers"]
        per_cell: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        prompt = build_prompt(task, record["input"], record["context"])
        for cell, result in zip(cells, engine.sweep(prompt, cells, decoding, record["_id"]), strict=True):
            if result.failure:
                raise SystemExit(f"{task} {record['_id']} {cell}: {result.error}")
            key = (cell.method, int(cell.budget or 0))
            per_cell[key].append((exact_match(result.text, gold), f1(result.text, gold)[0]))
        bare = engine.generate(build_prompt(task, record["input"], ""), Cell("full"), decoding, record["_id"])
        per_cell["no_context", 0].append((exact_match(bare.text, gold), f1(bare.text, gold)[0]))
        for key, values in per_cell.items():
            scores[key].append(np.mean(values, axis=0))
    return {key: np.array(values) for key, values in scores.items()}


def interpolated_budget(retention: list[float], tau: float = 0.9) -> float:
    """log2 of the budget at which the monotone (PAVA) retention first reaches tau; infinite beyond the budgets."""
    blocks: list[list[float]] = []
    for value in retention:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    fitted = [value for value, n in blocks for _ in range(int(n))]
    x = np.log2(BUDGETS)
    for i, value in enumerate(fitted):
        if value >= tau:
            if i == 0:
                return float(x[0])
            share = (tau - fitted[i - 1]) / (value - fitted[i - 1])
            return float(x[i - 1] + share * (x[i] - x[i - 1]))
    return math.inf


def lower_limit(difference: NDArray[np.float64]) -> float:
    """Lower end of the normal 95 % interval of a paired mean difference."""
    return float(difference.mean() - 1.96 * difference.std(ddof=1) / math.sqrt(len(difference)))


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")


def header(*cells: object) -> None:
    row(*cells)
    print("|" + "---|" * len(cells))


def report(task: str, results: list[Scores], methods: list[str]) -> bool:
    """Print the task's tables; True if the bar is met."""
    verdicts: list[tuple[str, bool]] = []
    print(f"\n## {task}\n\nExact match / F1, {len(results[0]['full', 0])} documents per bin.\n")
    header("prompt tokens", "method", *BUDGETS, "full cache", "no context")
    for (low, high), scores in zip(BINS, results, strict=True):
        full, bare = scores["full", 0].mean(0), scores["no_context", 0].mean(0)
        for method in methods:
            means = [scores[method, budget].mean(0) for budget in BUDGETS]
            row(f"{low}-{high}", method, *(f"{em:.2f}/{score:.2f}" for em, score in [*means, full, bare]))
        verdicts.append((f"full-cache EM at {low}-{high}: {full[0]:.3f}", full[0] >= FULL_BAR[task]))
        verdicts.append((f"no-context EM at {low}-{high}: {bare[0]:.3f}", bare[0] <= 0.05))
        if low > 256:
            for baseline in (name for name in BASELINES if {name, "snapkv"} <= set(methods)):
                limits = {
                    budget: lower_limit(scores["snapkv", budget][:, 0] - scores[baseline, budget][:, 0])
                    for budget in BUDGETS
                    if budget < low
                }
                best = max(limits, key=lambda budget: limits[budget])
                text = f"SnapKV minus {baseline} at {low}-{high}, budget {best}: EM lower limit {limits[best]:.2f}"
                verdicts.append((text, limits[best] > 0.2))
    for column, metric in enumerate(("EM", "F1")):
        budgets = [
            2
            ** interpolated_budget(
                [scores["snapkv", b][:, column].mean() / scores["full", 0][:, column].mean() for b in BUDGETS]
            )
            for scores in results
        ]
        text = f"SnapKV's T_0.9 on {metric} by bin: {', '.join(f'{budget:.0f}' for budget in budgets)} tokens"
        verdicts.append((text, budgets[-1] >= 2 * budgets[0]))
    print()
    header("bar", "met")
    for text, met in verdicts:
        row(text, "yes" if met else "NO")
    return all(met for _, met in verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the tiny reader's acceptance bar.")
    parser.add_argument("--model", default="resources/tiny-reader", help="model folder")
    parser.add_argument("--n", type=int, default=200, help="documents per length bin and task")
    parser.add_argument(
        "--methods", default="snapkv,streaming_llm,random", help="comma-separated, snapkv among them"
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    methods, tasks = arguments.methods.split(","), arguments.tasks.split(",")
    places = [(task, bin_idx) for task in tasks for bin_idx in reversed(range(len(BINS)))]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        running = {
            place: pool.submit(answer_bin, arguments.model, *place, arguments.n, methods) for place in places
        }
        scores = {place: future.result() for place, future in running.items()}
    print("# The tiny reader under a budget\n")
    print(
        "Made by `python benchmarks/tiny_reader_bar.py`: scope prompt, first token compressed, SnapKV with window 8"
    )
    print(
        "and kernel 5, random with three seeds averaged; retention is the mean score over that of the full cache."
    )
    met = [report(task, [scores[task, bin_idx] for bin_idx in range(len(BINS))], methods) for task in tasks]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
