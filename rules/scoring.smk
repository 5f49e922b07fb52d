"""
REQUIRED INPUTS: a task's manifest and all its responses.
OUTPUTS: results/<id>/scores/<task>.parquet
"""


rule score_task:
    """Scores and failure labels for every run of a task; fails unless its ids are the manifest's, each once."""
    input:
        manifest=FILES.manifest("{task}"),
        responses=expand(
            FILES.responses("{{task}}", "{cell}", "{shard}"), cell=CELLS, shard=SHARDS
        ),
    output:
        scores=FILES.scores("{task}"),
    log:
        FILES.log("score_task", "{task}"),
    benchmark:
        FILES.benchmark("score_task", "{task}")
    conda:
        "../envs/kv-transition.yaml"
    resources:
        **cluster_resources(settings.cluster.scoring),
    params:
        scoring=settings.scoring.model_dump(mode="json"),
        code=code_version("score_task"),
    script:
        "../scripts/score_task.py"


rule all_scores:
    """Target: every score (command `score`)."""
    input:
        expand(FILES.scores("{task}"), task=TASKS),
