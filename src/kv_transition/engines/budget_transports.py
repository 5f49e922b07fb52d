"""How a KV budget travels to a server, and what proves that it was kept there.

Most servers drop fields that they do not know without a word, so a budget counts as applied only where the reply has a
`kv` object that agrees with the request: {method, budget, scope, first_token, params, prompt_tokens, press_len,
question_tokens, kept_per_layer, bytes_kept, active} and, from this project's own engines, {verified: measured, engine}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell, KVUse
from kv_transition.engines.sweep import FirstToken, Scope, Split
from kv_transition.errors import ConfigError
from kv_transition.methods import KNOWN_METHODS

#: Engines that read the budget back from the cache's own arrays; only their word is a measurement.
MEASURING_ENGINES = frozenset({"ReferenceEngine", "KVPressEngine"})

#: What the results' columns hold: counts of tokens and of bytes are below these.
MOST_TOKENS, MOST_BYTES = 2**31, 2**63

#: Hyper-parameters that are no part of one request.
NOT_SENT = ("seeds",)


@dataclass(frozen=True)
class Asked:
    """What a request asks of the cache.

    Attributes
    ----------
    parameters : the method's hyper-parameters.
    context_end : as of the prompt; only sent in scope "context".
    """

    cell: Cell
    scope: Scope
    first_token: FirstToken
    parameters: Mapping[str, Any]
    example_id: str
    context_end: int | None

    @property
    def fields(self) -> dict[str, Any]:
        """The request field `kv` of this project's own server."""
        cell = self.cell
        found: dict[str, Any] = {"method": cell.method, "scope": self.scope, "first_token": self.first_token}
        if cell.budget is not None:
            found |= {"budget": cell.budget, **self.parameters}
        if cell.method in KNOWN_METHODS and not KNOWN_METHODS[cell.method].deterministic:
            found |= {"seed": self.example_id, "replicate": cell.replicate}
        if self.scope == "context" and self.context_end is not None:
            found["context_end"] = self.context_end
        return found


def asked_of(
    cell: Cell,
    prompt: Prompt,
    example_id: str,
    scope: Scope,
    first_token: FirstToken,
    parameters: Mapping[str, Mapping[str, Any]],
) -> Asked:
    """What one request asks, under the hyper-parameters of all methods."""
    own = {name: value for name, value in parameters.get(cell.method, {}).items() if name not in NOT_SENT}
    return Asked(cell, scope, first_token, own, example_id, prompt.context_end)


def _kv_transition(asked: Asked) -> dict[str, Any]:
    return {"kv": asked.fields}


def _vllm_kvcompress(asked: Asked) -> dict[str, Any]:
    if asked.cell.budget is None:
        return {}
    if isinstance(asked.cell.budget, float):
        raise ConfigError(
            f"kv.budgets: {asked.cell.label} is a share, and http.budget_transport.fields vllm_kvcompress sends whole tokens "
            "(max_cache_tokens); give budgets in tokens"
        )
    return {"max_cache_tokens": asked.cell.budget}


def _vllm_xargs(asked: Asked) -> dict[str, Any]:
    if asked.cell.budget is None:
        return {}
    return {"vllm_xargs": {f"kv_{name}": value for name, value in asked.fields.items()}}


#: The setting http.budget_transport.fields -> what is added to a request's body.
FIELD_MAPS: Mapping[str, Callable[[Asked], dict[str, Any]]] = MappingProxyType(
    {"kv_transition": _kv_transition, "vllm_kvcompress": _vllm_kvcompress, "vllm_xargs": _vllm_xargs}
)


class BudgetTransport:
    """Where a cell's requests go, and what their bodies say of its budget.

    Parameters
    ----------
    section : the setting `http.budget_transport`: kind (extra_body, endpoint, none), fields, endpoints.
    base_url : the server of cells that no endpoint is named for.

    Raises
    ------
    ConfigError
        For an unknown kind or field map, or an endpoint table that is missing.
    """

    def __init__(self, section: Mapping[str, Any], base_url: str) -> None:
        self.kind, self.base_url = section["kind"], base_url
        self.field_map = section.get("fields") or "kv_transition"
        self.endpoints = {label: url.rstrip("/") for label, url in (section.get("endpoints") or {}).items()}
        if self.kind not in ("extra_body", "endpoint", "none"):
            raise ConfigError(
                f"http.budget_transport.kind: {self.kind!r} is unknown; known are extra_body, endpoint, none"
            )
        if self.kind == "extra_body" and self.field_map not in FIELD_MAPS:
            raise ConfigError(
                f"http.budget_transport.fields: {self.field_map!r} is unknown; known are {', '.join(FIELD_MAPS)}"
            )
        if self.kind == "endpoint" and not self.endpoints:
            raise ConfigError(
                "http.budget_transport.endpoints: empty; name the server of every budget, e.g. "
                "{256: http://localhost:8001/v1}"
            )

    @property
    def own_server(self) -> bool:
        """Whether requests carry the fields that this project's own server knows."""
        return self.kind == "extra_body" and self.field_map == "kv_transition"

    def address(self, cell: Cell) -> str:
        """The base URL that answers a cell.

        Raises
        ------
        ConfigError
            When no server can: the transport is `none`, or the table lacks the budget.
        """
        if self.kind == "none" and cell.budget is not None:
            raise ConfigError(
                f"http.budget_transport.kind: none sends no budget, so {cell.method} at {cell.label} cannot be asked; only "
                "full and no_context can. Name how the server takes a budget (extra_body or endpoint)"
            )
        if self.kind == "endpoint" and cell.budget is not None and cell.label not in self.endpoints:
            raise ConfigError(
                f"http.budget_transport.endpoints: no server for budget {cell.label}; it has "
                f"{', '.join(self.endpoints)}"
            )
        return self.endpoints.get(cell.label, self.base_url) if self.kind == "endpoint" else self.base_url

    def fields(self, asked: Asked) -> dict[str, Any]:
        """What the transport adds to a request's body."""
        return FIELD_MAPS[self.field_map](asked) if self.kind == "extra_body" else {}


def kv_use(
    echo: Mapping[str, Any], asked: Asked, prompt_tokens: int | None, completion_tokens: int | None
) -> KVUse | str:
    """The cache that a reply says it was computed from, or how that differs from what was asked.

    Parameters
    ----------
    echo : the reply's object `kv`.
    prompt_tokens, completion_tokens : the reply's own count, where it has one.
    """
    engine = echo.get("engine")
    own = isinstance(engine, Mapping) and engine.get("class") in MEASURING_ENGINES
    measured = own and echo.get("verified") == "measured"
    try:
        kept = _numbers(echo["kept_per_layer"], "kept_per_layer")
        press_len, total, question_tokens = (
            int(_number(echo[name], name)) for name in ("press_len", "prompt_tokens", "question_tokens")
        )
        bytes_kept = int(_number(echo["bytes_kept"], "bytes_kept", MOST_BYTES))
        peak = echo.get("peak_tokens")
        peak_tokens = None if peak is None else int(_number(peak, "peak_tokens"))
        mismatch = _contradiction(echo, asked, measured) or _miscount(
            echo, asked, kept, press_len, question_tokens, total, prompt_tokens, measured
        )
    except KeyError as error:
        return f"its kv object lacks {error.args[0]}"
    except (TypeError, ValueError) as error:
        return f"its kv object is wrong: {error}"
    if mismatch:
        return mismatch
    split = _split(asked, press_len, question_tokens)
    if peak_tokens is None:
        peak_tokens = int(max(kept)) + question_tokens + (completion_tokens or 0)
    if peak_tokens >= MOST_TOKENS:
        return f"{peak_tokens} tokens at the end are too many"
    return KVUse(
        method=asked.cell.method,
        requested=split.requested(asked.cell),
        kept_per_layer=tuple(kept),
        kept_mean=sum(kept) / len(kept),
        kept_min=min(kept),
        kept_max=max(kept),
        press_len=press_len,
        prompt_tokens=total,
        question_tokens=question_tokens,
        bytes_kept=bytes_kept,
        peak_tokens=peak_tokens,
        active=split.is_active(asked.cell),
        verified="measured" if measured else "reported",
    )


def _numbers(values: object, name: str) -> list[float]:
    if not isinstance(values, list):
        raise ValueError(f"{name} is {values!r:.40}")
    return [float(_number(value, name)) for value in values]


def _number(value: Any, name: str, limit: int = MOST_TOKENS) -> int | float:
    if type(value) not in (int, float) or not 0 <= value < limit:
        raise ValueError(f"{name} is {value!r:.40}")
    number: int | float = value
    return number


def _split(asked: Asked, press_len: int, question_tokens: int) -> Split:
    refed = 1 if asked.scope == "prompt" and asked.first_token == "compressed" else 0
    return Split(press_len, refed, question_tokens)


def _contradiction(echo: Mapping[str, Any], asked: Asked, measured: bool) -> str | None:
    """The first setting that the server did not use as asked; a foreign server need not name all of them."""
    wanted: dict[str, Any] = {
        "method": asked.cell.method,
        "budget": asked.cell.budget,
        "scope": asked.scope,
        "first_token": asked.first_token,
    }
    for name, value in wanted.items():
        told = measured or name in echo or name == "budget"
        if told and echo.get(name) != value:
            return f"{name} is {echo.get(name)!r} where {value!r} was asked"
    parameters = echo.get("params")
    for name, value in asked.parameters.items() if asked.cell.budget is not None else ():
        used = parameters.get(name) if isinstance(parameters, Mapping) else None
        if (measured or used is not None) and used != value:
            return f"{name} is {used!r} where {value!r} was asked"
    return None


def _miscount(
    echo: Mapping[str, Any],
    asked: Asked,
    kept: list[float],
    press_len: int,
    question_tokens: int,
    total: int,
    prompt_tokens: int | None,
    measured: bool,
) -> str | None:
    """The first number that does not follow from the request; most methods of this project keep the same in all
    layers."""
    split = _split(asked, press_len, question_tokens)
    if not kept:
        return "kept_per_layer is empty"
    if prompt_tokens is not None and prompt_tokens != total:
        return f"prompt_tokens is {total}, and {prompt_tokens} in usage"
    if split.budget_base + question_tokens != total:
        return f"press_len {press_len} does not fit {total} prompt tokens"
    requested = split.requested(asked.cell)
    expected = split.budget_base if requested is None else min(requested, split.budget_base)
    mean = sum(kept) / len(kept)
    exact = all(positions == expected for positions in kept)
    card = KNOWN_METHODS.get(asked.cell.method)
    if not (exact if measured and not (card and card.layerwise) else abs(mean - expected) <= 0.5):
        return f"kept {mean:g} positions where {expected} were asked"
    if isinstance(echo.get("active"), bool) and echo["active"] != split.is_active(asked.cell):
        return f"active is {echo['active']} at {expected} of {split.budget_base} positions"
    return None
