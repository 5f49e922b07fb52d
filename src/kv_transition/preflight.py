"""Checks that need the files an experiment names: made before anything runs, so that a mistake costs no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kv_transition.data import synthetic
from kv_transition.errors import UserError
from kv_transition.schema import Settings


def check_inputs(settings: Settings) -> None:
    """Fail with one line when the model's files or a task's records are missing. Cheap: reads no contents."""
    check_model(settings.model.path)
    check_task_files(settings)


def check_model(folder: str) -> None:
    """Fail unless the folder holds weights, a tokenizer, and the configuration of a model that the engine computes."""
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
    from kv_transition.engines.weights import read_config

    read_config(Path(folder))


def check_task_files(settings: Settings) -> None:
    """Fail when a task is not known to the source, or its file is missing."""
    dataset = settings.dataset
    for task in dataset.tasks:
        if dataset.kind == "synthetic" and task not in synthetic.TASKS:
            raise UserError(
                f"dataset.tasks: {task} is no synthetic task (there are {', '.join(synthetic.TASKS)}); for other records "
                "set dataset.path or dataset.hub_id"
            )
        if dataset.kind in {"local", "manifest"}:
            record_file(settings, task)


def record_file(settings: Settings, task: str) -> str:
    """The file a task starts from where dataset.path names the source: records, a zip of them, or a manifest."""
    from kv_transition.data.longbench_loader import find_task

    folder = str(settings.dataset.path)
    if settings.dataset.kind == "local":
        return str(find_task(folder, task).path)
    manifest = Path(folder) / task / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"dataset.path: there is no manifest {manifest}; build it with the command prepare")
    return str(manifest)


def check_contents(settings: Settings) -> None:
    """Read every record as the workflow will: broken lines, doubled ids and filters that leave nothing are errors.

    Synthetic records are always sound, and records on the hub are not fetched for this.
    """
    from kv_transition.data.longbench_loader import read_records
    from kv_transition.data.manifest import read_manifest

    dataset = settings.dataset
    for task in dataset.tasks:
        if dataset.kind == "manifest":
            read_manifest(record_file(settings, task))
        elif dataset.kind == "local":
            check_records(settings, task, read_records(str(dataset.path), task))
        elif dataset.kind == "synthetic" and bounded(settings):
            made = dataset.synthetic
            records = synthetic.make_records(
                task, made.n_documents, made.min_tokens, made.max_tokens, made.seed
            )
            check_records(settings, task, records)


def bounded(settings: Settings) -> bool:
    """Whether the lengths of prompts decide which examples there are."""
    return settings.dataset.min_tokens is not None or settings.dataset.max_tokens is not None


def check_records(settings: Settings, task: str, records: list[dict[str, Any]]) -> None:
    """Fail for doubled records, classes that are asked for and missing, and length bounds that leave nothing."""
    from kv_transition.data.binning import eligible
    from kv_transition.data.normalize import normalize_records, record_ids
    from kv_transition.data.tokenizer import load_counter

    record_ids(records, task)
    if settings.scoring.formats.get(task) == "class" and not all(
        record.get("all_classes") for record in records
    ):
        raise UserError(
            f"scoring.formats.{task}: class, but records of the task have no all_classes; remove the key"
        )
    if bounded(settings):
        counter = load_counter(settings.tokenizer.name, settings.model.path, settings.tokenizer.fallback)
        eligible(
            normalize_records(records, task, counter),
            settings.dataset.min_tokens,
            settings.dataset.max_tokens,
        )
