"""
REQUIRED INPUTS: a task's manifest, the model's files (engine.kind openai_compat: a server; published: the files of the
                 results).
OUTPUTS: results/<id>/responses/<task>/<method>/<budget>/<shard>.parquet, a view of the journal;
         results/<id>/noise/<task>.parquet where engine.kind kvpress does not compute in float32

The parameters hold what determines an answer, never the lists of methods, budgets or tasks: adding one makes missing
outputs, removing one reruns nothing, and the journal decides what is computed.
"""

RESPONSES = expand(
    FILES.responses("{task}", "{cell}", "{shard}"), task=TASKS, cell=CELLS, shard=SHARDS
)

if settings.engine.kind == "published":

    rule import_published:
        """Results that exist already, as responses; nothing is computed, so there is no journal."""
        input:
            manifest=FILES.manifest("{task}"),
            examples=FILES.examples("{task}"),
            published=lambda wildcards: ancient(
                preflight.published_files(settings, wildcards.task)
            ),
        output:
            expand(FILES.responses("{{task}}", "{cell}", "{{shard}}"), cell=CELLS),
        log:
            FILES.log("import_published", "{task}", "{shard}"),
        benchmark:
            FILES.benchmark("import_published", "{task}", "{shard}")
        conda:
            "../envs/kv-transition.yaml"
        resources:
            **cluster_resources(settings.cluster.scoring),
        params:
            source=slices.published_slice(settings),
            sha256=published_sha256,
            shards=settings.run.shards,
            code=code_version("import_published"),
        script:
            "../scripts/import_published.py"

elif settings.engine.kind == "openai_compat":

    rule infer_shard:
        """One cell of a shard, asked of a server; the journal first, the server only for what it lacks."""
        input:
            manifest=FILES.manifest("{task}"),
            tokenizer=ancient(MODEL_FILES),
            protocol=PROTOCOL_TABLES,
            full=full_answers,
        output:
            FILES.responses("{task}", "{method}/{budget}", "{shard}"),
        log:
            FILES.log("infer_shard", "{task}", "{method}", "{budget}", "{shard}"),
        benchmark:
            FILES.benchmark("infer_shard", "{task}", "{method}", "{budget}", "{shard}")
        conda:
            "../envs/kv-transition.yaml"
        resources:
            **cluster_resources(settings.cluster.inference),
            server=1,
        params:
            answer=lambda wildcards: slices.answer_slice(settings, wildcards.task),
            model_sha256=MODEL_SHA256,
            require_verified_budget=settings.http.require_verified_budget,
            shards=settings.run.shards,
            code=code_version("infer_shard"),
        script:
            "../scripts/infer_shard.py"

else:

    rule infer_sweep:
        """All cells of a shard from one prefill per example; the journal first, the model only for what it lacks."""
        input:
            manifest=FILES.manifest("{task}"),
            model=ancient(MODEL_FILES),
            protocol=PROTOCOL_TABLES,
        output:
            expand(FILES.responses("{{task}}", "{cell}", "{{shard}}"), cell=CELLS),
        log:
            FILES.log("infer_sweep", "{task}", "{shard}"),
        benchmark:
            FILES.benchmark("infer_sweep", "{task}", "{shard}")
        conda:
            "../envs/kv-transition.yaml"
        threads: settings.run.threads
        resources:
            **cluster_resources(settings.cluster.inference),
            **gpu_request(settings.cluster.inference),
            **own_gpu(),
        params:
            answer=lambda wildcards: slices.answer_slice(settings, wildcards.task),
            model_sha256=MODEL_SHA256,
            shards=settings.run.shards,
            code=code_version("infer_sweep"),
        script:
            "../scripts/infer_sweep.py"


#: Answers of the full cache, computed a second way; none where float32 needs no noise floor.
NOISE = expand(
    FILES.noise("{task}"), task=TASKS if settings.engine.measures_noise else []
)

if NOISE:

    rule infer_noise:
        """Some full-cache answers of a task once more, with the other implementation of attention; the journal first."""
        input:
            manifest=FILES.manifest("{task}"),
            model=ancient(MODEL_FILES),
            protocol=PROTOCOL_TABLES,
        output:
            answers=FILES.noise("{task}"),
        log:
            FILES.log("infer_noise", "{task}"),
        benchmark:
            FILES.benchmark("infer_noise", "{task}")
        conda:
            "../envs/kv-transition.yaml"
        threads: settings.run.threads
        resources:
            **cluster_resources(settings.cluster.inference),
            **gpu_request(settings.cluster.inference),
            **own_gpu(),
        params:
            answer=lambda wildcards: slices.answer_slice(settings, wildcards.task),
            model_sha256=MODEL_SHA256,
            shards=1,
            examples=settings.engine.noise_examples,
            code=code_version("infer_noise"),
        script:
            "../scripts/infer_noise.py"


rule all_responses:
    """Target: every answer (command `run`)."""
    input:
        RESPONSES,
        NOISE,
