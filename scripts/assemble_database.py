"""Assemble the database: every table of the experiment in, one SQLite file out."""

from kv_transition.db.assemble import assemble
from kv_transition.report.provenance import cleaned, collect
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    assemble(
        db_path=j.output.database,
        settings=cleaned(j.params.settings),
        provenance=collect(j.params.settings, {"model_sha256": j.params.model_sha256}),
        manifests=list(j.input.manifests),
        responses=list(j.input.responses),
        scores=list(j.input.scores),
        tables={
            name: path for name, path in j.input.items() if name not in ("manifests", "responses", "scores")
        },
    )
