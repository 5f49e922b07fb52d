"""
REQUIRED INPUTS: a task's records in LongBench's format.
OUTPUTS: results/<id>/data/<task>/examples.parquet, results/<id>/data/<task>/manifest.json
"""


rule normalize_task:
    """Canonical examples of a task, with the token count of each finished prompt."""
    input:
        records=records_of_task,
        tokenizer=ancient(MODEL_FILES),
        protocol=PROTOCOL_TABLES,
    output:
        examples=FILES.examples("{task}"),
    log:
        FILES.log("normalize_task", "{task}"),
    benchmark:
        FILES.benchmark("normalize_task", "{task}")
    localrule: True
    conda:
        "../envs/kv-transition.yaml"
    params:
        records_sha256=records_sha256,
        tokenizer=settings.tokenizer.model_dump(mode="json"),
        protocol=lambda wildcards: slices.protocol_slice(settings, wildcards.task),
        prompts="published" if settings.engine.kind == "published" else None,
        model=lambda wildcards: settings.model.path,
        model_sha256=MODEL_SHA256,
        code=code_version("normalize_task"),
    script:
        "../scripts/normalize_task.py"


if settings.record_source == "manifest":

    rule build_manifest:
        """Start from the manifest of an earlier experiment."""
        input:
            manifest=records_of_task,
        output:
            manifest=FILES.manifest("{task}"),
        log:
            FILES.log("build_manifest", "{task}"),
        benchmark:
            FILES.benchmark("build_manifest", "{task}")
        localrule: True
        conda:
            "../envs/kv-transition.yaml"
        params:
            experiment=settings.experiment.id,
            dataset=settings.dataset.name,
            records_sha256=records_sha256,
            code=code_version("adopt_manifest"),
        script:
            "../scripts/adopt_manifest.py"

else:

    rule build_manifest:
        """Length bins of a task and the examples chosen in each."""
        input:
            examples=FILES.examples("{task}"),
        output:
            manifest=FILES.manifest("{task}"),
        log:
            FILES.log("build_manifest", "{task}"),
        benchmark:
            FILES.benchmark("build_manifest", "{task}")
        localrule: True
        conda:
            "../envs/kv-transition.yaml"
        params:
            experiment=settings.experiment.id,
            dataset=settings.dataset.name,
            limits={
                "min_tokens": settings.dataset.min_tokens,
                "max_tokens": settings.dataset.max_tokens,
            },
            binning=settings.binning.model_dump(mode="json"),
            code=code_version("build_manifest"),
        script:
            "../scripts/build_manifest.py"


rule all_manifests:
    """Target: every task's manifest (command `prepare`)."""
    input:
        expand(FILES.manifest("{task}"), task=TASKS),
