"""The manifest of a task: built from examples, written, read back and refused when it is not sound."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.counters import load_counter
from kv_transition.data.longbench_loader import read_records
from kv_transition.data.manifest import Manifest, build_manifest, read_manifest, write_manifest
from kv_transition.data.normalize import CountedExample, normalize_records
from kv_transition.errors import UserError


def example(name: str, token_len: int, cluster: str | None = None) -> CountedExample:
    return CountedExample(
        name, "Who?", f"Story {name}.", ["me", "I"], {"task": "qa"}, cluster or f"c{name}", token_len
    )


def build(examples: list[CountedExample], **changes: Any) -> Manifest:
    settings: dict[str, Any] = {
        "experiment": "demo",
        "dataset": "books",
        "task": "qa",
        "tokenizer": "words",
        "protocol": "own-1",
        "n_bins": 3,
        "n_per_bin": 4,
        "selection_seed": 0,
    }
    return build_manifest(examples, **(settings | changes))


EXAMPLES = [example(f"e{i:02d}", 100 + 10 * i, cluster=f"c{i // 2}") for i in range(30)]


def ids(manifest: Manifest) -> list[str]:
    return [entry.example_id for entry in manifest.entries]


def test_a_manifest_lists_the_chosen_examples_by_length() -> None:
    manifest = build(EXAMPLES)
    assert [entry.bin_idx for entry in manifest.entries] == [0] * 4 + [1] * 4 + [2] * 4
    assert [entry.token_len for entry in manifest.entries] == sorted(
        entry.token_len for entry in manifest.entries
    )
    assert [e.example_id for e in manifest.examples] == ids(manifest)
    assert manifest.dataset_id == "books__qa"
    assert manifest.bin_edges == [190, 290, 390]


def test_a_bin_reports_what_was_there_and_what_was_taken() -> None:
    manifest = build(EXAMPLES)
    middle = manifest.bins[1]
    taken = [entry.token_len for entry in manifest.entries if entry.bin_idx == 1]
    assert (middle.lower, middle.upper) == (191, 290)
    assert (middle.available, middle.available_min, middle.available_median, middle.available_max) == (
        10,
        200,
        245,
        290,
    )
    assert (middle.selected, middle.selected_min, middle.selected_max) == (4, min(taken), max(taken))
    assert manifest.bins[0].lower == 100


def test_clusters_of_a_bin_are_named_once_each() -> None:
    manifest = build(EXAMPLES, n_per_bin=10)
    assert manifest.clusters == {
        str(g): sorted({f"c{i // 2}" for i in range(10 * g, 10 * g + 10)}) for g in range(3)
    }


def test_bins_with_too_few_examples_are_warned_of() -> None:
    assert build(EXAMPLES).warnings == []
    warnings = build(EXAMPLES, n_per_bin=11).warnings
    assert len(warnings) == 3
    assert "10 examples, 11 asked for" in warnings[0]


def test_a_bin_emptied_by_ties_keeps_its_place() -> None:
    manifest = build([example(f"e{i}", 50) for i in range(5)] + [example("long", 60)])
    assert [b.available for b in manifest.bins] == [5, 0, 1]
    assert manifest.bins[1].available_min is manifest.bins[1].selected_median is None
    assert manifest.bins[1].lower > manifest.bins[1].upper
    assert manifest.clusters["1"] == []


def test_edges_come_from_the_eligible_examples_only() -> None:
    manifest = build(EXAMPLES, min_tokens=200, max_tokens=290)
    assert manifest.bin_edges == [230, 260, 290]
    assert sum(b.available for b in manifest.bins) == 10


def test_a_filter_that_leaves_nothing_is_a_user_error_naming_its_keys() -> None:
    with pytest.raises(UserError, match=r"dataset\.min_tokens.*dataset\.max_tokens"):
        build(EXAMPLES, min_tokens=1000)


@given(n=st.integers(1, 8), more=st.integers(0, 8), order=st.randoms(use_true_random=False))
def test_more_examples_a_bin_keep_the_old_ones_whatever_their_order(
    n: int, more: int, order: random.Random
) -> None:
    shuffled = order.sample(EXAMPLES, len(EXAMPLES))
    small, large = build(EXAMPLES, n_per_bin=n), build(shuffled, n_per_bin=n + more)
    assert set(ids(small)) <= set(ids(large))
    assert small.bin_edges == large.bin_edges
    assert build(shuffled, n_per_bin=n) == small


def test_a_manifest_survives_the_file_byte_for_byte(tmp_path: Path) -> None:
    manifest = build([*EXAMPLES, example("猫\u2028\n", 77)])
    write_manifest(tmp_path / "a.json", manifest)
    assert read_manifest(tmp_path / "a.json") == manifest
    write_manifest(tmp_path / "b.json", read_manifest(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def with_length(name: str, token_len: int, length: int | None) -> CountedExample:
    return replace(example(name, token_len), meta={"task": "qa", "length": length})


def test_bins_of_longbench_e_follow_the_records_own_length_and_not_their_tokens(tmp_path: Path) -> None:
    lengths = [3999, 4000, 7999, 8000, 20_000]
    examples = [with_length(f"e{i}", 30_000 - i, length) for i, length in enumerate(lengths)]
    manifest = build(examples, by="length", edges=[3999, 7999])
    assert manifest.bin_edges == [3999, 7999, 20_000]
    assert {entry.example_id: entry.bin_idx for entry in manifest.entries} == {
        "e0": 0, "e1": 1, "e2": 1, "e3": 2, "e4": 2,
    }  # fmt: skip
    assert [(one.lower, one.upper) for one in manifest.bins] == [(3999, 3999), (4000, 7999), (8000, 20_000)]
    assert [one.available_max for one in manifest.bins] == [30_000, 29_999, 29_997]
    write_manifest(tmp_path / "m.json", manifest)
    assert read_manifest(tmp_path / "m.json") == manifest


def test_bins_by_the_records_own_length_are_called_by_it() -> None:
    examples = [with_length(f"e{i}", 30_000 - i, length) for i, length in enumerate([10, 4000, 8000])]
    manifest = build(examples, by="length", edges=[3999, 7999], task="qasper")
    assert manifest.bin_names == ["10–3999 words", "4000–7999 words", "8000–8000 words"]
    assert build(EXAMPLES).bin_names == ["", "", ""]


def test_a_bin_beyond_all_lengths_is_empty() -> None:
    examples = [with_length(f"e{i}", 100 + i, 10 + i) for i in range(5)]
    manifest = build(examples, by="length", edges=[3999, 7999])
    assert [one.available for one in manifest.bins] == [5, 0, 0]


def test_bins_by_length_need_a_length() -> None:
    with pytest.raises(UserError, match=r"example e1 has no length.*binning\.by"):
        build([with_length("e0", 10, 5), with_length("e1", 11, None)], by="length", edges=[5, 8])


@pytest.mark.parametrize(
    ("tokenizer", "task", "unit"),
    [
        ("cl100k_base", "qasper", "tokens"),
        ("length", "qasper", "words"),
        ("length", "dureader", "characters"),
    ],
)
def test_the_unit_of_lengths_is_known(tokenizer: str, task: str, unit: str) -> None:
    assert build(EXAMPLES, tokenizer=tokenizer, task=task).length_unit == unit


def test_the_file_has_the_agreed_keys(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", build(EXAMPLES))
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert set(content) == {
        *(
            "version",
            "experiment",
            "dataset",
            "dataset_id",
            "task",
            "tokenizer",
            "protocol",
            "n_bins",
            "n_per_bin",
        ),
        *("selection_seed", "bin_by", "bin_edges", "bins", "entries", "clusters", "examples", "warnings"),
        "n_records",
    }
    assert set(content["entries"][0]) == {"example_id", "bin_idx", "token_len"}
    assert set(content["examples"][0]) == {
        "example_id",
        "question",
        "context",
        "answers",
        "meta",
        "cluster_id",
    }


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda m: m.pop(key)


def put(value: object, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put(2, "version"), "version"),
        (drop("version"), "version"),
        (drop("entries"), "entries"),
        (put("me", "examples", 0, "answers"), r"examples\.0\.answers"),
        (put(7, "examples", 3, "context"), r"examples\.3\.context"),
        (put("3", "n_bins"), "n_bins"),
        (put([], "entries"), "entries: there is none"),
        (lambda m: m["entries"].__setitem__(1, m["entries"][0]), "doubled example_id"),
        (lambda m: m["examples"].pop(), "same ids"),
        (lambda m: m["examples"].reverse(), "same ids"),
        (lambda m: (m["entries"].reverse(), m["examples"].reverse()), "sorted"),
        (put(2, "entries", 0, "bin_idx"), "bin_idx"),
        (put(9999, "entries", 11, "token_len"), "last of bin_edges"),
        (put([390, 290, 190], "bin_edges"), "bin_edges"),
        (put([190, 390], "bin_edges"), "n_bins"),
        (put(0, "bins", 0, "selected"), "selected"),
        (put("other", "task"), "dataset_id"),
        (put([], "clusters", "0"), "clusters"),
    ],
)
def test_an_unsound_manifest_is_refused_with_file_and_reason(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "manifest.json"
    write_manifest(path, build(EXAMPLES))
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ud800"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="manifest"):
        read_manifest(path)


def test_a_missing_manifest_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "manifest.json")


def test_a_whole_official_task_becomes_a_manifest(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken_cache"))
    counter = load_counter("cl100k_base", None, "error")
    examples = normalize_records(read_records(shared / "longbench", "multi_news"), "multi_news", counter)
    manifest = build(examples, task="multi_news", tokenizer=counter.name, n_bins=4, n_per_bin=40)
    assert [b.available for b in manifest.bins] == [50, 50, 50, 50]
    assert [b.selected for b in manifest.bins] == [40, 40, 40, 40]
    write_manifest(tmp_path / "manifest.json", manifest)
    assert read_manifest(tmp_path / "manifest.json") == manifest
