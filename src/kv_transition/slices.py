"""What a job depends on: the part of the configuration that its rule carries as a parameter, and no more.

A changed key reruns the jobs whose slice holds it.
"""

from __future__ import annotations

from typing import Any

from kv_transition.files import canonical_json, sha256_text
from kv_transition.methods import configured_parameters
from kv_transition.schema import POLICIES, Settings


def answer_slice(settings: Settings, task: str) -> dict[str, Any]:
    """What determines an answer of a task, hyper-parameters of all known methods included.

    The chosen methods and budgets are left out on purpose: adding or removing one must not touch the others.
    """
    methods = configured_parameters(settings.kv.model_dump())
    by_task = settings.decoding.max_new_tokens_by_task
    return {
        "engine": engine_slice(settings),
        "model": settings.model.model_dump(mode="json"),
        "kv": {"scope": settings.kv.scope, "first_token": settings.kv.first_token, "methods": methods},
        "protocol": protocol_slice(settings, task),
        "decoding": {
            "max_new_tokens": by_task.get(task, settings.decoding.max_new_tokens),
            "max_new_tokens_by_task": {task: by_task[task]} if task in by_task else {},
            "stop": list(settings.decoding.stop),
        },
    }


def engine_slice(settings: Settings) -> dict[str, Any]:
    """What says which engine answers; only kvpress has a choice of device and attention."""
    own = {"device", "attn_implementation"} if settings.engine.kind != "kvpress" else set()
    return settings.engine.model_dump(mode="json", exclude={"noise_examples", "decode_batch", *own})


def published_slice(settings: Settings) -> dict[str, Any]:
    """What says how published results are read and matched; the files' contents are hashed beside it."""
    return {
        "published": settings.published.model_dump(mode="json"),
        "own_records": settings.record_source == "published",
    }


def protocol_slice(settings: Settings, task: str) -> dict[str, Any]:
    """What determines a task's prompts and their label; where the tables come from is left out, because their checksums
    are pinned.

    The model's name counts only where LongBench's own limit for that model is asked for. What the configuration changes in
    official answers is named, so that their label can say it.
    """
    protocol = settings.protocol
    changes = []
    if protocol.kind == "official":
        if length := settings.decoding.max_new_tokens_by_task.get(task):
            changes.append(f"max_new_tokens {length}")
        if settings.decoding.stop:
            changes.append("stop")
    named = protocol.kind == "official" and protocol.max_length_tokens is None
    return {
        "kind": protocol.kind,
        "max_length_tokens": protocol.max_length_tokens,
        "model_name": settings.model.name if named else None,
        "changes": changes,
    }


def served_model(settings: Settings, files_sha256: str | None) -> str:
    """What stands for the model in the journal's keys where a server holds it.

    The address is left out: the same model at another port or host gives the same answers. A server that changes the model
    behind a name needs another `model.revision`. Addresses of a table budget -> server are in it: there the server is the
    budget.

    Parameters
    ----------
    files_sha256 : hash of the files in model.path, which may be the tokenizer alone; None without a folder.
    """
    http = settings.http
    return sha256_text(
        canonical_json(
            {
                "name": http.model or settings.model.name,
                "revision": settings.model.revision,
                "files": files_sha256,
                "mode": http.mode,
                "extra_body": http.extra_body,
                "budget_transport": http.budget_transport.model_dump(mode="json"),
            }
        )
    )


def table_slice(settings: Settings, table: str) -> dict[str, Any]:
    """What a table of the analysis depends on; every table holds both failure policies."""
    keys = {
        "bin_stats": ("bootstrap_replicates",),
        "retention": ("bootstrap_replicates", "delta"),
        "transition": ("transition_replicates", "fit_replicates", "tau", "min_active_share"),
        "paired_tests": ("delta", "min_active_share"),
        "effect_models": ("bootstrap_replicates", "collapse_replicates", "min_active_share"),
        "costs": ("bootstrap_replicates",),
        "noise_floor": (),
    }[table]
    common = ("conf", "seed", "max_infrastructure_failures")
    return {"policies": list(POLICIES), **settings.analysis.model_dump(mode="json", include={*common, *keys})}


def figure_slice(settings: Settings) -> dict[str, Any]:
    """What figures and their captions depend on, beside the tables."""
    resolved = settings.resolved()
    keys = {
        "kv": ("scope", "first_token"),
        "analysis": ("policy", "tau", "conf", "min_active_share", "max_infrastructure_failures"),
        "output": ("figure_dpi",),
    }
    chosen: dict[str, Any] = {
        section: {key: resolved[section][key] for key in names} for section, names in keys.items()
    }
    chosen["concurrency"] = settings.http.concurrency if settings.engine.kind == "openai_compat" else None
    if settings.engine.kind == "published":
        chosen["kv"] = dict.fromkeys(keys["kv"], "unknown")
    return chosen
