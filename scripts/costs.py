"""Table costs: responses and manifests of all tasks in, what every cell took and kept out."""

from kv_transition.analysis.costs import write_costs
from kv_transition.run.script import job

with job(snakemake) as j:
    write_costs(list(j.input.responses), list(j.input.manifests), j.params.analysis, j.output.table)
