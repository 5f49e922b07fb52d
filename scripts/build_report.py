"""Build the report: manifests, scores, analysis tables and figures in, report.md out."""

from kv_transition.data.manifest import read_manifest
from kv_transition.report.build import build_report, drawn_figures
from kv_transition.report.provenance import answered_by, collect, model_remarks
from kv_transition.report.study import NOISE_FLOOR, TABLES
from kv_transition.run.import_published import import_warnings
from kv_transition.run.script import job

with job(snakemake) as j:
    facts = {
        "model_sha256": j.params.model_sha256,
        "tokenizer": read_manifest(j.input.manifests[0]).tokenizer,
        "configfile": j.input.config,
        **answered_by(list(j.input.answers)),
    }
    build_report(
        settings=j.params.settings,
        provenance=collect(j.params.settings, facts),
        manifests=list(j.input.manifests),
        scores=list(j.input.scores),
        tables={name: path for name, path in j.input.items() if name in (*TABLES, NOISE_FLOOR)},
        figures=drawn_figures(list(j.input.figures)),
        notes=[*import_warnings(list(j.input.imported)), *model_remarks(list(j.input.answers))],
        out=j.output.report,
    )
