"""Copy the report to results/report.md, its links made to work from there, and its page to results/report.html."""

from pathlib import Path

from kv_transition.files import write_text
from kv_transition.report.copy import write_report_copy
from kv_transition.run.script import job

with job(snakemake) as j:
    write_report_copy(j.input.report, j.output.report)
    write_text(j.output.page, Path(j.input.page).read_text(encoding="utf-8"))
