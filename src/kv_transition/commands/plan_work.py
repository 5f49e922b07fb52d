"""What a run would ask: the requests of each task and method, and which of them the journal has answered already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kv_transition import content_hash, paths, preflight, slices
from kv_transition.budgets import UNCOMPRESSED, kept_tokens
from kv_transition.data import synthetic
from kv_transition.data.counters import load_counter
from kv_transition.data.longbench_loader import read_records
from kv_transition.data.manifest import Manifest, build_manifest, read_manifest
from kv_transition.data.normalize import (
    CountedExample,
    normalize_records,
    read_examples,
    read_protocol,
    read_tokenizer,
)
from kv_transition.data.prompts import Prompt
from kv_transition.data.protocol import TaskProtocol, load_protocol
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.engines.contexts import context_of
from kv_transition.run.noise import second_way
from kv_transition.run.requests import Request
from kv_transition.run.runner import FULL, Shard, shard_numbers
from kv_transition.schema import Settings

#: What answers of the full cache that are computed a second way are called.
NOISE = "full (noise floor)"

#: Says of a file whether it is there and no run would make it anew.
IsCurrent = Callable[[str], bool]


@dataclass
class MethodWork:
    """The requests of a method in one task.

    Attributes
    ----------
    requests : all of the method's; `not_asked` of them ask nothing (a text that does not fit into its budget).
    answered : in the journal, or in a response file that no run makes anew. to_compute : what is neither; an answer that two
        methods share counts with the first.
    copies : of `to_compute`, those whose budget takes nothing away, so that the full cache's answer is copied.
    new_tokens : most tokens that can be generated.
    """

    method: str
    cells: int = 0
    requests: int = 0
    not_asked: int = 0
    answered: int = 0
    to_compute: int = 0
    copies: int = 0
    new_tokens: int = 0


@dataclass
class TaskWork:
    """The requests of one task.

    Attributes
    ----------
    missing : what has to be prepared before more can be said; None where the numbers are known.
    unit : what counted the prompts' lengths. longest_prompt, prompt_tokens : of the prompts that are to be read.
    """

    task: str
    missing: str | None = None
    examples: int = 0
    unit: str = ""
    prompt_tokens: int = 0
    longest_prompt: int = 0
    methods: list[MethodWork] = field(default_factory=list)


def model_hash(settings: Settings) -> str | None:
    """What stands for the model in the journal's keys; None for published results."""
    path, kind = settings.model.path, settings.engine.kind
    if kind == "published":
        return None
    files = content_hash.model_sha256(path, settings.run.cache_dir) if path else None
    return slices.served_model(settings, files) if kind == "openai_compat" else files


def work_of(settings: Settings, is_current: IsCurrent) -> list[TaskWork]:
    """What each task asks.

    Parameters
    ----------
    settings : with the model's folder in them.
    is_current : for manifests and examples, which are made in memory from the records where they are not.
    """
    model, seen = model_hash(settings), set[str]()
    return [_task_work(settings, task, is_current, model, seen) for task in settings.dataset.tasks]


def _task_work(
    settings: Settings, task: str, is_current: IsCurrent, model: str | None, seen: set[str]
) -> TaskWork:
    work = TaskWork(task, missing=_unprepared(settings, task, is_current))
    if work.missing:
        return work
    manifest = _manifest(settings, task, is_current)
    work.examples, work.unit = len(manifest.entries), f"{manifest.length_unit} of {manifest.tokenizer}"
    cells = [(method, budget) for method, _, budget in (cell.partition("/") for cell in settings.cells)]
    if model is None:
        for method, _ in cells:
            one = _of_method(work, method)
            one.cells, one.requests = one.cells + 1, one.requests + work.examples
        return work
    answer = slices.answer_slice(settings, task)
    if settings.engine.kind == "openai_compat":
        answer = {**answer, "http": settings.http.model_dump(mode="json")}
    shard = Shard(manifest, 0, 1, answer, model, _protocol(settings, task))
    for method, _ in cells:
        _of_method(work, method).cells += 1
    _count(settings, shard, cells, work, is_current, seen)
    if settings.engine.measures_noise:
        _count_noise(settings, second_way(shard, settings.engine.noise_examples), work, is_current)
    return work


def _of_method(work: TaskWork, method: str) -> MethodWork:
    found = next((one for one in work.methods if one.method == method), None)
    if found is None:
        found = MethodWork(method)
        work.methods.append(found)
    return found


def _count(
    settings: Settings,
    shard: Shard,
    cells: list[tuple[str, str]],
    work: TaskWork,
    is_current: IsCurrent,
    seen: set[str],
) -> None:
    examples = shard.requests(cells)
    keys = {str(request.key) for example in examples for request in example.asked}
    known = {
        key
        for key, row in shard.journal(settings.run.journal_dir).read(keys, shard.counts).items()
        if shard.counts(row)
    }
    tokenizer = _tokenizer(settings)
    new_tokens = int(shard.settled["decoding"]["max_new_tokens"])
    by_server = settings.engine.kind == "openai_compat"
    names = paths.shard_names(settings.run.shards)
    written = {
        (method, budget, name)
        for method, budget in cells
        for name in names
        if is_current(settings.files.responses(work.task, f"{method}/{budget}", name))
    }
    numbers = shard_numbers(shard.manifest.examples, len(names), settings.kv.scope)
    contexts: set[object] = set()
    for number, example, entry in zip(numbers, examples, shard.manifest.entries, strict=True):
        name = names[number]
        read: dict[tuple[str | None, int | None], tuple[Prompt, int]] = {}
        for request in example.requests:
            one = _of_method(work, request.method)
            one.requests += 1
            if request.prompt is None or request.key is None:
                one.not_asked += 1
            elif request.key in known or (request.method, request.budget, name) in written:
                one.answered += 1
            elif request.key not in seen:
                seen.add(request.key)
                one.to_compute += 1
                if _is_copy(settings, request, entry.token_len):
                    one.copies += 1
                    continue
                one.new_tokens += new_tokens
                length = _length(request, entry.token_len, tokenizer)
                work.longest_prompt = max(work.longest_prompt, length)
                if by_server:
                    work.prompt_tokens += length
                else:
                    read[request.prompt_hash, request.prompt.context_end] = request.prompt, length
        for prompt, length in read.values():
            work.prompt_tokens += length
            context = context_of(prompt) if settings.kv.scope == "context" else None
            if context in contexts and tokenizer:
                work.prompt_tokens -= tokenizer.prompt_ids(prompt, "context").context_len
            if context is not None:
                contexts.add(context)


def _count_noise(settings: Settings, shard: Shard, work: TaskWork, is_current: IsCurrent) -> None:
    """The answers of the full cache that are computed a second way; no method shares them."""
    examples = shard.requests([FULL])
    if not examples:
        return  # computed in float32
    one = _of_method(work, NOISE)
    one.cells += 1
    keys = {str(request.key) for example in examples for request in example.asked}
    known = shard.journal(settings.run.journal_dir).read(keys, shard.counts)
    written = is_current(settings.files.noise(work.task))
    for example, entry in zip(examples, shard.manifest.entries, strict=True):
        for request in example.asked:
            row = known.get(str(request.key))
            answered = written or (row is not None and shard.counts(row))
            one.requests += 1
            one.answered += answered
            if not answered:
                one.to_compute += 1
                one.new_tokens += int(shard.settled["decoding"]["max_new_tokens"])
                work.longest_prompt = max(work.longest_prompt, entry.token_len)
                work.prompt_tokens += entry.token_len


def _length(request: Request, token_len: int, tokenizer: ModelTokenizer | None) -> int:
    """Tokens of a request's prompt; the manifest has those of the whole one."""
    if request.text is not None:
        return request.text.kept_tokens
    if request.method != "no_context":
        return token_len
    return tokenizer.count(request.prompt) if tokenizer and request.prompt else 0


def _is_copy(settings: Settings, request: Request, token_len: int) -> bool:
    """Whether the budget keeps every token of the prompt, as far as the manifest's lengths say."""
    budget = request.cell.budget
    if request.method in UNCOMPRESSED or budget is None or settings.tokenizer.name != "model":
        return False
    if settings.engine.kind == "openai_compat" and not settings.http.require_verified_budget:
        return False
    return settings.kv.scope == "prompt" and kept_tokens(budget, token_len) >= token_len


def _tokenizer(settings: Settings) -> ModelTokenizer | None:
    path = settings.model.path
    return ModelTokenizer(path) if path and Path(path, "tokenizer.json").is_file() else None


def _tables(settings: Settings) -> str | None:
    return paths.protocol_tables() if settings.protocol.kind == "official" else None


def _protocol(settings: Settings, task: str) -> TaskProtocol:
    section = slices.protocol_slice(settings, task)
    return load_protocol(section, _tables(settings), task, section["model_name"])


def _unprepared(settings: Settings, task: str, is_current: IsCurrent) -> str | None:
    """What is not there yet that requests are made of."""
    tables = _tables(settings)
    if settings.engine.kind != "published" and tables and not Path(tables).is_file():
        return "LongBench's prompt tables"
    if settings.record_source == "manifest" or is_current(settings.files.manifest(task)):
        return None
    dataset = settings.dataset
    if settings.record_source == "hub":
        raw = paths.raw_records(task, str(dataset.hub_id), dataset.revision)
        return None if Path(raw).is_file() else "its records from the hub"
    if settings.engine.kind == "published":
        return "its manifest"
    return None


def _manifest(settings: Settings, task: str, is_current: IsCurrent) -> Manifest:
    """The manifest that a run would use, read where it is current and else made in memory."""
    if settings.record_source == "manifest":
        return read_manifest(preflight.record_file(settings, task))
    if is_current(settings.files.manifest(task)):
        return read_manifest(settings.files.manifest(task))
    file = settings.files.examples(task)
    if is_current(file):
        examples, tokenizer, protocol = read_examples(file), read_tokenizer(file), read_protocol(file)
    else:
        examples, tokenizer, protocol = _examples(settings, task)
    return build_manifest(
        examples,
        experiment=settings.experiment.id,
        dataset=settings.dataset.name,
        task=task,
        tokenizer=tokenizer,
        protocol=protocol,
        min_tokens=settings.dataset.min_tokens,
        max_tokens=settings.dataset.max_tokens,
        **settings.binning.model_dump(mode="json"),
    )


def _examples(settings: Settings, task: str) -> tuple[list[CountedExample], str, str]:
    """The task's examples, the name of what counted them, and the label of their prompts."""
    protocol, model = _protocol(settings, task), settings.model.path
    counter = load_counter(settings.tokenizer.name, model, settings.tokenizer.fallback)
    tokenizer = ModelTokenizer(model) if protocol.needs_tokenizer and model else None
    examples = normalize_records(_records(settings, task), task, counter, protocol, tokenizer)
    return list(examples), counter.name, protocol.label


def _records(settings: Settings, task: str) -> list[dict[str, Any]]:
    dataset = settings.dataset
    if settings.record_source == "synthetic":
        made = dataset.synthetic
        return synthetic.make_records(task, made.n_documents, made.min_tokens, made.max_tokens, made.seed)
    if settings.record_source == "hub":
        return read_records(paths.raw_records(task, str(dataset.hub_id), dataset.revision), task)
    return read_records(preflight.record_file(settings, task), task)
