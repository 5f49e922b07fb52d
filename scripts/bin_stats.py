"""Table bin_stats: scores and manifests of all tasks in, one row per cell out."""

from kv_transition.analysis.aggregate import write_bin_stats
from kv_transition.run.script import job

with job(snakemake) as j:
    write_bin_stats(list(j.input.scores), list(j.input.manifests), j.params.analysis, j.output.table)
