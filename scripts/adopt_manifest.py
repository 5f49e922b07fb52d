"""Start from a manifest: that of an earlier experiment in, checked and under this experiment's name out."""

from dataclasses import replace

from kv_transition.data.manifest import read_manifest, write_manifest
from kv_transition.paths import dataset_id
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    names = {
        "experiment": j.params.experiment,
        "dataset": j.params.dataset,
        "dataset_id": dataset_id(j.params.dataset, j.wildcards.task),
    }
    write_manifest(j.output.manifest, replace(read_manifest(j.input.manifest), **names))
