"""The order in which a shard's prompts are computed, and what is written meanwhile, whatever ends the run."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import WORDS, write_random_llama

from kv_transition.data.counters import load_counter
from kv_transition.data.manifest import build_manifest
from kv_transition.data.normalize import normalize_records
from kv_transition.data.protocol import own_protocol
from kv_transition.engines.endpoints import build_engine
from kv_transition.engines.local import LocalEngine
from kv_transition.errors import UserError
from kv_transition.files import read_parquet
from kv_transition.run.journal import Journal
from kv_transition.run.runner import Shard, infer_shard, shard_numbers
from kv_transition.settings import from_mapping
from kv_transition.slices import answer_slice

CELLS = [("full", "full"), ("no_context", "full"), ("snapkv", "16"), ("random", "16")]
CONTEXTS, QUESTIONS = 3, 4
ROWS = CONTEXTS * QUESTIONS * 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def shards(model: Path) -> Callable[..., Shard]:
    contexts = [" ".join(np.random.RandomState(n).choice(WORDS, 60)) for n in range(CONTEXTS)]
    records = [
        {"input": f"w{n} w3", "context": contexts[n % CONTEXTS], "answers": ["w1"]}
        for n in range(CONTEXTS * QUESTIONS)
    ]
    manifest = build_manifest(
        normalize_records(records, "words", load_counter("model", str(model), "error")),
        experiment="e1",
        dataset="d",
        task="words",
        tokenizer="own",
        protocol="own-1",
        n_bins=1,
        n_per_bin=None,
        selection_seed=0,
    )

    def make(scope: str) -> Shard:
        settings = from_mapping(
            {
                "model": {"path": str(model)},
                "engine": {"unknown_token_limit": 1},
                "decoding": {"max_new_tokens": 4},
                "kv": {"scope": scope, "first_token": "compressed"},
            }
        )
        return Shard(manifest, 0, 1, answer_slice(settings, "words"), "0" * 64, own_protocol("words"))

    return make


@pytest.fixture
def shard(shards: Callable[..., Shard]) -> Shard:
    return shards("context")


def run(shard: Shard, folder: Path, make_engine: Any = build_engine) -> int:
    outputs = {cell: folder / "out" / cell[0] / f"{cell[1]}.parquet" for cell in CELLS}
    limits = {"max_failure_rate": 0.0, "allow_failed_reference": False}
    return infer_shard(shard, outputs, {"journal_dir": str(folder / "journal"), **limits}, make_engine)


def written(folder: Path) -> dict[str, str]:
    """The response files without what depends on the run."""
    changes = ["latency_s", "ttfb_s", "prefill_s", "compress_s", "decode_s", "created", "host"]
    tables = {file.parent.name: read_parquet(file) for file in folder.glob("out/*/*.parquet")}
    return {
        name: table.drop(columns=changes, errors="ignore").to_json(orient="records")
        for name, table in tables.items()
    }


def journal_rows(folder: Path) -> int:
    files = [file.read_bytes() for file in folder.glob("journal/*/*.jsonl")]
    assert all(text.endswith(b"\n") for text in files if text), "no torn row"
    return sum(text.count(b"\n") for text in files)


def watched(before_sweep: Callable[[int], None]) -> Callable[[dict[str, Any]], Any]:
    """Builds the real engine, which tells before each sweep how many there were."""

    def build(answer: dict[str, Any]) -> Any:
        engine: Any = build_engine(answer)
        sweep, sweeps = engine.sweep, 0

        def told(*given: Any) -> Any:
            nonlocal sweeps
            before_sweep(sweeps)
            sweeps += 1
            return sweep(*given)

        engine.sweep = told
        return engine

    return build


# The order


def counting(lengths: list[int]) -> Callable[[dict[str, Any]], Any]:
    """Builds the real engine, which notes the tokens of every prefill."""

    def build(answer: dict[str, Any]) -> Any:
        engine: Any = build_engine(answer)
        prefill = engine.model.prefill

        def counted(ids: Sequence[int], *rest: Any) -> Any:
            lengths.append(len(ids))
            return prefill(ids, *rest)

        engine.model.prefill = counted
        return engine

    return build


def test_in_scope_context_each_context_is_read_once_however_the_manifest_mixes_them(
    shard: Shard, tmp_path: Path
) -> None:
    clusters = [example.cluster_id for example in shard.examples()]
    assert any(one != other for one, other in pairwise(clusters))
    assert clusters != sorted(clusters, key=clusters.index), "the manifest mixes them"
    lengths: list[int] = []
    assert run(shard, tmp_path, counting(lengths)) == ROWS == journal_rows(tmp_path)
    assert len([length for length in lengths if length]) == CONTEXTS, "a missing context is no tokens"


def test_in_scope_prompt_every_prompt_is_read(shards: Callable[..., Shard], tmp_path: Path) -> None:
    lengths: list[int] = []
    run(shards("prompt"), tmp_path, counting(lengths))
    assert sum(length > 40 for length in lengths) == CONTEXTS * QUESTIONS


def test_response_files_are_those_of_prompts_read_one_by_one(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(shard, tmp_path / "together")
    monkeypatch.setattr(LocalEngine, "read_ahead", lambda engine, prompt: None)
    run(shard, tmp_path / "alone")
    together = written(tmp_path / "together")
    assert together == written(tmp_path / "alone")
    in_file = read_parquet(tmp_path / "together/out/full/full.parquet")["example_id"].tolist()
    assert in_file == [example.example_id for example in shard.examples()]


def test_questions_about_a_context_are_in_one_shard(shard: Shard, shards: Callable[..., Shard]) -> None:
    parts = [replace(shard, index=index, count=2).examples() for index in range(2)]
    clusters = [{example.cluster_id for example in part} for part in parts]
    assert not clusters[0] & clusters[1]
    assert sorted(map(len, clusters)) == [1, 2]
    ids = [example.example_id for part in parts for example in part]
    assert sorted(ids) == sorted(example.example_id for example in shard.examples())
    assert shard_numbers(shard.examples(), 4, "prompt") == [0, 1, 2, 3] * CONTEXTS


# What is written meanwhile


def test_rows_are_written_while_the_next_prompt_is_computed(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, fsync = threading.Event(), os.fsync
    waits: list[bool] = []

    def slow_disk(descriptor: int) -> None:
        if not waits:  # the folder's own entry, then the first rows
            waits.append(computing.wait(60))
        fsync(descriptor)

    monkeypatch.setattr("kv_transition.run.journal.os.fsync", slow_disk)
    run(shard, tmp_path, watched(lambda sweeps: computing.set() if sweeps == 1 else None))
    assert waits == [True], "the second prompt was computed while the first one's rows were written"
    assert journal_rows(tmp_path) == ROWS


def test_prompts_that_are_answered_together_are_written_together_and_an_interruption_keeps_them(
    shards: Callable[..., Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kv_transition.engines.reference.PROMPTS_TOGETHER", 5)
    shard, append, written_at_once = shards("prompt"), Journal.append, []

    def counted(journal: Journal, given: Any) -> None:
        written_at_once.append(len({row["prompt_hash"] for row in given}))
        append(journal, given)

    monkeypatch.setattr(Journal, "append", counted)
    prefills = itertools.count()

    def build(answer: dict[str, Any]) -> Any:
        engine: Any = build_engine(answer)
        prefill = engine.model.prefill

        def stopped(ids: Sequence[int], *rest: Any) -> Any:
            if next(prefills) == 12:
                raise KeyboardInterrupt
            return prefill(ids, *rest)

        engine.model.prefill = stopped
        return engine

    with pytest.raises(KeyboardInterrupt):
        run(shard, tmp_path, build)
    assert written_at_once == [5, 5]
    kept = journal_rows(tmp_path)
    assert run(shard, tmp_path) == ROWS - kept
    assert sum(written_at_once) == 2 * CONTEXTS * QUESTIONS


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interruption_loses_nothing_that_was_computed(
    shard: Shard, tmp_path: Path, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(sweeps: int) -> None:
        if sweeps == 5:
            raise stop

    rows: list[int] = []
    append = Journal.append

    def slow(journal: Journal, given: Any) -> None:
        threading.Event().wait(0.05)
        append(journal, given)
        rows.append(len(given))

    monkeypatch.setattr(Journal, "append", slow)
    with pytest.raises(stop):
        run(shard, tmp_path, watched(interrupt))
    assert len(rows) == 5
    kept = sum(rows)
    assert journal_rows(tmp_path) == kept
    assert run(shard, tmp_path) == ROWS - kept


def test_a_full_disk_ends_the_run_in_one_line_and_what_was_written_is_whole(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    calls: list[int] = []
    sweeps: list[int] = []

    def fills(descriptor: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) == 4:
            return write(descriptor, data[: len(data) // 2])
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr("kv_transition.run.journal.os.write", fills)
    with pytest.raises(UserError, match=r"cannot write the journal \(No space left on device\).*is safe"):
        run(shard, tmp_path, watched(sweeps.append))
    assert len(sweeps) <= 3 + 3, "the run does not go on for long"
    monkeypatch.undo()
    before = journal_rows(tmp_path)
    assert 0 < before < ROWS
    assert run(shard, tmp_path) == ROWS - before


def test_a_disk_that_is_full_at_the_last_rows_is_said_too(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, last = os.write, threading.Event()

    def fills(descriptor: int, data: Any) -> int:
        if last.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr("kv_transition.run.journal.os.write", fills)
    prompts = 2 * CONTEXTS * QUESTIONS
    with pytest.raises(UserError, match="cannot write the journal"):
        run(shard, tmp_path, watched(lambda sweeps: last.set() if sweeps == prompts - 1 else None))
    assert not list(tmp_path.glob("out/**/*.parquet"))
