"""Sections of the configuration that say who answers, and from how much of the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from kv_transition.budgets import UNCOMPRESSED, Budget, parse_budget
from kv_transition.methods import KNOWN_METHODS, TEXT_METHODS, canonical_name
from kv_transition.section import Name, Section, Text

#: Methods that the engines apply to a cache.
EVICTIONS = [name for name in KNOWN_METHODS if name not in (*UNCOMPRESSED, *TEXT_METHODS)]
#: Those of them that only engine.kind kvpress applies.
OF_KVPRESS = [name for name in EVICTIONS if KNOWN_METHODS[name].needs_kvpress]


def _from_text(value: Any) -> Any:
    """A value given as text on a command line, read as YAML."""
    if isinstance(value, str):
        with suppress(yaml.YAMLError):
            return yaml.safe_load(value)
    return value


def _sorted_budgets(budgets: Sequence[Any]) -> list[Budget]:
    return sorted({parse_budget(budget) for budget in budgets})


def canonical_methods(kv: Mapping[str, Any]) -> dict[str, Any]:
    """The section `kv` with aliases replaced by the methods' own names.

    Raises
    ------
    ConfigError
        For a method that is not known.
    """

    read = dict(kv)
    presses = _from_text(kv.get("presses"))
    as_they_are = {*UNCOMPRESSED, *(presses if isinstance(presses, Mapping) else ())}

    def own_name(name: object) -> str:
        return str(name) if str(name) in as_they_are else canonical_name(str(name))

    methods = _from_text(kv.get("methods"))
    if isinstance(methods, list | tuple):
        read["methods"] = [own_name(name) for name in methods]
    by_method = _from_text(kv.get("budgets_by_method"))
    if isinstance(by_method, Mapping):
        read["budgets_by_method"] = {own_name(name): budgets for name, budgets in by_method.items()}
    return read


class Model(Section):
    name: Text = Field("tiny-reader", description="Name shown in tables and figures.")
    path: Text | None = Field(
        "resources/tiny-reader",
        description="Folder with safetensors weights, config and tokenizer. null: with engine.kind kvpress the model called "
        "model.name on the Hugging Face hub; else none, for published results.",
    )
    revision: Text | None = Field(
        None,
        description="Revision of the weights: of a model on the hub the one that is taken, else for the record.",
    )


class Engine(Section):
    kind: Literal["reference", "kvpress", "openai_compat", "published"] = Field(
        "reference",
        description="reference: Llama-architecture models in numpy, with real eviction; kvpress: causal models of "
        "transformers with the evictions of kvpress, on GPU or CPU (needs the extra kvpress); openai_compat: a server that "
        "speaks OpenAI's API (section http); published: answers or scores that exist already (section published).",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Number format of the computation; other ones than float32 need kind kvpress, where auto is bfloat16 "
        "on a GPU and float32 on a CPU.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="kvpress: where the model runs; auto: on a GPU where there is one."
    )
    attn_implementation: Literal["sdpa", "eager"] = Field(
        "sdpa",
        description="kvpress: attention of all cells of the run. observed_attention needs eager, which takes memory in the "
        "square of the prompt; adakv_* need sdpa.",
    )
    decode_batch: int = Field(
        64,
        ge=1,
        description="kvpress: cells of one prompt that are decoded at once, the full cache among them. Where a prompt has more, "
        "what is kept of the cells at work is there a second time, and only they have room for their answers.",
    )
    unknown_token_limit: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Stop when a larger share of a prompt is unknown to the model's vocabulary; 1 lifts the guard (reference "
        "engine; this project's server has an option of this name).",
    )
    noise_examples: int = Field(
        50,
        ge=0,
        description="kvpress, where dtype is not float32: examples per task that the full cache answers a second time, with "
        "the other attn_implementation; how far their scores move stands beside retention in the report. 0: none.",
    )

    @property
    def measures_noise(self) -> bool:
        """Whether full-cache answers are computed a second way; `auto` may still turn out to be float32."""
        return self.kind == "kvpress" and self.dtype != "float32" and self.noise_examples > 0


class PublishedRun(Section):
    method: Name = Field(
        description="Method of the run as tables name it; full is the uncompressed reference."
    )
    budget: int | float | None = Field(
        None, description="KV budget of the run, as in kv.budgets; null for full."
    )
    path: Text = Field(description="Folder of the run, relative to published.path.")


class Published(Section):
    layout: Literal["scores", "longbench", "kvcache_factory", "kvpress"] = Field(
        "scores",
        description="scores: one table (csv, parquet, jsonl) with method, budget, task, score and idx or example_id; "
        "longbench: folders of <task>.jsonl, one per run; kvcache_factory: <model>_<budget>/<task>/<method>.json; kvpress: "
        "result folders with predictions.csv and config.yaml.",
    )
    path: Text | None = Field(None, description="The table, or the folder that holds the results.")
    runs: list[PublishedRun] = Field(
        [], description="longbench: which folder is which run, e.g. [{method: full, path: my-model}]."
    )
    methods: dict[str, Name] = Field(
        {},
        description="Names of methods in the source -> names in the tables, e.g. {hf: full, streamingllm: streaming_llm}.",
    )
    allow_incomplete: bool = Field(
        False,
        description="Go on when rows are missing, doubled (the first counts) or in another order; all are reported.",
    )


class KV(Section):
    methods: list[Text] = Field(
        ["snapkv", "observed_attention", "tova", "streaming_llm", "random"],
        description="Eviction methods: " + ", ".join(EVICTIONS) + "; h2o is an alias of observed_attention. "
        "Methods that shorten the text instead, for any engine: "
        + ", ".join(TEXT_METHODS)
        + ". Only with engine.kind kvpress: "
        + ", ".join(OF_KVPRESS)
        + ", and the names of kv.presses. The whole cache (full) always runs, the floor where no_context is true; both may be named here.",
    )
    budgets: list[int | float] = Field(
        [16, 32, 64, 96, 128, 192, 256, 384, 512],
        min_length=1,
        description="KV budgets: whole numbers from 2 up are prompt tokens kept per layer and KV head (of a text method all "
        "tokens of the prompt), numbers between 0 and 1 are the share kept; one kind per experiment.",
    )
    budgets_by_method: dict[str, list[int | float]] = Field(
        {}, description="Budgets of single methods where they differ from kv.budgets, e.g. {h2o: [256, 512]}."
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
        8,
        ge=1,
        description="snapkv, pyramidkv, adakv_snapkv: last prompt tokens that vote and are always kept, in tokens.",
    )
    kernel: int = Field(
        5, ge=1, description="The same methods: width of the average pooling of votes, in tokens; odd."
    )
    n_sink: int = Field(
        4,
        ge=0,
        description="streaming_llm, expected_attention, lagkv: first prompt tokens that are always kept, in tokens.",
    )
    presses: dict[Name, dict[str, Any]] = Field(
        {},
        description="Further methods for engine.kind kvpress: a name -> a class of kvpress and its parameters, e.g. "
        "{snapkv64: {press: SnapKVPress, window_size: 64}}; a parameter that is a press is written the same way. press: "
        "snapkv_paper, snapkv_kvcache_factory or snapkv_kvpress is SnapKV as these have it.",
    )
    random_replicates: int = Field(
        3, ge=1, description="random: seeded draws per example, averaged per example."
    )
    passage_tokens: int = Field(
        128, ge=1, description="bm25: length of the passages that the context is cut into, in tokens."
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
        for key in ("budgets", "methods", "budgets_by_method"):
            read[key] = _from_text(read[key]) if key in read else None
        if isinstance(read["methods"], list | tuple):
            named = [str(name) for name in read["methods"]]
            if "no_context" in named:
                read["no_context"] = True
            read["methods"] = [name for name in dict.fromkeys(named) if name not in UNCOMPRESSED]
        if isinstance(read["budgets"], list | tuple):
            read["budgets"] = _sorted_budgets(read["budgets"])
        if isinstance(read["budgets_by_method"], Mapping):
            read["budgets_by_method"] = {
                method: _sorted_budgets(budgets) if isinstance(budgets, list | tuple) else budgets
                for method, budgets in read["budgets_by_method"].items()
            }
        return {key: value for key, value in read.items() if value is not None or key in data}

    @model_validator(mode="after")
    def _consistent(self) -> KV:
        if not self.methods:
            known = ", ".join([*EVICTIONS, *TEXT_METHODS])
            raise ValueError(f"methods: name at least one method: {known}")
        for method, budgets in self.budgets_by_method.items():
            if method not in self.methods:
                raise ValueError(
                    f"budgets_by_method: {method} is not one of kv.methods; add it there or remove it"
                )
            if not budgets:
                raise ValueError(f"budgets_by_method: {method} has no budget; name one or remove the method")
        if taken := [name for name in self.presses if name in KNOWN_METHODS]:
            raise ValueError(f"presses: {taken[0]} is the name of a method; give the press another one")
        if bare := [name for name, press in self.presses.items() if not isinstance(press.get("press"), str)]:
            raise ValueError(
                f"presses.{bare[0]}: it names no press; add press: a class of kvpress, or snapkv_paper, snapkv_kvcache_factory "
                "or snapkv_kvpress"
            )
        if len({type(budget) for method in self.methods for budget in self.budgets_of(method)}) > 1:
            raise ValueError("budgets: tokens and shares are mixed; one experiment has one kind of budget")
        if self.scope == "context" and self.first_token != "compressed":
            raise ValueError("first_token: kv.scope is context, so kv.first_token must be compressed")
        if self.kernel % 2 == 0:
            raise ValueError("kernel: must be odd")
        return self

    def check_windows(self) -> None:
        """Fail where a window or sink would fill a budget: one curve has one window, so no budget may be clamped.

        Raises
        ------
        ValueError
            Naming both keys.
        """
        for method in self.methods:
            parameters = KNOWN_METHODS[method].defaults if method in KNOWN_METHODS else {}
            smallest = self.budgets_of(method)[0]
            if "window" in parameters and isinstance(smallest, int) and self.window > smallest // 2:
                raise ValueError(
                    f"kv.window: {self.window} is more than half of the smallest of kv.budgets ({smallest}), and one curve "
                    "has one window; lower kv.window or raise kv.budgets"
                )
            if "n_sink" in parameters and isinstance(smallest, int) and self.n_sink > smallest // 2:
                raise ValueError(
                    f"kv.n_sink: {self.n_sink} is more than half of the smallest of kv.budgets ({smallest}); lower kv.n_sink "
                    "or raise kv.budgets"
                )

    def check_engine(self, engine: Engine) -> None:
        """Fail where a method and the engine do not go together.

        Raises
        ------
        ValueError
            Naming the keys.
        """
        if engine.kind != "kvpress":
            if engine.dtype != "float32":
                raise ValueError(f"engine.dtype: {engine.dtype} needs engine.kind kvpress; set float32")
            if self.presses:
                raise ValueError("kv.presses: they need engine.kind kvpress")
            alone = [method for method in self.methods if method in OF_KVPRESS]
            if engine.kind == "reference" and alone:
                raise ValueError(
                    f"kv.methods: {', '.join(alone)}: only engine.kind kvpress applies it; set that, or leave it out"
                )
            return
        if engine.attn_implementation != "eager" and "observed_attention" in self.methods:
            raise ValueError(
                "engine.attn_implementation: observed_attention reads the attention weights, which only eager computes; set "
                "eager, or leave observed_attention out of kv.methods"
            )
        classes = {name: _classes(press) for name, press in self.presses.items()}
        reading = [name for name, named in classes.items() if "ObservedAttentionPress" in named]
        if engine.attn_implementation != "eager" and reading:
            raise ValueError(
                f"engine.attn_implementation: ObservedAttentionPress (kv.presses.{reading[0]}) reads the attention weights, which "
                "only eager computes; set eager, or leave the press out"
            )
        masking = {name for name, named in classes.items() if named & {"AdaKVPress", "CriticalAdaKVPress"}}
        adaptive = [method for method in self.methods if method.startswith("adakv_") or method in masking]
        if engine.attn_implementation == "eager" and adaptive:
            raise ValueError(
                f"engine.attn_implementation: {', '.join(adaptive)} masks positions, which eager attention does not do; set "
                "sdpa, or leave it out of kv.methods"
            )

    def budgets_of(self, method: str) -> list[int | float]:
        """Budgets of a method, ascending."""
        return self.budgets_by_method.get(method, self.budgets)


def _classes(press: Mapping[str, Any]) -> set[str]:
    """Names of the classes of a press and of those within it."""
    within = [value for value in press.values() if isinstance(value, Mapping)]
    return {str(press.get("press"))}.union(*map(_classes, within))


class DecodingSettings(Section):
    max_new_tokens: int = Field(
        16,
        ge=1,
        description="Longest answer, in tokens; with protocol.kind official LongBench's lengths are used instead.",
    )
    max_new_tokens_by_task: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="Longest answer of single tasks, in tokens, in every protocol, e.g. {multi_news: 512}.",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Texts that end an answer, beside the model's own end token."
    )
