"""What goes wrong with an example, a method or a model is a row or a line that says what helps, and the rest is answered.

Whole shards, as the workflow runs them, with real models of random weights in both engines that run in this process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from random_models import WORDS, write_random_llama
from test_runner import RUN, journal_rows, rows_of
from test_runner import run as run_cells

from kv_transition.data.counters import load_counter
from kv_transition.data.manifest import build_manifest
from kv_transition.data.normalize import normalize_records
from kv_transition.data.protocol import own_protocol
from kv_transition.engines.base import BaseEngine, Cell, EngineResult
from kv_transition.engines.endpoints import build_engine
from kv_transition.engines.failures import LONGEST, failure_words
from kv_transition.errors import UserError
from kv_transition.report.provenance import model_remarks
from kv_transition.run.runner import Shard
from kv_transition.settings import from_mapping
from kv_transition.slices import answer_slice

KINDS = ["reference", pytest.param("kvpress", marks=pytest.mark.kvpress)]
#: `random` is drawn three times.
CELLS = [("full", "full"), ("no_context", "full"), ("snapkv", "16"), ("tova", "16"), ("random", "16")]
LONG, SHORT = 400, (40, 60, 80)


def write_model(kind: str, folder: Path, **changes: Any) -> Path:
    """A Llama with random weights: by numpy alone for the reference engine, by transformers for kvpress."""
    if kind == "reference":
        return write_random_llama(folder, **changes)
    from test_kvpress_engine import write_model as by_transformers

    return by_transformers(folder, **changes)


def shard_of(
    kind: str, folder: Path, words: Sequence[int], engine: dict | None = None, kv: dict | None = None
) -> Shard:
    """A shard of one example for each number of words in its context."""
    records = [
        {
            "input": f"w{count % 50} w3",
            "context": " ".join(WORDS[(count * 7 + k) % len(WORDS)] for k in range(count)),
            "answers": ["w1"],
        }
        for count in words
    ]
    manifest = build_manifest(
        normalize_records(records, "words", load_counter("model", str(folder), "error")),
        experiment="e1",
        dataset="d",
        task="words",
        tokenizer="own",
        protocol="own-1",
        n_bins=1,
        n_per_bin=None,
        selection_seed=0,
    )
    own = {"device": "cpu"} if kind == "kvpress" else {}
    settings = from_mapping(
        {
            "model": {"path": str(folder)},
            "engine": {"kind": kind, "unknown_token_limit": 1, **own, **(engine or {})},
            "decoding": {"max_new_tokens": 6},
            "kv": kv or {"methods": ["snapkv", "tova", "random"], "budgets": [16]},
        }
    )
    return Shard(manifest, 0, 1, answer_slice(settings, "words"), "0" * 64, own_protocol("words"))


def run(shard: Shard, folder: Path, cells: Any = CELLS, **changes: Any) -> int:
    return run_cells(shard, folder, cells, **changes)


def texts(folder: Path, cells: Sequence[tuple[str, str]] = CELLS) -> dict[tuple[str, str, int], str]:
    """(method, example, replicate) -> answer, of all requests that have one."""
    found = {}
    for method, budget in cells:
        rows = rows_of(folder, method, budget)
        for row in rows[rows["failure"].isna()].itertuples():
            found[method, row.example_id, row.replicate] = row.text
    return found


class Watched(BaseEngine):
    """The real engine, and which examples it was asked for."""

    def __init__(self, answer: dict, asked: list[str]) -> None:
        self.engine, self.asked = build_engine(answer), asked

    def generate(self, prompt: Any, cell: Cell, decoding: Any, example_id: str) -> EngineResult:
        raise AssertionError("a local engine is asked for whole examples")

    def sweep(self, prompt: Any, cells: Any, decoding: Any, example_id: str) -> list[EngineResult]:
        self.asked.append(example_id)
        return self.engine.sweep(prompt, cells, decoding, example_id)


# A prompt that the model does not read


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_beyond_the_model_s_limit_is_a_failed_row_in_each_cell_and_all_others_are_answered(
    kind: str, tmp_path: Path
) -> None:
    model = write_model(kind, tmp_path / "model", max_position_embeddings=200)
    shard = shard_of(kind, model, [*SHORT[:2], LONG, *SHORT[2:]])
    bad = max(shard.manifest.entries, key=lambda entry: entry.token_len).example_id

    # As it comes: no answer of the full cache may be missing, and the line says what would allow it.
    told = r"full full: 1 of 4 requests failed, which run\.allow_failed_reference does not allow.*the model reads 1 to 200"
    with pytest.raises(UserError, match=told):
        run(shard, tmp_path / "a")
    assert journal_rows(tmp_path / "a") >= 3 * 7 + 1, "every other answer is in the journal"

    asked: list[str] = []
    limits = {"allow_failed_reference": True, "max_failure_rate": 0.0}
    run(shard, tmp_path / "a", make_engine=lambda answer: Watched(answer, asked), **limits)
    assert set(asked) == {bad}, "only what failed is asked again"
    for method, budget in CELLS:
        rows = rows_of(tmp_path / "a", method, budget)
        failed = rows[rows["failure"].notna()]
        assert set(failed["example_id"]) == (set() if method == "no_context" else {bad})
        assert failed["failure"].eq("ENGINE_ERROR").all()
        assert failed["error"].str.contains("the model reads 1 to 200").all()

    # The answers of the others are those of a shard without it.
    run(shard_of(kind, model, SHORT), tmp_path / "b")
    ours = texts(tmp_path / "a")
    assert ours.pop(("no_context", bad, 0))
    assert ours == texts(tmp_path / "b")


# Memory


def out_of_memory(kind: str) -> Exception:
    if kind == "reference":
        return MemoryError("Unable to allocate 4.00 TiB for an array")
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 MiB free.")


def fail_in_tova(kind: str, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make the method tova raise on the first prompt, in its second layer, and on no other."""
    seen: list[float] = []

    def fails(layer: int, keys: Any) -> bool:
        if layer == 1:
            seen.append(float(keys.sum()))
        # However often it is tried.
        return layer == 1 and seen[-1] == seen[0]

    if kind == "reference":
        from kv_transition.engines import sweep
        from kv_transition.engines.evictions import EVICTIONS, Eviction

        own = EVICTIONS["tova"]

        def score(layer: Any, parameters: Any, replicate: int) -> Any:
            if fails(layer.index, layer.keys):
                raise error
            return own.score(layer, parameters, replicate)

        monkeypatch.setattr(sweep, "EVICTIONS", {**EVICTIONS, "tova": Eviction(score, own.select)})
        return
    import kvpress

    before = kvpress.TOVAPress.score

    def score_of(press: Any, module: Any, hidden: Any, keys: Any, *rest: Any) -> Any:
        if fails(module.layer_idx, keys):
            raise error
        return before(press, module, hidden, keys, *rest)

    monkeypatch.setattr(kvpress.TOVAPress, "score", score_of)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lacks_memory", [True, False])
def test_a_method_that_raises_on_an_example_fails_its_own_row_only(
    kind: str, lacks_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_of(kind, write_model(kind, tmp_path / "model"), SHORT)
    run(shard, tmp_path / "good")
    error = out_of_memory(kind) if lacks_memory else IndexError("no such head\n  in this model")
    fail_in_tova(kind, monkeypatch, error)
    with pytest.raises(UserError, match=r"tova 16: 1 of 3 requests failed, which run.max_failure_rate"):
        run(shard, tmp_path / "bad")
    monkeypatch.undo()

    fail_in_tova(kind, monkeypatch, error)
    run(shard, tmp_path / "allowed", max_failure_rate=0.34)
    rows = rows_of(tmp_path / "allowed", "tova", "16")
    (failed,) = rows[rows["failure"].notna()].to_dict("records")
    assert failed["failure"] == "ENGINE_ERROR"
    assert "\n" not in failed["error"]
    if lacks_memory:
        assert "does not fit into memory" in failed["error"]
        assert ("not even with one cell at a time" in failed["error"]) == (kind == "kvpress")
    else:
        assert failed["error"] == "IndexError: no such head in this model"
    good = texts(tmp_path / "good")
    assert good.pop(("tova", failed["example_id"], 0))
    assert texts(tmp_path / "allowed") == good
    # Run again where nothing is wrong, and the row is like any other.
    monkeypatch.undo()
    assert run(shard, tmp_path / "bad") == 1
    assert texts(tmp_path / "bad") == texts(tmp_path / "good")


#: Answers once, then lets each sweep have no more memory than the process has already, and `margin` bytes.
LIMITED = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from random_models import random_prompt
from test_robust_examples import CELLS, Cell, Watched, rows_of, run, shard_of
from kv_transition.engines.base import Decoding

kind, folder, words, margin = sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5])

class Limited(Watched):
    def __init__(self, answer):
        super().__init__(answer, [])
        self.engine.sweep(random_prompt(0, 80), [Cell("snapkv", 16), Cell("tova", 16)], Decoding(6), "warm")

    def sweep(self, *asked):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + margin, before[1]))
        try:
            return super().sweep(*asked)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

shard = shard_of(kind, folder / "model", words, {"attn_implementation": "eager"} if kind == "kvpress" else {})
run(shard, folder, make_engine=Limited, allow_failed_reference=True, max_failure_rate=1.0)
rows = {method: rows_of(folder, method, budget) for method, budget in CELLS}
print(json.dumps({method: [table["example_id"].tolist(), table["error"].tolist()] for method, table in rows.items()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "words", "margin"),
    [
        # Blocks of attention of 256 x prompt x 2 numbers.
        ("reference", 60_000, 64 << 20),
        # Eager attention: prompt x prompt x 8 numbers.
        pytest.param("kvpress", 6_000, 256 << 20, marks=pytest.mark.kvpress),
    ],
)
def test_an_example_that_really_runs_out_of_memory_is_a_row_and_the_shorter_ones_after_it_are_answered(
    kind: str, words: int, margin: int, tmp_path: Path
) -> None:
    write_model(kind, tmp_path / "model", max_position_embeddings=1 << 17)
    lengths = json.dumps([SHORT[0], words, *SHORT[1:]])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parent), kind, tmp_path, lengths, str(margin)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for method, (ids, errors) in json.loads(done.stdout.splitlines()[-1]).items():
        failed = {example for example, error in zip(ids, errors, strict=True) if error}
        assert len(failed) == (0 if method == "no_context" else 1), (method, errors)
        for error in filter(None, errors):
            assert "does not fit into memory" in error
            assert "dataset.max_tokens" in error
            assert re.search("DefaultCPUAllocator" if kind == "kvpress" else "Unable to allocate", error)
    assert len(set(ids)) == 4


def test_an_error_is_one_line_of_bounded_length_whose_ends_are_kept() -> None:
    words = failure_words(ValueError("the cause\n" + "stack frame\n" * 500 + "the last word"))
    assert words.startswith("ValueError: the cause stack frame")
    assert words.endswith("the last word")
    assert "\n" not in words
    assert len(words) < LONGEST + 50
    assert failure_words(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (MemoryError(), "dataset.max_tokens"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "engine.dtype"),
        (RuntimeError("CUDA error: out of memory"), "engine.dtype"),
        (RuntimeError("shapes do not fit"), None),
    ],
    ids=str,
)
def test_only_a_lack_of_memory_is_answered_with_what_saves_memory(
    error: Exception, helps: str | None
) -> None:
    words = failure_words(error)
    assert words.startswith(type(error).__name__)
    assert (helps or "memory") in words if helps else "memory" not in words


# A model without a chat template, a model that kvpress is not tested with


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_a_chat_template_is_asked_in_plain_text_and_log_and_report_say_so(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model(kind, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}))
    shard = shard_of(kind, model, SHORT)
    with caplog.at_level(logging.WARNING):
        run(shard, tmp_path)
    assert [message for message in caplog.messages if "chat template" in message] == [
        f"{model} has no chat template: prompts are asked as plain text"
    ]
    files = sorted(tmp_path.glob("out/full/full/*.parquet"))
    assert model_remarks(files) == ["The model has no chat template: prompts were asked as plain text."]
    for method, budget in CELLS:
        rows = rows_of(tmp_path, method, budget)
        assert rows["failure"].isna().all()
        assert rows["verified"].eq("measured").all()


@pytest.mark.parametrize("kind", KINDS)
def test_of_an_ordinary_model_nothing_is_remarked(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shard_of(kind, write_model(kind, tmp_path / "model"), SHORT)
    with caplog.at_level(logging.WARNING):
        run(shard, tmp_path)
    assert caplog.messages == []
    assert model_remarks(sorted(tmp_path.glob("out/full/full/*.parquet"))) == []


@pytest.mark.kvpress
def test_a_model_that_kvpress_is_not_tested_with_is_answered_and_log_and_report_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from test_kvpress_engine import write_model as by_transformers

    model = by_transformers(tmp_path / "model", "Gemma")
    with caplog.at_level(logging.WARNING):
        run(shard_of("kvpress", model, SHORT), tmp_path)
    (line,) = [message for message in caplog.messages if "kvpress" in message]
    assert line.startswith("GemmaForCausalLM is not among the models that kvpress is tested with")
    (remark,) = model_remarks(sorted(tmp_path.glob("out/full/full/*.parquet")))
    assert "kvpress is not tested with models of class GemmaForCausalLM" in remark
    for method, budget in CELLS:
        rows = rows_of(tmp_path, method, budget)
        assert rows["failure"].isna().all()
        if budget == "16":
            assert rows["kept_mean"].eq(16).all()


# Presses that do not work here

#: Class -> what befalls it on a model that it knows nothing of; one wants a file of the hub, the last keeps whole chunks.
STUBBORN = {
    "LUKVPress": "KeyError: .*No LU-KV budget curve",
    "QFilterPress": "LocalEntryNotFoundError|OfflineModeIsEnabled",
    "ChunkKVPress": r"RuntimeError: stubborn kept \[.*\] positions per layer where 31 were asked for",
}


@pytest.mark.kvpress
@pytest.mark.parametrize("name", STUBBORN)
def test_a_press_that_does_not_work_with_the_model_fails_its_rows_and_spoils_no_other(
    name: str, tmp_path: Path
) -> None:
    inner = {"inner": {"press": "KnormPress"}} if name == "ChunkKVPress" else {}
    presses = {"stubborn": {"press": name, **inner}, "fine": {"press": "KnormPress"}}
    methods = ["snapkv", "tova", "knorm", "stubborn", "fine"]
    kv = {"methods": methods, "presses": presses, "budgets": [32]}
    shard = shard_of("kvpress", write_model("kvpress", tmp_path / "model"), SHORT, kv=kv)
    cells = [
        ("full", "full"),
        *((method, "32") for method in ("snapkv", "stubborn", "tova", "knorm", "fine")),
    ]
    run(shard, tmp_path, cells, max_failure_rate=1.0)
    rows = rows_of(tmp_path, "stubborn", "32")
    assert rows["failure"].eq("ENGINE_ERROR").all()
    assert rows["error"].str.match(STUBBORN[name]).all(), rows["error"].tolist()
    rest = [cell for cell in cells if cell[0] != "stubborn"]
    run(shard, tmp_path / "without", rest)
    ours, theirs = texts(tmp_path, cells=rest), texts(tmp_path / "without", cells=rest)
    assert ours == theirs
    assert all(ours["fine", example, 0] == ours["knorm", example, 0] for _, example, _ in ours)
    with pytest.raises(UserError, match=r"stubborn 32: 3 of 3 requests failed, which run\.max_failure_rate"):
        run(shard, tmp_path, cells, max_failure_rate=RUN["max_failure_rate"])
