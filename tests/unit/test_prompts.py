"""What the model is asked, task by task."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data import prompts, synthetic
from kv_transition.data.prompts import build_prompt, instruction_of, prompt_hash

LONGBENCH = [
    "narrativeqa",
    "qasper",
    "multifieldqa_en",
    "multifieldqa_zh",
    "hotpotqa",
    "2wikimqa",
    "musique",
    "dureader",
    "gov_report",
    "qmsum",
    "multi_news",
    "vcsum",
    "trec",
    "triviaqa",
    "samsum",
    "lsht",
    "passage_count",
    "passage_retrieval_en",
    "passage_retrieval_zh",
    "lcc",
    "repobench-p",
]
WITHOUT_QUESTION = ["gov_report", "multi_news", "vcsum", "passage_count", "lcc"]

texts = st.text(max_size=60)


def user(prompt: prompts.Prompt) -> str:
    return prompt.messages[-1]["content"]


@given(question=texts, context=texts)
def test_context_end_marks_exactly_the_context(question: str, context: str) -> None:
    prompt = build_prompt("narrativeqa", question, context)
    if prompt.context_end is None:
        assert not context.strip()
    else:
        assert user(prompt)[: prompt.context_end] == context
        assert user(prompt)[prompt.context_end :].startswith("\n\n")


@given(question=texts, context=texts)
def test_the_message_never_ends_or_begins_blank(question: str, context: str) -> None:
    content = user(build_prompt("some_task", question, context))
    assert content.split("\n\n")[-1].strip() or question.strip()
    assert content.strip()


def test_question_follows_the_context_untouched() -> None:
    prompt = build_prompt("hotpotqa", " Who? ", "  A story.\n")
    assert user(prompt) == "  A story.\n\n\n Who? "
    assert [message["role"] for message in prompt.messages] == ["system", "user"]


def test_without_a_context_only_the_question_is_asked() -> None:
    prompt = build_prompt("hotpotqa", "Who?", "")
    assert user(prompt) == "Who?"
    assert prompt.context_end is None
    assert prompt.messages[0] == build_prompt("hotpotqa", "Who?", "A story.").messages[0]


@pytest.mark.parametrize("task", LONGBENCH)
def test_every_longbench_task_has_its_own_instruction(task: str) -> None:
    assert instruction_of(task) != prompts.DEFAULT_INSTRUCTION
    assert instruction_of(task) == instruction_of(task + "_e")


@pytest.mark.parametrize("task", WITHOUT_QUESTION)
def test_a_record_without_question_gets_the_request_of_its_task(task: str) -> None:
    request = user(build_prompt(task, "", ""))
    assert request != prompts.DEFAULT_REQUEST
    assert user(build_prompt(task, "", "text")) == f"text\n\n{request}"


def test_an_unknown_task_gets_the_general_instruction() -> None:
    assert instruction_of("my_own_task") == prompts.DEFAULT_INSTRUCTION


def test_the_generated_tasks_bring_their_own_instruction() -> None:
    assert {"phrasebook_qa", "phrasebook_multi_qa"} <= synthetic.INSTRUCTIONS.keys()
    for task, text in synthetic.INSTRUCTIONS.items():
        assert instruction_of(task) == text


def test_the_hash_changes_with_any_message_and_with_nothing_else() -> None:
    prompt = build_prompt("hotpotqa", "Who?", "A story.")
    assert prompt_hash(prompt) == prompt_hash(build_prompt("hotpotqa", "Who?", "A story."))
    assert prompt_hash(prompt) != prompt_hash(build_prompt("hotpotqa", "Who?", "A story"))
    assert prompt_hash(prompt) != prompt_hash(build_prompt("trec", "Who?", "A story."))


def test_no_instruction_repeats_an_official_template(shared) -> None:
    """The prompts are the project's own words: no run of eight words is shared with the official ones."""
    official = json.loads((shared / "longbench_config" / "dataset2prompt.json").read_text(encoding="utf-8"))

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    for task in LONGBENCH:
        assert not runs(instruction_of(task)) & runs(official[task]), task
