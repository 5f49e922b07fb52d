"""Section of the configuration that says what a job on a cluster asks for; without a cluster nothing is limited by it."""

from __future__ import annotations

from pydantic import Field

from kv_transition.section import Section


class JobResources(Section):
    mem_mb: int = Field(
        2_000,
        ge=1,
        description="Memory of a job's first attempt, in MB; the n-th attempt asks for n times as much. Snakemake itself "
        "takes about 200 of them.",
    )
    runtime_minutes: int = Field(
        60,
        ge=1,
        description="Time limit of a job's first attempt; the n-th attempt asks for n times as much.",
    )


class InferenceResources(JobResources):
    mem_mb: int = Field(
        4_000,
        ge=1,
        description="Memory of a job's first attempt, in MB; the n-th attempt asks for n times as much. A job that loads the "
        "model needs at least the size of the weights.",
    )
    runtime_minutes: int = Field(
        240,
        ge=1,
        description="Time limit of a job's first attempt; the n-th attempt asks for n times as much and goes on where the "
        "one before was stopped.",
    )
    gpus: int = Field(
        0,
        ge=0,
        description="GPUs of a job that loads the model (engine.kind kvpress); a job that asks a server "
        "(engine.kind openai_compat) never requests one.",
    )
    cpus_per_task: int | None = Field(
        None, ge=1, description="CPUs of a job where they are not run.threads, which null stands for."
    )


class Cluster(Section):
    inference: InferenceResources = Field(
        default_factory=InferenceResources, description="Jobs that load the model or ask the server."
    )
    scoring: JobResources = Field(
        default_factory=JobResources, description="Jobs that score a task or import published results."
    )
