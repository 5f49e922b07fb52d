"""
REQUIRED INPUTS: none; the hub for datasets that are named by dataset.hub_id.
OUTPUTS: resources/longbench/<dataset>@<revision>/<task>.jsonl (hub), results/<id>/records/<task>.jsonl (synthetic),
         results/tiny-reader/ (only on request; what is tracked in resources/tiny-reader/ was made like this).
"""

if settings.dataset.kind == "hub":

    rule retrieve_longbench:
        """Records of a task from the Hugging Face hub, at a pinned revision."""
        output:
            records=paths.raw_records(
                "{task}", settings.dataset.hub_id, settings.dataset.revision
            ),
        log:
            FILES.log("retrieve_longbench", "{task}"),
        params:
            hub_id=settings.dataset.hub_id,
            revision=settings.dataset.revision,
            code=code_version("retrieve_longbench"),
        script:
            "../scripts/retrieve_longbench.py"


if settings.dataset.kind == "synthetic":

    rule make_synthetic:
        """Records of a synthetic task, the same for the same seed."""
        output:
            records=FILES.synthetic_records("{task}"),
        log:
            FILES.log("make_synthetic", "{task}"),
        params:
            synthetic=settings.dataset.synthetic.model_dump(mode="json"),
            code=code_version("make_synthetic"),
        script:
            "../scripts/make_synthetic.py"


rule train_tiny_reader:
    """Train the tiny reader from scratch (torch, about 12 minutes on 2 quiet cores); not part of `all`."""
    output:
        folder=directory("results/tiny-reader"),
    log:
        "results/logs/train_tiny_reader.log",
    threads: 2
    params:
        code=code_version("train_tiny_reader"),
    script:
        "../scripts/train_tiny_reader.py"
