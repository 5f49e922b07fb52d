"""Every key of the configuration: its type, default, limits and meaning.

config/default.yaml and config/schema.json are generated from these models (`make config`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from kv_transition import paths
from kv_transition.budgets import budget_label
from kv_transition.files import canonical_json, sha256_text
from kv_transition.methods import TEXT_METHODS
from kv_transition.schema_cluster import Cluster
from kv_transition.schema_data import Binning, Dataset, Protocol, Tokenizer
from kv_transition.schema_engine import KV, DecodingSettings, Engine, Model, Published, canonical_methods
from kv_transition.schema_http import Http
from kv_transition.section import Name, Section, Text

Policy = Literal["zero", "exclude"]
MetricName = Literal[
    "em", "f1", "qa_f1", "qa_f1_zh", "rouge_l", "rouge_l_zh", "classification", "count", "retrieval", "retrieval_zh",
    "code_sim", "choice",
]  # fmt: skip
#: Failure policies, all of which are computed.
POLICIES = get_args(Policy)


class Experiment(Section):
    id: Name = Field("demo", description="Name of the experiment; its files are in results/<id>/.")
    title: Text = Field(
        "Where does the tiny reader lose what it read?", description="Heading of the report, in words."
    )


class Scoring(Section):
    primary: Literal["official", "em", "f1"] = Field(
        "official",
        description="Metric that curves, retention and transitions are about: official (LongBench's own metric of each "
        "task, exact match for the synthetic tasks, see scoring.metrics for others), em or f1.",
    )
    metrics: dict[str, MetricName] = Field(
        {},
        description="What official means for tasks of your own (f1 where nothing is said), by the names of the metrics: "
        + ", ".join(get_args(MetricName))
        + ".",
    )
    formats: dict[str, Literal["number", "class", "option"]] = Field(
        {}, description="Tasks whose answers have a form; an answer without it is labelled FORMAT_ERROR."
    )
    first_line_tasks: list[str] = Field(
        [], description="Tasks of which only the answer's first line is scored."
    )
    refusal_patterns: list[str] = Field(
        [
            r"(?:i(?:'m| am) )?(?:so |very )?sorry\b",
            r"i apologi[sz]e\b",
            r"i(?:'m| am) (?:unable|not able)\b",
            r"i (?:can(?:not|'t)|could not|couldn't|won't|will not) (?:answer|help|assist|find|determine|provide)\b",
            r"as an? (?:ai|language model)\b",
        ],
        description="Regular expressions at the start of an answer that make it a REFUSAL when it also scores 0.",
    )

    @model_validator(mode="after")
    def _patterns(self) -> Scoring:
        for pattern in self.refusal_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"refusal_patterns: {pattern!r} is no regular expression ({error})"
                ) from None
        return self


class Analysis(Section):
    conf: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of every interval.")
    tau: list[float] = Field(
        [0.9, 0.95],
        min_length=1,
        description="Retention levels whose transition budget is reported; the first leads.",
    )
    delta: float = Field(
        0.05, gt=0, lt=1, description="Margin of 'lossless', as an absolute difference of scores."
    )
    policy: Policy = Field(
        "zero",
        description="Failed requests count as 0 (zero) or as missing (exclude); both are computed, this one leads.",
    )
    seed: int = Field(42, ge=0, description="Root seed of the bootstrap.")
    bootstrap_replicates: int = Field(10_000, ge=100, description="Replicates for means and retention.")
    transition_replicates: int = Field(
        2_000, ge=100, description="Replicates for the interpolated transition."
    )
    fit_replicates: int = Field(
        2_000,
        ge=100,
        description="Replicates for the logistic curve, the first of transition_replicates; never more than those.",
    )
    collapse_replicates: int = Field(
        1_000, ge=100, description="Replicates for the exponent of prompt length (alpha1)."
    )
    max_infrastructure_failures: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of TIMEOUT and ENGINE_ERROR above which a cell is marked unreliable.",
    )
    min_active_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of examples longer than the budget below which a cell is no evidence of retention.",
    )

    @model_validator(mode="after")
    def _levels(self) -> Analysis:
        if not all(0 < level <= 1 for level in self.tau):
            raise ValueError("tau: each level must be above 0 and at most 1")
        if len(set(self.tau)) != len(self.tau):
            raise ValueError("tau: a level is named twice")
        return self


class Run(Section):
    shards: int = Field(
        1, ge=1, le=999, description="Pieces per task that may run at the same time; each loads the model."
    )
    threads: int = Field(1, ge=1, description="CPU threads of one inference job.")
    max_failure_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of failed requests above which a shard fails (full and no_context: none).",
    )
    allow_failed_reference: bool = Field(
        False,
        description="Go on although a full or no_context request failed; its examples leave every cell.",
    )
    journal_dir: Text = Field(
        "journal", description="Folder of the append-only journal, shared by all experiments."
    )
    cache_dir: Text = Field(
        "cache",
        description="Folder of scores, prompt lengths and file hashes kept by content; may be deleted.",
    )


class Output(Section):
    failure_examples: int = Field(5, ge=0, description="Failed answers shown in the report.")
    figure_dpi: int = Field(150, ge=50, le=600, description="Resolution of PNG figures, in dots per inch.")


class Db(Section):
    path: Text = Field("auto", description="SQLite file; auto: results/<id>/kv_transition.sqlite.")


class Settings(Section):
    """The whole configuration of an experiment."""

    experiment: Experiment = Field(default_factory=Experiment, description="What the experiment is called.")
    dataset: Dataset = Field(default_factory=Dataset, description="Records and tasks.")
    tokenizer: Tokenizer = Field(
        default_factory=Tokenizer, description="What counts tokens for the length bins."
    )
    protocol: Protocol = Field(default_factory=Protocol, description="Prompts and answer lengths.")
    binning: Binning = Field(
        default_factory=Binning, description="Length bins and the examples chosen in each."
    )
    model: Model = Field(default_factory=Model, description="The model.")
    engine: Engine = Field(default_factory=Engine, description="What runs the model.")
    http: Http = Field(
        default_factory=Http, description="The server that is asked (engine.kind openai_compat)."
    )
    published: Published = Field(
        default_factory=Published, description="Results that exist already (engine.kind published)."
    )
    kv: KV = Field(default_factory=KV, description="Methods, budgets and how they are applied.")
    decoding: DecodingSettings = Field(
        default_factory=DecodingSettings, description="How answers are generated (greedy)."
    )
    scoring: Scoring = Field(default_factory=Scoring, description="How answers are scored and labelled.")
    analysis: Analysis = Field(
        default_factory=Analysis, description="Intervals, transitions and failure policy."
    )
    run: Run = Field(default_factory=Run, description="How the work is cut up and what it may cost.")
    cluster: Cluster = Field(
        default_factory=Cluster, description="What a cluster gives each job (snakemake --profile slurm)."
    )
    output: Output = Field(default_factory=Output, description="Report and figures.")
    db: Db = Field(default_factory=Db, description="The SQLite database.")

    @model_validator(mode="before")
    @classmethod
    def _method_names(cls, data: Any) -> Any:
        """Published results keep the names of their source; elsewhere an alias becomes the method's own name."""
        if not isinstance(data, Mapping) or not isinstance(data.get("kv"), Mapping):
            return data
        engine = data.get("engine")
        published = isinstance(engine, Mapping) and engine.get("kind") == "published"
        return dict(data) if published else {**data, "kv": canonical_methods(data["kv"])}

    @model_validator(mode="after")
    def _fits_engine(self) -> Settings:
        if self.engine.kind == "published":
            if self.published.path is None:
                raise ValueError(
                    "published.path: engine.kind is published, so published.path must name the results"
                )
            if self.model.path is None and self.tokenizer.name == "model":
                raise ValueError(
                    "tokenizer.name: there is no model (model.path is null); name a tiktoken encoding, or length for the "
                    "records' own length"
                )
            return self._fits_records()
        self.kv.check_windows()
        self.kv.check_engine(self.engine)
        if self.engine.kind == "openai_compat":
            return self._fits_server()
        if self.model.path is None and self.engine.kind != "kvpress":
            raise ValueError(f"model.path: engine.kind {self.engine.kind} needs the folder of a model")
        if self.record_source == "published":
            raise ValueError("dataset.source: published goes with engine.kind published only")
        return self

    def _fits_server(self) -> Settings:
        by_text = [method for method in self.kv.methods if method in TEXT_METHODS]
        in_cache = [method for method in self.kv.methods if method not in TEXT_METHODS]
        if self.http.budget_transport.kind == "none" and in_cache:
            raise ValueError(
                f"http.budget_transport: none tells the server no budget, so {', '.join(in_cache)} cannot run; keep "
                f"{', '.join(TEXT_METHODS)} in kv.methods, or say how the budget travels"
            )
        transport = self.http.budget_transport
        unnamed = transport.kind == "endpoint" or (
            transport.kind == "extra_body" and transport.fields == "vllm_kvcompress"
        )
        if unnamed and len(in_cache) > 1:
            raise ValueError(
                f"http.budget_transport: it does not tell the server the method, so {' and '.join(in_cache)} would get the "
                "same answers; keep the one that the server was started with in kv.methods"
            )
        needs = "tokenizer.name: model" if self.tokenizer.name == "model" else None
        needs = "protocol.max_length_tokens" if self.protocol.max_length_tokens else needs
        needs = f"kv.methods: {', '.join(by_text)}" if by_text else needs
        if self.model.path is None and needs:
            raise ValueError(
                f"model.path: {needs} counts tokens of the model; name the folder of its tokenizer, or do without"
            )
        return self

    def _fits_records(self) -> Settings:
        if self.record_source == "published" and self.tokenizer.name != "length":
            raise ValueError(
                "tokenizer.name: published rows hold no texts, so set length (their own), or give the records with "
                "dataset.path"
            )
        return self

    @property
    def record_source(self) -> str:
        """Where records come from: dataset.source, or what its `auto` stands for."""
        dataset = self.dataset
        if dataset.source != "auto":
            return dataset.source
        if dataset.path or dataset.hub_id:
            return "local" if dataset.path else "hub"
        return "published" if self.engine.kind == "published" else "synthetic"

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain values, canonical: equal settings give equal dictionaries."""
        return self.model_dump(mode="json")

    @property
    def config_hash(self) -> str:
        """Hash of the whole configuration."""
        return sha256_text(canonical_json(self.resolved()))

    @property
    def files(self) -> paths.ExperimentPaths:
        """Paths of this experiment's files."""
        return paths.ExperimentPaths(self.experiment.id)

    @property
    def cells(self) -> list[str]:
        """`<method>/<budget label>` of every curve point, the uncompressed references first."""
        references = ["full/full", "no_context/full"] if self.kv.no_context else ["full/full"]
        return references + [
            f"{method}/{budget_label(b)}" for method in self.kv.methods for b in self.kv.budgets_of(method)
        ]
