"""Section of the configuration for servers that are asked over HTTP."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kv_transition.section import Section, Text


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
        600, gt=0, description="Longest time for a request with all its attempts, in seconds."
    )
    max_attempts: int = Field(
        6, ge=1, description="Attempts at a request that met a timeout, a lost connection, 429 or 5xx."
    )
    backoff_s: float = Field(
        0.5, ge=0, description="Longest wait before the second attempt, in seconds; it doubles each time."
    )
    backoff_max_s: float = Field(30, ge=0, description="Longest wait between two attempts, in seconds.")
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
