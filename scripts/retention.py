"""Table retention: scores and manifests of all tasks in, one row per cell out."""

from kv_transition.analysis.aggregate import write_retention
from kv_transition.run.script import job

with job(snakemake) as j:
    write_retention(list(j.input.scores), list(j.input.manifests), j.params.analysis, j.output.table)
