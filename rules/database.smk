"""
REQUIRED INPUTS: manifests, responses, scores and analysis tables.
OUTPUTS: results/<id>/kv_transition.sqlite
"""


rule assemble_database:
    """Everything in one SQLite file, rebuilt whole, checked, then moved into place."""
    input:
        **{table: FILES.analysis(table) for table in [*TABLES, *NOISE_TABLES]},
        manifests=MANIFESTS,
        responses=RESPONSES,
        scores=SCORES,
    output:
        database=paths.db_path(settings.experiment.id, settings.db.path),
    log:
        FILES.log("assemble_database"),
    benchmark:
        FILES.benchmark("assemble_database")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        settings=settings.resolved(),
        model_sha256=MODEL_SHA256,
        code=code_version("assemble_database"),
    script:
        "../scripts/assemble_database.py"
