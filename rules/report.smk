"""
REQUIRED INPUTS: manifests, scores, analysis tables and figures.
OUTPUTS: results/<id>/config.yaml, results/<id>/report.{md,html}, results/report.{md,html} (those asked for last)
"""


rule save_config:
    """The resolved configuration beside the results: with it the experiment can be made again."""
    output:
        config=FILES.config(),
    log:
        FILES.log("save_config"),
    benchmark:
        FILES.benchmark("save_config")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        settings=settings.resolved(),
        code=code_version("save_config"),
    script:
        "../scripts/save_config.py"


rule build_report:
    """The written report of the experiment."""
    input:
        **{table: FILES.analysis(table) for table in [*TABLES, *NOISE_TABLES]},
        config=FILES.config(),
        answers=expand(
            FILES.responses("{task}", "full/full", "{shard}"), task=TASKS, shard=SHARDS
        ),
        imported=(
            expand(
                FILES.responses("{task}", "{cell}", SHARDS[0]), task=TASKS, cell=CELLS
            )
            if settings.engine.kind == "published"
            else []
        ),
        manifests=MANIFESTS,
        scores=SCORES,
        figures=expand(FILES.figure("{plot}__{task}", "txt"), plot=PLOTS, task=TASKS),
    output:
        report=FILES.report(),
    log:
        FILES.log("build_report"),
    benchmark:
        FILES.benchmark("build_report")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        settings=settings.resolved(),
        model_sha256=MODEL_SHA256,
        code=code_version("build_report"),
    script:
        "../scripts/build_report.py"


rule build_html:
    """The same report as one file to pass on: figures and their numbers inside, no network."""
    input:
        report=FILES.report(),
        figures=expand(
            FILES.figure("{plot}__{task}", "{suffix}"),
            plot=PLOTS,
            task=TASKS,
            suffix=["svg", "csv"],
        ),
    output:
        page=report(
            FILES.report_html(),
            caption="captions/report.rst",
            category="Report",
        ),
    log:
        FILES.log("build_html"),
    benchmark:
        FILES.benchmark("build_html")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        code=code_version("build_html"),
    script:
        "../scripts/build_html.py"


rule copy_report:
    """results/report.md and .html: the report of the configured experiment, its links made to work from there."""
    input:
        report=FILES.report(),
        page=FILES.report_html(),
        database=paths.db_path(settings.experiment.id, settings.db.path),
    output:
        report=paths.report_copy(),
        page=paths.report_html_copy(),
    log:
        FILES.log("copy_report"),
    benchmark:
        FILES.benchmark("copy_report")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        experiment=settings.experiment.id,
        code=code_version("copy_report"),
    script:
        "../scripts/copy_report.py"


rule all_reports:
    """Target: report and database (command `report`)."""
    input:
        rules.copy_report.output,
