"""Layouts of folders with answers: LongBench's own, and KVCache-Factory's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kv_transition.data.published.rows import Cell, cell_of, method_name
from kv_transition.errors import UserError


def longbench_files(
    root: Path, task: str, methods: Mapping[str, str], runs: Sequence[Mapping[str, Any]]
) -> dict[Cell, list[Path]]:
    """The file of each run of `published.runs`: `<run>/<task>.jsonl`, in the format of LongBench's own evaluation."""
    found: dict[Cell, list[Path]] = {}
    for number, run in enumerate(runs):
        where = f"published.runs.{number}"
        cell = cell_of(method_name(run["method"], methods), run["budget"], where)
        if cell in found:
            raise UserError(f"{where}: {cell[0]} {cell[1]} is named twice; keep one of them")
        file = root / run["path"] / f"{task}.jsonl"
        if not file.is_file():
            there = sorted(path.stem for path in file.parent.glob("*.jsonl") if not _is_hidden(path))
            what = f"it has {', '.join(there)}" if there else "there is no .jsonl file in it"
            raise UserError(f"{where}: {file.parent} has no {file.name} (case counts); {what}")
        found[cell] = [file]
    return found


def kvcache_factory_files(root: Path, task: str, methods: Mapping[str, str]) -> dict[Cell, list[Path]]:
    """Files `<model>_<budget>/<task>/<method>.json`, one JSON object a line.

    The budget counts the prompt tokens kept per layer and head, the observation window included (`max_capacity_prompts`
    there). In a folder with the budget -1 it was a share that the name does not tell, so such runs are left out. The run
    without compression is asked for in any folder; its budget there means nothing, and it may be in several.
    """
    found: dict[Cell, list[Path]] = defaultdict(list)
    for file in sorted(root.glob(f"*_*/{task}/*.json")):
        if _is_hidden(file) or file.name == "metrics.json":  # written beside the answers by the evaluation
            continue
        method = method_name(file.stem, methods)
        budget = file.parent.parent.name.rpartition("_")[2]
        if method == "full":
            found[method, "full"].append(file)
        elif budget != "-1":
            found[cell_of(method, budget, str(file.parent.parent))].append(file)
    if not found:
        there = sorted({path.parent.name for path in root.glob("*_*/*/*.json")})
        raise UserError(
            f"published.path: {root} has no <model>_<budget>/{task}/<method>.json (case counts); the tasks there: "
            f"{', '.join(there) or 'none'}"
        )
    return dict(found)


def _is_hidden(path: Path) -> bool:
    """Whether a file is hidden, as those are that macOS adds beside others ("._<name>")."""
    return path.name.startswith(".")
