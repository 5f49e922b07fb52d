"""Save the configuration: the resolved settings of the experiment out, as a file that makes it again."""

from kv_transition.run.script import job
from kv_transition.settings import write_config

with job(snakemake) as j:
    write_config(j.output.config, j.params.settings)
