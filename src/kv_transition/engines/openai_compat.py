"""Answers from a server of the OpenAI kind: OpenAI itself, vLLM, SGLang, this project's own.

A cell with a budget is answered only where the reply proves or at least reports that the server kept it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import requests

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import (
    ENGINE_ERROR,
    BaseEngine,
    Cell,
    Decoding,
    EngineResult,
    KVUse,
    Timings,
)
from kv_transition.engines.budget_transports import Asked, BudgetTransport, asked_of, kv_use
from kv_transition.engines.chat_replies import Reply, read_reply
from kv_transition.engines.http_transport import Fault, Transport, whole_text
from kv_transition.engines.retries import RetryPolicy, notes_of
from kv_transition.engines.sweep import FirstToken, Scope
from kv_transition.errors import ConfigError
from kv_transition.methods import canonical_name, resolve_parameters

#: Greedy decoding needs no seed; it is sent for servers that draw among equals.
SEED = 0

#: What a request says of itself; nothing in the configuration replaces it.
OWN_FIELDS = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "temperature",
        "seed",
        "max_tokens",
        "min_tokens",
        "stop",
        "stop_token_texts",
    }
    | {"stream", "stream_options", "n", "kv", "max_cache_tokens", "vllm_xargs"}
    | {"max_completion_tokens", "ignore_eos", "stop_token_ids", "best_of", "top_k"}
)

#: No clock shows more.
LONGEST_S = 2**63

#: Headers with secrets. The configuration is stored beside the results, so none may stand in it.
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key"})


def read_api_key(variable: str | None) -> str | None:
    """The key in the environment variable that `http.api_key_env` names; None without a name.

    Raises
    ------
    ConfigError
        When the variable is unset, or holds what no header can carry. The key itself is never shown.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"http.api_key_env: the environment variable {variable} is not set; export it, or set the key to null"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"http.api_key_env: the value of {variable} has characters that no key has; set it again"
        )
    return key


class OpenAICompatEngine(BaseEngine):
    """Asks a server over HTTP; may be used by many threads at once.

    Parameters
    ----------
    section : the setting `http`, its model resolved: base_url, model, concurrency, mode (chat, completions, auto: as the prompt is made), stream,
        timeouts, retries, headers, extra_body, budget_transport, require_verified_budget.
    scope, first_token, methods : as of the setting `kv`; hyper-parameters go over the methods' defaults.
    api_key : from :func:`read_api_key`.

    Raises
    ------
    ConfigError
        When the settings contradict each other.
    """

    def __init__(
        self,
        section: Mapping[str, Any],
        scope: Scope = "prompt",
        first_token: FirstToken = "full",
        methods: Mapping[str, Mapping[str, Any]] | None = None,
        api_key: str | None = None,
    ) -> None:
        _check_section(section)
        self.scope, self.first_token = scope, first_token
        self.parameters = resolve_parameters(methods or {})
        self.base_url, self.model = section["base_url"].rstrip("/"), section["model"]
        self.mode, self.stream = section["mode"], section["stream"]
        self.concurrency = section["concurrency"]
        self.extra_body = dict(section["extra_body"])
        self.require_verified_budget = section["require_verified_budget"]
        self.budgets = BudgetTransport(section["budget_transport"], self.base_url)
        self._transport = Transport(
            api_key, section["headers"], section["connect_timeout_s"], section["read_timeout_s"]
        )
        self._retries = RetryPolicy(
            section["max_attempts"],
            section["backoff_s"],
            section["backoff_max_s"],
            section["total_timeout_s"],
        )

    def provenance(self) -> dict[str, Any]:
        """What determines the answers, as far as the client knows."""
        return {
            **super().provenance(),
            "base_url": self.base_url,
            "model": self.model,
            "mode": self.mode,
            "extra_body": self.extra_body,
            "budget_transport": self.budgets.kind,
            "requests": requests.__version__,
        }

    def models(self) -> list[str]:
        """Names that the server lists in /models; empty where it lists none. One request, never raises a Fault."""
        try:
            listed = self._transport.get(f"{self.base_url}/models", time.monotonic() + 10).get("data")
        except Fault:
            return []
        entries = listed if isinstance(listed, list) else []
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]

    def generate(self, prompt: Prompt, cell: Cell, decoding: Decoding, example_id: str) -> EngineResult:
        """Answer one prompt at one cell.

        `raw` holds attempts, notes (what went wrong before), and of an answer total_tokens, server_model, fingerprint and
        timing; of a failure the kind of `fault` and the HTTP status.
        """
        cell = replace(cell, method=canonical_name(cell.method))
        if (cell.method == "full") != (cell.budget is None):
            raise ConfigError(f"kv.budgets: {cell.label!r} does not go with method {cell.method}")
        prompt = self._as_sent(prompt)
        asked = asked_of(cell, prompt, example_id, self.scope, self.first_token, self.parameters)
        path, body = self._body(prompt, decoding)
        body |= self.budgets.fields(asked)
        url = f"{self.budgets.address(cell)}/{path}"
        faults: list[Fault] = []
        try:
            reply, kv = self._retries.call(lambda deadline: self._ask(url, body, asked, deadline), faults)
        except Fault as fault:
            return self._failed(fault, faults)
        return self._answered(reply, kv, faults)

    def _as_sent(self, prompt: Prompt) -> Prompt:
        """The prompt as the mode sends it: a chat, or one text in which a chat's messages follow each other."""
        chat = prompt.wrapped if self.mode == "auto" else self.mode == "chat"
        if chat or len(prompt.messages) == 1:
            return replace(prompt, wrapped=chat)
        *before, last = (message["content"] for message in prompt.messages)
        start = "".join(f"{text}\n\n" for text in before)
        end = None if prompt.context_end is None else len(start) + prompt.context_end
        message = {"role": "user", "content": start + last}
        return replace(prompt, messages=(message,), context_end=end, wrapped=False)

    def _body(self, prompt: Prompt, decoding: Decoding) -> tuple[str, dict[str, Any]]:
        """Path below the base URL, and the request without its budget."""
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "seed": SEED}
        body["max_tokens"] = decoding.max_new_tokens
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if decoding.min_new_tokens:
            body["min_tokens"] = decoding.min_new_tokens
        if decoding.stop_token_texts and self.budgets.own_server:
            body["stop_token_texts"] = list(decoding.stop_token_texts)
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        body |= self.extra_body
        if prompt.wrapped:
            return "chat/completions", body | {"messages": [dict(message) for message in prompt.messages]}
        return "completions", body | {"prompt": prompt.messages[0]["content"]}

    def _ask(
        self, url: str, body: Mapping[str, Any], asked: Asked, deadline: float
    ) -> tuple[Reply, KVUse | None]:
        """One attempt."""
        begin = time.perf_counter()
        reply = read_reply(self._transport.post(url, body, deadline), begin)
        return reply, self._proved(reply, asked)

    def _proved(self, reply: Reply, asked: Asked) -> KVUse | None:
        """The cache behind a reply; without a budget the server need not say anything of it."""
        found: KVUse | str = "the reply has no kv object"
        if reply.kv is not None:
            counts = reply.tokens("prompt_tokens"), reply.tokens("completion_tokens")
            found = kv_use(reply.kv, asked, *counts)
        if isinstance(found, KVUse):
            return found
        if self.require_verified_budget and (asked.cell.budget is not None or _compressed(reply.kv)):
            if reply.kv is None and reply.end_missing:
                raise Fault("the stream ended before its kv object", "dropped", transient=True)
            raise Fault(f"server ignored the budget: {self._transport.scrub(found)}", "budget")
        if reply.kv is not None:
            reply.notes.append(f"budget not verified: {self._transport.scrub(found)}")
        return None

    def _answered(self, reply: Reply, kv: KVUse | None, faults: list[Fault]) -> EngineResult:
        scrub = self._transport.scrub
        text = scrub(reply.text)
        if text != reply.text:
            reply.notes.append("key removed from the answer")
        raw = {
            "attempts": len(faults) + 1,
            "notes": [*notes_of(faults), *reply.notes],
            "total_tokens": reply.tokens("total_tokens"),
            "server_model": scrub(reply.model) if reply.model else None,
            "fingerprint": scrub(reply.system_fingerprint) if reply.system_fingerprint else None,
            "timing": _seconds(reply.timing),
        }
        return EngineResult(
            text=text,
            finish_reason=scrub(reply.finish_reason) if reply.finish_reason else None,
            prompt_tokens=reply.tokens("prompt_tokens"),
            completion_tokens=reply.tokens("completion_tokens"),
            kv=kv,
            timings=Timings(reply.latency_s, reply.ttfb_s, timing_scope="request"),
            raw=raw,
        )

    @staticmethod
    def _failed(fault: Fault, faults: list[Fault]) -> EngineResult:
        attempts = f" ({len(faults)} attempts)" if len(faults) > 1 else ""
        failed = EngineResult.failed(f"{fault}{attempts}", timing_scope="request")
        raw = {
            "attempts": len(faults),
            "notes": notes_of(faults[:-1]),
            "fault": fault.kind,
            "status": fault.status,
        }
        return replace(failed, failure="TIMEOUT" if fault.kind == "timeout" else ENGINE_ERROR, raw=raw)


def _check_section(section: Mapping[str, Any]) -> None:
    address = urlsplit(str(section.get("base_url") or ""))
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError("http.base_url: give the server's address, e.g. http://localhost:8000/v1")
    if address.username or address.password:
        raise ConfigError(
            "http.base_url: holds a password; keep it in the variable that http.api_key_env names"
        )
    if not section.get("model"):
        raise ConfigError("http.model: give the model's name at the server, as its /v1/models lists it")
    if section["mode"] not in ("chat", "completions", "auto"):
        raise ConfigError(f"http.mode: {section['mode']!r} is unknown; known are chat, completions, auto")
    if taken := sorted(OWN_FIELDS & set(section["extra_body"])):
        raise ConfigError(f"http.extra_body: {', '.join(taken)} cannot be set there; other settings decide")
    if secret := sorted(name for name in section["headers"] if name.lower() in SECRET_HEADERS):
        raise ConfigError(
            f"http.headers: {', '.join(secret)} would be stored beside the results; name the variable with the key in "
            "http.api_key_env"
        )


def _compressed(echo: Mapping[str, Any] | None) -> bool:
    """Whether a reply to a request without a budget says that it used one."""
    return echo is not None and (echo.get("method", "full") != "full" or echo.get("budget") is not None)


def _seconds(timing: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the server's own clock, where they are ones that a clock can show."""
    return {
        whole_text(str(name)): float(value)
        for name, value in timing.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LONGEST_S
    }
