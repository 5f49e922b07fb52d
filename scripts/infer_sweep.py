"""Answer a shard: manifest and model in, one response file per (method, budget) out."""

from kv_transition.data.manifest import read_manifest
from kv_transition.paths import cell_of_response
from kv_transition.run.runner import Shard, infer_shard
from kv_transition.run.script import job

with job(snakemake) as j:
    shard = Shard(
        manifest=read_manifest(j.input.manifest),
        index=int(j.wildcards.shard),
        count=j.params.shards,
        answer=j.params.answer,
        model_sha256=j.params.model_sha256,
    )
    infer_shard(shard, {cell_of_response(path): path for path in j.output}, j.config["run"])
