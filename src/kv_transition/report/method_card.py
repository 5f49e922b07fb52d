"""What a reader has to know about a method before its curve means anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kv_transition
from kv_transition.methods import KNOWN_METHODS, configured_parameters
from kv_transition.report.wording import percent

if TYPE_CHECKING:
    import pandas as pd

SCOPES = {
    "prompt": "prompt: everything may be evicted, the question included, and the method sees the question",
    "context": "context: only the context may be evicted, before the question is seen; the question is added uncompressed",
}
FIRST_TOKENS = {
    "full": "full: the first answer token comes from the uncompressed cache, so it cannot feel the budget",
    "compressed": "compressed: the first answer token already comes from the compressed cache",
}
BUDGETS = {
    "prompt": "prompt positions kept per layer and KV head; generated tokens come on top",
    "context": "context positions kept per layer and KV head; the question and generated tokens come on top",
}
TEXT_SCOPE = "the text: only the context is shortened, before the model reads it"
TEXT_FIRST_TOKEN = "from the cache of the shorter prompt, like every other, so it feels the budget"
TEXT_BUDGET = "all tokens of the prompt that is sent, template, instruction and question included"
UNKNOWN = "not known for this method"
PUBLISHED = "not known: published results do not say"


def method_card(method: str, settings: Mapping[str, Any], cells: pd.DataFrame) -> list[tuple[str, str]]:
    """The card of a method as (what, answer) pairs of plain text.

    Parameters
    ----------
    settings : the resolved configuration.
    cells : rows of `bin_stats` of this method, all lengths pooled, one policy; for measured budgets.
    """
    if settings["engine"]["kind"] == "published":
        return published_card(settings)
    known = KNOWN_METHODS.get(method)
    kv = settings["kv"]
    own = settings["engine"]
    engine = f"kv_transition {kv_transition.__version__}, engine {own['kind']}, {own['dtype']}"
    if own["kind"] == "kvpress":
        engine += f", attention {own['attn_implementation']}, device {own['device']}"

    def fact(name: str) -> str:
        return UNKNOWN if known is None else str(getattr(known, name))

    parameters = configured_parameters(settings["kv"]).get(method, {})
    resolved = ", ".join(f"{key} = {value}" for key, value in sorted(parameters.items())) or "none"
    scope, first_token = (
        SCOPES.get(kv["scope"], kv["scope"]),
        FIRST_TOKENS.get(kv["first_token"], kv["first_token"]),
    )
    counts = BUDGETS.get(kv["scope"], UNKNOWN)
    if known is not None and known.shortens_text:
        scope, first_token, counts = TEXT_SCOPE, TEXT_FIRST_TOKEN, TEXT_BUDGET
    rows = [
        ("paper", fact("paper")),
        ("what differs from it", fact("differs")),
        ("implementation", engine),
        ("hyper-parameters", resolved if known or parameters else UNKNOWN),
        ("pooling of scores", fact("pooling")),
        ("who chooses positions", fact("granularity")),
        ("scope", scope),
        ("first token", first_token),
        ("positions", fact("positions")),
        ("evicts while decoding", _yes(None if known is None else known.evicts_while_decoding)),
        ("what the budget counts", counts),
        ("memory freed", fact("memory_freed")),
        ("extra cost of the prefill", fact("prefill_cost")),
        ("deterministic", _deterministic(method, known, parameters)),
    ]
    return rows + _measured(cells)


def published_card(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The card of a method whose results come from elsewhere: what was done is the word of their source."""
    source = settings["published"]
    unknown = (
        "paper",
        "implementation",
        "hyper-parameters",
        "scope",
        "first token",
        "positions",
        "evicts while decoding",
        "memory freed",
    )
    return [
        ("source", f"{Path(str(source['path'])).name}, layout {source['layout']}"),
        ("what the budget counts", "what the source calls the budget; no budget was measured here"),
        *((fact, PUBLISHED) for fact in unknown),
    ]


def _yes(answer: bool | None) -> str:
    return UNKNOWN if answer is None else "yes" if answer else "no"


def _deterministic(method: str, known: Any, parameters: Mapping[str, int]) -> str:
    if known is None:
        return UNKNOWN
    if known.deterministic:
        return "yes"
    return f"no: {parameters.get('seeds', known.replicates)} seeded draws per example, averaged per example"


def _measured(cells: pd.DataFrame) -> list[tuple[str, str]]:
    cells = cells[cells["kept_mean"].notna()]
    if cells.empty:
        return [("kept tokens", "not recorded")]
    share = float((cells["verified_frac"] * cells["n"]).sum() / max(cells["n"].sum(), 1))
    kept = f"{cells['kept_min'].min():.0f} to {cells['kept_max'].max():.0f} positions over all its budgets"
    return [("budget measured in the cache", f"{percent(share)} of the answers"), ("kept tokens", kept)]
