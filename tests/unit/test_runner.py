"""Running a shard: what is asked, what is computed, what is written, and when a shard fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_models import write_random_llama

from kv_transition.data.manifest import Manifest, build_manifest
from kv_transition.data.normalize import Example, normalize_records
from kv_transition.data.protocol import TaskProtocol, own_protocol
from kv_transition.data.tokenizer import load_counter
from kv_transition.engines.base import BaseEngine, EngineResult
from kv_transition.engines.endpoints import build_engine
from kv_transition.errors import UserError
from kv_transition.files import canonical_json, read_parquet, sha256_text
from kv_transition.run.requests import requests_of_example
from kv_transition.run.runner import Shard, infer_shard
from kv_transition.settings import from_mapping
from kv_transition.slices import answer_slice

CELLS = [("full", "full"), ("no_context", "full"), ("snapkv", "16"), ("random", "16"), ("snapkv", "4000")]
REQUESTS = 4 + 3  # per example; random is drawn three times
RUN = {"journal_dir": "", "max_failure_rate": 0.0, "allow_failed_reference": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_llama(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(model: Path) -> Manifest:
    records = [
        {
            "input": f"w{i} w3",
            "context": " ".join(f"w{(i * 7 + k) % 60}" for k in range(40 + 5 * i)),
            "answers": ["w1"],
        }
        for i in range(6)
    ]
    examples = normalize_records(records, "words", load_counter("model", str(model), "error"))
    return build_manifest(
        examples,
        experiment="e1",
        dataset="d",
        task="words",
        tokenizer="own",
        protocol="own-1",
        n_bins=2,
        n_per_bin=3,
        selection_seed=0,
    )


@pytest.fixture
def shard(model: Path, manifest: Manifest) -> Shard:
    settings = from_mapping(
        {
            "model": {"path": str(model)},
            "engine": {"unknown_token_limit": 1},
            "decoding": {"max_new_tokens": 6},
        }
    )
    return Shard(manifest, 0, 1, answer_slice(settings, "words"), "0" * 64, own_protocol("words"))


def run(
    shard: Shard, folder: Path, cells: list = CELLS, make_engine: Any = build_engine, **limits: Any
) -> int:
    outputs = {
        cell: folder / "out" / cell[0] / cell[1] / f"{shard.index}-{shard.count}.parquet" for cell in cells
    }
    return infer_shard(shard, outputs, {**RUN, "journal_dir": str(folder / "journal"), **limits}, make_engine)


def rows_of(folder: Path, method: str, budget: str, part: str = "0-1") -> Any:
    return read_parquet(folder / "out" / method / budget / f"{part}.parquet")


def journal_rows(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("journal/*/*.jsonl"))


def no_engine(answer: dict) -> BaseEngine:
    raise AssertionError("the model was loaded although the journal has every answer")


def test_every_cell_has_every_example_once_and_random_three_times(shard: Shard, tmp_path: Path) -> None:
    assert run(shard, tmp_path) == 6 * REQUESTS == journal_rows(tmp_path)
    ids = sorted(entry.example_id for entry in shard.manifest.entries)
    assert rows_of(tmp_path, "snapkv", "16")["example_id"].tolist() == ids
    assert rows_of(tmp_path, "random", "16")["example_id"].tolist() == sorted(ids * 3)
    assert rows_of(tmp_path, "random", "16")["replicate"].tolist() == [0, 1, 2] * 6


def test_the_budget_of_every_row_is_measured(shard: Shard, tmp_path: Path) -> None:
    run(shard, tmp_path)
    compressed = rows_of(tmp_path, "snapkv", "16")
    assert (compressed["kept_mean"] == 16).all()
    assert (compressed["verified"] == "measured").all()
    assert compressed["active"].all()


def test_a_budget_above_the_prompt_is_copied_from_the_full_answer(shard: Shard, tmp_path: Path) -> None:
    run(shard, tmp_path)
    inactive = rows_of(tmp_path, "snapkv", "4000")
    assert (inactive["copied_from"] == "full").all()
    assert not inactive["active"].any()
    assert inactive["text"].tolist() == rows_of(tmp_path, "full", "full")["text"].tolist()


def test_without_a_context_the_prompt_is_short(shard: Shard, tmp_path: Path) -> None:
    run(shard, tmp_path)
    assert rows_of(tmp_path, "no_context", "full")["prompt_tokens"].max() < 40
    assert rows_of(tmp_path, "full", "full")["prompt_tokens"].min() > 40


def test_a_second_run_loads_no_model_and_writes_the_same_bytes(shard: Shard, tmp_path: Path) -> None:
    run(shard, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.glob("out/**/*.parquet")}
    for file in before:
        file.unlink()
    assert run(shard, tmp_path, make_engine=no_engine) == 0
    assert {file: file.read_bytes() for file in before} == before
    assert journal_rows(tmp_path) == 6 * REQUESTS


def test_an_added_cell_computes_that_cell_only(shard: Shard, tmp_path: Path) -> None:
    run(shard, tmp_path)
    assert run(shard, tmp_path, [*CELLS, ("tova", "16")]) == 6


def test_another_shard_count_computes_nothing_and_an_empty_shard_is_an_empty_table(
    shard: Shard, tmp_path: Path
) -> None:
    run(shard, tmp_path)
    parts = [replace(shard, index=index, count=8) for index in range(8)]
    assert [run(part, tmp_path, make_engine=no_engine) for part in parts] == [0] * 8
    sizes = [len(rows_of(tmp_path, "full", "full", f"{index}-8")) for index in range(8)]
    assert sizes == [1] * 6 + [0] * 2


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("decoding", {"max_new_tokens": 7}),
        ("kv", {"first_token": "full"}),
        ("kv", {"window": 4}),
    ],
)
def test_what_determines_an_answer_is_in_its_key(
    shard: Shard, tmp_path: Path, section: str, change: dict, model: Path
) -> None:
    run(shard, tmp_path)
    other = from_mapping(
        {
            "model": {"path": str(model)},
            "engine": {"unknown_token_limit": 1},
            "decoding": {"max_new_tokens": 6},
        }
        | {section: {**({"max_new_tokens": 6} if section == "decoding" else {}), **change}}
    )
    computed = run(replace(shard, answer=answer_slice(other, "words")), tmp_path)
    assert computed == (2 * 6 if change == {"window": 4} else 6 * REQUESTS)


def test_the_same_words_cut_elsewhere_into_context_and_question_are_another_prompt(shard: Shard) -> None:
    """Both parts are tokenised for themselves, and scope `context` compresses the first."""
    one, other = (
        Example("e", question, context, ["w1"], {}, "c")
        for question, context in (("w3", "w1\n\nw2"), ("w2\n\nw3", "w1"))
    )
    keys = [
        requests_of_example(shard.protocol, example, [("full", "full")], shard.settled, "0" * 64)
        for example in (one, other)
    ]
    assert keys[0].prompt.messages == keys[1].prompt.messages
    assert keys[0].requests[0].key != keys[1].requests[0].key


def test_text_the_model_does_not_know_is_refused_whether_it_was_answered_before_or_not(
    shard: Shard, tmp_path: Path, model: Path
) -> None:
    examples = [
        replace(example, context=f"{example.context} {'alien ' * 60}") for example in shard.manifest.examples
    ]
    foreign = replace(shard, manifest=replace(shard.manifest, examples=examples))
    strict = answer_slice(
        from_mapping({"model": {"path": str(model)}, "decoding": {"max_new_tokens": 6}}), "words"
    )
    with pytest.raises(UserError, match=r"unknown to the model.*engine\.unknown_token_limit"):
        run(replace(foreign, answer=strict), tmp_path)
    assert run(foreign, tmp_path) == 6 * REQUESTS, "lifted in the configuration"
    with pytest.raises(UserError, match=r"unknown to the model.*engine\.unknown_token_limit"):
        run(replace(foreign, answer=strict), tmp_path)


def test_a_share_that_leaves_less_than_twice_snapkv_s_window_is_refused(shard: Shard, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"kv\.window: 8 is more than half of the \d+ positions that budget f0\.1 keeps"
    ):
        run(shard, tmp_path, [("full", "full"), ("snapkv", "f0.1")])


def test_the_guard_and_the_number_of_replicates_are_not_part_of_the_key(
    shard: Shard, tmp_path: Path, model: Path
) -> None:
    run(shard, tmp_path)
    more = from_mapping(
        {
            "model": {"path": str(model)},
            "engine": {"unknown_token_limit": 0.9},
            "kv": {"random_replicates": 4},
        }
        | {"decoding": {"max_new_tokens": 6}}
    )
    assert run(replace(shard, answer=answer_slice(more, "words")), tmp_path) == 6


#: A protocol of two words before the context and two after it; a stop at w5, as LongBench's one-line tasks stop at a line.
OFFICIAL = TaskProtocol(
    "words",
    "official",
    "official-12345678",
    template="w1 w2 {context} w3 {input}",
    wrapped=False,
    max_length_tokens=50,
    max_new_tokens=5,
    min_new_tokens=1,
    stop_token_texts=("w5",),
)


def under(shard: Shard, protocol: TaskProtocol) -> Shard:
    """The shard asked with another protocol, its manifest made for it."""
    return replace(shard, protocol=protocol, manifest=replace(shard.manifest, protocol=protocol.label))


def test_a_manifest_of_other_prompts_is_refused(shard: Shard, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"protocol own-1.*protocol\.kind asks with official-12345678"):
        run(replace(shard, protocol=OFFICIAL), tmp_path)


def test_rows_say_how_their_prompt_was_made(shard: Shard, tmp_path: Path) -> None:
    run(under(shard, OFFICIAL), tmp_path)
    by_id = {example.example_id: example for example in shard.manifest.examples}
    for _, row in rows_of(tmp_path, "full", "full").iterrows():
        words = 5 + len(by_id[row["example_id"]].context.split())
        assert (row["protocol"], row["wrapped"]) == ("official-12345678", False)
        assert row["dropped_tokens"] == max(0, words - 50)
        # Nothing but the text: no template, no system message; the two words at the cut become one unknown word.
        assert row["prompt_tokens"] == (words if words <= 50 else 49)
        assert row["excess_tokens"] == 0
    assert rows_of(tmp_path, "full", "full")["dropped_tokens"].nunique() > 2
    assert (rows_of(tmp_path, "no_context", "full")["dropped_tokens"] == 0).all()


def test_another_protocol_asks_and_answers_anew(shard: Shard, tmp_path: Path) -> None:
    run(shard, tmp_path)
    assert set(rows_of(tmp_path, "full", "full")["protocol"]) == {own_protocol("words").label}
    official = under(shard, OFFICIAL)
    assert run(official, tmp_path) == 6 * REQUESTS
    assert run(official, tmp_path, make_engine=no_engine) == 0
    wrapped = under(shard, replace(OFFICIAL, wrapped=True))
    assert run(wrapped, tmp_path) == 6 * REQUESTS
    longer = under(shard, replace(OFFICIAL, max_length_tokens=10_000))
    with_room = sum(len(example.context.split()) + 5 > 50 for example in shard.manifest.examples)
    assert run(longer, tmp_path) == with_room * (REQUESTS - 1), "only prompts that had been shortened"


@pytest.mark.parametrize(
    "change", [{"max_new_tokens": 4}, {"min_new_tokens": 2}, {"stop_token_texts": ("w6",)}]
)
def test_what_ends_an_answer_is_in_its_key(shard: Shard, tmp_path: Path, change: dict) -> None:
    run(under(shard, OFFICIAL), tmp_path)
    assert run(under(shard, replace(OFFICIAL, **change)), tmp_path) == 6 * REQUESTS


def test_keys_of_own_prompts_are_those_of_every_earlier_journal() -> None:
    """Old answers are reused while these digests stay; who changes them on purpose throws stored answers away."""
    example = Example("e1", "Who kept the key?", "Ada kept the key.\n\nBen left.", ["Ada"], {}, "c")
    code = Example("e2", "", "def f():\n", ["x"], {}, "c")
    changed = {
        "decoding": {"max_new_tokens_by_task": {"lcc_e": 64}, "stop": ["\n"]},
        "kv": {"scope": "context"},
    }
    digests = []
    for task, asked, config in (("hotpotqa", example, {}), ("lcc_e", code, changed)):
        own = own_protocol(task)
        answer = answer_slice(from_mapping(config), task)
        answer = {**answer, "decoding": own.decoding(answer["decoding"])}
        cells = [("full", "full"), ("no_context", "full"), ("snapkv", "16"), ("random", "f0.25")]
        requests = requests_of_example(own, asked, cells, answer, "a" * 64).requests
        rows = [(r.method, r.budget, r.replicate, r.prompt_hash, r.key) for r in requests]
        digests.append(sha256_text(canonical_json(rows))[:16])
    assert digests == ["dc19bd863e9dfd55", "78a894641c7097ed"]


def test_scope_context_is_refused_where_shortening_took_the_end_of_the_context(
    shard: Shard, tmp_path: Path
) -> None:
    long_question = replace(shard.manifest.examples[0], question=" ".join(["w7"] * 60))
    one = replace(shard.manifest, examples=[long_question])
    context = {**shard.answer, "kv": {**shard.answer["kv"], "scope": "context"}}
    official = under(replace(shard, manifest=one, answer=context), OFFICIAL)
    with pytest.raises(
        UserError, match=f"example {long_question.example_id}: .*kv.scope context .*raise protocol.max_length"
    ):
        run(official, tmp_path, [("full", "full")])
    assert run(replace(official, answer=shard.answer), tmp_path, [("full", "full")]) == 1


def test_a_shortened_prompt_is_cut_at_its_context_in_scope_context(shard: Shard, tmp_path: Path) -> None:
    context = {**shard.answer, "kv": {**shard.answer["kv"], "scope": "context"}}
    run(under(replace(shard, answer=context), OFFICIAL), tmp_path, [("full", "full"), ("snapkv", "16")])
    rows = rows_of(tmp_path, "snapkv", "16")
    assert (rows["question_tokens"] == 3).all(), "w3 and the question"
    assert set(rows[rows["dropped_tokens"] > 0]["press_len"]) == {46}


class Failing(BaseEngine):
    """The real engine, but requests of some cells fail."""

    def __init__(self, answer: dict, methods: set[str]) -> None:
        self.engine, self.methods = build_engine(answer), methods

    def generate(self, prompt: Any, cell: Any, decoding: Any, example_id: str) -> EngineResult:
        if cell.method in self.methods:
            return EngineResult.failed("the machine is on fire", timing_scope="request")
        return self.engine.generate(prompt, cell, decoding, example_id)


def test_more_failures_than_allowed_fail_the_shard_and_lose_no_good_answer(
    shard: Shard, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"snapkv 16: 6 of 6 requests failed.*run\.max_failure_rate.*on fire"):
        run(shard, tmp_path, make_engine=lambda answer: Failing(answer, {"snapkv"}))
    assert not list(tmp_path.glob("out/**/*.parquet"))
    assert run(shard, tmp_path) == 12, "only what failed is asked again"


def test_allowed_failures_are_rows(shard: Shard, tmp_path: Path) -> None:
    run(shard, tmp_path, make_engine=lambda answer: Failing(answer, {"snapkv"}), max_failure_rate=1.0)
    failed = rows_of(tmp_path, "snapkv", "16")
    assert failed["failure"].tolist() == ["ENGINE_ERROR"] * 6
    assert failed["error"].str.contains("on fire").all()


def test_a_failed_reference_is_never_allowed_by_the_failure_rate(shard: Shard, tmp_path: Path) -> None:
    fail = {"make_engine": lambda answer: Failing(answer, {"full"}), "max_failure_rate": 1.0}
    with pytest.raises(UserError, match=r"allow_failed_reference"):
        run(shard, tmp_path, **fail)
    run(shard, tmp_path, allow_failed_reference=True, **fail)
