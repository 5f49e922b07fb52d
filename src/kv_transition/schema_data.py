"""Sections of the configuration that say what is asked: records, lengths, bins and prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kv_transition.section import Name, Section, Text


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
    source: Literal["auto", "synthetic", "local", "hub", "manifest", "published"] = Field(
        "auto",
        description="Where records come from: synthetic (made here), local (dataset.path: a folder of <task>.jsonl or "
        "a zip of them), hub (dataset.hub_id), manifest (dataset.path: a folder with <task>/manifest.json of an earlier "
        "experiment), published (the rows of published.path themselves; they hold no contexts). auto: local when path is "
        "set, hub when hub_id is set, else published with engine.kind published, else synthetic.",
    )
    path: Text | None = Field(
        None, description="Folder or zip with <task>.jsonl files in LongBench's record format."
    )
    hub_id: Text | None = Field(None, description="Dataset on the Hugging Face hub, e.g. THUDM/LongBench.")
    revision: Text | None = Field(None, description="Commit of the hub dataset; pin it.")
    sha256: Text | None = Field(
        None,
        description="SHA-256 that the hub dataset's archive must have, in hex (null: the hub's own word is checked).",
    )
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


class Tokenizer(Section):
    name: Text = Field(
        "model",
        description="What counts token_len: model (the model's own tokenizer, on the finished prompt), a tiktoken encoding "
        "such as cl100k_base, or length (the record's own `length`: words, characters in Chinese).",
    )
    fallback: Literal["error", "approximate"] = Field(
        "error", description="When the tokenizer cannot be loaded: stop, or count approximately and say so."
    )


class Binning(Section):
    n_bins: int = Field(
        4, ge=1, le=64, description="Length bins per task; edges are quantiles of all eligible examples."
    )
    by: Literal["token_len", "length"] = Field(
        "token_len",
        description="What bins are cut by: token_len (see tokenizer.name) or length (the record's own, as LongBench-E does).",
    )
    edges: list[Annotated[int, Field(ge=1)]] = Field(
        [],
        description="Upper edges (inclusive) of all bins but the last, in the unit of binning.by, instead of quantiles; "
        "LongBench-E: by length, [3999, 7999].",
    )
    n_per_bin: int | None = Field(
        40,
        ge=1,
        description="Examples per bin (null: all); a larger number keeps the old ones and adds new ones.",
    )
    selection_seed: int = Field(0, ge=0, description="Seed of the choice of examples inside a bin.")

    @model_validator(mode="after")
    def _edges(self) -> Binning:
        if self.edges != sorted(set(self.edges)):
            raise ValueError("edges: must rise from one to the next")
        if self.edges and self.n_bins != len(self.edges) + 1:
            raise ValueError(
                f"n_bins: {len(self.edges)} edges make {len(self.edges) + 1} bins, but binning.n_bins is {self.n_bins}; "
                "set it to that"
            )
        return self


class Protocol(Section):
    kind: Literal["own", "official"] = Field(
        "own",
        description="Prompts and answer lengths: own (this project's templates; every table says so) or official "
        "(LongBench's tables, fetched at a pinned commit; published numbers are comparable with these only).",
    )
    path: Text | None = Field(
        None,
        description="Folder with LongBench's dataset2prompt.json, dataset2maxlen.json and model2maxlen.json, to use them "
        "without a network; their checksums are checked.",
    )
    max_length_tokens: int | None = Field(
        None,
        ge=2,
        description="Prompts with more tokens of the model lose their middle, before the chat template (e.g. 7500 for a "
        "window of 8k, 31500 for 32k). null: official takes LongBench's value for model.name, own cuts nothing.",
    )
