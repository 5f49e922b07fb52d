"""Copy the report to results/report.md, its links made to work from there."""

from kv_transition.report.build import write_report_copy
from kv_transition.run.script import job

with job(snakemake) as j:
    write_report_copy(j.input.report, j.output.report)
