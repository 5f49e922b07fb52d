"""Section of the configuration for servers that are asked over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from kv_transition.section import Section, Text

#: Names of headers and fields that hold secrets. The configuration is stored beside the results, so none may stand in it.
SECRET_NAME = re.compile(
    r"auth|secret|cookie|password|credential|(?:api|access|subscription|goog)[-_]?(?:api[-_]?)?key|(?:^|[-_])token$",
    re.IGNORECASE,
)
VARIABLE_NAME = re.compile(r"(?!sk_|hf_)[A-Za-z_][A-Za-z0-9_]*")


def _names(value: Any) -> Iterator[str]:
    """Names of all fields of a nested value."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from _names(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item)


def _check_address(key: str, address: str) -> None:
    """Fail for an address with a user, a query or a fragment; what it holds is never shown."""
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"{key}: an address has no user, password, query or fragment; a key is named by http.api_key_env"
        )


class BudgetTransport(Section):
    kind: Literal["extra_body", "endpoint", "none"] = Field(
        "extra_body",
        description="How a budget reaches the server: extra_body (fields of the request, see fields), endpoint (a server "
        "per budget, see endpoints) or none (only full, no_context and the text-level methods can run).",
    )
    fields: Literal["kv_transition", "vllm_kvcompress", "vllm_xargs"] = Field(
        "kv_transition",
        description="extra_body: names of the fields; kv_transition is this project's own server (kv-transition serve), "
        "vllm_kvcompress sends max_cache_tokens, vllm_xargs sends vllm_xargs.*.",
    )
    endpoints: dict[str, Text] = Field(
        {},
        description="endpoint: budget -> address of the server that was started with it; full for the whole cache.",
    )


class Http(Section):
    base_url: Text = Field(
        "http://127.0.0.1:8000/v1", description="Address of the server, up to and including /v1."
    )
    model: Text | None = Field(None, description="Name of the model at the server (null: model.name).")
    api_key_env: Text | None = Field(
        None,
        description="Environment variable that holds the key (null: none is sent). The key itself belongs in no file.",
    )
    mode: Literal["auto", "chat", "completions"] = Field(
        "auto",
        description="auto: /chat/completions, and /completions for prompts without a chat template; or always one of them.",
    )
    stream: bool = Field(
        True, description="Ask for tokens as they come, which measures the time to the first one."
    )
    concurrency: int = Field(8, ge=1, le=1024, description="Requests of one job in flight at the same time.")
    connect_timeout_s: float = Field(5, gt=0, description="Longest wait for a connection, in seconds.")
    read_timeout_s: float = Field(120, gt=0, description="Longest silence of the server, in seconds.")
    total_timeout_s: float = Field(
        600, gt=0, description="Longest time for a request with all its attempts and waits, in seconds."
    )
    max_attempts: int = Field(
        6, ge=1, description="Attempts at a request that met a timeout, a lost connection, 429 or 5xx."
    )
    backoff_s: float = Field(
        0.5, ge=0, description="Longest wait before the second attempt, in seconds; it doubles each time."
    )
    backoff_max_s: float = Field(
        30,
        ge=0,
        description="Longest wait between two attempts, in seconds; where a server says how long, that counts.",
    )
    headers: dict[str, Text] = Field({}, description="Further headers; none that holds a secret.")
    extra_body: dict[str, Any] = Field(
        {}, description="Further fields of every request; they are part of what determines an answer."
    )
    budget_transport: BudgetTransport = Field(
        default_factory=BudgetTransport, description="How a budget reaches the server."
    )
    require_verified_budget: bool = Field(
        True,
        description="An answer whose budget the server does not confirm is a failure (most servers ignore what they do not "
        "know); false lets it count, marked as unverified.",
    )

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, data: Any) -> Any:
        """Refuse secrets, in words that do not repeat them."""
        if not isinstance(data, Mapping):
            return data
        variable = data.get("api_key_env")
        if variable not in (None, "null", "~") and not VARIABLE_NAME.fullmatch(str(variable)):
            raise ValueError("api_key_env: give the name of an environment variable, never the key itself")
        for key in ("headers", "extra_body"):
            found = [name for name in _names(data.get(key)) if SECRET_NAME.search(name)]
            if found:
                raise ValueError(
                    f"{key}: {found[0]} may hold a secret, and the configuration is stored beside the results; the key is sent "
                    "by http.api_key_env"
                )
        return data

    @model_validator(mode="after")
    def _addresses(self) -> Http:
        _check_address("base_url", self.base_url)
        for address in self.budget_transport.endpoints.values():
            _check_address("http.budget_transport.endpoints", address)
        return self
