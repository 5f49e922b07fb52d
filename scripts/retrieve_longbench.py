"""Retrieve a task from the hub: official records out, one JSON object a line."""

from kv_transition.data.longbench_loader import fetch_from_hub
from kv_transition.run.script import job

with job(snakemake) as j:
    fetch_from_hub(
        j.params.hub_id, j.wildcards.task, j.params.revision, j.output.records, sha256=j.params.sha256
    )
