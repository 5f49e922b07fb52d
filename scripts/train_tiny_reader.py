"""Train the tiny reader from scratch: a folder with weights, configuration, tokenizer and card out."""

from kv_transition.run.script import job
from kv_transition.tiny_reader.training import train

with job(snakemake) as j:
    train(j.output.folder)
