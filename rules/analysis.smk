"""
REQUIRED INPUTS: scores and manifests of all tasks.
OUTPUTS: results/<id>/analysis/{bin_stats,retention,transition}.parquet, results/<id>/figures/*.{svg,png,csv,txt}
"""

SCORES = expand(FILES.scores("{task}"), task=TASKS)
MANIFESTS = expand(FILES.manifest("{task}"), task=TASKS)
TABLES = ["bin_stats", "retention", "transition"]
PLOTS = ["score_vs_budget", "heatmap", "transition_vs_length"]


rule bin_stats:
    """Mean score of every cell in every length bin, with its interval."""
    input:
        scores=SCORES,
        manifests=MANIFESTS,
    output:
        table=FILES.analysis("bin_stats"),
    log:
        FILES.log("bin_stats"),
    params:
        analysis=slices.table_slice(settings, "bin_stats"),
        code=code_version("bin_stats"),
    script:
        "../scripts/bin_stats.py"


rule retention:
    """Share of the full cache's score that every cell retains, with its interval."""
    input:
        scores=SCORES,
        manifests=MANIFESTS,
    output:
        table=FILES.analysis("retention"),
    log:
        FILES.log("retention"),
    params:
        analysis=slices.table_slice(settings, "retention"),
        code=code_version("retention"),
    script:
        "../scripts/retention.py"


rule transition:
    """Smallest budget from which retention stays above a level, with its limits."""
    input:
        scores=SCORES,
        manifests=MANIFESTS,
    output:
        table=FILES.analysis("transition"),
    log:
        FILES.log("transition"),
    params:
        analysis=slices.table_slice(settings, "transition"),
        code=code_version("transition"),
    script:
        "../scripts/transition.py"


rule plot_figures:
    """The figures of a task: score against budget, bins by budgets, transition budget against length."""
    input:
        **{table: FILES.analysis(table) for table in TABLES},
        scores=FILES.scores("{task}"),
    output:
        expand(
            FILES.figure("{plot}__{{task}}", "{suffix}"),
            plot=PLOTS,
            suffix=["svg", "png", "csv", "txt"],
        ),
    log:
        FILES.log("plot_figures", "{task}"),
    params:
        figure=slices.figure_slice(settings),
        code=code_version("plot_figures"),
    script:
        "../scripts/plot_figures.py"


rule all_analysis:
    """Target: every table and figure (command `analyze`)."""
    input:
        expand(FILES.analysis("{table}"), table=TABLES),
        expand(FILES.figure("{plot}__{task}", "svg"), plot=PLOTS, task=TASKS),
