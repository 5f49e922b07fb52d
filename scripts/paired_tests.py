"""Tables paired_tests and lossless: scores and manifests of all tasks in, one row per comparison and per claim out."""

from kv_transition.analysis.lossless import write_lossless
from kv_transition.analysis.paired_tests import write_paired_tests
from kv_transition.run.script import job

with job(snakemake) as j:
    scores, manifests = list(j.input.scores), list(j.input.manifests)
    write_paired_tests(scores, manifests, j.params.analysis, j.output.table)
    write_lossless(scores, manifests, j.params.analysis, j.output.lossless)
