"""Prompt lengths are kept by content: a text is tokenised once for the same tokenizer and prompts."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kv_transition.data.normalize import normalize_records
from kv_transition.data.prompts import Prompt
from kv_transition.data.protocol import own_protocol
from kv_transition.data.token_counts import TokenCounts
from kv_transition.data.tokenizer import ModelTokenizer

TASK = "some_task"


@dataclass
class Words:
    """Counts words, and what it was asked."""

    name: str = "words"
    asked: list[str] = field(default_factory=list)

    def count(self, prompt: Prompt) -> int:
        self.asked.append(prompt.messages[-1]["content"])
        return sum(len(message["content"].split()) for message in prompt.messages)


def records(*contexts: str) -> list[dict]:
    return [{"input": "Where?", "context": context, "answers": ["here"]} for context in contexts]


def counts(folder: Path, counter: Words, code: str = "v1", **protocol: object) -> TokenCounts:
    return TokenCounts(folder, counter, replace(own_protocol(TASK), **protocol), None, code)


def lengths(folder: Path, counter: Words, *contexts: str, code: str = "v1") -> list[int]:
    kept = counts(folder, counter, code)
    examples = normalize_records(records(*contexts), TASK, counter, counts=kept)
    kept.save()
    return sorted(example.token_len for example in examples)


def test_a_second_experiment_with_the_same_texts_counts_nothing(tmp_path: Path) -> None:
    first, second = Words(), Words()
    plain = sorted(e.token_len for e in normalize_records(records("one", "two words"), TASK, Words()))
    assert lengths(tmp_path, first, "one", "two words") == plain
    assert lengths(tmp_path, second, "two words", "one") == plain
    assert (len(first.asked), len(second.asked)) == (2, 0)


def test_only_new_texts_are_counted(tmp_path: Path) -> None:
    lengths(tmp_path, Words(), "one", "two words")
    counter = Words()
    lengths(tmp_path, counter, "one", "two words", "now three words")
    assert len(counter.asked) == 1
    assert "now three words" in counter.asked[0]


@pytest.mark.parametrize(
    "change",
    [
        {"counter": Words("other words")},
        {"code": "v2"},
        {"max_length_tokens": 10},
        {"template": "{context} {input}"},
    ],
    ids=["counter", "code", "limit", "prompts"],
)
def test_whatever_may_change_a_length_has_lengths_of_its_own(tmp_path: Path, change: dict) -> None:
    kept = counts(tmp_path, Words())
    assert kept.get(["q", "c", None], lambda: 7) == 7
    kept.save()
    assert counts(tmp_path, Words()).get(["q", "c", None], lambda: 8) == 7
    assert counts(tmp_path, **{"counter": Words(), **change}).get(["q", "c", None], lambda: 8) == 8


def test_another_tokenizer_has_lengths_of_its_own_whatever_its_folder_is_called(
    tmp_path: Path, root: Path
) -> None:
    protocol, reader = own_protocol(TASK), root / "resources/tiny-reader"
    changed = tmp_path / "tiny-reader"
    changed.mkdir()
    for file in reader.glob("*.json"):
        (changed / file.name).write_text(file.read_text())
    (changed / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}!")
    first = TokenCounts(tmp_path, ModelTokenizer(reader), protocol, None, "v1")
    first.get(["q", "c", None], lambda: 7)
    first.save()
    assert TokenCounts(tmp_path, ModelTokenizer(reader), protocol, None, "v1").get("x", lambda: 1) == 1
    again = TokenCounts(tmp_path, ModelTokenizer(changed), protocol, None, "v1")
    assert again.get(["q", "c", None], lambda: 8) == 8


def test_a_broken_file_is_counted_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lengths(tmp_path, Words(), "one")
    [file] = tmp_path.glob("token_counts/*/*.jsonl")
    file.write_text(file.read_text().replace("[", "[[", 1))
    counter = Words()
    lengths(tmp_path, counter, "one")
    assert len(counter.asked) == 1
    assert "its prompts are counted again" in caplog.text
