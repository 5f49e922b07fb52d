"""Build a manifest: canonical examples in, length bins and the chosen examples out."""

from kv_transition.data.manifest import build_manifest, write_manifest
from kv_transition.data.normalize import read_examples, read_protocol, read_tokenizer
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    manifest = build_manifest(
        read_examples(j.input.examples),
        experiment=j.params.experiment,
        dataset=j.params.dataset,
        task=j.wildcards.task,
        tokenizer=read_tokenizer(j.input.examples),
        protocol=read_protocol(j.input.examples),
        **j.params.binning,
        **j.params.limits,
    )
    write_manifest(j.output.manifest, manifest)
