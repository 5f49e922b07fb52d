"""The noise floor: what the report says of scores that move although nothing was evicted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_tables import FakeStudy
from random_models import write_random_llama

from kv_transition import slices
from kv_transition.analysis.noise import NOISE_FLOOR, compare, write_noise_floor
from kv_transition.analysis.tables import write_table
from kv_transition.commands.plan_work import work_of
from kv_transition.data.counters import load_counter
from kv_transition.data.manifest import Manifest, build_manifest, write_manifest
from kv_transition.data.normalize import normalize_records
from kv_transition.data.protocol import own_protocol
from kv_transition.engines.base import BaseEngine, Cell, EngineResult
from kv_transition.engines.endpoints import build_engine
from kv_transition.files import read_parquet
from kv_transition.report.build import build_report
from kv_transition.run.noise import chosen_examples, infer_noise, second_way
from kv_transition.run.runner import FULL, Shard, infer_shard
from kv_transition.settings import from_mapping

RUN = {"max_failure_rate": 0.0, "allow_failed_reference": False}
#: The table's slice of the settings.
CFG = {"conf": 0.95}


# What is computed a second time


def manifest_of(model: Path, n: int = 12, n_bins: int = 3) -> Manifest:
    """Examples of a random model's words, spread over length bins."""
    records = [
        {
            "input": f"w{i} w3",
            "context": " ".join(f"w{(i * 7 + k * (i + 1)) % 60}" for k in range(20 + 10 * i)),
            "answers": [f"w{i}"],
        }
        for i in range(n)
    ]
    examples = normalize_records(records, "words", load_counter("model", str(model), "error"))
    return build_manifest(
        examples, experiment="e1", dataset="d", task="words", tokenizer="own", protocol="own-1", n_bins=n_bins,
        n_per_bin=n, selection_seed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers depend on every rounding: large random weights."""
    from safetensors.numpy import load_file, save_file

    folder = write_random_llama(tmp_path_factory.mktemp("model"), model_type="llama")
    weights = {
        name: weight
        for name, weight in load_file(folder / "model.safetensors").items()
        if not name.endswith("bias")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard_of(model: Path, **engine: Any) -> Shard:
    settings = from_mapping(
        {
            "model": {"path": str(model)},
            "engine": {"kind": "kvpress", "device": "cpu", "unknown_token_limit": 1, **engine},
            "kv": {"methods": ["streaming_llm"], "budgets": [16]},
            "decoding": {"max_new_tokens": 8},
        }
    )
    answer = slices.answer_slice(settings, "words")
    return Shard(manifest_of(model), 0, 1, answer, "0" * 64, own_protocol("words"))


def test_the_examples_are_spread_over_the_bins_and_more_are_a_superset(model: Path) -> None:
    manifest = manifest_of(model)
    bins = {entry.example_id: entry.bin_idx for entry in manifest.entries}
    six = chosen_examples(manifest, 6)
    assert sorted(bins[example_id] for example_id in six) == [0, 0, 1, 1, 2, 2]
    assert six == chosen_examples(manifest, 6)
    assert set(six) < set(chosen_examples(manifest, 7))
    assert len(chosen_examples(manifest, 50)) == 12, "no more than there are"
    backwards = replace(manifest, entries=manifest.entries[::-1])
    assert set(chosen_examples(backwards, 6)) == set(six)


@pytest.mark.kvpress
def test_the_second_way_is_the_attention_that_the_run_does_not_use(model: Path) -> None:
    for own, other in (("sdpa", "eager"), ("eager", "sdpa")):
        shard = shard_of(model, dtype="bfloat16", attn_implementation=own)
        second = second_way(shard, 4)
        assert second.settled["engine"] == {**shard.settled["engine"], "attn_implementation": other}
        assert [entry.example_id for entry in second.manifest.entries] == [
            example.example_id for example in second.examples()
        ]
        assert len(second.examples()) == 4


@pytest.mark.kvpress
def test_where_auto_turns_out_to_be_float32_nothing_is_computed_a_second_time(
    model: Path, tmp_path: Path
) -> None:
    shard = shard_of(model, dtype="auto")
    run = {**RUN, "journal_dir": str(tmp_path / "journal")}
    assert infer_noise(shard, 4, tmp_path / "noise.parquet", run, no_engine) == 0
    row = table_of(shard, tmp_path, lambda *_: None, answers=4, second=tmp_path / "noise.parquet")
    assert (row["status"], row["dtype"], row["n"]) == ("float32", "float32", 0)


def no_engine(answer: dict) -> BaseEngine:
    raise AssertionError("a model was loaded")


def table_of(
    shard: Shard, folder: Path, make_second: Any, answers: int = 12, second: Path | None = None
) -> pd.Series:
    """The row of the table, from the run's answers and second ones."""
    run = {**RUN, "journal_dir": str(folder / "journal")}
    first = [folder / f"full-{index}.parquet" for index in range(2)]
    for index, path in enumerate(first):
        infer_shard(replace(shard, index=index, count=2), {FULL: path}, run)
    if second is None:
        second = folder / "noise.parquet"
        infer_noise(shard, answers, second, run, make_second)
    write_manifest(folder / "manifest.json", shard.manifest)
    scoring = {
        "primary": "f1", "metrics": {}, "formats": {}, "first_line_tasks": [], "refusal_patterns": [], "code": "1",
    }  # fmt: skip
    out = folder / "noise_floor.parquet"
    write_noise_floor(
        [(str(folder / "manifest.json"), first, str(second))], scoring, folder / "cache", CFG, out
    )
    table = read_parquet(out)
    assert list(table) == list(NOISE_FLOOR)
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.kvpress
def test_in_bfloat16_answers_change_with_the_attention_and_are_counted(model: Path, tmp_path: Path) -> None:
    shard = shard_of(model, dtype="bfloat16")
    row = table_of(shard, tmp_path, build_engine)
    texts = [
        read_parquet(path).set_index("example_id")["text"]
        for path in (*sorted(tmp_path.glob("full-*.parquet")), tmp_path / "noise.parquet")
    ]
    own, second = pd.concat(texts[:2]), texts[2]
    assert row["status"] == "ok"
    assert (row["dtype"], row["attention"], row["other_attention"]) == ("bfloat16", "sdpa", "eager")
    assert row["n"] == 12
    assert row["n_changed"] == (own[second.index] != second).sum() > 0
    assert row["changed_share"] == pytest.approx(row["n_changed"] / 12)
    assert row["changed_lo"] < row["changed_share"] <= row["changed_hi"]


@pytest.mark.kvpress
def test_in_float32_the_attention_changes_no_answer(model: Path, tmp_path: Path) -> None:
    """Why no floor is measured there; the same examples as above."""
    texts = []
    for attention in ("sdpa", "eager"):
        path = tmp_path / f"{attention}.parquet"
        shard = shard_of(model, dtype="float32", attn_implementation=attention)
        infer_shard(shard, {FULL: path}, {**RUN, "journal_dir": str(tmp_path / "journal")})
        texts.append(read_parquet(path).set_index("example_id")["text"])
    assert texts[0].nunique() > 6, "answers that depend on the prompt"
    assert texts[0].equals(texts[1])


@pytest.mark.kvpress
def test_second_answers_are_in_the_journal_and_never_computed_again(model: Path, tmp_path: Path) -> None:
    shard = shard_of(model, dtype="bfloat16")
    run = {**RUN, "journal_dir": str(tmp_path / "journal")}
    infer_shard(shard, {FULL: tmp_path / "full.parquet"}, run)
    assert infer_noise(shard, 3, tmp_path / "a.parquet", run) == 3
    assert infer_noise(shard, 5, tmp_path / "b.parquet", run) == 2, "only those that are new"
    assert infer_noise(shard, 3, tmp_path / "c.parquet", run, no_engine) == 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()
    other = shard_of(model, dtype="bfloat16", attn_implementation="eager")
    part = second_way(shard, 3).manifest
    outputs = {FULL: tmp_path / "d.parquet"}
    assert infer_shard(replace(other, manifest=part), outputs, run, no_engine) == 0, "a run with it has them"


class Short(BaseEngine):
    """The real engine on a machine without the memory for the longer prompts; or for any."""

    def __init__(self, answer: dict, longest: int) -> None:
        self.engine, self.longest = build_engine(answer), longest

    def generate(self, prompt: Any, cell: Cell, decoding: Any, example_id: str) -> EngineResult:
        result = self.engine.generate(prompt, cell, decoding, example_id)
        if result.prompt_tokens > self.longest:
            return EngineResult.failed("CUDA out of memory", result.prompt_tokens)
        return result


@pytest.mark.kvpress
def test_examples_without_memory_for_the_second_way_are_counted_and_left_out(
    model: Path, tmp_path: Path
) -> None:
    shard = shard_of(model, dtype="bfloat16")
    lengths = sorted(entry.token_len for entry in shard.manifest.entries)
    some = table_of(shard, tmp_path / "a", lambda answer: Short(answer, lengths[7]))
    assert (some["status"], some["n"], some["n_failed"]) == ("ok", 8, 4)
    assert some["error"] == "ENGINE_ERROR: CUDA out of memory"
    none = table_of(shard, tmp_path / "b", lambda answer: Short(answer, 0))
    assert (none["status"], none["n"], none["n_failed"]) == ("failed", 0, 12)
    assert pd.isna(none["R"])


@pytest.mark.kvpress
def test_ways_computed_in_different_number_formats_are_not_compared(model: Path, tmp_path: Path) -> None:
    half = shard_of(model, dtype="bfloat16")
    run = {**RUN, "journal_dir": str(tmp_path / "journal")}
    infer_noise(half, 4, tmp_path / "second.parquet", run)
    row = table_of(shard_of(model, dtype="float32"), tmp_path, None, second=tmp_path / "second.parquet")
    assert (row["status"], row["n"]) == ("other_machine", 0)


# The numbers


def answers(*scored: tuple[str, float | None]) -> list[dict[str, Any]]:
    """Answers of examples in clusters of their own: (text, score), no answer where the score is None."""
    return [
        {
            "text": text,
            "score": score,
            "cluster_id": f"c{index}",
            "failure": "ENGINE_ERROR" if score is None else None,
            "error": text if score is None else None,
        }
        for index, (text, score) in enumerate(scored)
    ]


def test_a_planted_difference_is_found() -> None:
    run = answers(("a", 1.0), ("b", 1.0), ("c", 0.5), ("d", 0.0), ("lost", None))
    other = answers(("a", 1.0), ("x", 0.0), ("y", 0.75), ("z", 0.0), ("e", 1.0))
    found = compare(run, other)
    assert (found["n"], found["n_failed"], found["n_changed"]) == (4, 1, 3)
    assert found["error"] == "ENGINE_ERROR: lost"
    assert found["changed_share"] == 0.75
    assert (found["mean_score"], found["mean_score_other"]) == (2.5 / 4, 1.75 / 4)
    assert found["mean_diff"] == pytest.approx(-0.75 / 4)
    assert found["mean_abs_diff"] == pytest.approx(1.25 / 4)
    assert found["R"] == pytest.approx(0.7)
    assert found["diff_lo"] < found["mean_diff"] < found["diff_hi"]


def test_equal_answers_leave_no_difference_but_an_interval_of_some_width() -> None:
    run = answers(*((f"t{i}", 1.0) for i in range(50)))
    found = compare(run, run)
    assert (found["n_changed"], found["mean_abs_diff"], found["R"]) == (0, 0.0, 1.0)
    assert 0.05 < found["changed_hi"] < 0.09, "50 answers cannot prove that none of all would change"


# What the settings make of it


def engine_settings(**engine: Any) -> Any:
    return from_mapping(
        {
            "engine": {"kind": "kvpress", **engine},
            "kv": {"methods": ["streaming_llm"], "budgets": [16]},
        }
    )


def test_only_half_precision_needs_a_floor() -> None:
    assert engine_settings(dtype="bfloat16").engine.measures_noise
    assert engine_settings(dtype="auto").engine.measures_noise
    assert not engine_settings(dtype="float32").engine.measures_noise
    assert not engine_settings(dtype="bfloat16", noise_examples=0).engine.measures_noise
    assert not from_mapping({}).engine.measures_noise


def test_the_number_of_examples_touches_no_answer_and_no_other_table() -> None:
    few, many = (engine_settings(dtype="bfloat16", noise_examples=n) for n in (5, 50))
    assert slices.answer_slice(few, "t") == slices.answer_slice(many, "t")
    for name in (
        "bin_stats",
        "retention",
        "transition",
        "paired_tests",
        "effect_models",
        "costs",
        "noise_floor",
    ):
        assert slices.table_slice(few, name) == slices.table_slice(many, name)
    assert slices.figure_slice(few) == slices.figure_slice(many)


@pytest.mark.kvpress
def test_the_plan_counts_the_second_answers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = from_mapping(
        {
            "dataset": {
                "tasks": ["phrasebook_qa"],
                "synthetic": {"n_documents": 24, "min_tokens": 64, "max_tokens": 256},
            },
            "binning": {"n_bins": 2, "n_per_bin": 3},
            "model": {"path": str(root / "resources/tiny-reader")},
            "engine": {"kind": "kvpress", "dtype": "bfloat16", "device": "cpu", "noise_examples": 4},
            "kv": {"methods": ["streaming_llm"], "budgets": [16]},
        }
    )
    (work,) = work_of(settings, lambda file: False)
    counts = {one.method: (one.requests, one.to_compute) for one in work.methods}
    assert counts["full"] == (6, 6)
    assert counts["full (noise floor)"] == (4, 4)


# What the report says


ROW = {
    "dataset": "demo__phrasebook_qa", "task": "phrasebook_qa", "dtype": "bfloat16", "device": "cuda", "attention": "sdpa",
    "other_attention": "eager", "n": 50, "n_failed": 0, "n_clusters": 50, "n_changed": 21, "changed_share": 0.42,
    "changed_lo": 0.291, "changed_hi": 0.561, "mean_score": 0.9, "mean_score_other": 0.882, "mean_diff": -0.018,
    "diff_lo": -0.05, "diff_hi": 0.014, "mean_abs_diff": 0.041, "R": 0.98, "R_lo": 0.94, "R_hi": 1.02,
    "protocol": "own-1", "metric": "f1", "status": "ok", "error": None,
}  # fmt: skip


def page_of(folder: Path, rows: list[dict[str, Any]] | None, tasks: tuple[str, ...] = ("phrasebook_qa",), **engine: Any) -> str:  # fmt: skip
    """The report of a made-up study with a table of noise, or none."""
    study = FakeStudy(
        n=6, edges=(60, 200, 800), methods=("snapkv", "random"), budgets=(16, 64, 256), tasks=tasks
    )
    files = study.write(folder)
    settings = study.settings()
    settings["engine"] |= engine
    if rows is not None:
        table = pd.DataFrame([ROW | row for row in rows], columns=list(NOISE_FLOOR))
        path = folder / "analysis/noise_floor.parquet"
        write_table(table, NOISE_FLOOR, ("dataset", "task"), CFG, path)
        files["tables"]["noise_floor"] = path
    build_report(settings=settings, provenance={}, figures=[], out=folder / "report.md", **files)
    return (folder / "report.md").read_text(encoding="utf-8")


HALF = {"kind": "kvpress", "dtype": "bfloat16"}


def after_retention(page: str) -> str:
    """What stands under the first table of retention."""
    return re.search(r"^\*\*Retention: .*?\n\n\|.*?\n\n(.*?)$", page, re.M | re.S)[1]


def test_the_floor_stands_under_the_table_of_retention(tmp_path: Path) -> None:
    words = after_retention(page_of(tmp_path, [{}], **HALF))
    assert words == (
        "**Noise floor of bfloat16:** n = 50 answers of the full cache were computed with sdpa attention, as all cells here, "
        "and again with eager: 42% [29.1%, 56.1%] changed; the mean score differs by 0.02 (0.900 and 0.882; mean absolute "
        "difference per example 0.04), so the retention of the full cache against itself is 0.98 [0.94, 1.02]. A difference in "
        "retention of that size can be arithmetic, not eviction."
    )


def test_every_table_of_retention_has_its_floor(tmp_path: Path) -> None:
    tasks = ("phrasebook_qa", "phrasebook_multi_qa")
    rows = [{"task": task, "dataset": f"demo__{task}", "changed_share": share} for task, share in zip(tasks, (0.42, 0.1), strict=True)]  # fmt: skip
    page = page_of(tmp_path, rows, tasks, **HALF)
    blocks = re.findall(r"^\*\*Retention.*?\n\n\|.*?\n\n(.*?)$", page, re.M | re.S)
    assert len(blocks) >= 3, "two tasks and their mean"
    assert all(block.lstrip("*").startswith("Noise floor of bfloat16") for block in blocks)
    assert "10% to 42% of the full cache's answers to a task changed (n = 100 over 2 tasks)" in blocks[-1]
    assert "full cache against itself, is 0.980" in blocks[-1]


def test_failures_of_the_second_way_are_said(tmp_path: Path) -> None:
    error = "ENGINE_ERROR: CUDA | out of memory"
    some = after_retention(page_of(tmp_path / "a", [{"n": 40, "n_failed": 10, "error": error}], **HALF))
    assert unescape(some).endswith(
        f"10 further examples are left out, because they failed with one of the two, the first with: {error}."
    )
    nan = {name: float("nan") for name, kind in NOISE_FLOOR.items() if kind == "float64"}
    row = {**nan, "n": 0, "n_failed": 50, "n_changed": 0, "status": "failed", "error": error}
    assert after_retention(page_of(tmp_path / "b", [row], **HALF)).startswith(
        "**Noise floor of bfloat16:** not known. No pair of answers: all 50 failed with one of the two implementations of "
        "attention, the first with: "
    )


def test_a_single_pair_has_no_interval(tmp_path: Path) -> None:
    row = compare(answers(("a", 1.0)), answers(("b", 0.5)))
    words = after_retention(page_of(tmp_path, [row], **HALF))
    assert "again with eager: 100% changed; the mean score differs by 0.50" in words
    assert "nan" not in words


def test_what_was_not_measured_is_said_once_where_it_matters(tmp_path: Path) -> None:
    assert "none needed, this machine computed in float32" in page_of(
        tmp_path / "a", [{"status": "float32", "n": 0, "dtype": "float32"}], **HALF | {"dtype": "auto"}
    )
    assert "**Noise floor of bfloat16:** not measured." in page_of(tmp_path / "b", None, **HALF)
    assert "not known. The answers" in page_of(tmp_path / "c", [{"status": "other_machine", "n": 0}], **HALF)
    for name, engine in (("d", {}), ("e", {"kind": "kvpress", "dtype": "float32"})):
        assert "oise floor" not in page_of(tmp_path / name, None, **engine)


def test_settings_survive_as_json() -> None:
    """The number of examples is in the resolved configuration, so an experiment can be made again."""
    resolved = json.loads(json.dumps(engine_settings(dtype="bfloat16", noise_examples=7).resolved()))
    assert from_mapping(resolved).engine.noise_examples == 7
