"""
REQUIRED INPUTS: none; the hub for datasets that are named by dataset.hub_id, GitHub or protocol.path for protocol.kind official.
OUTPUTS: resources/longbench-protocol/<commit>.json (official protocol),
         resources/longbench/<dataset>@<revision>/<task>.jsonl (hub), results/<id>/records/<task>.jsonl (synthetic, published),
         results/tiny-reader/ (only on request; what is tracked in resources/tiny-reader/ was made like this).
"""

if settings.record_source == "hub":

    rule retrieve_longbench:
        """Records of a task from the Hugging Face hub, at a pinned revision."""
        output:
            records=paths.raw_records(
                "{task}", settings.dataset.hub_id, settings.dataset.revision
            ),
        log:
            FILES.log("retrieve_longbench", "{task}"),
        benchmark:
            FILES.benchmark("retrieve_longbench", "{task}")
        localrule: True
        conda:
            "../envs/kv-transition.yaml"
        params:
            hub_id=settings.dataset.hub_id,
            revision=settings.dataset.revision,
            sha256=settings.dataset.sha256,
            code=code_version("retrieve_longbench"),
        script:
            "../scripts/retrieve_longbench.py"


if settings.record_source == "synthetic":

    rule make_synthetic:
        """Records of a synthetic task, the same for the same seed."""
        output:
            records=FILES.made_records("{task}"),
        log:
            FILES.log("make_synthetic", "{task}"),
        benchmark:
            FILES.benchmark("make_synthetic", "{task}")
        localrule: True
        conda:
            "../envs/kv-transition.yaml"
        params:
            synthetic=settings.dataset.synthetic.model_dump(mode="json"),
            code=code_version("make_synthetic"),
        script:
            "../scripts/make_synthetic.py"


if settings.record_source == "published":

    rule published_records:
        """Records of a task from the published rows of `full`; they hold no contexts."""
        input:
            published=lambda wildcards: ancient(
                preflight.published_reference(settings, wildcards.task)
            ),
        output:
            records=FILES.made_records("{task}"),
        log:
            FILES.log("published_records", "{task}"),
        benchmark:
            FILES.benchmark("published_records", "{task}")
        localrule: True
        conda:
            "../envs/kv-transition.yaml"
        params:
            source=slices.published_slice(settings),
            sha256=lambda wildcards: {
                file: leaf_sha256(file)
                for file in preflight.published_reference(settings, wildcards.task)
            },
            code=code_version("published_records"),
        script:
            "../scripts/published_records.py"


#: LongBench's tables, where prompts are official: an input of all that makes prompts.
PROTOCOL_TABLES = (
    [paths.protocol_tables()] if settings.protocol.kind == "official" else []
)


if PROTOCOL_TABLES:

    rule retrieve_protocol:
        """LongBench's official prompts and lengths, at a pinned commit; shared by all experiments."""
        output:
            tables=paths.protocol_tables(),
        log:
            FILES.log("retrieve_protocol"),
        benchmark:
            FILES.benchmark("retrieve_protocol")
        localrule: True
        conda:
            "../envs/kv-transition.yaml"
        params:
            sha256=protocol_sha256(),
            code=code_version("retrieve_protocol"),
        script:
            "../scripts/retrieve_protocol.py"


rule train_tiny_reader:
    """Train the tiny reader from scratch (torch, about 12 minutes on 2 quiet cores); not part of `all`."""
    output:
        folder=directory("results/tiny-reader"),
    log:
        "results/logs/train_tiny_reader.log",
    benchmark:
        "results/benchmarks/train_tiny_reader.tsv"
    conda:
        "../envs/kv-transition.yaml"
    threads: 2
    params:
        code=code_version("train_tiny_reader"),
    script:
        "../scripts/train_tiny_reader.py"
