"""
Settings, paths, functions and the hash of code, as all files with rules use them.

The configuration is validated here, before the DAG is built; `config` is replaced by its resolved form.
"""

import fcntl
import os
import re
import sys

from snakemake.exceptions import WorkflowError

from kv_transition import content_hash, paths, preflight, slices
from kv_transition import settings as configuration
from kv_transition.code_version import code_version as hash_code
from kv_transition.data import protocol_tables
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
    return hash_code(f"{workflow.basedir}/scripts/{rule}.py", settings.run.cache_dir)


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


def records_of_task(wildcards):
    """Where a task's records are; a file that no rule makes is a leaf, so its age does not count."""
    if settings.record_source in {"synthetic", "published"}:
        return FILES.made_records(wildcards.task)
    if settings.record_source == "hub":
        return paths.raw_records(
            wildcards.task, settings.dataset.hub_id, settings.dataset.revision
        )
    return ancient(preflight.record_file(settings, wildcards.task))


def records_sha256(wildcards):
    """Content hash of a leaf file of records; records made by a rule are tracked by Snakemake."""
    if settings.record_source in {"synthetic", "hub", "published"}:
        return None
    return leaf_sha256(preflight.record_file(settings, wildcards.task))


def published_sha256(wildcards):
    """Content hash of every file that holds a task's results."""
    files = preflight.published_files(settings, wildcards.task)
    return {file: leaf_sha256(file) for file in files}


def protocol_sha256():
    """Checksums of the tables in use: those that are pinned, wherever the files come from, or the job refuses them."""
    folder = settings.protocol.path
    if folder is None:
        return protocol_tables.SHA256
    files = {name: f"{folder}/{name}" for name in protocol_tables.SHA256}
    return {
        name: leaf_sha256(file) if os.path.isfile(file) else None
        for name, file in files.items()
    }


def full_answers(wildcards):
    """The full cache's answers come first: a budget that takes nothing away copies them, and nothing is asked."""
    if wildcards.method == "full":
        return []
    return FILES.responses(wildcards.task, "full/full", wildcards.shard)


def cluster_resources(job):
    """What a job asks of a cluster: more memory and time with each attempt."""
    request = {
        "mem_mb": lambda wildcards, attempt: job.mem_mb * attempt,
        "runtime": lambda wildcards, attempt: job.runtime_minutes * attempt,
    }
    if getattr(job, "cpus_per_task", None):
        request["cpus_per_task"] = job.cpus_per_task
    return request


#: What the drivers of Nvidia's and AMD's GPUs make, and Windows' for its Linux; to ask torch would take seconds.
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def gpu_request(job):
    """GPUs of a job that loads the model; jobs that ask a server do without."""
    return {"gpu": job.gpus} if job.gpus else {}


def own_gpu():
    """A model on this machine's GPU, of which profiles/default lets one be there at a time; on a cluster jobs share none."""
    engine = settings.engine
    if engine.kind != "kvpress" or engine.device == "cpu":
        return {}
    if engine.device == "auto" and not any(map(os.path.exists, GPU_DRIVERS)):
        return {}
    return {"local_gpu": lambda wildcards: int(workflow.local_exec)}


def lock_experiment(experiment, targets):
    """Refuse a second run of the same experiment. The kernel drops the lock when this process dies, however it dies."""
    if set(targets) == {"train_tiny_reader"}:
        return  # touches no experiment
    global experiment_lock
    experiment_lock = open(f".snakemake/{experiment}.flock", "a")
    try:
        fcntl.flock(experiment_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            f"error: experiment {experiment} is being run by another snakemake in this folder; wait for it to end"
        ) from None
    except OSError as error:
        print(
            f"warning: no lock on .snakemake/{experiment}.flock ({error.strerror}): a second run of this experiment at the "
            "same time is not refused",
            file=sys.stderr,
        )
