"""Prompts become tokens: the model's own tokenizer, where the context ends, and the other counters."""

import json
import logging
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.counters import load_counter
from kv_transition.data.prompts import Prompt, build_prompt
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.errors import UserError

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "who",
    "?",
    ".",
    "answer",
    "story",
    "[SYS]",
    "[USER]",
    "[END]",
    "[ASSISTANT]",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'system' %}\n"
    "[SYS] {{ message['content'] | trim }} [END] \n"
    "    {% else %}\n"
    "[USER] {{ message['content'] | trim }} [END] \n"
    "    {% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)


def word_level(folder: Path, template: str | None = TEMPLATE, **config: object) -> Path:
    """A model folder whose tokenizer knows the words above."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, object] = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "unk_token": "<unk>",
    } | config
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def byte_level(folder: Path) -> Path:
    """A model folder with a byte-level BPE tokenizer, which knows every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat\n\nthe end\n\n"] * 9, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE})
    )
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(word_level(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(byte_level(tmp_path_factory.mktemp("pieces")))


sentences = st.lists(st.sampled_from([*WORDS, "zebra", "\n", "  "]), max_size=20).map(" ".join)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(question=sentences, context=sentences)
def test_word_level_parts_are_the_tokens_of_the_whole(
    words: ModelTokenizer, question: str, context: str
) -> None:
    prompt = build_prompt("trec", question, context)
    parts = words.prompt_ids(prompt, "context")
    assert parts.ids == words.encode(words.render(prompt.messages))
    assert parts.context_len == len(words.encode(words.prompt_texts(prompt)[0]))


@given(question=any_text, context=any_text)
def test_byte_level_parts_decode_to_the_text_of_the_whole(
    pieces: ModelTokenizer, question: str, context: str
) -> None:
    prompt = build_prompt("trec", question, context)
    parts = pieces.prompt_ids(prompt, "context")
    assert pieces.decode(parts.ids) == pieces.decode(pieces.encode(pieces.render(prompt.messages)))


@given(question=any_text, context=any_text)
def test_in_scope_prompt_the_text_is_tokenised_at_once(
    pieces: ModelTokenizer, question: str, context: str
) -> None:
    prompt = build_prompt("trec", question, context)
    assert pieces.prompt_ids(prompt).ids == pieces.encode(pieces.render(prompt.messages))
    assert pieces.prompt_ids(prompt).context_len == 0
    plain = replace(prompt, messages=prompt.messages[-1:], wrapped=False)
    assert pieces.prompt_ids(plain).ids == pieces.encode(plain.messages[-1]["content"])


@given(question=any_text, context=any_text)
def test_the_cut_lies_at_the_end_of_the_context(pieces: ModelTokenizer, question: str, context: str) -> None:
    prompt = build_prompt("trec", question, context)
    head, tail = pieces.prompt_texts(prompt)
    assert head + tail == pieces.render(prompt.messages)
    if prompt.context_end is None:
        assert head == ""
        assert pieces.prompt_ids(prompt, "context").context_len == 0
    else:
        assert head.endswith(context.lstrip())
        assert tail.startswith("\n\n")


def test_a_stripping_template_cannot_eat_the_end_of_the_context(pieces: ModelTokenizer) -> None:
    head, tail = pieces.prompt_texts(build_prompt("trec", "who ?", " the story \n \n"))
    assert head.endswith("[USER] the story \n \n")
    assert tail == "\n\nwho ? [END] \n[ASSISTANT]"


def test_a_context_that_holds_the_mark_itself_is_cut_at_its_end(pieces: ModelTokenizer) -> None:
    context = "a \ue0000\ue001 b \ue0001\ue001\ue000"
    head, _ = pieces.prompt_texts(build_prompt("trec", "who ?", context))
    assert head.endswith(context)


def test_the_template_is_filled_as_transformers_fills_it(words: ModelTokenizer) -> None:
    text = words.render([{"role": "system", "content": "the cat"}, {"role": "user", "content": " who ? "}])
    assert text == "<s>[SYS] the cat [END] \n[USER] who ? [END] \n[ASSISTANT]"
    assert words.render([{"role": "user", "content": "who"}], add_generation_prompt=False).endswith(
        "[END] \n"
    )


@pytest.mark.kvpress
def test_rendering_and_tokens_equal_those_of_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    template = (
        TEMPLATE.replace("| trim", "| trim | tojson")
        + "{% for i in [1,2,3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    folder = word_level(tmp_path, template)
    ours, theirs = ModelTokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": "system", "content": "the <cat> é"}, {"role": "user", "content": " who ? \n"}]
    assert ours.render(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ours.encode(ours.render(messages)) == list(ids)


def test_no_special_token_is_added_and_none_is_decoded(words: ModelTokenizer) -> None:
    ids = words.encode("<s>the cat</s>")
    assert ids[0] == 1
    assert ids[-1] == 2
    assert words.encode("the cat") == ids[1:-1]
    assert words.decode(ids) == "the cat"


def test_the_limits_of_a_training_run_do_not_cut_a_prompt(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    source = str(word_level(tmp_path) / "tokenizer.json")
    tokenizer = Tokenizer.from_file(source)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=12)
    tokenizer.save(source)
    assert len(ModelTokenizer(tmp_path).encode("the cat sat on a mat")) == 6


def test_chat_template_file_goes_before_the_one_in_the_config(tmp_path: Path) -> None:
    folder = word_level(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }} answer")
    assert ModelTokenizer(folder).render([{"role": "user", "content": "who"}]) == "who answer"


def test_of_several_templates_the_default_is_used(tmp_path: Path) -> None:
    several = [{"name": "tools", "template": "wrong"}, {"name": "default", "template": "right"}]
    folder = word_level(tmp_path, None, chat_template=several)
    assert ModelTokenizer(folder).render([{"role": "user", "content": "who"}]) == "right"


def test_without_a_template_the_contents_are_joined_with_newlines(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(word_level(tmp_path, None))
    assert not tokenizer.has_chat_template
    assert (
        tokenizer.render([{"role": "system", "content": "the cat"}, {"role": "user", "content": "who ?"}])
        == "the cat\nwho ?\n"
    )
    assert tokenizer.prompt_ids(build_prompt("trec", "who ?", "the story"), "context").context_len > 0


def test_without_a_template_the_prompt_begins_as_the_tokenizer_begins_texts(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    source = str(word_level(tmp_path, None) / "tokenizer.json")
    tokenizer = Tokenizer.from_file(source)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(source)
    ours = ModelTokenizer(tmp_path)
    assert (
        ours.encode(ours.render([{"role": "user", "content": "the cat"}])) == tokenizer.encode("the cat").ids
    )


@given(question=any_text, context=any_text)
def test_a_prompt_that_is_not_wrapped_is_its_text_and_nothing_else(
    pieces: ModelTokenizer, question: str, context: str
) -> None:
    prompt = Prompt(({"role": "user", "content": context + question},), len(context), wrapped=False)
    assert pieces.prompt_texts(prompt) == (context, question)
    assert pieces.prompt_texts(replace(prompt, context_end=None)) == ("", context + question)
    apart = pieces.prompt_ids(prompt, "context")
    assert apart.context_len == len(pieces.encode(context))
    assert apart.ids == pieces.encode(context) + pieces.encode(question)
    assert pieces.prompt_ids(prompt).ids == pieces.encode(context + question)


@given(text=any_text)
def test_the_starts_of_tokens_rise_from_the_first_character(pieces: ModelTokenizer, text: str) -> None:
    starts = pieces.token_starts(text)
    assert len(starts) == len(pieces.encode(text))
    assert starts == sorted(starts)
    assert all(0 <= start < len(text) for start in starts)


def test_a_template_that_prints_the_date_gives_the_same_prompt_every_day(tmp_path: Path) -> None:
    folder = word_level(tmp_path, "{{ strftime_now('%d %b %Y') }} {{ messages[-1]['content'] }}")
    assert ModelTokenizer(folder).render([{"role": "user", "content": "who"}]) == "26 Jul 2024 who"


def test_a_template_that_refuses_a_system_message_gets_it_with_the_question(tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0]['content'] }}"
    tokenizer = ModelTokenizer(word_level(tmp_path, template))
    prompt = Prompt(
        ({"role": "system", "content": "the cat"}, {"role": "user", "content": "story\n\nwho ?"}), 5
    )
    assert tokenizer.prompt_texts(prompt) == ("the cat\n\nstory", "\n\nwho ?")


def test_a_template_that_refuses_everything_is_a_user_error_with_its_reason(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(word_level(tmp_path, "{{ raise_exception('needs tools') }}"))
    with pytest.raises(UserError, match="needs tools"):
        tokenizer.render([{"role": "user", "content": "who"}])


@pytest.mark.parametrize(
    "template", ["{{ messages[-1]['content'] | length }}", "{{ messages[-1]['content'] * 2 }}"]
)
def test_a_template_that_rewrites_the_context_is_refused(tmp_path: Path, template: str) -> None:
    tokenizer = ModelTokenizer(word_level(tmp_path, template))
    with pytest.raises(UserError, match="rewrites the user's message"):
        tokenizer.prompt_ids(build_prompt("trec", "who ?", "the story"), "context")


def test_a_template_cannot_reach_outside_its_sandbox(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(word_level(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(UserError, match="unsafe"):
        tokenizer.render([{"role": "user", "content": "who"}])


def test_a_broken_template_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        ModelTokenizer(word_level(tmp_path, "{% if %}"))


def test_end_tokens_come_from_every_file_that_names_one(tmp_path: Path) -> None:
    folder = word_level(tmp_path)
    assert ModelTokenizer(folder).eos_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    (folder / "config.json").write_text('{"eos_token_id": 5}')
    assert ModelTokenizer(folder).eos_ids == (2, 5, 7)


def test_unknown_share_counts_what_the_vocabulary_lacks(
    words: ModelTokenizer, pieces: ModelTokenizer
) -> None:
    assert words.unknown_share(words.encode("the zebra sat quietly")) == 0.5
    assert words.unknown_share([]) == 0.0
    assert pieces.unknown_share(pieces.encode("斑马 zebra")) == 0.0


def test_the_content_hash_follows_the_content_not_the_place(tmp_path: Path) -> None:
    one, two = (
        ModelTokenizer(word_level(tmp_path / "a" / "m")),
        ModelTokenizer(word_level(tmp_path / "b" / "m")),
    )
    other = ModelTokenizer(word_level(tmp_path / "c" / "m", TEMPLATE + " "))
    assert (one.content_hash, one.name) == (two.content_hash, two.name)
    assert one.content_hash != other.content_hash
    assert one.name == f"m@{one.content_hash[:12]}"


def test_a_folder_without_tokenizer_is_a_user_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path / "tokenizer.json")):
        ModelTokenizer(tmp_path)


def test_a_broken_tokenizer_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a tokenizer"):
        ModelTokenizer(tmp_path)


def test_the_models_own_counter_counts_the_prompt_it_is_given(tmp_path: Path) -> None:
    counter = load_counter("model", str(word_level(tmp_path)), "error")
    prompt = build_prompt("trec", "who ?", "the cat sat")
    assert counter.count(prompt) == len(ModelTokenizer(tmp_path).prompt_ids(prompt).ids)


def test_tiktoken_counts_offline_with_its_cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken_cache"))
    counter = load_counter("cl100k_base", None, "error")
    plain = Prompt(({"role": "user", "content": "hello world"},), None)
    named = Prompt(({"role": "user", "content": "<|endoftext|>"},), None)
    assert counter.name == "cl100k_base"
    assert counter.count(plain) == 2
    assert counter.count(named) > 1


def test_tiktoken_counts_of_a_whole_task_are_the_known_ones(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken_cache"))
    counter = load_counter("cl100k_base", None, "error")
    with (shared / "longbench" / "multi_news.jsonl").open(encoding="utf-8") as file:
        contexts = [json.loads(line)["context"] for line in file]
    counts = sorted(counter.count(Prompt(({"role": "user", "content": text},), None)) for text in contexts)
    assert (counts[0], statistics.median(counts), counts[-1]) == (130, 2006, 13935)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken without its file and without a network."""
    import requests

    def refuse(*args: object, **kwargs: object) -> None:
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(requests, "get", refuse)


@pytest.mark.usefixtures("offline")
def test_a_missing_tiktoken_file_is_a_user_error_that_names_the_way_out() -> None:
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR"):
        load_counter("gpt2", None, "error")


@pytest.mark.usefixtures("offline")
def test_the_approximate_fallback_warns_and_says_so_in_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        counter = load_counter("p50k_base", None, "approximate")
    assert counter.name == "approximate:p50k_base"
    assert "APPROXIMATE" in caplog.text
    assert counter.count(Prompt(({"role": "user", "content": "x" * 44},), None)) == 10
    assert counter.count(Prompt(({"role": "user", "content": "猫" * 100},), None)) == 115


def test_a_fallback_does_not_hide_a_misspelt_name() -> None:
    with pytest.raises(UserError, match="cl100k_base"):
        load_counter("cl100k", None, "approximate")
    with pytest.raises(UserError, match=r"tokenizer\.fallback"):
        load_counter("cl100k_base", None, "guess")


def test_the_models_own_counter_needs_a_model_path() -> None:
    with pytest.raises(UserError, match=r"model\.path"):
        load_counter("model", None, "error")


@pytest.mark.parametrize("task", ["multi_news", "multifieldqa_zh"])
def test_the_approximation_orders_real_records_as_a_tokenizer_does(
    shared: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    from scipy.stats import spearmanr

    from kv_transition.data.counters import ApproximateCounter

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken_cache"))
    counters = load_counter("cl100k_base", None, "error"), ApproximateCounter("approximate")
    with (shared / "longbench" / f"{task}.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(40), strict=False)]
    prompts = [build_prompt(task, record["input"], record["context"]) for record in records]
    exact, rough = ([counter.count(prompt) for prompt in prompts] for counter in counters)
    assert spearmanr(exact, rough).statistic > 0.97
    assert all(0.6 < b / a < 1.5 for a, b in zip(exact, rough, strict=True))
