"""Normalize a task: records in, canonical examples with the token count of each finished prompt out."""

from kv_transition.data.longbench_loader import read_records
from kv_transition.data.normalize import normalize_records, write_examples
from kv_transition.data.tokenizer import load_counter
from kv_transition.run.script import job

with job(snakemake) as j:
    counter = load_counter(j.params.tokenizer["name"], j.params.model, j.params.tokenizer["fallback"])
    records = read_records(j.input.records, j.wildcards.task)
    write_examples(j.output.examples, normalize_records(records, j.wildcards.task, counter), counter.name)
