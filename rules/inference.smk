"""
REQUIRED INPUTS: a task's manifest, the model's files.
OUTPUTS: results/<id>/responses/<task>/<method>/<budget>/<shard>.parquet, a view of the journal

The parameters hold what determines an answer, never the lists of methods, budgets or tasks: adding one makes missing
outputs, removing one reruns nothing, and the journal decides what is computed.
"""


rule infer_sweep:
    """All cells of a shard from one prefill per example; the journal first, the model only for what it lacks."""
    input:
        manifest=FILES.manifest("{task}"),
        model=ancient(MODEL_FILES),
    output:
        expand(FILES.responses("{{task}}", "{cell}", "{{shard}}"), cell=CELLS),
    log:
        FILES.log("infer_sweep", "{task}", "{shard}"),
    threads: settings.run.threads
    params:
        answer=lambda wildcards: slices.answer_slice(settings, wildcards.task),
        model_sha256=MODEL_SHA256,
        shards=settings.run.shards,
        code=code_version("infer_sweep"),
    script:
        "../scripts/infer_sweep.py"


rule all_responses:
    """Target: every answer (command `run`)."""
    input:
        expand(
            FILES.responses("{task}", "{cell}", "{shard}"),
            task=TASKS,
            cell=CELLS,
            shard=SHARDS,
        ),
