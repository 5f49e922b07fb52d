"""
What every rule file shares: the settings, the paths and the hash of a rule's code.

The configuration is validated here, before the DAG is built; `config` is replaced by its resolved form.
"""

import fcntl
import os
import re

from snakemake.exceptions import WorkflowError

from kv_transition import content_hash, paths, preflight, slices
from kv_transition import settings as configuration
from kv_transition.code_version import code_version as hash_code
from kv_transition.errors import UserError

try:
    settings = preflight.located(configuration.from_mapping(config))
    preflight.check_inputs(settings)
except UserError as error:
    raise WorkflowError(f"error: {error}") from None

config.clear()
config.update(settings.resolved())

TASKS = settings.dataset.tasks
SHARDS = paths.shard_names(settings.run.shards)
CELLS = settings.cells
FILES = settings.files


wildcard_constraints:
    task="|".join(re.escape(task) for task in TASKS),
    shard=r"\d{3}",
    method="|".join(re.escape(cell.split("/")[0]) for cell in CELLS),
    budget="|".join(re.escape(cell.split("/")[1]) for cell in CELLS),


def code_version(rule):
    """Hash of a rule's script and of all it imports: editing a comment or touching a file reruns nothing."""
    return hash_code(f"{workflow.basedir}/scripts/{rule}.py")


def leaf_sha256(path):
    """Content hash of a tracked or downloaded file; such files are `ancient` inputs and their hash is a parameter."""
    return content_hash.cached_sha256(path, settings.run.cache_dir)


#: Published results and servers need no model here; with one its tokenizer counts.
MODEL_FILES = (
    content_hash.model_files(settings.model.path) if settings.model.path else []
)
MODEL_SHA256 = (
    content_hash.model_sha256(settings.model.path, settings.run.cache_dir)
    if settings.model.path
    else None
)
if settings.engine.kind == "openai_compat":
    MODEL_SHA256 = slices.served_model(settings, MODEL_SHA256)


def lock_experiment(experiment, targets):
    """Refuse a second run of the same experiment. The kernel drops the lock when this process dies, however it dies."""
    if set(targets) == {"train_tiny_reader"}:
        return  # touches no experiment
    global experiment_lock
    experiment_lock = open(f".snakemake/{experiment}.flock", "a")
    try:
        fcntl.flock(experiment_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise WorkflowError(
            f"error: experiment {experiment} is being run by another snakemake in this folder; wait for it to end"
        ) from None
