"""What a task is asked with: this project's own prompts, or LongBench's official ones with its lengths.

A prompt that is too long loses its middle. Official prompts do so as LongBench's own code does (THUDM/LongBench,
LongBench/pred.py): the whole prompt, before the chat template, its two halves decoded from their tokens. Own prompts lose the
middle of their context only, so that instruction and question stay whole, what is left of the text stays as it was, and the
finished prompt, template included, keeps the limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kv_transition.data import prompts
from kv_transition.data.longbench_tasks import base_name, task_facts
from kv_transition.data.prompts import Prompt, build_prompt
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.errors import ConfigError, UserError

#: Below a model's window by the longest answer and the chat template, as LongBench's own values are.
RULE_OF_THUMB = (
    "3500, 7500, 15500 or 31500 for a model with a window of 4k, 8k, 16k or 32k tokens, as LongBench does"
)


@dataclass(frozen=True)
class TaskProtocol:
    """How one task is asked, and when its answers end.

    Attributes
    ----------
    label : name and version of the prompts, as every table shows it.
    template : official text with the places {context} and {input}; None for own prompts.
    wrapped : the prompt goes through the model's chat template.
    max_length_tokens : longest prompt, in tokens of the model; None cuts nothing.
    max_new_tokens : official answer length; None leaves it to the configuration.
    min_new_tokens : tokens before which no end token is taken.
    stop_token_texts : texts whose last token ends an answer, beside the model's own end tokens.
    """

    task: str
    name: Literal["own", "official"]
    label: str
    template: str | None = None
    wrapped: bool = True
    max_length_tokens: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop_token_texts: tuple[str, ...] = ()

    @property
    def needs_tokenizer(self) -> bool:
        """Whether prompts are made with the model's tokenizer, to know which are too long."""
        return self.max_length_tokens is not None

    def prompt(
        self,
        question: str,
        context: str,
        tokenizer: ModelTokenizer | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt that asks `question` about `context`; a blank context counts as absent.

        Parameters
        ----------
        tokenizer : the model's; only needed where there is a limit.
        extra : further columns of the record, which a template may name.

        Raises
        ------
        UserError
            For a limit without a tokenizer, and for own prompts that exceed the limit without any context.
        """
        if self.max_length_tokens is not None and tokenizer is None:
            raise ConfigError(
                "protocol.max_length_tokens: prompts are shortened in tokens of the model, so model.path must name its folder"
            )
        if self.template is None:
            return self._own(question, context, tokenizer)
        return self._official(
            self.template, {**(extra or {}), "context": context, "input": question}, tokenizer
        )

    def decoding(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """What ends an answer of the task.

        Parameters
        ----------
        section : the settings' section `decoding`.

        Returns
        -------
        max_new_tokens (the task's own in the configuration, else the official one, else the configuration's) and stop;
        min_new_tokens and stop_token_texts only where they differ from 0 and none, because the result is part of the
        journal's keys.
        """
        by_task = section["max_new_tokens_by_task"].get(self.task)
        found: dict[str, Any] = {
            "max_new_tokens": by_task or self.max_new_tokens or section["max_new_tokens"],
            "stop": list(section["stop"]),
        }
        if self.min_new_tokens:
            found["min_new_tokens"] = self.min_new_tokens
        if self.stop_token_texts:
            found["stop_token_texts"] = list(self.stop_token_texts)
        return found

    def _own(self, question: str, context: str, tokenizer: ModelTokenizer | None) -> Prompt:
        prompt = build_prompt(self.task, question, context)
        limit = self.max_length_tokens
        if limit is None or tokenizer is None:
            return prompt
        excess = tokenizer.count(prompt) - limit
        starts = tokenizer.token_starts(context) if prompt.context_end is not None else []
        keep = len(starts)
        # Where the halves meet, tokens may come out differently: cut until the finished prompt keeps the limit.
        while excess > 0:
            keep -= excess
            if keep < 2:
                raise UserError(
                    f"task {self.task}: protocol.max_length_tokens: {limit} leaves no room for a context beside instruction "
                    f"and question ({question[:40]!r}); raise it"
                )
            half = keep // 2
            shortened = context[: starts[half]] + context[starts[-half] :]
            prompt = replace(
                build_prompt(self.task, question, shortened), dropped_tokens=len(starts) - 2 * half
            )
            excess = tokenizer.count(prompt) - limit
        return prompt

    def _official(self, template: str, values: Mapping[str, Any], tokenizer: ModelTokenizer | None) -> Prompt:
        text = template.format(**values)
        after = template.rpartition("{context}")[2].format(**values)
        present = bool(values["context"].strip())
        whole = self._one_message(text, len(text) - len(after) if present else None)
        if self.max_length_tokens is None or tokenizer is None:
            return whole
        ids = tokenizer.encode(text, add_special_tokens=True)
        if len(ids) <= self.max_length_tokens:
            return whole
        half = int(self.max_length_tokens / 2)
        head, tail = tokenizer.plain_text(ids[:half]), tokenizer.plain_text(ids[-half:])
        length = len(tokenizer.encode(head + tail, add_special_tokens=True))
        # A tokenizer may not give a text back as it was, so what follows the context is sought as it comes back.
        after = tokenizer.plain_text(tokenizer.encode(after))
        found = tail.endswith(after)
        return replace(
            self._one_message(head + tail, len(head + tail) - len(after) if present and found else None),
            dropped_tokens=len(ids) - 2 * half,
            excess_tokens=max(0, length - self.max_length_tokens),
            context_lost=present and not found,
        )

    def _one_message(self, text: str, context_end: int | None) -> Prompt:
        return Prompt(({"role": "user", "content": text},), context_end, wrapped=self.wrapped)


def own_protocol(task: str, max_length_tokens: int | None = None) -> TaskProtocol:
    """This project's own prompts, and answers as long as the configuration says."""
    label = f"{prompts.protocol}-{prompts.protocol_version}"
    return TaskProtocol(task, "own", label, max_length_tokens=max_length_tokens)


def load_protocol(
    section: Mapping[str, Any], tables: str | Path | None, task: str, model_name: str | None
) -> TaskProtocol:
    """The protocol of a task.

    Parameters
    ----------
    section : of the settings' section `protocol` kind and max_length_tokens; `changes` names what the configuration changes
        in official answers.
    tables : LongBench's tables as :func:`kv_transition.data.protocol_tables.fetch_tables` writes them; only read for
        the official protocol.
    model_name : the setting `model.name`; LongBench's own models have an official prompt limit.

    Raises
    ------
    UserError
        When the tables cannot be read, have no prompt for the task, or no limit for the model where none is set.
    """
    limit = section.get("max_length_tokens")
    if section["kind"] == "own":
        return own_protocol(task, limit)
    content = _read_tables(tables)
    table_name, facts = _table_name(task, content["prompts"]), task_facts(task)
    changes = section.get("changes") or []
    one_line = facts is not None and facts.stops_at_line
    return TaskProtocol(
        task,
        "official",
        f"official-{content['commit'][:8]}" + (f" modified: {', '.join(changes)}" if changes else ""),
        template=content["prompts"][table_name],
        wrapped=facts is None or facts.wrapped,
        max_length_tokens=limit or _official_limit(content["max_length"], model_name),
        max_new_tokens=content["max_new_tokens"].get(table_name),
        min_new_tokens=1 if one_line else 0,
        stop_token_texts=("\n",) if one_line else (),
    )


def _read_tables(path: str | Path | None) -> dict[str, Any]:
    wrong = "fetch LongBench's tables again (rule retrieve_protocol; delete the file first)"
    if path is None or not Path(path).is_file():
        raise UserError(
            f"protocol.kind: official needs LongBench's tables, and there is no file {path or 'of them'}; fetch them with "
            "the rule retrieve_protocol"
        )
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {wrong}") from None
    parts = {"commit": str, "prompts": dict, "max_new_tokens": dict, "max_length": dict}
    if not isinstance(content, dict) or any(
        not isinstance(content.get(key), kind) for key, kind in parts.items()
    ):
        raise UserError(f"{path}: does not hold {', '.join(parts)}; {wrong}")
    return content


def _table_name(task: str, templates: Mapping[str, str]) -> str:
    """The name under which the tables know a task; one of LongBench-E (`<task>_e`) has its namesake's prompt."""
    for name in (task, base_name(task)):
        if name in templates:
            return name
    if task == "longbench_v2":
        raise UserError(
            "protocol.kind: longbench_v2 runs with protocol own: its official answers are drawn at random (temperature 0.1) "
            "and its prompts are shortened by another rule, so greedy answers would not be comparable"
        )
    raise UserError(
        f"protocol.kind: LongBench has no official prompt for task {task!r}; set protocol.kind own, or use "
        f"{', '.join(sorted(templates))} (also with _e)"
    )


def _official_limit(limits: Mapping[str, int], model_name: str | None) -> int:
    if model_name in limits:
        return int(limits[str(model_name)])
    raise ConfigError(
        f"protocol.max_length_tokens: not set, and LongBench has no value for model.name {model_name!r}; set it "
        f"({RULE_OF_THUMB})"
    )
