"""Import published results: their files, manifest and examples of a task in, one response file per (method, budget) out."""

from kv_transition.data.manifest import read_manifest
from kv_transition.data.normalize import read_examples
from kv_transition.paths import cell_of_response
from kv_transition.run.import_published import Source, import_shard
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    import_shard(
        manifest=read_manifest(j.input.manifest),
        examples=read_examples(j.input.examples),
        source=Source(sha256=j.params.sha256, **j.params.source),
        outputs={cell_of_response(path): path for path in j.output},
        index=int(j.wildcards.shard),
        count=j.params.shards,
    )
