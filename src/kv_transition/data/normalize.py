"""Records become examples: one schema for all datasets, with the token count of the finished prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_transition.data.counters import RecordLength, TokenCounter
from kv_transition.data.protocol import TaskProtocol, own_protocol
from kv_transition.data.token_counts import TokenCounts, prompt_content
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.errors import UserError
from kv_transition.files import canonical_json, sha256_text, write_parquet


@dataclass(frozen=True)
class Example:
    """A question about a context.

    Attributes
    ----------
    example_id : unique in its task.
    answers : the gold answers, each right by itself.
    meta : task, language, length (as the record gives it), all_classes, source_id, dataset, null where unknown;
        position (row in the source, from 0), and extra where the record has it.
    cluster_id : shared by the examples of one context.
    """

    example_id: str
    question: str
    context: str
    answers: list[str]
    meta: dict[str, Any]
    cluster_id: str


@dataclass(frozen=True)
class CountedExample(Example):
    """An example whose finished prompt has `token_len` tokens; the protocol's limit where the prompt was cut to it."""

    token_len: int

    def uncounted(self) -> Example:
        """The example without its length, which depends on a tokenizer."""
        return Example(self.example_id, self.question, self.context, self.answers, self.meta, self.cluster_id)


def normalize_records(
    records: Sequence[Mapping[str, Any]],
    task: str,
    counter: TokenCounter | RecordLength,
    protocol: TaskProtocol | None = None,
    tokenizer: ModelTokenizer | None = None,
    counts: TokenCounts | None = None,
) -> list[CountedExample]:
    """Examples of a task, sorted by example_id; texts are kept exactly as they are.

    Parameters
    ----------
    records : as :func:`kv_transition.data.longbench_loader.read_records` gives them.
    counter : counts `token_len` on the prompt that the model will be given, or takes the record's own length.
    protocol : makes the prompts, shortened ones included; by default this project's own.
    tokenizer : the model's, where the protocol has a limit.
    counts : lengths counted before, by the same counter, protocol and tokenizer; new ones are added, not saved.

    Notes
    -----
    example_id is the record's `_id` when every record has one, else a hash of task, context, question and answers.

    Raises
    ------
    UserError
        When two records have the same id (naming both), there is none, or one has no length where that counts.
    """
    ids = record_ids(records, task)
    protocol = protocol or own_protocol(task)

    def token_len(position: int, record: Mapping[str, Any]) -> int:
        if isinstance(counter, RecordLength):
            return counter.of(record, f"task {task}, record {position + 1} ({ids[position]})")
        if counts is None:
            return counted(record, counter)
        return counts.get(prompt_content(record), lambda: counted(record, counter))

    def counted(record: Mapping[str, Any], counter: TokenCounter) -> int:
        prompt = protocol.prompt(record["input"], record["context"], tokenizer, record.get("extra"))
        if prompt.dropped_tokens and protocol.max_length_tokens and isinstance(counter, ModelTokenizer):
            # Tokenised again, cut prompts differ by a token or two, which would sort noise into bins.
            return protocol.max_length_tokens
        return counter.count(prompt)

    examples = [
        _example(record, task, ids[position], position, token_len(position, record))
        for position, record in enumerate(records)
    ]
    return sorted(examples, key=lambda example: example.example_id)


def record_ids(records: Sequence[Mapping[str, Any]], task: str) -> list[str]:
    """The example_id of every record, in order; raises what :func:`normalize_records` raises."""
    if not records:
        raise UserError(f"task {task}: no records; check dataset.path and dataset.tasks")
    use_own = all(record.get("_id") for record in records)
    lines: dict[str, int] = {}
    for line, record in enumerate(records, start=1):
        key = str(record["_id"]) if use_own else _content_id(record, task)
        if lines.setdefault(key, line) != line:
            what = f"the same _id {key!r}" if use_own else "the same context, question and answers"
            raise UserError(f"task {task}: records {lines[key]} and {line} have {what}; keep one of them")
    return list(lines)


def _content_id(record: Mapping[str, Any], task: str) -> str:
    identity = canonical_json([task, record["context"], record["input"], list(record["answers"])])
    return sha256_text(identity)[:32]


def _example(
    record: Mapping[str, Any], task: str, example_id: str, position: int, token_len: int
) -> CountedExample:
    question, context, answers = record["input"], record["context"], list(record["answers"])
    classes = record.get("all_classes")
    meta: dict[str, Any] = {
        "task": task,
        "language": record.get("language"),
        "length": record.get("length"),
        "all_classes": None if classes is None else list(classes),
        "source_id": record.get("_id"),
        "dataset": record.get("dataset"),
        "position": position,
    }
    if record.get("extra") is not None:
        meta["extra"] = dict(record["extra"])
    cluster_id = sha256_text(context)[:16] if context.strip() else example_id
    return CountedExample(example_id, question, context, answers, meta, cluster_id, token_len)


def write_examples(
    path: str | Path, examples: Sequence[CountedExample], tokenizer: str = "", protocol: str = ""
) -> None:
    """Write examples.parquet, sorted by example_id; `tokenizer` names what counted them, `protocol` their prompts."""
    import pyarrow as pa

    columns = {
        "example_id": pa.array([e.example_id for e in examples], pa.string()),
        "question": pa.array([e.question for e in examples], pa.string()),
        "context": pa.array([e.context for e in examples], pa.string()),
        "answers": pa.array([e.answers for e in examples], pa.list_(pa.string())),
        "meta": pa.array([canonical_json(e.meta) for e in examples], pa.string()),
        "token_len": pa.array([e.token_len for e in examples], pa.int32()),
        "cluster_id": pa.array([e.cluster_id for e in examples], pa.string()),
    }
    metadata = {"tokenizer": tokenizer, "protocol": protocol}
    write_parquet(path, columns, sort_by=["example_id"], metadata=metadata)


def read_examples(path: str | Path) -> list[CountedExample]:
    """Read what :func:`write_examples` wrote."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    columns = (column.to_pylist() for column in table.columns)
    rows = [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
    return [
        CountedExample(
            example_id=row["example_id"],
            question=row["question"],
            context=row["context"],
            answers=list(row["answers"]),
            meta=json.loads(row["meta"]),
            cluster_id=row["cluster_id"],
            token_len=int(row["token_len"]),
        )
        for row in rows
    ]


def read_tokenizer(path: str | Path) -> str:
    """The name of the counter behind the `token_len` of an examples.parquet."""
    return _read_metadata(path, "tokenizer")


def read_protocol(path: str | Path) -> str:
    """Name and version of the prompts that an examples.parquet was counted with."""
    return _read_metadata(path, "protocol")


def _read_metadata(path: str | Path, key: str) -> str:
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    return str(metadata.get(key.encode(), b"").decode("utf-8"))
