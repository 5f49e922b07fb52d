"""Running a shard: what is asked, what is computed, what is written, and when a shard fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_models import write_random_llama

from kv_transition.data.counters import load_counter
from kv_transition.data.manifest import Manifest, build_manifest
from kv_transition.data.normalize import Example, normalize_records
from kv_transition.data.protocol import TaskProtocol, own_protocol
from kv_transition.engines.base import BaseEngine, EngineResult, Timings
from kv_transition.engines.endpoints import build_engine
from kv_transition.errors import UserError
from kv_transition.files import canonical_json, read_parquet, sha256_text
from kv_transition.run.requests import journal_row, requests_of_example
from kv_transition.run.responses import response_row, write_responses
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


def test_examples_that_ask_the_same_are_answered_once(shard: Shard, tmp_path: Path) -> None:
    """Without their contexts, questions in the same words are one prompt."""
    examples = [replace(example, question="w1 w3") for example in shard.manifest.examples]
    same = replace(shard, manifest=replace(shard.manifest, examples=examples))
    assert run(same, tmp_path) == 6 * (REQUESTS - 1) + 1 == journal_rows(tmp_path)
    assert rows_of(tmp_path, "no_context", "full")["text"].nunique() == 1


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
    assert digests == ["36a18d49115466b4", "260db66f2db91669"]


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


TEXT = [("full", "full"), ("no_context", "full"), *((name, "30") for name in ("recent", "middle", "bm25"))]


def with_passages(shard: Shard, model: Path, passage_tokens: int = 8) -> Shard:
    settings = from_mapping(
        {
            "model": {"path": str(model)},
            "engine": {"unknown_token_limit": 1},
            "decoding": {"max_new_tokens": 6},
            "kv": {"passage_tokens": passage_tokens},
        }
    )
    return replace(shard, answer=answer_slice(settings, "words"))


def test_a_text_method_is_the_full_cache_over_a_prompt_of_the_budget_s_length(
    shard: Shard, tmp_path: Path, model: Path
) -> None:
    run(with_passages(shard, model), tmp_path, TEXT)
    full = rows_of(tmp_path, "full", "full")
    for method in ("recent", "middle", "bm25"):
        rows = rows_of(tmp_path, method, "30")
        assert rows["method"].eq(method).all()
        assert rows["budget_value"].eq(30).all()
        assert rows["status"].eq("ok").all()
        assert rows["prompt_tokens"].between(23 if method == "bm25" else 30, 30).all()
        for name in ("kept_mean", "kept_min", "kept_max"):
            assert rows[name].tolist() == rows["prompt_tokens"].tolist(), "memory is the prompt's own"
        assert rows["press_len"].tolist() == full["prompt_tokens"].tolist()
        assert rows["bytes_kept"].tolist() == [
            cost * kept // length
            for cost, kept, length in zip(
                full["bytes_kept"], rows["prompt_tokens"], full["prompt_tokens"], strict=True
            )
        ]
        assert rows["active"].all()
        assert rows["verified"].eq("measured").all()
        assert rows["copied_from"].isna().all()
        assert not set(rows["prompt_hash"]) & set(full["prompt_hash"])
    assert rows_of(tmp_path, "recent", "30")["text"].tolist() != full["text"].tolist()


def test_a_count_that_the_engine_does_not_confirm_is_not_proved(
    shard: Shard, tmp_path: Path, model: Path
) -> None:
    class Counting(Failing):
        def generate(self, prompt: Any, cell: Any, decoding: Any, example_id: str) -> EngineResult:
            return replace(super().generate(prompt, cell, decoding, example_id), prompt_tokens=31)

    run(shard, tmp_path, TEXT[:3], make_engine=lambda answer: Counting(answer, set()))
    assert rows_of(tmp_path, "recent", "30")["verified"].eq("no").all()


@pytest.mark.parametrize("method", ["recent", "middle", "bm25"])
def test_a_text_that_fits_is_the_full_answer_and_asks_nothing(
    shard: Shard, tmp_path: Path, method: str
) -> None:
    run(shard, tmp_path, TEXT[:2])
    assert run(shard, tmp_path, [*TEXT[:2], (method, "4000")], make_engine=no_engine) == 0
    whole, full = rows_of(tmp_path, method, "4000"), rows_of(tmp_path, "full", "full")
    assert whole["text"].tolist() == full["text"].tolist()
    assert whole["copied_from"].eq("full").all()
    assert not whole["active"].any()
    assert whole["kept_mean"].tolist() == full["prompt_tokens"].tolist()
    assert whole["prefill_s"].isna().all(), "its time is spent in the full row"


def test_equal_prompts_are_asked_once(shard: Shard, tmp_path: Path, model: Path) -> None:
    """Two budgets between which no further passage fits, and one that leaves no passage at all."""
    fixed = int(prompt_tokens_without_context(shard, tmp_path))
    shard = with_passages(shard, model, 20)
    small, smaller = (str(fixed + room) for room in (4, 3))
    assert run(shard, tmp_path, [*TEXT[:2], ("bm25", small), ("bm25", smaller)]) == 0, "as without context"
    assert (
        rows_of(tmp_path, "bm25", small)["text"].tolist()
        == rows_of(tmp_path, "no_context", "full")["text"].tolist()
    )
    two = [("bm25", str(fixed + 22)), ("bm25", str(fixed + 24))]
    assert run(shard, tmp_path, [*TEXT[:2], *two]) == 6
    assert (
        rows_of(tmp_path, *two[0])["answer_key"].tolist() == rows_of(tmp_path, *two[1])["answer_key"].tolist()
    )


def prompt_tokens_without_context(shard: Shard, folder: Path) -> int:
    run(shard, folder, TEXT[:2])
    lengths = set(rows_of(folder, "no_context", "full")["prompt_tokens"])
    assert len(lengths) == 1
    return lengths.pop()


def test_a_budget_filled_by_the_fixed_part_is_a_row_without_a_request(shard: Shard, tmp_path: Path) -> None:
    fixed = prompt_tokens_without_context(shard, tmp_path)
    cell = ("recent", str(fixed))
    assert run(shard, tmp_path, [*TEXT[:2], cell], make_engine=no_engine) == 0
    rows = rows_of(tmp_path, *cell)
    assert rows["status"].eq("infeasible").all()
    nothing = [
        "text",
        "finish_reason",
        "failure",
        "error",
        "prompt_tokens",
        "kept_mean",
        "answer_key",
        "engine",
    ]
    assert rows[nothing].isna().all(axis=None)
    assert rows["verified"].eq("no").all()
    assert (rows["press_len"] > 40).all(), "how long the prompt is that would have been shortened"


def test_bm25_without_a_question_is_a_row_without_a_request(shard: Shard, tmp_path: Path) -> None:
    silent = [replace(example, question=" ") for example in shard.manifest.examples]
    shard = replace(shard, manifest=replace(shard.manifest, examples=silent))
    run(shard, tmp_path, [*TEXT[:2], ("recent", "40"), ("bm25", "40")])
    rows = rows_of(tmp_path, "bm25", "40")
    assert rows["status"].eq("not_applicable").all()
    assert rows[["text", "failure"]].isna().all(axis=None)
    assert rows_of(tmp_path, "recent", "40")["status"].eq("ok").all()


def test_another_passage_length_asks_only_what_it_changes(shard: Shard, tmp_path: Path, model: Path) -> None:
    run(with_passages(shard, model), tmp_path, TEXT)
    computed = run(with_passages(shard, model, 12), tmp_path, TEXT)
    assert 0 < computed <= 6


def test_a_text_method_needs_the_model_s_tokenizer(shard: Shard, tmp_path: Path) -> None:
    without = {**shard.answer, "model": {**shard.answer["model"], "path": None}}
    with pytest.raises(UserError, match=r"kv\.methods: recent.*model\.path"):
        run(replace(shard, answer=without), tmp_path, TEXT)


@pytest.mark.parametrize("scope", ["prompt", "context"])
def test_memory_of_a_shorter_text_is_all_of_its_prompt_in_both_scopes(
    shard: Shard, tmp_path: Path, scope: str
) -> None:
    answer = {**shard.answer, "kv": {**shard.answer["kv"], "scope": scope}}
    run(replace(shard, answer=answer), tmp_path, TEXT[:3])
    rows = rows_of(tmp_path, "recent", "30")
    assert rows["kept_mean"].eq(30).all()
    assert rows["question_tokens"].eq(0).all()
    assert rows["bytes_kept"].nunique() == 1
    assert (rows["peak_tokens"] == 30 + rows["completion_tokens"]).all()
    position = 2 * 4 * 2 * 16 * 3  # keys and values, float32, KV heads, width, layers
    assert rows["bytes_kept"].eq(30 * position).all()


class Foreign(BaseEngine):
    """A server behind the real engine: it names no cache, or another count of the prompt's tokens."""

    def __init__(self, shard: Shard, *, more: int = 0, confirms: bool = True) -> None:
        self.engine = build_engine(
            {**shard.answer, "engine": {**shard.answer["engine"], "kind": "reference"}}
        )
        self.more, self.confirms, self.asked = more, confirms, 0

    def generate(self, prompt: Any, cell: Any, decoding: Any, example_id: str) -> EngineResult:
        self.asked += 1
        result = self.engine.generate(prompt, cell, decoding, example_id)
        tokens = (result.prompt_tokens or 0) + self.more
        return replace(result, prompt_tokens=tokens, kv=result.kv if self.confirms else None)


def served(shard: Shard, required: bool = True) -> Shard:
    """The shard with the settings of a server."""
    engine = {**shard.answer["engine"], "kind": "openai_compat"}
    return replace(
        shard, answer={**shard.answer, "engine": engine, "http": {"require_verified_budget": required}}
    )


def test_a_budget_that_nobody_confirmed_is_asked_again_once_proof_is_required(
    shard: Shard, tmp_path: Path
) -> None:
    lax, strict, cells = served(shard, False), served(shard), [CELLS[0], CELLS[2]]
    silent = Foreign(shard, confirms=False)
    assert run(lax, tmp_path, cells, lambda answer: silent) == 12
    (first,) = tmp_path.glob("journal/*/*.jsonl")
    first.rename(first.with_name("0.jsonl"))  # Files of one second have no order of their own.
    assert run(lax, tmp_path, cells, no_engine) == 0
    assert rows_of(tmp_path, "snapkv", "16")["verified"].eq("no").all()
    assert run(strict, tmp_path, cells, lambda answer: Foreign(shard)) == 6, "the whole cache needs no proof"
    assert run(strict, tmp_path, cells, no_engine) == 0, "the confirmed row counts, though it came later"
    assert rows_of(tmp_path, "snapkv", "16")["verified"].eq("measured").all()


def test_a_server_without_a_word_on_its_cache_reports_the_length_of_a_text_and_measures_nothing(
    shard: Shard, tmp_path: Path
) -> None:
    run(served(shard), tmp_path, TEXT[:3], lambda answer: Foreign(shard, confirms=False))
    assert rows_of(tmp_path, "recent", "30")["verified"].eq("reported").all()


def test_a_server_that_reads_more_tokens_than_a_text_s_budget_fails_its_rows(
    shard: Shard, tmp_path: Path
) -> None:
    server, words = Foreign(shard, more=26), r"the server counts 56 tokens where 30 were sent: model\.path"
    with pytest.raises(UserError, match=rf"recent 30: 6 of 6 requests failed.*{words}"):
        run(served(shard), tmp_path, TEXT[:3], lambda answer: server)
    asked = server.asked
    for _ in range(2):
        run(served(shard), tmp_path, TEXT[:3], lambda answer: server, max_failure_rate=1.0)
        rows = rows_of(tmp_path, "recent", "30")
        assert rows["failure"].eq("ENGINE_ERROR").all()
        assert rows["error"].str.fullmatch(f"{words} is not its tokenizer or template").all()
        assert rows["text"].eq("").all()
        assert rows_of(tmp_path, "full", "full")["failure"].isna().all()
    assert server.asked == asked, "asking again would change nothing"
    run(served(shard, False), tmp_path, TEXT[:3], no_engine)
    assert rows_of(tmp_path, "recent", "30")["verified"].eq("no").all()


def test_halves_of_characters_and_counts_without_bounds_do_not_break_a_table(
    shard: Shard, tmp_path: Path
) -> None:
    request = shard.requests([("full", "full")])[0].requests[0]
    raw = {"total_tokens": -(10**30), "notes": ["half \ud83d of one"]}
    result = EngineResult("a\udc00b \ud83d\ude00", "stop", 2**31, 2**31 - 1, None, Timings(), raw=raw)
    row = journal_row(request, result, {"model": "m\ud800"})
    made = response_row("e", "words", request, row, shard.answer["kv"])
    write_responses(tmp_path / "rows.parquet", [made], {})
    read = read_parquet(tmp_path / "rows.parquet").iloc[0]
    assert read["text"] == "a\ufffdb \U0001f600"
    assert read["notes"] == "half \ufffd of one"
    assert read["completion_tokens"] == 2**31 - 1
    assert read[["prompt_tokens", "total_tokens"]].isna().all()


def test_what_a_server_says_of_a_request_is_in_its_row(shard: Shard) -> None:
    request = shard.requests([("full", "full")])[0].requests[0]
    raw = {"attempts": 3, "notes": ["429 x2"], "total_tokens": 12}
    result = EngineResult("w1", "stop", 10, 2, None, Timings(timing_scope="request", latency_s=0.5), raw=raw)
    row = response_row("e", "words", request, journal_row(request, result, {}), shard.answer["kv"])
    assert (row["attempts"], row["notes"], row["total_tokens"], row["latency_s"]) == (3, "429 x2", 12, 0.5)
    silent = replace(result, raw={})
    row = response_row("e", "words", request, journal_row(request, silent, {}), shard.answer["kv"])
    assert (row["attempts"], row["notes"], row["total_tokens"]) == (1, None, None)
