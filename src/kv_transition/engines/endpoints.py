"""From settings to an engine: the only place that knows which kinds there are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kv_transition.engines.base import BaseEngine
from kv_transition.engines.kvpress_settings import DECODE_BATCH
from kv_transition.errors import ConfigError

if TYPE_CHECKING:
    from kv_transition.engines.local import LocalEngine

log = logging.getLogger(__name__)


def build_engine(answer: Mapping[str, Any]) -> BaseEngine:
    """Build the engine that the settings' answer slice describes; a local engine loads its weights here.

    Parameters
    ----------
    answer : with the keys `engine` (kind and its options), `model` (name, path, revision) and `kv` (scope,
        first_token, methods); `http` where a server is asked, `decode_batch` where kvpress is.

    Raises
    ------
    UserError
        For an unknown kind, a missing model, or options that contradict each other.
    """
    kind = answer["engine"]["kind"]
    if kind == "openai_compat":
        return _openai_compat(answer)
    if kind not in ("reference", "kvpress"):
        raise ConfigError(f"engine.kind: {kind!r} is unknown; known are reference, kvpress and openai_compat")
    engine = _reference(answer) if kind == "reference" else _kvpress(answer)
    if not engine.tokenizer.has_chat_template:
        log.warning("%s has no chat template: prompts are asked as plain text", engine.path)
    return engine


def _openai_compat(answer: Mapping[str, Any]) -> BaseEngine:
    from kv_transition.engines.openai_compat import OpenAICompatEngine, read_api_key

    http, kv = answer["http"], answer["kv"]
    section = {**http, "model": http["model"] or answer["model"]["name"]}
    key = read_api_key(http["api_key_env"])
    return OpenAICompatEngine(section, kv["scope"], kv["first_token"], kv["methods"], key)


def _reference(answer: Mapping[str, Any]) -> LocalEngine:
    from kv_transition.engines.reference import ReferenceEngine

    engine, model, kv = answer["engine"], answer["model"], answer["kv"]
    if not model.get("path"):
        raise ConfigError("model.path: missing; the reference engine needs the folder of a Llama model")
    dtype = engine.get("dtype", "float32")
    if dtype != "float32":
        raise ConfigError(
            f"engine.dtype: {dtype!r} is unknown to the reference engine, which computes in float32"
        )
    return ReferenceEngine(
        model["path"],
        scope=kv["scope"],
        first_token=kv["first_token"],
        methods=kv.get("methods", {}),
        unknown_token_limit=engine.get("unknown_token_limit", 0.2),
    )


def _kvpress(answer: Mapping[str, Any]) -> LocalEngine:
    from kv_transition.engines.kvpress_engine import KVPressEngine

    engine, model, kv = answer["engine"], answer["model"], answer["kv"]
    if not model.get("path"):
        raise ConfigError("model.path: missing; the engine kvpress needs the folder of a model")
    return KVPressEngine(
        model["path"],
        scope=kv["scope"],
        first_token=kv["first_token"],
        methods=kv.get("methods", {}),
        unknown_token_limit=engine.get("unknown_token_limit", 0.2),
        device=engine.get("device", "auto"),
        dtype=engine.get("dtype", "float32"),
        attn_implementation=engine.get("attn_implementation", "sdpa"),
        decode_batch=answer.get("decode_batch", DECODE_BATCH),
    )
