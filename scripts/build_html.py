"""Build report.html: the finished report.md and its figures in, one file that needs no other out."""

from kv_transition.report.html import build_html
from kv_transition.run.script import job

with job(snakemake) as j:
    build_html(j.input.report, j.output.page)
