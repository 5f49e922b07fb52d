"""`kv-transition plan`: what a run would ask, compute, take and write, before anything is run."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kv_transition import preflight, slices
from kv_transition.commands.console import NONE, table
from kv_transition.commands.plan_estimates import Measured, measured, orphans, response_bytes_per_row
from kv_transition.commands.plan_work import TaskWork, model_hash, work_of
from kv_transition.commands.workflow import Preview, preview
from kv_transition.engines.kvpress_settings import resolved_engine
from kv_transition.paths import run_dir
from kv_transition.schema import Settings

#: Orphans that are named; all of them are in the JSON form.
SHOWN = 5


def plan(settings: Settings, config: str, overrides: list[str], as_json: bool = False) -> int:
    """Print the plan of an experiment.

    Parameters
    ----------
    config, overrides : what the settings were made of; Snakemake gets the same.
    """
    settings = preflight.located(settings)
    document = _document(settings, preview(config, overrides))
    sys.stdout.write(
        json.dumps(document, indent=2, ensure_ascii=False) + "\n" if as_json else _text(document)
    )
    return 0


def _document(settings: Settings, seen: Preview) -> dict[str, Any]:
    """Everything that the plan says."""
    work = work_of(settings, seen.is_current)
    sums = {
        name: sum(getattr(one, name) for task in work for one in task.methods)
        for name in ("requests", "not_asked", "answered", "to_compute", "copies", "new_tokens")
    }
    folder = run_dir(settings.experiment.id)
    return {
        "experiment": settings.experiment.id,
        "engine": settings.engine.kind,
        "cells": len(settings.cells),
        "shards": settings.run.shards,
        "tasks": [asdict(one) for one in work],
        "total": {**sums, "prompt_tokens": sum(one.prompt_tokens for one in work)},
        "unprepared": {one.task: one.missing for one in work if one.missing},
        **_costs(settings, work, sums, seen),
        "jobs": None if seen.problem else dict(seen.jobs),
        "reasons": {reason: list(rules) for reason, rules in seen.reasons.items()},
        "files": None if seen.problem else len(seen.files),
        "problem": seen.problem,
        "orphans": [] if seen.problem else orphans(folder, seen.files),
    }


def _costs(settings: Settings, work: list[TaskWork], sums: dict[str, int], seen: Preview) -> dict[str, Any]:
    """Time and disk, as far as earlier answers tell; None where they do not."""
    known = _measured(settings)
    own = [file for file in seen.files if "/responses/" in file]
    per_response = response_bytes_per_row(own)
    computed = sums["to_compute"] - sums["copies"]
    concurrency = settings.http.concurrency if settings.engine.kind == "openai_compat" else 0
    tokens = sum(one.prompt_tokens for one in work)
    seconds = known.seconds(tokens, computed, concurrency) if known else None
    return {
        "time": {
            "engine_s": 0.0 if sums["to_compute"] == 0 else seconds,
            "measured": None if known is None else asdict(known),
            "longest_prompt": max((one.longest_prompt for one in work), default=0),
        },
        "disk": {
            "journal_bytes": _growth(known, sums["to_compute"]),
            "responses_bytes": None if per_response is None else round(per_response * sums["requests"]),
            "free_bytes": shutil.disk_usage(".").free,
        },
    }


def _growth(known: Measured | None, answers: int) -> int | None:
    if answers == 0:
        return 0
    return None if known is None else round(known.bytes_per_row * answers)


def _measured(settings: Settings) -> Measured | None:
    model = model_hash(settings)
    if model is None:
        return None
    folder = Path(settings.run.journal_dir) / f"{settings.engine.kind}-{model[:16]}"
    return measured(folder, resolved_engine(slices.engine_slice(settings)))


def _text(plan: dict[str, Any]) -> str:
    """The plan in words."""
    blocks = [
        f"experiment {plan['experiment']}: {_count(len(plan['tasks']), 'task')}, {_count(plan['cells'], 'cell')}, "
        f"{_count(plan['shards'], 'shard')} per task, engine {plan['engine']}\n",
        _table(plan),
        "".join(f"{line}\n" for line in [*_work_lines(plan), *_cost_lines(plan), *_file_lines(plan)]),
    ]
    return "\n".join(block for block in blocks if block)


def _table(plan: dict[str, Any]) -> str:
    header = ("task", "method", "cells", "examples", "requests", "answered", "to compute")
    rows = []
    for task in plan["tasks"]:
        if task["missing"]:
            rows.append((task["task"], *[NONE] * 6))
        for one in task["methods"]:
            counts = [one["cells"], task["examples"], one["requests"], one["answered"], one["to_compute"]]
            rows.append((task["task"], one["method"], *(f"{value:,}" for value in counts)))
    total = plan["total"]
    sums = (f"{total[name]:,}" for name in ("requests", "answered", "to_compute"))
    return table(header, [*rows, ("total", "", "", "", *sums)], left=(0, 1))


def _work_lines(plan: dict[str, Any]) -> list[str]:
    total, lines = plan["total"], []
    for task, what in plan["unprepared"].items():
        lines.append(
            f"{task}: {what} must be prepared first (kv-transition prepare); it is in no number here"
        )
    if plan["engine"] == "published":
        return [*lines, "to compute: nothing; the answers are those of the published files"]
    shared = total["requests"] - total["not_asked"] - total["answered"] - total["to_compute"]
    if total["not_asked"]:
        lines.append(
            f"not asked: {_count(total['not_asked'], 'request')}; their budget leaves no room for a text"
        )
    if shared:
        lines.append(f"shared: {_count(shared, 'request')} with the prompt and cell of another one")
    if not total["to_compute"] and plan["unprepared"]:
        return [
            *lines,
            f"to compute: {'not known yet' if not total['requests'] else 'nothing of the others'}",
        ]
    if not total["to_compute"]:
        return [*lines, "to compute: nothing; every answer is there"]
    copied = f", {total['copies']:,} of them copies of the full cache's answer" if total["copies"] else ""
    units = sorted({task["unit"] for task in plan["tasks"] if task["unit"]})
    return [
        *lines,
        f"to compute: {_count(total['to_compute'], 'answer')}{copied}",
        f"tokens: {total['prompt_tokens']:,} of prompts to read ({', '.join(units)}), at most "
        f"{total['new_tokens']:,} to generate",
    ]


def _cost_lines(plan: dict[str, Any]) -> list[str]:
    lines, spent, known = [], plan["time"]["engine_s"], plan["time"]["measured"]
    if plan["total"]["to_compute"]:
        if spent is None:
            lines.append("time: not known; the journal has no timings of this model and engine")
        else:
            longer = plan["time"]["longest_prompt"] > known["longest_prompt"]
            beyond = f"; prompts longer than the {known['longest_prompt']:,} tokens measured take more"
            lines.append(
                f"time: about {_duration(spent)} of the engine, by {_count(known['rows'], 'earlier answer')}; jobs that run at "
                f"the same time share it{beyond if longer else ''}"
            )
    disk = plan["disk"]
    lines.append(
        f"disk: journal growth {_bytes(disk['journal_bytes'])}, all responses {_bytes(disk['responses_bytes'])}; "
        f"{_bytes(disk['free_bytes'])} free"
    )
    return lines


def _file_lines(plan: dict[str, Any]) -> list[str]:
    if plan["problem"]:
        return [f"jobs: not known; {plan['problem']}"]
    jobs = plan["jobs"]
    what = ", ".join(f"{rule} {count:,}" for rule, count in jobs.items()) or "none is due"
    lines = [f"jobs: {sum(jobs.values()):,} ({what}); {_count(plan['files'], 'file')} in all"]
    lines += [f"  {reason}: {', '.join(rules)}" for reason, rules in plan["reasons"].items()]
    if left := plan["orphans"]:
        more = ", ..." if len(left) > SHOWN else ""
        lines.append(
            f"orphans: {_count(len(left), 'file')} in results/{plan['experiment']} of another configuration; no run reads or "
            f"deletes them: {', '.join(left[:SHOWN])}{more}"
        )
    return lines


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(number: float | None) -> str:
    if number is None:
        return "not known"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} bytes"
