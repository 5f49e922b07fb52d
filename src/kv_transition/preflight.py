"""Checks that need the files an experiment names: made before anything runs, so that a mistake costs no time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kv_transition.data import synthetic
from kv_transition.errors import UserError
from kv_transition.schema import Settings
from kv_transition.section import NAME


def check_inputs(settings: Settings) -> None:
    """Fail with one line when the model's files or a task's records are missing. Cheap: reads no contents."""
    if settings.engine.kind == "published":
        check_published(settings)
    elif settings.engine.kind == "openai_compat":
        check_tokenizer(settings)
    elif settings.engine.kind == "kvpress":
        check_kvpress(settings)
    else:
        check_model(str(settings.model.path))
    check_task_files(settings)


def check_model(folder: str) -> None:
    """Fail unless the folder holds weights, a tokenizer, and the configuration of a model that the engine computes."""
    check_model_files(folder)
    from kv_transition.engines.weights import read_config

    read_config(Path(folder))


def check_model_files(folder: str) -> None:
    """Fail unless the folder holds weights, a configuration and a tokenizer."""
    if not Path(folder).is_dir():
        raise UserError(
            f"model.path: there is no folder {folder}; name the folder that holds the model's files"
        )
    for pattern, what in (
        ("*.safetensors", "weights (*.safetensors)"),
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
    ):
        if not any(Path(folder).glob(pattern)):
            raise UserError(f"model.path: {folder} holds no {what}; download the model's files into it")


def check_kvpress(settings: Settings) -> None:
    """Fail when the extra or the model is missing, or the model is refused by what its config.json says."""
    from kv_transition.engines.kvpress_settings import (
        check_granularity,
        check_model_config,
        require_packages,
    )

    require_packages()
    folder = str(located(settings).model.path)
    check_model_files(folder)
    source = Path(folder, "config.json")
    try:
        raw = json.loads(source.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{source}: not readable as JSON ({error}); fetch the model's files again") from None
    check_model_config(raw, folder)
    check_granularity(settings.kv.methods, settings.kv.presses, raw)


def located(settings: Settings) -> Settings:
    """The settings with the folder in which the hub's cache has a model that is named by model.name alone."""
    if settings.engine.kind != "kvpress" or settings.model.path is not None:
        return settings
    from kv_transition.engines.kvpress_settings import hub_model_folder

    folder = hub_model_folder(settings.model.name, settings.model.revision)
    model = settings.model.model_copy(update={"path": str(folder)})
    return settings.model_copy(update={"model": model})


def check_tokenizer(settings: Settings) -> None:
    """Fail when model.path is named and holds no tokenizer; a server that is not running is no mistake before the run."""
    folder = settings.model.path
    if folder is not None and not Path(folder, "tokenizer.json").is_file():
        raise UserError(
            f"model.path: {folder} holds no tokenizer.json; name the folder of the model's tokenizer, or null"
        )


def check_published(settings: Settings) -> None:
    """Fail when published results are not where they are said to be, or the tokenizer that counts lengths is not."""
    if settings.record_source == "manifest":
        raise UserError(
            "dataset.source: engine.kind is published, which is checked against all records of a task, and a manifest holds "
            "the chosen ones only; name the records with dataset.path"
        )
    if settings.tokenizer.name == "model" and not Path(str(settings.model.path), "tokenizer.json").is_file():
        raise UserError(
            f"model.path: {settings.model.path} holds no tokenizer.json, which tokenizer.name: model needs; add it, or set "
            "tokenizer.name to length"
        )
    if settings.published.layout == "longbench" and not settings.published.runs:
        raise UserError(
            "published.runs: layout longbench needs the folder of each run, e.g. [{method: full, path: my-model}]"
        )
    for method in settings.kv.methods:
        if not re.fullmatch(NAME, method):
            raise UserError(
                f"kv.methods: {method!r} is no name for a folder; map it to one with published.methods and use that"
            )
    for task in settings.dataset.tasks:
        published_files(settings, task)


def published_files(settings: Settings, task: str) -> list[str]:
    """The files that hold a task's published results at the configured cells."""
    return _published_files(settings, task, settings.cells)


def published_reference(settings: Settings, task: str) -> list[str]:
    """The files that hold a task's published results without compression."""
    return _published_files(settings, task, ["full/full"])


def _published_files(settings: Settings, task: str, cells: list[str]) -> list[str]:
    from kv_transition.data.published.sources import source_files

    pairs = [(method, budget) for method, _, budget in (cell.partition("/") for cell in cells)]
    return [str(file) for file in source_files(settings.published.model_dump(), task, pairs)]


def check_task_files(settings: Settings) -> None:
    """Fail when a task is not known to the source, or its file is missing."""
    dataset = settings.dataset
    for task in dataset.tasks:
        if settings.record_source == "synthetic" and task not in synthetic.TASKS:
            raise UserError(
                f"dataset.tasks: {task} is no synthetic task (there are {', '.join(synthetic.TASKS)}); for other records "
                "set dataset.path or dataset.hub_id"
            )
        if settings.record_source in {"local", "manifest"}:
            record_file(settings, task)


def record_file(settings: Settings, task: str) -> str:
    """The file a task starts from where dataset.path names the source: records, a zip of them, or a manifest."""
    from kv_transition.data.longbench_loader import find_task

    folder = str(settings.dataset.path)
    if settings.record_source == "local":
        return str(find_task(folder, task).path)
    manifest = Path(folder) / task / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"dataset.path: there is no manifest {manifest}; build it with the command prepare")
    return str(manifest)


def check_contents(settings: Settings) -> None:
    """Read every record as the workflow will: broken lines, doubled ids and filters that leave nothing are errors.

    Presses that are given by their class are made once.

    Synthetic records are always sound, and records on the hub are not fetched for this.
    """
    from kv_transition.data.longbench_loader import read_records
    from kv_transition.data.manifest import read_manifest

    settings = located(settings)
    if settings.kv.presses:
        from kv_transition.engines.kvpress_presses import named_press

        for name, parameters in settings.kv.presses.items():
            named_press(name, parameters)
    dataset = settings.dataset
    for task in dataset.tasks:
        if settings.engine.kind == "published":
            check_published_rows(settings, task)
        if settings.record_source == "manifest":
            read_manifest(record_file(settings, task))
        elif settings.record_source == "local":
            check_records(settings, task, read_records(str(dataset.path), task))
        elif settings.record_source == "synthetic" and bounded(settings):
            made = dataset.synthetic
            records = synthetic.make_records(
                task, made.n_documents, made.min_tokens, made.max_tokens, made.seed
            )
            check_records(settings, task, records)


def check_published_rows(settings: Settings, task: str) -> None:
    """Fail when published rows cannot be read, a configured cell is not among them, or they are not those of the records.

    Records on the hub are not fetched for this.
    """
    from kv_transition.data.longbench_loader import read_records
    from kv_transition.data.normalize import record_ids
    from kv_transition.data.published.matching import match_rows
    from kv_transition.data.published.records import comparable, make_records
    from kv_transition.data.published.sources import read_runs

    own, incomplete = settings.record_source == "published", settings.published.allow_incomplete
    cells = [(method, budget) for method, _, budget in (cell.partition("/") for cell in settings.cells)]
    runs = read_runs(settings.published.model_dump(), task, cells)
    if settings.record_source == "hub":
        return
    if own:
        records, _ = make_records(task, runs["full", "full"], incomplete)
    else:
        records = read_records(str(settings.dataset.path), task)
    known = [
        comparable(record, example_id, position, own)
        for position, (record, example_id) in enumerate(zip(records, record_ids(records, task), strict=True))
    ]
    for cell, run in runs.items():
        match_rows(task, cell, run, known, allow_incomplete=incomplete, own=own)


def bounded(settings: Settings) -> bool:
    """Whether the lengths of prompts decide which examples there are."""
    return settings.dataset.min_tokens is not None or settings.dataset.max_tokens is not None


def check_records(settings: Settings, task: str, records: list[dict[str, Any]]) -> None:
    """Fail for doubled records, classes that are asked for and missing, and length bounds that leave nothing."""
    from kv_transition.data.binning import eligible
    from kv_transition.data.counters import load_counter
    from kv_transition.data.normalize import normalize_records, record_ids
    from kv_transition.data.protocol import own_protocol
    from kv_transition.data.tokenizer import ModelTokenizer
    from kv_transition.eval.longbench_metrics import check_gold

    record_ids(records, task)
    if settings.scoring.formats.get(task) == "class" and not all(
        record.get("all_classes") for record in records
    ):
        raise UserError(
            f"scoring.formats.{task}: class, but records of the task have no all_classes; remove the key"
        )
    if settings.scoring.primary == "official" and task not in settings.scoring.metrics:
        for record in records:
            check_gold(task, record["answers"], record.get("all_classes") or [])
    # Official prompts are known only when their tables have been fetched.
    if bounded(settings) and settings.protocol.kind == "own":
        model, limit = settings.model.path, settings.protocol.max_length_tokens
        counter = load_counter(settings.tokenizer.name, model, settings.tokenizer.fallback)
        tokenizer = ModelTokenizer(model) if limit and model else None
        eligible(
            normalize_records(records, task, counter, own_protocol(task, limit), tokenizer),
            settings.dataset.min_tokens,
            settings.dataset.max_tokens,
        )
