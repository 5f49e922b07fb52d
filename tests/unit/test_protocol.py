"""Official prompts are LongBench's, text for text; prompts that are too long lose their middle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from kv_transition.data.longbench_loader import read_records
from kv_transition.data.prompts import build_prompt, prompt_hash
from kv_transition.data.protocol import TaskProtocol, load_protocol, own_protocol
from kv_transition.data.protocol_tables import fetch_tables
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.errors import UserError
from kv_transition.settings import from_mapping
from kv_transition.slices import answer_slice, protocol_slice

OFFICIAL = {"kind": "official", "max_length_tokens": None}
MODEL = "llama2-7b-chat-4k"  # LongBench's own limit for it is 3500
PLAIN_TEXT_TASKS = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
DECODING = {"max_new_tokens": 16, "max_new_tokens_by_task": {}, "stop": []}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[answer]"


def train(folder: Path, texts: list[str], **config: Any) -> Path:
    """A model folder with a small byte-level BPE tokenizer that begins texts with <s>, and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def records(shared: Path) -> dict[str, list[dict]]:
    """All real records there are: whole files of two tasks, samples of all others (an _e name among them)."""
    found = {
        file.stem: read_records(file, file.stem) for file in (shared / "longbench_subset").glob("*.jsonl")
    }
    whole = {
        f"{file.stem}_e": read_records(file, file.stem) for file in (shared / "longbench").glob("*.jsonl")
    }
    assert len(found) + len(whole) == 20
    return found | whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, records: dict[str, list[dict]]) -> Path:
    texts = [record["context"][:4000] for rows in records.values() for record in rows[:4]]
    return train(tmp_path_factory.mktemp("model"), texts)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ModelTokenizer:
    return ModelTokenizer(folder)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    path = tmp_path_factory.mktemp("tables") / "tables.json"
    fetch_tables(path, shared / "longbench_config")
    return path


@pytest.fixture(scope="module")
def templates(shared: Path) -> dict[str, str]:
    return json.loads((shared / "longbench_config" / "dataset2prompt.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def official(tables: Path) -> Callable[..., TaskProtocol]:
    def load(task: str, model: str | None = MODEL, **section: Any) -> TaskProtocol:
        return load_protocol(OFFICIAL | section, tables, task, model)

    return load


def each(records: dict[str, list[dict]]) -> Iterator[tuple[str, dict]]:
    return ((task, record) for task, rows in records.items() for record in rows)


def test_every_official_prompt_is_the_official_template_filled(
    records: dict, templates: dict, official: Callable
) -> None:
    for task, record in each(records):
        unlimited = replace(official(task), max_length_tokens=None)
        prompt = unlimited.prompt(record["input"], record["context"])
        expected = templates[task.removesuffix("_e")].format(**record)
        assert [dict(message) for message in prompt.messages] == [{"role": "user", "content": expected}]
        assert prompt.context_end is not None
        assert expected[: prompt.context_end].endswith(record["context"])
        assert (prompt.dropped_tokens, prompt.excess_tokens, prompt.context_lost) == (0, 0, False)


def test_every_long_prompt_loses_its_middle_as_in_the_official_code(
    records: dict, templates: dict, official: Callable, tokenizer: ModelTokenizer, folder: Path
) -> None:
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    protocols = {task: official(task) for task in records}
    shortened = 0
    for task, record in each(records):
        text = templates[task.removesuffix("_e")].format(**record)
        ids, dropped, excess = theirs.encode(text).ids, 0, 0
        if len(ids) > 3500:
            text = theirs.decode(ids[:1750]) + theirs.decode(ids[-1750:])
            dropped, excess = len(ids) - 3500, max(0, len(theirs.encode(text).ids) - 3500)
            shortened += 1
        prompt = protocols[task].prompt(record["input"], record["context"], tokenizer)
        assert prompt.messages[-1]["content"] == text
        assert (prompt.dropped_tokens, prompt.excess_tokens) == (dropped, excess)
    assert shortened > 400


def test_plain_official_prompts_have_the_tokens_that_a_tokenizer_gives_the_whole_text(
    records: dict, official: Callable, tokenizer: ModelTokenizer, folder: Path
) -> None:
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    seen = 0
    for task in sorted(PLAIN_TEXT_TASKS & records.keys()):
        for record in records[task][:4]:
            prompt = official(task).prompt(record["input"], record["context"], tokenizer)
            text = prompt.messages[-1]["content"]
            assert tokenizer.prompt_ids(prompt).ids == theirs.encode(text).ids
            seen += 1
    assert seen >= 12


def test_an_odd_limit_keeps_twice_its_rounded_half(official: Callable, tokenizer: ModelTokenizer) -> None:
    context = "x1 y2 z3 " * 200
    even, odd = (
        official("lcc", max_length_tokens=limit).prompt("", context, tokenizer) for limit in (80, 81)
    )
    assert even.messages == odd.messages
    assert even.dropped_tokens == odd.dropped_tokens


def test_changed_answers_are_no_longer_called_official(tables: Path) -> None:
    config = {
        "protocol": OFFICIAL,
        "decoding": {"max_new_tokens_by_task": {"vcsum": 20}},
    }
    labels = {
        task: load_protocol(protocol_slice(from_mapping(config), task), tables, task, MODEL).label
        for task in ("vcsum", "qasper")
    }
    assert labels == {
        "vcsum": "official-2e00731f modified: max_new_tokens 20",
        "qasper": "official-2e00731f",
    }


def test_braces_in_a_record_are_text(official: Callable, templates: dict, tokenizer: ModelTokenizer) -> None:
    context, question = "{input} {0} {{x}} {context!r:>9}", "{context} {"
    text = official("hotpotqa").prompt(question, context, tokenizer).messages[0]["content"]
    before, between, after = templates["hotpotqa"].replace("{input}", "{context}").split("{context}")
    assert text == before + context + between + question + after


def test_few_shot_and_code_tasks_are_plain_text_and_all_others_a_chat(
    official: Callable, templates: dict
) -> None:
    for task in templates:
        assert official(task).wrapped == official(f"{task}_e").wrapped == (task not in PLAIN_TEXT_TASKS)


def test_plain_text_begins_as_the_tokenizer_begins_texts(
    official: Callable, tokenizer: ModelTokenizer, folder: Path
) -> None:
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = official("lcc").prompt("", "def f():\n    ", tokenizer)
    text = plain.messages[0]["content"]
    assert "".join(tokenizer.prompt_texts(plain)) == f"<s>{text}"
    assert theirs.decode(tokenizer.prompt_ids(plain).ids) == text
    assert tokenizer.prompt_texts(plain)[0].endswith("def f():\n    ")
    chat = official("qasper").prompt("Who?", "A paper.", tokenizer)
    assert "".join(tokenizer.prompt_texts(chat)).startswith("<s>[user]You are given")
    assert "".join(tokenizer.prompt_texts(chat)).endswith("[answer]")


def test_the_same_text_wrapped_and_plain_are_different_prompts(
    official: Callable, tokenizer: ModelTokenizer
) -> None:
    plain = official("lcc").prompt("", "x", tokenizer)
    assert prompt_hash(plain) != prompt_hash(replace(plain, wrapped=True))


def test_without_a_context_the_same_template_is_filled_with_none(
    official: Callable, templates: dict, tokenizer: ModelTokenizer
) -> None:
    prompt = official("hotpotqa").prompt("Who?", "", tokenizer)
    assert prompt.messages[0]["content"] == templates["hotpotqa"].format(context="", input="Who?")
    assert prompt.context_end is None
    assert not prompt.context_lost


def test_after_shortening_the_context_ends_where_the_rest_begins(
    records: dict, official: Callable, templates: dict, tokenizer: ModelTokenizer
) -> None:
    protocol = official("hotpotqa", max_length_tokens=400)
    for record in records["hotpotqa"]:
        prompt = protocol.prompt(record["input"], record["context"], tokenizer)
        rest = templates["hotpotqa"].rpartition("{context}")[2].format(input=record["input"])
        assert prompt.messages[0]["content"][prompt.context_end :] == rest


def test_where_the_rest_is_cut_too_the_end_of_the_context_is_lost(
    official: Callable, tokenizer: ModelTokenizer
) -> None:
    protocol = official("hotpotqa", max_length_tokens=200)
    prompt = protocol.prompt("why " * 150, "A story. " * 50, tokenizer)
    assert (prompt.context_end, prompt.context_lost) == (None, True)
    bare = protocol.prompt("why " * 150, "", tokenizer)
    assert (bare.context_end, bare.context_lost) == (None, False)
    assert bare.dropped_tokens > 0


def test_a_tokenizer_that_drops_white_space_still_shows_the_end_of_the_context(
    official: Callable, root: Path
) -> None:
    reader = ModelTokenizer(root / "resources" / "tiny-reader")
    prompt = official("hotpotqa", max_length_tokens=200).prompt("Who left?", "Ada left . " * 200, reader)
    text = prompt.messages[0]["content"]
    assert text[: prompt.context_end].rstrip().endswith("left .")
    assert text[prompt.context_end :].lstrip().startswith("Answer the")
    assert not prompt.context_lost


def test_some_tokenizers_clean_up_the_halves_as_transformers_does(official: Callable, tmp_path: Path) -> None:
    texts = ["it is n't , and it 's"]
    kept, cleaned = (
        ModelTokenizer(train(tmp_path / str(clean), texts, clean_up_tokenization_spaces=clean))
        for clean in (False, True)
    )
    protocol = official("lcc", max_length_tokens=120)
    context = "it is n't , and it 's . " * 60
    assert "n't , and it 's . it" in protocol.prompt("", context, kept).messages[0]["content"]
    text = protocol.prompt("", context, cleaned).messages[0]["content"]
    assert "isn't, and it's. it" in text
    assert " ," not in text
    short = protocol.prompt("", "it 's , so", cleaned).messages[0]["content"]
    assert "it 's , so" in short, "a prompt that fits is never decoded"


@pytest.mark.kvpress
def test_clean_up_equals_that_of_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    text = "a . b ? c ! d , e ' f don 't is n't I 'm it 's we 've you 're ..  . x , 's"
    folder = train(tmp_path, [text], clean_up_tokenization_spaces=True)
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(folder), ModelTokenizer(folder)
    ids = theirs(text).input_ids
    assert ours.encode(text, add_special_tokens=True) == ids
    assert ours.plain_text(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_samsum_answers_one_line_of_at_least_one_token(official: Callable) -> None:
    for task in ("samsum", "samsum_e"):
        assert official(task).decoding(DECODING) == {
            "max_new_tokens": 128,
            "stop": [],
            "min_new_tokens": 1,
            "stop_token_texts": ["\n"],
        }
    assert official("trec").decoding(DECODING) == {"max_new_tokens": 64, "stop": []}


def test_answers_are_as_long_as_officially_unless_the_configuration_names_the_task(
    official: Callable, shared: Path
) -> None:
    lengths = json.loads((shared / "longbench_config" / "dataset2maxlen.json").read_text())
    section = {**DECODING, "max_new_tokens_by_task": {"qasper": 7}}
    for task, length in lengths.items():
        assert official(task).decoding(DECODING)["max_new_tokens"] == length
        assert official(f"{task}_e").decoding(DECODING)["max_new_tokens"] == length
        assert official(task).decoding(section)["max_new_tokens"] == (7 if task == "qasper" else length)
    assert own_protocol("qasper").decoding(DECODING) == {"max_new_tokens": 16, "stop": []}
    assert own_protocol("qasper").decoding(section)["max_new_tokens"] == 7


def test_the_limit_is_the_configurations_or_longbenchs_for_its_own_models(official: Callable) -> None:
    assert official("qasper", MODEL).max_length_tokens == 3500
    assert official("qasper", MODEL, max_length_tokens=7500).max_length_tokens == 7500
    assert official("qasper", "my-model", max_length_tokens=7500).max_length_tokens == 7500
    with pytest.raises(
        UserError, match=r"protocol\.max_length_tokens: .*'my-model'.*3500, 7500, 15500 or 31500"
    ):
        official("qasper", "my-model")


def test_labels_name_prompts_and_version(official: Callable) -> None:
    assert official("qasper").label == "official-2e00731f"
    assert own_protocol("qasper").label == "own-1"


def test_a_task_without_official_prompt_is_named_with_those_that_have_one(official: Callable) -> None:
    with pytest.raises(UserError, match=r"no official prompt for task 'phrasebook_qa'.*2wikimqa.*vcsum"):
        official("phrasebook_qa")
    with pytest.raises(UserError, match="longbench_v2 runs with protocol own"):
        official("longbench_v2")


def test_tables_that_are_missing_or_broken_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json; fetch them with the rule retrieve_protocol"):
        load_protocol(OFFICIAL, tmp_path / "absent.json", "qasper", MODEL)
    for content, problem in (
        ("{", "not readable as JSON"),
        ("[]", "does not hold"),
        ('{"commit": 1}', "does not"),
    ):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(UserError, match=rf"broken\.json: {problem}"):
            load_protocol(OFFICIAL, tmp_path / "broken.json", "qasper", MODEL)


def test_a_limit_without_a_model_says_that_it_needs_one() -> None:
    with pytest.raises(UserError, match=r"protocol\.max_length_tokens: .*model\.path"):
        own_protocol("qasper", 100).prompt("Who?", "A story.")


# Own prompts


def test_own_prompts_are_those_of_the_own_templates() -> None:
    own = load_protocol({"kind": "own", "max_length_tokens": None}, None, "qasper", None)
    assert own == own_protocol("qasper")
    assert own.prompt("Who?", "A story.") == build_prompt("qasper", "Who?", "A story.")
    assert not own.needs_tokenizer


words = st.lists(st.sampled_from(["the", "cat", " sat.", "\n\n", "猫", "é{}", "<b>"]), max_size=120)


@given(context=words, question=st.text(min_size=1, max_size=8), limit=st.integers(150, 260))
def test_own_prompts_keep_the_limit_and_lose_only_context(
    tokenizer: ModelTokenizer, context: list[str], question: str, limit: int
) -> None:
    text = " ".join(context)
    whole = build_prompt("qasper", question, text)
    prompt = own_protocol("qasper", limit).prompt(question, text, tokenizer)
    assert tokenizer.count(prompt) <= limit
    assert prompt.messages[0] == whole.messages[0]
    if tokenizer.count(whole) <= limit:
        assert prompt == whole
        return
    assert prompt.dropped_tokens > 0
    content, end = prompt.messages[-1]["content"], prompt.context_end
    assert content[end:] == whole.messages[-1]["content"][whole.context_end :]
    assert any(text.startswith(content[:i]) and text.endswith(content[i:end]) for i in range(end + 1))


def test_own_prompts_are_cut_no_more_than_they_must_be(tokenizer: ModelTokenizer) -> None:
    context = "".join(f"fact {i} holds. " for i in range(300))
    prompt = own_protocol("qasper", 500).prompt("Who?", context, tokenizer)
    assert 490 <= tokenizer.count(prompt) <= 500


def test_a_limit_below_instruction_and_question_is_refused(tokenizer: ModelTokenizer) -> None:
    with pytest.raises(
        UserError, match=r"task qasper: protocol\.max_length_tokens: 20 leaves no room.*'Who\?'"
    ):
        own_protocol("qasper", 20).prompt("Who?", "A story. " * 50, tokenizer)


# What a changed protocol reruns


def test_another_protocol_changes_what_prompts_and_answers_depend_on() -> None:
    plain = from_mapping({})
    for change in ({"kind": "official"}, {"max_length_tokens": 900}):
        other = from_mapping({"protocol": change})
        assert protocol_slice(other, "qasper") != protocol_slice(plain, "qasper")
        assert answer_slice(other, "qasper") != answer_slice(plain, "qasper")


def test_the_folder_of_the_tables_changes_nothing_because_their_checksums_are_pinned(tmp_path: Path) -> None:
    one, other = (
        from_mapping({"protocol": {"kind": "official", "path": path}}) for path in (None, str(tmp_path))
    )
    assert answer_slice(one, "qasper") == answer_slice(other, "qasper")


def test_a_models_name_counts_only_where_it_decides_the_limit() -> None:
    def of(name: str, **protocol: Any) -> dict:
        return protocol_slice(from_mapping({"model": {"name": name}, "protocol": protocol}), "qasper")

    assert of("a") == of("b")
    assert of("a", kind="official", max_length_tokens=900) == of("b", kind="official", max_length_tokens=900)
    assert of("a", kind="official") != of("b", kind="official")
