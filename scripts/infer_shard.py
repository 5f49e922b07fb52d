"""Answer one cell of a shard: manifest in, its response file out; a server is asked for what the journal lacks."""

from kv_transition.paths import cell_of_response
from kv_transition.run.runner import Shard, infer_shard
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    shard = Shard.read(
        j.input.manifest, int(j.wildcards.shard), j.input.protocol, j.params, {"http": j.config["http"]}
    )
    infer_shard(shard, {cell_of_response(path): path for path in j.output}, j.config["run"])
