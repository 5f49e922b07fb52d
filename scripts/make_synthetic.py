"""Make a synthetic task: records in LongBench's format out, one JSON object a line."""

from kv_transition.data.longbench_loader import write_records
from kv_transition.data.synthetic import make_records
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    made = j.params.synthetic
    records = make_records(
        j.wildcards.task, made["n_documents"], made["min_tokens"], made["max_tokens"], made["seed"]
    )
    write_records(j.output.records, records)
