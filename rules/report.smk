"""
REQUIRED INPUTS: manifests, scores, analysis tables and figures.
OUTPUTS: results/<id>/report.md, results/report.md (the one asked for last)
"""

#: The experiment's own configuration files, named in the report's command that makes it again.
CONFIGFILES = [
    os.path.relpath(file)
    for file in workflow.configfiles
    if os.path.relpath(file) != str(paths.DEFAULT_CONFIG)
]


rule build_report:
    """The written report of the experiment."""
    input:
        **{table: FILES.analysis(table) for table in TABLES},
        manifests=MANIFESTS,
        scores=SCORES,
        figures=expand(FILES.figure("{plot}__{task}", "txt"), plot=PLOTS, task=TASKS),
    output:
        report=FILES.report(),
    log:
        FILES.log("build_report"),
    params:
        settings=settings.resolved(),
        model_sha256=MODEL_SHA256,
        configfile=" ".join(CONFIGFILES) or None,
        code=code_version("build_report", "report", "analysis/figures", "methods"),
    script:
        "../scripts/build_report.py"


rule copy_report:
    """results/report.md: the report of the configured experiment, its links made to work from there."""
    input:
        report=FILES.report(),
        database=paths.db_path(settings.experiment.id, settings.db.path),
    output:
        report=paths.report_copy(),
    log:
        FILES.log("copy_report"),
    params:
        experiment=settings.experiment.id,
        code=code_version("copy_report", "report/build"),
    script:
        "../scripts/copy_report.py"


rule all_reports:
    """Target: report and database (command `report`)."""
    input:
        rules.copy_report.output,
