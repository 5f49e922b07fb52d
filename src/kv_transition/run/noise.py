"""The full cache answered a second way: what arithmetic alone changes, where the computation is not in float32.

In half precision two implementations of attention round differently, and a greedy answer may turn at one token. The
answers of some examples are computed once more with the other implementation; `analysis.noise` compares them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kv_transition.data.manifest import Manifest
from kv_transition.engines.base import BaseEngine
from kv_transition.engines.endpoints import build_engine
from kv_transition.files import sha256_text
from kv_transition.run.runner import FULL, Shard, infer_shard

#: Attention of the run -> that of the second answers.
OTHER_ATTENTION = {"sdpa": "eager", "eager": "sdpa"}


def chosen_examples(manifest: Manifest, count: int) -> list[str]:
    """Ids of examples spread evenly over the length bins, in the manifest's order; a larger count is a superset.

    In each bin those with the smallest hash of their id come first, and the bins take turns.
    """
    by_bin: dict[int, list[str]] = defaultdict(list)
    for entry in manifest.entries:
        by_bin[entry.bin_idx].append(entry.example_id)
    ranked = sorted(
        (rank, bin_idx, example_id)
        for bin_idx, ids in by_bin.items()
        for rank, example_id in enumerate(sorted(ids, key=lambda one: sha256_text(f"noise|{one}")))
    )
    chosen = {example_id for _, _, example_id in ranked[:count]}
    return [entry.example_id for entry in manifest.entries if entry.example_id in chosen]


def second_way(shard: Shard, count: int) -> Shard:
    """A task's examples that are answered a second time, with the attention that the run does not use.

    Parameters
    ----------
    shard : the whole task as one shard, with the run's own answer slice.
    count : most examples; none are taken where the computation turns out to be in float32.
    """
    engine = shard.answer["engine"]
    other = OTHER_ATTENTION[engine["attn_implementation"]]
    answer = {**shard.answer, "engine": {**engine, "attn_implementation": other}}
    taken = 0 if shard.settled["engine"]["dtype"] == "float32" else count
    manifest = shard.manifest
    chosen = set(chosen_examples(manifest, taken))
    part = replace(
        manifest,
        entries=[entry for entry in manifest.entries if entry.example_id in chosen],
        examples=[example for example in manifest.examples if example.example_id in chosen],
    )
    return replace(shard, manifest=part, answer=answer)


def infer_noise(
    shard: Shard,
    count: int,
    output: str | Path,
    run: Mapping[str, Any],
    make_engine: Callable[[dict[str, Any]], BaseEngine] = build_engine,
) -> int:
    """Answer examples of a task with the full cache the second way and write them as a response file.

    The journal comes first, as for every other answer. A request that fails is a row of the file and ends nothing: eager
    attention takes memory in the square of the prompt.

    Parameters
    ----------
    shard, count : as :func:`second_way` takes them.
    output : the response file; without rows where the computation is in float32.
    run, make_engine : as `infer_shard` takes them.

    Returns
    -------
    The number of answers that were computed.
    """
    lenient = {**run, "allow_failed_reference": True}
    return infer_shard(second_way(shard, count), {FULL: output}, lenient, make_engine)
