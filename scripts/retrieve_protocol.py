"""Retrieve LongBench's official prompts and lengths: three checked tables in, one file out."""

from kv_transition.data.protocol_tables import fetch_tables
from kv_transition.run.script import job

with job(snakemake) as j:
    fetch_tables(j.output.tables, j.config["protocol"]["path"])
