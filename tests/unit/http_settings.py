"""Settings of the HTTP engine, and prompts that the fault server knows, for the tests of the client."""

from __future__ import annotations

from typing import Any

from kv_transition.data.prompts import Prompt

WORDS = "one two three four five six seven eight nine ten eleven twelve"

SECTION: dict[str, Any] = {
    "kind": "openai_compat",
    "base_url": "http://127.0.0.1:1/v1",
    "model": "served",
    "api_key_env": None,
    "mode": "auto",
    "stream": True,
    "concurrency": 8,
    "connect_timeout_s": 2,
    "read_timeout_s": 5,
    "total_timeout_s": 10,
    "max_attempts": 4,
    "backoff_s": 0.01,
    "backoff_max_s": 0.05,
    "headers": {},
    "extra_body": {},
    "budget_transport": {"kind": "extra_body", "fields": "kv_transition", "endpoints": {}},
    "require_verified_budget": True,
}


def prompt_of(name: str, wrapped: bool = True) -> Prompt:
    """A prompt of 16 words, or of 15 without a system message."""
    user = {"role": "user", "content": f"{WORDS} and who id={name};"}
    system = {"role": "system", "content": "Answer."}
    return Prompt((system, user) if wrapped else (user,), len(WORDS), wrapped=wrapped)
