"""
REQUIRED INPUTS: scores and manifests of all tasks.
OUTPUTS: results/<id>/analysis/*.parquet (TABLES, NOISE_TABLES), results/<id>/figures/*.{svg,png,csv,txt} (PLOTS, each for every task)
"""

SCORES = expand(FILES.scores("{task}"), task=TASKS)
MANIFESTS = expand(FILES.manifest("{task}"), task=TASKS)
TABLES = [
    "bin_stats",
    "retention",
    "transition",
    "paired_tests",
    "lossless",
    "effect_models",
    "macro",
    "costs",
]
#: The noise floor, where the computation is not known to be in float32.
NOISE_TABLES = ["noise_floor"] if NOISE else []
FIGURE_TABLES = [table for table in TABLES if table not in ("lossless", "macro")]
PLOTS = [
    "score_vs_budget",
    "retention_vs_budget",
    "transition_vs_length",
    "collapse",
    "heatmap",
    "forest",
    "failures",
    "latency",
    "pareto",
]


rule bin_stats:
    """Mean score of every cell in every length bin, with its interval."""
    input:
        scores=SCORES,
        manifests=MANIFESTS,
    output:
        table=FILES.analysis("bin_stats"),
    log:
        FILES.log("bin_stats"),
    benchmark:
        FILES.benchmark("bin_stats")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
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
    benchmark:
        FILES.benchmark("retention")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
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
    benchmark:
        FILES.benchmark("transition")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        analysis=slices.table_slice(settings, "transition"),
        code=code_version("transition"),
    script:
        "../scripts/transition.py"


rule paired_tests:
    """Differences between budgets and between methods, and the smallest budget that is shown to be lossless."""
    input:
        scores=SCORES,
        manifests=MANIFESTS,
    output:
        table=FILES.analysis("paired_tests"),
        lossless=FILES.analysis("lossless"),
    log:
        FILES.log("paired_tests"),
    benchmark:
        FILES.benchmark("paired_tests")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        analysis=slices.table_slice(settings, "paired_tests"),
        code=code_version("paired_tests"),
    script:
        "../scripts/paired_tests.py"


rule effect_models:
    """How the transition moves with prompt length, what methods and budgets do, and means over tasks."""
    input:
        scores=SCORES,
        manifests=MANIFESTS,
    output:
        table=FILES.analysis("effect_models"),
        macro=FILES.analysis("macro"),
    log:
        FILES.log("effect_models"),
    benchmark:
        FILES.benchmark("effect_models")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        analysis=slices.table_slice(settings, "effect_models"),
        code=code_version("effect_models"),
    script:
        "../scripts/effect_models.py"


rule costs:
    """Time, tokens and cache bytes of every cell in every length bin."""
    input:
        responses=RESPONSES,
        manifests=MANIFESTS,
    output:
        table=FILES.analysis("costs"),
    log:
        FILES.log("costs"),
    benchmark:
        FILES.benchmark("costs")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        analysis=slices.table_slice(settings, "costs"),
        code=code_version("costs"),
    script:
        "../scripts/costs.py"


if NOISE:

    rule noise_floor:
        """How far scores move when only the arithmetic of the full cache changes."""
        input:
            manifests=MANIFESTS,
            answers=expand(
                FILES.responses("{task}", "full/full", "{shard}"),
                task=TASKS,
                shard=SHARDS,
            ),
            noise=NOISE,
        output:
            table=FILES.analysis("noise_floor"),
        log:
            FILES.log("noise_floor"),
        benchmark:
            FILES.benchmark("noise_floor")
        localrule: True
        conda:
            "../envs/kv-transition.yaml"
        params:
            analysis=slices.table_slice(settings, "noise_floor"),
            scoring=settings.scoring.model_dump(mode="json"),
            score_code=code_version("score_task"),
            code=code_version("noise_floor"),
        script:
            "../scripts/noise_floor.py"


rule plot_figures:
    """The figures of a task: scores, retention, transitions, differences, failures and costs."""
    input:
        **{table: FILES.analysis(table) for table in FIGURE_TABLES},
        scores=FILES.scores("{task}"),
    output:
        *[
            report(
                FILES.figure(f"{plot}__{{task}}", "svg"),
                caption="captions/figure.rst",
                category="Figures",
                subcategory="{task}",
                labels={"figure": plot},
            )
            for plot in PLOTS
        ],
        expand(
            FILES.figure("{plot}__{{task}}", "{suffix}"),
            plot=PLOTS,
            suffix=["png", "csv", "txt"],
        ),
    log:
        FILES.log("plot_figures", "{task}"),
    benchmark:
        FILES.benchmark("plot_figures", "{task}")
    # The report waits for all figures; the database, which it does not need, can be made meanwhile.
    priority: 1
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        figure=slices.figure_slice(settings),
        code=code_version("plot_figures"),
    script:
        "../scripts/plot_figures.py"


rule all_analysis:
    """Target: every table and figure (command `analyze`)."""
    input:
        expand(FILES.analysis("{table}"), table=[*TABLES, *NOISE_TABLES]),
        expand(FILES.figure("{plot}__{task}", "svg"), plot=PLOTS, task=TASKS),
