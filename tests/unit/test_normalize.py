"""Records become examples with an id, a length and a cluster."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.counters import load_counter
from kv_transition.data.longbench_loader import read_records
from kv_transition.data.normalize import (
    normalize_records,
    read_examples,
    read_protocol,
    read_tokenizer,
    write_examples,
)
from kv_transition.data.prompts import Prompt
from kv_transition.data.protocol import TaskProtocol, own_protocol
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.errors import UserError


class Characters:
    """Counts characters of the whole prompt."""

    name = "characters"

    def count(self, prompt: Prompt) -> int:
        return sum(len(message["content"]) for message in prompt.messages)


def record(**changes: Any) -> dict[str, Any]:
    base = {
        "input": "Who?",
        "context": "A story.",
        "answers": ["me"],
        "length": 2,
        "dataset": "hotpotqa",
        "language": "en",
        "all_classes": None,
        "_id": "a",
    }
    return base | changes


def normalize(*records: Mapping[str, Any]) -> list[Any]:
    return normalize_records(records, "hotpotqa", Characters())


@given(
    question=st.text(max_size=20),
    context=st.text(max_size=20),
    answers=st.lists(st.text(max_size=9), max_size=3),
)
def test_texts_are_kept_exactly(question: str, context: str, answers: list[str]) -> None:
    [example] = normalize(record(input=question, context=context, answers=answers))
    assert (example.question, example.context, example.answers) == (question, context, answers)


def test_an_example_keeps_what_the_record_says_of_itself() -> None:
    [example] = normalize(record(all_classes=["x", "y"], length=17))
    assert example.example_id == "a"
    assert example.meta == {
        "task": "hotpotqa",
        "language": "en",
        "length": 17,
        "all_classes": ["x", "y"],
        "source_id": "a",
        "dataset": "hotpotqa",
        "position": 0,
    }


def test_an_example_knows_its_row_in_the_source() -> None:
    examples = normalize(record(_id="b"), record(_id="a"), record(_id="c"))
    assert {example.example_id: example.meta["position"] for example in examples} == {"b": 0, "a": 1, "c": 2}


def test_further_columns_are_kept_where_a_record_has_them() -> None:
    one, two, three = normalize(
        record(_id="a", extra={"domain": "law"}), record(_id="b", extra=None), record(_id="c")
    )
    assert one.meta["extra"] == {"domain": "law"}
    assert "extra" not in two.meta
    assert "extra" not in three.meta


def test_token_len_counts_the_finished_prompt() -> None:
    short, long = normalize(record(_id="a"), record(_id="b", context="A story. And more."))
    assert long.token_len - short.token_len == len(" And more.")
    assert short.token_len > len("A story.\n\nWho?")


def test_token_len_counts_the_prompt_of_the_protocol() -> None:
    official = TaskProtocol(
        "hotpotqa", "official", "official-1", template="<{context}|{input}>", wrapped=False
    )
    [example] = normalize_records([record()], "hotpotqa", Characters(), official)
    assert example.token_len == len("<A story.|Who?>")


def test_a_prompt_that_was_cut_counts_as_the_limit_so_that_cut_prompts_share_a_bin(root: Path) -> None:
    """Tokenised again they differ by a token or two, which is noise and no length."""
    tokenizer = ModelTokenizer(root / "resources" / "tiny-reader")
    limit = 120
    protocol = own_protocol("qasper", limit)
    records = [record(_id=str(n), context="the amber river stone . " * n) for n in (2, 60, 61, 90)]
    examples = normalize_records(records, "qasper", tokenizer, protocol, tokenizer)
    assert [example.token_len for example in examples[1:]] == [limit] * 3
    assert examples[0].token_len < limit
    prompts = [protocol.prompt("Who?", one["context"], tokenizer) for one in records[1:]]
    assert len({tokenizer.count(prompt) for prompt in prompts} | {limit}) > 1, (
        "they do differ when counted again"
    )


def test_the_records_own_length_can_be_the_token_len() -> None:
    counter = load_counter("length", None, "error")
    [example] = normalize_records([record(length=4321)], "hotpotqa", counter)
    assert (counter.name, example.token_len) == ("length", 4321)


@pytest.mark.parametrize("length", [None, 0])
def test_a_record_without_length_is_named_where_the_length_counts(length: int | None) -> None:
    records = [record(), record(_id="b", length=length)]
    with pytest.raises(UserError, match=r"task hotpotqa, record 2 \(b\): length is .*tokenizer\.name"):
        normalize_records(records, "hotpotqa", load_counter("length", None, "error"))


def test_examples_come_sorted_by_id_whatever_the_order_of_records() -> None:
    one, two = record(_id="b"), record(_id="a", input="Where?")

    def without_position(examples: list[Any]) -> list[Any]:
        return [replace(example, meta={**example.meta, "position": None}) for example in examples]

    assert without_position(normalize(one, two)) == without_position(normalize(two, one))
    assert [example.example_id for example in normalize(one, two)] == ["a", "b"]


def test_without_own_ids_the_content_makes_the_id() -> None:
    bare = {"input": "Who?", "context": "A story.", "answers": ["me"]}
    [example] = normalize(bare)
    assert len(example.example_id) == 32
    assert [example] == normalize(dict(reversed(bare.items())))
    for other in ({"input": "Where?"}, {"context": "Another."}, {"answers": ["you"]}):
        assert normalize(bare | other)[0].example_id != example.example_id


@pytest.mark.parametrize("lacking", [{"_id": ""}, {"_id": None}])
def test_one_record_without_id_makes_all_ids_from_content(lacking: dict[str, Any]) -> None:
    examples = normalize(record(), record(input="Where?", **lacking))
    assert all(len(example.example_id) == 32 for example in examples)
    assert {example.meta["source_id"] for example in examples} == {"a", lacking["_id"]}


def test_doubled_ids_are_refused_and_both_records_named() -> None:
    with pytest.raises(UserError, match=r"records 1 and 3 have the same _id 'a'"):
        normalize(record(), record(_id="b"), record(input="Where?"))
    with pytest.raises(UserError, match=r"records 1 and 2 have the same context, question and answers"):
        normalize(record(_id=""), record(_id=""))


def test_no_records_are_refused() -> None:
    with pytest.raises(UserError, match="hotpotqa"):
        normalize()


def test_examples_of_one_context_share_a_cluster() -> None:
    one, two, three = normalize(
        record(_id="1"), record(_id="2", input="Where?"), record(_id="3", context="Another story.")
    )
    assert one.cluster_id == two.cluster_id != three.cluster_id
    assert len(one.cluster_id) == 16


def test_examples_without_context_are_clusters_of_their_own() -> None:
    one, two = normalize(record(_id="1", context=""), record(_id="2", context="", input="Where?"))
    assert (one.cluster_id, two.cluster_id) == ("1", "2")


def test_examples_survive_the_file(tmp_path: Path) -> None:
    examples = normalize(
        record(), record(_id="é\n2", context=" 猫\u2028\r\n", answers=[], all_classes=["类"])
    )
    write_examples(tmp_path / "examples.parquet", examples, "characters", "own-1")
    assert read_examples(tmp_path / "examples.parquet") == examples
    assert read_tokenizer(tmp_path / "examples.parquet") == "characters"
    assert read_protocol(tmp_path / "examples.parquet") == "own-1"


def test_the_file_has_the_same_bytes_whatever_the_order_of_examples(tmp_path: Path) -> None:
    examples = normalize(*(record(_id=str(i)) for i in range(9)))
    write_examples(tmp_path / "a", examples)
    write_examples(tmp_path / "b", examples[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_files_columns_have_their_agreed_types(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_examples(tmp_path / "examples.parquet", normalize(record(answers=[])))
    schema = pq.read_schema(tmp_path / "examples.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "example_id": "string",
        "question": "string",
        "context": "string",
        "answers": "list<element: string>",
        "meta": "string",
        "token_len": "int32",
        "cluster_id": "string",
    }


@pytest.mark.parametrize(("task", "clusters"), [("multi_news", 200), ("multifieldqa_zh", 142)])
def test_whole_official_tasks_normalise(shared: Path, tmp_path: Path, task: str, clusters: int) -> None:
    records = read_records(shared / "longbench", task)
    examples = normalize_records(records, task, Characters())
    write_examples(tmp_path / "examples.parquet", examples)
    assert read_examples(tmp_path / "examples.parquet") == examples
    assert len(examples) == 200
    assert len({example.cluster_id for example in examples}) == clusters
    by_id = {example.example_id: example for example in examples}
    for row in records:
        assert by_id[row["_id"]].context == row["context"]
        assert by_id[row["_id"]].answers == row["answers"]
        assert json.loads(json.dumps(by_id[row["_id"]].meta))["length"] == row["length"]
