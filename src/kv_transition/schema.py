"""Every key of the configuration: its type, default, limits and meaning.

config/default.yaml and config/schema.json are generated from these models (`make config`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, model_validator

from kv_transition import paths
from kv_transition.budgets import UNCOMPRESSED, budget_label, parse_budget
from kv_transition.files import canonical_json, sha256_text
from kv_transition.methods import KNOWN_METHODS, canonical_name
from kv_transition.section import Name, Section, Text

#: Methods that take a budget.
EVICTIONS = [name for name in KNOWN_METHODS if name not in UNCOMPRESSED]
Policy = Literal["zero", "exclude"]
#: Failure policies, all of which are computed.
POLICIES = get_args(Policy)


class Experiment(Section):
    id: Name = Field("demo", description="Name of the experiment; its files are in results/<id>/.")
    title: Text = Field(
        "Where does the tiny reader lose what it read?", description="Heading of the report, in words."
    )


class Synthetic(Section):
    n_documents: int = Field(480, ge=1, description="Documents made per task.")
    min_tokens: int = Field(
        64, ge=48, description="Length of the shortest prompt, in tokens of the tiny reader."
    )
    max_tokens: int = Field(
        1024, le=1060, description="Length of the longest prompt, in tokens of the tiny reader."
    )
    seed: int = Field(
        2026, ge=0, description="Seed of the documents; the training of the tiny reader uses others."
    )


class Dataset(Section):
    name: Name = Field("phrasebook", description="Name of the dataset, part of dataset_id = <name>__<task>.")
    source: Literal["auto", "synthetic", "local", "hub", "manifest"] = Field(
        "auto",
        description="Where records come from: synthetic (made here), local (dataset.path: a folder of <task>.jsonl or "
        "a zip of them), hub (dataset.hub_id), manifest (dataset.path: a folder with <task>/manifest.json of an earlier "
        "experiment). auto: local when path is set, hub when hub_id is set, else synthetic.",
    )
    path: Text | None = Field(
        None, description="Folder or zip with <task>.jsonl files in LongBench's record format."
    )
    hub_id: Text | None = Field(None, description="Dataset on the Hugging Face hub, e.g. THUDM/LongBench.")
    revision: Text | None = Field(None, description="Commit of the hub dataset; pin it.")
    tasks: list[Name] = Field(
        ["phrasebook_qa", "phrasebook_multi_qa"],
        min_length=1,
        description="Tasks to run, by their exact, case-sensitive names.",
    )
    min_tokens: int | None = Field(
        None, ge=1, description="Leave out examples with fewer prompt tokens (null: none)."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Leave out examples with more prompt tokens (null: none)."
    )
    synthetic: Synthetic = Field(default_factory=Synthetic, description="Settings of the synthetic tasks.")

    @model_validator(mode="after")
    def _complete(self) -> Dataset:
        if "__" in self.name:
            raise ValueError("name: `__` separates dataset and task in dataset_id; use another name")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: a task is named twice")
        if self.source in {"local", "manifest"} and self.path is None:
            raise ValueError(f"path: dataset.source is {self.source}, so dataset.path must name its folder")
        if self.source == "hub" and self.hub_id is None:
            raise ValueError("hub_id: dataset.source is hub, so dataset.hub_id must name a dataset")
        if self.min_tokens and self.max_tokens and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens: must not be larger than dataset.max_tokens")
        return self

    @property
    def kind(self) -> str:
        """The source that `auto` stands for."""
        if self.source != "auto":
            return self.source
        return "local" if self.path else "hub" if self.hub_id else "synthetic"


class Tokenizer(Section):
    name: Text = Field(
        "model",
        description="Tokenizer that counts token_len: model (the model's own, on the finished prompt) or a tiktoken "
        "encoding such as cl100k_base.",
    )
    fallback: Literal["error", "approximate"] = Field(
        "error", description="When the tokenizer cannot be loaded: stop, or count approximately and say so."
    )


class Binning(Section):
    n_bins: int = Field(
        4, ge=1, le=64, description="Length bins per task; edges are quantiles of all eligible examples."
    )
    n_per_bin: int = Field(
        40, ge=1, description="Examples per bin; a larger number keeps the old ones and adds new ones."
    )
    selection_seed: int = Field(0, ge=0, description="Seed of the choice of examples inside a bin.")


class Model(Section):
    name: Text = Field("tiny-reader", description="Name shown in tables and figures.")
    path: Text = Field(
        "resources/tiny-reader", description="Folder with safetensors weights, config and tokenizer."
    )
    revision: Text | None = Field(None, description="Revision of the weights, for the record.")


class Engine(Section):
    kind: Literal["reference"] = Field(
        "reference", description="reference: Llama-architecture models in numpy, with real eviction."
    )
    dtype: Literal["float32"] = Field("float32", description="Number format of the computation.")
    unknown_token_limit: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Stop when a larger share of a prompt is unknown to the model's vocabulary; 1 lifts the guard.",
    )


class KV(Section):
    methods: list[Text] = Field(
        ["snapkv", "observed_attention", "tova", "streaming_llm", "random"],
        description="Eviction methods: " + ", ".join(EVICTIONS) + "; h2o is an alias of observed_attention. "
        "The whole cache (full) always runs, the floor where no_context is true; both may be named here.",
    )
    budgets: list[int | float] = Field(
        [16, 32, 64, 96, 128, 192, 256, 384, 512],
        min_length=1,
        description="KV budgets: whole numbers from 2 up are prompt tokens kept per layer and KV head, numbers between "
        "0 and 1 are the share kept; one kind per experiment.",
    )
    scope: Literal["prompt", "context"] = Field(
        "prompt",
        description="What the eviction sees: prompt (everything, question included) or context (only up to the end of "
        "the context; the question is added uncompressed).",
    )
    first_token: Literal["full", "compressed"] = Field(
        "compressed",
        description="Cache that the first answer token is computed from: full (as in the papers; it cannot feel the "
        "budget) or compressed (the last prompt token is fed against the pruned cache).",
    )
    window: int = Field(
        8, ge=1, description="snapkv: last prompt tokens that vote and are always kept, in tokens."
    )
    kernel: int = Field(5, ge=1, description="snapkv: width of the average pooling of votes, in tokens; odd.")
    n_sink: int = Field(
        4, ge=0, description="streaming_llm: first prompt tokens that are always kept, in tokens."
    )
    random_replicates: int = Field(
        3, ge=1, description="random: seeded draws per example, averaged per example."
    )
    no_context: bool = Field(
        True, description="Also ask every question without its context: the measured floor."
    )

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        read = dict(data)
        for key in ("budgets", "methods"):
            if isinstance(read.get(key), str):
                with suppress(yaml.YAMLError):
                    read[key] = yaml.safe_load(read[key])
        if isinstance(read.get("methods"), list | tuple):
            named = [str(name) for name in read["methods"]]
            if "no_context" in named:
                read["no_context"] = True
            read["methods"] = list(
                dict.fromkeys(name if name in UNCOMPRESSED else canonical_name(name) for name in named)
            )
            read["methods"] = [name for name in read["methods"] if name not in UNCOMPRESSED]
        if isinstance(read.get("budgets"), list | tuple):
            read["budgets"] = sorted({parse_budget(budget) for budget in read["budgets"]})
        return read

    @model_validator(mode="after")
    def _consistent(self) -> KV:
        if not self.methods:
            raise ValueError(f"methods: name at least one eviction method: {', '.join(EVICTIONS)}")
        if len({type(budget) for budget in self.budgets}) > 1:
            raise ValueError("budgets: tokens and shares are mixed; one experiment has one kind of budget")
        if self.scope == "context" and self.first_token != "compressed":
            raise ValueError("first_token: kv.scope is context, so kv.first_token must be compressed")
        if self.kernel % 2 == 0:
            raise ValueError("kernel: must be odd")
        smallest = self.budgets[0]
        if "snapkv" in self.methods and isinstance(smallest, int) and self.window > smallest // 2:
            raise ValueError(
                f"window: {self.window} is more than half of the smallest of kv.budgets ({smallest}), and one curve has "
                "one window; lower kv.window or raise kv.budgets"
            )
        if "streaming_llm" in self.methods and isinstance(smallest, int) and self.n_sink > smallest // 2:
            raise ValueError(
                f"n_sink: {self.n_sink} is more than half of the smallest of kv.budgets ({smallest}); lower kv.n_sink or "
                "raise kv.budgets"
            )
        return self


class DecodingSettings(Section):
    max_new_tokens: int = Field(16, ge=1, description="Longest answer, in tokens.")
    max_new_tokens_by_task: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="Longest answer of single tasks, in tokens, e.g. {multi_news: 512}."
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Texts that end an answer, beside the model's own end token."
    )


class Scoring(Section):
    primary: Literal["em", "f1"] = Field(
        "em", description="Metric that curves, retention and transitions are about."
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
        "cache", description="Folder of the score cache and of file hashes; may be deleted."
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
    binning: Binning = Field(
        default_factory=Binning, description="Length bins and the examples chosen in each."
    )
    model: Model = Field(default_factory=Model, description="The model.")
    engine: Engine = Field(default_factory=Engine, description="What runs the model.")
    kv: KV = Field(default_factory=KV, description="Methods, budgets and how they are applied.")
    decoding: DecodingSettings = Field(
        default_factory=DecodingSettings, description="How answers are generated (greedy)."
    )
    scoring: Scoring = Field(default_factory=Scoring, description="How answers are scored and labelled.")
    analysis: Analysis = Field(
        default_factory=Analysis, description="Intervals, transitions and failure policy."
    )
    run: Run = Field(default_factory=Run, description="How the work is cut up and what it may cost.")
    output: Output = Field(default_factory=Output, description="Report and figures.")
    db: Db = Field(default_factory=Db, description="The SQLite database.")

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
            f"{method}/{budget_label(b)}" for method in self.kv.methods for b in self.kv.budgets
        ]
