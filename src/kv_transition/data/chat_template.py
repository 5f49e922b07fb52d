"""Chat templates: where a model folder keeps one, and how it is compiled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kv_transition.data.prompts import Message
from kv_transition.errors import UserError

#: What a chat template that prints today's date is told, so that a prompt is the same on every day.
TEMPLATE_DATE = datetime(2024, 7, 26)


def chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else the template in tokenizer_config.json (its default one where it lists several)."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {item["name"]: item["template"] for item in template}.get("default")
    return template if isinstance(template, str) else None


def compile_template(template: str, source: Path) -> Any:
    """Compile a chat template with the settings that the transformers library documents for them."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(
            f"{source}: the chat template cannot be read ({error}); give a valid chat_template.jinja"
        ) from None


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The chat with its system message at the head of the first user message."""
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
