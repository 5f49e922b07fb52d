"""Answer examples of a task a second way: manifest and model in, one response file out."""

from kv_transition.run.noise import infer_noise
from kv_transition.run.runner import Shard
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    shard = Shard.read(j.input.manifest, 0, j.input.protocol, j.params)
    infer_noise(shard, j.params.examples, j.output.answers, j.config["run"])
