"""What a job depends on: the part of the configuration that its rule carries as a parameter, and no more.

A changed key reruns the jobs whose slice holds it.
"""

from __future__ import annotations

from typing import Any

from kv_transition.methods import configured_parameters
from kv_transition.schema import POLICIES, Settings


def answer_slice(settings: Settings, task: str) -> dict[str, Any]:
    """What determines an answer of a task, hyper-parameters of all known methods included.

    The chosen methods and budgets are left out on purpose: adding or removing one must not touch the others.
    """
    methods = configured_parameters(settings.kv.model_dump())
    return {
        "engine": settings.engine.model_dump(mode="json"),
        "model": settings.model.model_dump(mode="json"),
        "kv": {"scope": settings.kv.scope, "first_token": settings.kv.first_token, "methods": methods},
        "decoding": {
            "max_new_tokens": settings.decoding.max_new_tokens_by_task.get(
                task, settings.decoding.max_new_tokens
            ),
            "stop": list(settings.decoding.stop),
        },
    }


def table_slice(settings: Settings, table: str) -> dict[str, Any]:
    """What a table of the analysis depends on; every table holds both failure policies."""
    keys = {
        "bin_stats": ("bootstrap_replicates",),
        "retention": ("bootstrap_replicates", "delta"),
        "transition": ("transition_replicates", "tau", "min_active_share"),
    }[table]
    common = ("conf", "seed", "max_infrastructure_failures")
    return {"policies": list(POLICIES), **settings.analysis.model_dump(mode="json", include={*common, *keys})}


def figure_slice(settings: Settings, task: str) -> dict[str, Any]:
    """What a task's figures and their captions depend on, beside the tables."""
    resolved = settings.resolved()
    keys = {
        "scoring": ("primary",),
        "kv": ("scope", "first_token"),
        "analysis": ("policy", "tau", "conf", "min_active_share", "max_infrastructure_failures"),
        "output": ("figure_dpi",),
    }
    chosen = {section: {key: resolved[section][key] for key in names} for section, names in keys.items()}
    return {**chosen, "dataset": {"tasks": [task]}}
