"""The fields of request bodies: their names, types and limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kv_transition.budgets import Budget, parse_budget
from kv_transition.errors import ConfigError

MAX_STOPS = 4
LARGEST = 2**31 - 1
#: Evictions cost time and memory in proportion to their hyper-parameters.
LARGEST_PARAMETER = 1024


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopText = Annotated[str, Field(min_length=1), AfterValidator(_encodable)]


def _content(value: object) -> object:
    """A message's content: text, or OpenAI's list of parts, whose texts are joined."""
    if not isinstance(value, list):
        return value
    texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
        raise ValueError("only parts of type text are read here")
    return "".join(str(text) for text in texts)


def _one_prompt(value: object) -> object:
    """A prompt: text, or a list of one text."""
    if not isinstance(value, list):
        return value
    if len(value) != 1 or not isinstance(value[0], str):
        raise ValueError("give one text; several prompts and token ids are not read here")
    return value[0]


def _stops(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _budget(value: object) -> Budget | None:
    if value is None:
        return None
    problem = ValueError("give whole tokens from 2 up (256) or a share kept between 0 and 1 (0.25)")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise problem
    try:
        return parse_budget(value)
    except ConfigError:
        raise problem from None


class Strict(BaseModel):
    """Values have the types of their fields; what is unknown is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class KVRequest(Strict):
    """The field `kv`: which cache the answer is to be computed from."""

    model_config = ConfigDict(strict=True, extra="forbid")

    method: Text = "full"
    budget: Annotated[Any, BeforeValidator(_budget)] = None
    scope: Literal["prompt", "context"] = "prompt"
    first_token: Literal["full", "compressed"] = "full"
    window: int | None = Field(None, ge=1, le=LARGEST_PARAMETER)
    kernel: int | None = Field(None, ge=1, le=LARGEST_PARAMETER)
    n_sink: int | None = Field(None, ge=0, le=LARGEST_PARAMETER)
    beta: int | None = Field(None, ge=1, le=LARGEST_PARAMETER)
    n_future_positions: int | None = Field(None, ge=1, le=LARGEST_PARAMETER)
    lag_size: int | None = Field(None, ge=1, le=LARGEST_PARAMETER)
    seed: Text | None = None
    replicate: int = Field(0, ge=0, le=LARGEST)
    context_end: int | None = Field(None, ge=0)


class StreamOptions(Strict):
    """The field `stream_options`."""

    include_usage: bool | None = None


class Request(Strict):
    """Fields of both endpoints that are read."""

    model: Text
    kv: KVRequest | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=LARGEST)
    max_completion_tokens: int | None = Field(None, ge=1, le=LARGEST)
    min_tokens: int | None = Field(None, ge=0, le=LARGEST)
    stop: Annotated[
        Annotated[list[StopText], Field(max_length=MAX_STOPS, fail_fast=True)] | None,
        BeforeValidator(_stops),
    ] = None
    stop_token_texts: Annotated[list[Text], Field(fail_fast=True)] | None = None


class ChatMessage(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_content)]


class ChatRequest(Request):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)


class CompletionRequest(Request):
    """The body of /v1/completions."""

    prompt: Annotated[Text, BeforeValidator(_one_prompt)]
