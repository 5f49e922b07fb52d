"""Normalize a task: records in, canonical examples with the token count of each finished prompt out."""

from kv_transition.data.counters import RecordLength, load_counter
from kv_transition.data.longbench_loader import read_records
from kv_transition.data.normalize import normalize_records, write_examples
from kv_transition.data.protocol import load_protocol
from kv_transition.data.token_counts import TokenCounts
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    task, section = j.wildcards.task, j.params.protocol
    protocol = load_protocol(section, next(iter(j.input.protocol), None), task, section["model_name"])
    counter = load_counter(j.params.tokenizer["name"], j.params.model, j.params.tokenizer["fallback"])
    tokenizer = ModelTokenizer(j.params.model) if protocol.needs_tokenizer and j.params.model else None
    records = read_records(j.input.records, task)
    counts = None
    if not isinstance(counter, RecordLength):
        counts = TokenCounts(j.config["run"]["cache_dir"], counter, protocol, tokenizer, j.params.code)
    examples = normalize_records(records, task, counter, protocol, tokenizer, counts)
    if counts is not None:
        counts.save()
    write_examples(j.output.examples, examples, counter.name, j.params.prompts or protocol.label)
