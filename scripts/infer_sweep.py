"""Answer a shard: manifest and model in, one response file per (method, budget) out."""

from kv_transition.paths import cell_of_response
from kv_transition.run.runner import Shard, infer_shard
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    beside = {"decode_batch": j.config["engine"]["decode_batch"]}
    shard = Shard.read(j.input.manifest, int(j.wildcards.shard), j.input.protocol, j.params, beside)
    infer_shard(shard, {cell_of_response(path): path for path in j.output}, j.config["run"])
