"""Make records from published results: the rows of `full` in, one record a line in LongBench's format out."""

import logging

from kv_transition.data.longbench_loader import write_records
from kv_transition.data.published.records import make_records
from kv_transition.data.published.sources import read_runs
from kv_transition.run.script import job

FULL = ("full", "full")

with job(snakemake, pandas=False) as j:
    task, published = j.wildcards.task, j.params.source["published"]
    run = read_runs(published, task, [FULL])[FULL]
    records, passed_over = make_records(task, run, published["allow_incomplete"])
    if passed_over:
        logging.getLogger("kv_transition").warning("%s: passed over: %s", run.file, passed_over)
    write_records(j.output.records, records)
