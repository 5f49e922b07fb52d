"""Answer one cell of a shard: manifest in, its response file out; a server is asked for what the journal lacks."""

from kv_transition.data.manifest import read_manifest
from kv_transition.data.protocol import load_protocol
from kv_transition.paths import cell_of_response
from kv_transition.run.runner import Shard, infer_shard
from kv_transition.run.script import job

with job(snakemake) as j:
    section = j.params.answer["protocol"]
    tables = next(iter(j.input.protocol), None)
    shard = Shard(
        manifest=read_manifest(j.input.manifest),
        index=int(j.wildcards.shard),
        count=j.params.shards,
        answer={**j.params.answer, "http": j.config["http"]},
        model_sha256=j.params.model_sha256,
        protocol=load_protocol(section, tables, j.wildcards.task, section["model_name"]),
    )
    infer_shard(shard, {cell_of_response(path): path for path in j.output}, j.config["run"])
