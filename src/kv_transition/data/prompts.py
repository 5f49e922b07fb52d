"""Prompts: one system instruction per task, the context and the question in one user message."""

from __future__ import annotations

from dataclasses import dataclass

from kv_transition.data.longbench_tasks import base_name
from kv_transition.data.synthetic import INSTRUCTIONS as SYNTHETIC_INSTRUCTIONS
from kv_transition.files import canonical_json, sha256_text

Message = dict[str, str]

#: The prompts are this project's own; scores are comparable between its runs, not with published tables.
protocol = "own"
#: Goes up with every change to a text below, so that answers to older prompts are never reused.
protocol_version = 1

DEFAULT_INSTRUCTION = (
    "Read the text and answer the question about it. Reply with the answer only, as short as possible."
)
DEFAULT_REQUEST = "Answer the task stated above."

#: LongBench task -> what the model is told to do. A task of LongBench-E (`<task>_e`) shares its namesake's text.
LONGBENCH_INSTRUCTIONS: dict[str, str] = {
    "narrativeqa": "You are given a story or a film script and one question about it. "
    "Reply with the answer only, in one short phrase.",
    "qasper": "You are given a research paper and one question about it. Reply with the answer only, as short as "
    'possible. Reply "yes" or "no" to a yes-no question, and "unanswerable" if the paper does not answer it.',
    "multifieldqa_en": "You are given a document and one question about it. Reply with the answer only, as short as possible.",
    "multifieldqa_zh": "请阅读给出的文档，并回答关于它的一个问题。只写答案，尽量简短。",
    "hotpotqa": "You are given several passages and one question that may need more than one of them. "
    "Reply with the answer only, in a few words.",
    "2wikimqa": "You are given several passages and one question that may need more than one of them. "
    "Reply with the answer only, in a few words.",
    "musique": "You are given several passages and one question that needs facts from several of them. "
    "Reply with the answer only, in a few words.",
    "dureader": "请阅读给出的若干篇文章，并根据它们回答一个问题。只写答案。",
    "gov_report": "You are given a government report. Write a summary of it on one page.",
    "qmsum": "You are given the transcript of a meeting and one request about it. Reply in a few sentences.",
    "multi_news": "You are given several news articles on one event. Write one summary of them all, on one page.",
    "vcsum": "请阅读给出的会议记录，并写出一份摘要。",
    "trec": "You are given example questions, each with its type, and a last question without one. "
    "Reply with the type of the last question only, named as in the examples.",
    "triviaqa": "You are given example passages with questions and answers, and a last question without an answer. "
    "Reply with the answer to the last question only.",
    "samsum": "You are given example dialogues with their summaries, and a last dialogue without one. "
    "Reply with the summary of the last dialogue only, in the manner of the examples.",
    "lsht": "下面先给出若干条带类别的新闻，最后一条没有类别。只写出最后一条新闻的类别，名称须与例子中的一致。",
    "passage_count": "You are given numbered paragraphs, some of which repeat others. Count how many different paragraphs "
    "there are. Reply with the number only.",
    "passage_retrieval_en": "You are given numbered paragraphs and a summary of one of them. "
    'Reply with the name of that paragraph only, for example "Paragraph 1".',
    "passage_retrieval_zh": "下面给出若干个带编号的段落和其中一个段落的摘要。只写出该段落的名称，例如“段落1”。",
    "lcc": "You are given the beginning of a source file. Reply with its next line of code only, without comment.",
    "repobench-p": "You are given source files of one project and the beginning of another of its files. "
    "Reply with the next line of that last file only, without comment.",
}

#: What stands after the context where a record has no question of its own.
LONGBENCH_REQUESTS: dict[str, str] = {
    "gov_report": "Write the summary of the report.",
    "multi_news": "Write the summary of the articles.",
    "vcsum": "请写出这份会议记录的摘要。",
    "passage_count": "How many different paragraphs are there?",
    "lcc": "Write the next line of code.",
    "repobench-p": "Write the next line of code.",
}


@dataclass(frozen=True)
class Prompt:
    """A chat, and where its context ends.

    Attributes
    ----------
    messages : the chat, in order; the last message is the user's.
    context_end : characters of the last message's content up to and including the context;
        None when there is no context.
    wrapped : False where the content of the only message is the model's whole input, without a chat template.
    dropped_tokens : tokens taken out of the middle because the prompt was too long.
    excess_tokens : tokens by which a shortened prompt, tokenised again, is still above the limit.
    context_lost : there is a context, but shortening took away where it ends; `context_end` is None then.
    """

    messages: tuple[Message, ...]
    context_end: int | None
    wrapped: bool = True
    dropped_tokens: int = 0
    excess_tokens: int = 0
    context_lost: bool = False


def instruction_of(task: str) -> str:
    """The system instruction of a task; a general one for a task without its own."""
    own = SYNTHETIC_INSTRUCTIONS.get(task) or LONGBENCH_INSTRUCTIONS.get(base_name(task))
    return own or DEFAULT_INSTRUCTION


def build_prompt(task: str, question: str, context: str) -> Prompt:
    """The chat that asks `question` about `context`.

    Parameters
    ----------
    task : names the instruction.
    question : a blank one is replaced by the task's own request, so that the message never ends with the context.
    context : kept exactly as it is; a blank one counts as absent (the floor without a context).
    """
    asked = question if question.strip() else LONGBENCH_REQUESTS.get(base_name(task), DEFAULT_REQUEST)
    present = bool(context.strip())
    content = f"{context}\n\n{asked}" if present else asked
    messages = ({"role": "system", "content": instruction_of(task)}, {"role": "user", "content": content})
    return Prompt(messages, len(context) if present else None)


def prompt_hash(prompt: Prompt) -> str:
    """Hex digest of what the model is given: equal for equal chats, whatever the context is."""
    messages = list(prompt.messages)
    return sha256_text(canonical_json(messages if prompt.wrapped else {"text": messages}))
