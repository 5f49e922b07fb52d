"""The known methods: names, default hyper-parameters, and the facts of the method card. No heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kv_transition.budgets import UNCOMPRESSED
from kv_transition.errors import ConfigError


@dataclass(frozen=True)
class MethodCard:
    """What a reader has to know about a method before comparing its curve with another one.

    Attributes
    ----------
    defaults : hyper-parameters and their default values; these are all there are.
    evicts_tokens : positions leave the cache (so that a budget above the prompt changes nothing).
    shortens_text : the prompt itself is shortened, before the model reads it, and its whole cache is kept.
    granularity : who chooses positions: every KV head for itself, or all heads of a layer together.
    prefill_cost : what has to be computed beyond the prefill itself.
    needs_kvpress : the reference engine has no such method; it is kvpress's.
    layerwise : layers keep different numbers of positions, and the budget is their mean, rounded by half a position.
    """

    name: str
    title: str
    paper: str
    differs: str
    defaults: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[str, ...] = ()
    evicts_tokens: bool = True
    shortens_text: bool = False
    granularity: str = "per KV head"
    pooling: str = "none"
    positions: str = "original positions, no re-rotation"
    evicts_while_decoding: bool = False
    deterministic: bool = True
    replicates: int = 1
    memory_freed: str = (
        "keys and values of the evicted positions, in every layer, from the end of the prefill; "
        "the peak of the prefill does not fall"
    )
    prefill_cost: str = "none"
    needs_kvpress: bool = False
    layerwise: bool = False


def _kvpress_card(
    name: str, title: str, differs: str, paper: str, defaults: Mapping[str, int] | None = None, **facts: Any
) -> MethodCard:
    """The card of a method that only the engine kvpress applies."""
    return MethodCard(
        name=name,
        title=title,
        paper=paper,
        differs=differs,
        defaults=MappingProxyType(dict(defaults or {})),
        needs_kvpress=True,
        **facts,
    )


ADAKV = (
    "Feng et al. (2024), Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference, "
    "arXiv:2407.11550"
)
EXPECTED_ATTENTION = (
    "Devoto et al. (2025), Expected Attention: KV Cache Compression by Estimating Attention from Future Queries "
    "Distribution, arXiv:2510.00636"
)
#: What is said of both variants of AdaKV.
ADAKV_FACTS = MappingProxyType(
    {
        "granularity": "all KV heads of a layer share one budget: a head may keep more than another, the mean is the budget",
        "memory_freed": "none here: evicted positions are masked, not removed; bytes count what is not masked",
    }
)


def _text_card(
    name: str, title: str, differs: str, paper: str, defaults: Mapping[str, int] | None = None
) -> MethodCard:
    """The card of a method that shortens the text: nothing leaves a cache, there is only less to read."""
    return MethodCard(
        name=name,
        title=title,
        paper=paper,
        differs=differs,
        defaults=MappingProxyType(dict(defaults or {})),
        evicts_tokens=False,
        shortens_text=True,
        granularity="none: the text is shortened, by whole tokens or passages",
        positions="those of the shorter prompt",
        memory_freed=(
            "keys and values of all that is not in the shorter prompt, which is all there is; "
            "the prefill really is shorter too"
        ),
        prefill_cost="none: fewer tokens are read",
    )


_CARDS = (
    MethodCard(
        name="full",
        title="full cache",
        paper="none: the reference",
        differs="nothing is evicted",
        evicts_tokens=False,
        granularity="none",
        memory_freed="none",
    ),
    MethodCard(
        name="snapkv",
        title="SnapKV",
        paper="Li et al. (2024), SnapKV: LLM Knows What You are Looking for Before Generation, arXiv:2404.14469",
        differs=(
            "the paper uses window 32, kernel 7 and max-pooling, and selects per query head after repeating the keys; "
            "here average-pooling, scores averaged over the query heads of a KV head"
        ),
        defaults=MappingProxyType({"window": 8, "kernel": 5}),
        pooling="average over `kernel` neighbouring positions",
        prefill_cost="attention of the last `window` queries once more",
    ),
    MethodCard(
        name="streaming_llm",
        title="StreamingLLM",
        paper="Xiao et al. (2024), Efficient Streaming Language Models with Attention Sinks, arXiv:2309.17453",
        differs=(
            "the paper assigns positions inside the cache and goes on evicting while decoding; here the kept positions "
            "are the original ones and nothing is evicted after the prefill"
        ),
        defaults=MappingProxyType({"n_sink": 4}),
        granularity="the same positions in every layer and head",
    ),
    MethodCard(
        name="observed_attention",
        title="observed attention (H2O-like)",
        paper=(
            "after Zhang et al. (2023), H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs, "
            "arXiv:2306.14048"
        ),
        differs=(
            "not H2O: the attention a position received is divided by the number of queries that could see it, no recent "
            "tokens are protected, and nothing is evicted while decoding"
        ),
        aliases=("h2o",),
        prefill_cost="column sums of every layer's attention (no memory in the square of the prompt here)",
    ),
    MethodCard(
        name="tova",
        title="TOVA",
        paper="Oren et al. (2024), Transformers are Multi-State RNNs, arXiv:2401.06104",
        differs="the last position is always kept; nothing is evicted while decoding",
        granularity="the same positions in every head of a layer (attention averaged over all heads)",
        prefill_cost="attention of the last query once more",
    ),
    MethodCard(
        name="knorm",
        title="key norm",
        paper="Devoto et al. (2024), A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, arXiv:2406.11430",
        differs="applied to every layer; nothing is evicted while decoding",
    ),
    MethodCard(
        name="random",
        title="random",
        paper="none: the baseline that a method has to beat",
        differs="positions drawn without replacement, seeded by (example, layer, replicate)",
        defaults=MappingProxyType({"seeds": 3}),
        deterministic=False,
        replicates=3,
    ),
    _kvpress_card(
        "pyramidkv",
        "PyramidKV",
        (
            "scores as of snapkv here; lower layers keep more positions than upper ones and the budget is the mean over the "
            "layers. Where a layer would get less than the window, every layer keeps the budget, which is snapkv; on few "
            "layers the last one is starved"
        ),
        "Cai et al. (2024), PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling, arXiv:2406.02069",
        {"window": 8, "kernel": 5, "beta": 20},
        pooling="average over `kernel` neighbouring positions",
        granularity="per KV head; the number of positions differs by layer",
        layerwise=True,
        prefill_cost="attention of the last `window` queries once more",
    ),
    _kvpress_card(
        "keydiff",
        "KeyDiff",
        "applied once to the whole prefill, not block by block; nothing is evicted while decoding",
        "Park et al. (2025), KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in "
        "Resource-Constrained Environments, arXiv:2504.15364",
    ),
    _kvpress_card(
        "expected_attention",
        "expected attention",
        "kvpress's own, with its defaults: covariance and the norm of the values are used, epsilon is 0",
        EXPECTED_ATTENTION,
        {"n_future_positions": 512, "n_sink": 4},
        prefill_cost="mean and covariance of all queries",
    ),
    _kvpress_card(
        "lagkv",
        "LagKV",
        (
            "prompts shorter than n_sink + 2 lag_size keep their sinks and most recent positions. Positions of the same "
            "rank in different partitions score the same, and so do the sinks and the last lag_size positions or more: "
            "a budget below these picks among equals"
        ),
        "Liang et al. (2025), LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important, "
        "arXiv:2504.04704",
        {"n_sink": 4, "lag_size": 128},
    ),
    _kvpress_card(
        "adakv_snapkv",
        "AdaKV over SnapKV",
        "scores as of snapkv here; every KV head keeps at least a fifth of the budget",
        ADAKV,
        {"window": 8, "kernel": 5},
        pooling="average over `kernel` neighbouring positions",
        prefill_cost="attention of the last `window` queries once more; a prefill of its own",
        **ADAKV_FACTS,
    ),
    _kvpress_card(
        "adakv_expected_attention",
        "AdaKV over expected attention",
        "scores as of expected_attention here; every KV head keeps at least a fifth of the budget",
        f"{ADAKV}; {EXPECTED_ATTENTION}",
        {"n_future_positions": 512, "n_sink": 4},
        prefill_cost="mean and covariance of all queries; a prefill of its own",
        **ADAKV_FACTS,
    ),
    _text_card(
        "recent",
        "recent text",
        "keeps instruction and question whole and the last tokens of the context",
        paper="none: the baseline that a KV method has to beat at equal memory",
    ),
    _text_card(
        "middle",
        "text without its middle",
        "keeps instruction and question whole and the first and the last half of what fits of the context, a "
        "blank line between them. LongBench's truncation of over-long prompts is another thing",
        paper="none: the baseline that a KV method has to beat at equal memory",
    ),
    _text_card(
        "bm25",
        "BM25 passages",
        "passages are cut every `passage_tokens` tokens; words are runs of letters and digits (Chinese as jieba cuts "
        "it), k1 = 1.5, b = 0.75, Lucene's idf; the best passages that fit stand in document order, a blank line between "
        "them",
        paper=(
            "Robertson and Zaragoza (2009), The Probabilistic Relevance Framework: BM25 and Beyond, "
            "Foundations and Trends in Information Retrieval 3(4), 333-389"
        ),
        defaults={"passage_tokens": 128},
    ),
)

#: Name -> card, in the order in which reports list the methods.
KNOWN_METHODS: Mapping[str, MethodCard] = MappingProxyType({card.name: card for card in _CARDS})

#: Methods that shorten the text and leave the cache alone; any engine can answer them.
TEXT_METHODS = tuple(card.name for card in _CARDS if card.shortens_text)


#: SnapKV as others have it (`kv.presses`). The paper's code and KVCache-Factory choose positions for every query head;
#: kvpress averages over those of a KV head.
SNAPKV_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "snapkv_paper": {
            "window_size": 32,
            "kernel_size": 7,
            "pooling": "max",
            "aggregation": "per_query_head",
        },
        "snapkv_kvcache_factory": {
            "window_size": 8,
            "kernel_size": 7,
            "pooling": "max",
            "aggregation": "per_query_head",
        },
        "snapkv_kvpress": {"window_size": 64, "kernel_size": 5},
    }
)


def canonical_name(name: str) -> str:
    """The method's own name for a name or an alias ("h2o" -> "observed_attention").

    Raises
    ------
    ConfigError
        For an unknown name.
    """
    for card in KNOWN_METHODS.values():
        if name == card.name or name in card.aliases:
            return card.name
    names = ", ".join(card for card in KNOWN_METHODS if card not in UNCOMPRESSED)
    raise ConfigError(f"kv.methods: {name!r} is unknown; known are {names}")


def resolve_parameters(configured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Hyper-parameters of all known methods: the defaults, overridden by the configured ones.

    Parameters
    ----------
    configured : method name or alias -> its hyper-parameters, as in the key `kv.methods` of a config. Parameters that
        name a `press` are a method of their own (`kv.presses`), and taken as they are.

    Raises
    ------
    ConfigError
        For an unknown method, an unknown hyper-parameter, or a value out of its range.
    """
    resolved: dict[str, dict[str, Any]] = {name: dict(card.defaults) for name, card in KNOWN_METHODS.items()}
    for given, parameters in configured.items():
        if "press" in (parameters or {}):
            resolved[given] = _written_out(parameters)
            continue
        own = resolved[canonical_name(given)]
        for key, value in (parameters or {}).items():
            where = f"kv.methods.{given}.{key}"
            if key not in own:
                known = ", ".join(own) or "none"
                raise ConfigError(f"{where}: no such hyper-parameter; {given} has: {known}")
            least = 0 if key == "n_sink" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{where}: {value!r} is not valid; give a whole number from {least} up")
            if key == "kernel" and value % 2 == 0:
                raise ConfigError(
                    f"{where}: {value} is even; give an odd number, so that the pooling is centred"
                )
            own[key] = value
    return resolved


def _written_out(press: Mapping[str, Any]) -> dict[str, Any]:
    """A press with the numbers of its preset, so that they are seen and are part of the answer's key."""
    given = {**SNAPKV_PRESETS.get(str(press.get("press")), {}), **press}
    return {key: _written_out(value) if isinstance(value, Mapping) else value for key, value in given.items()}


def configured_parameters(kv: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Hyper-parameters of all methods under the section `kv` of a resolved configuration, those of kv.presses included.

    A window, kernel or number of sinks is that of every method that has one.
    """
    given = {"window": kv["window"], "kernel": kv["kernel"], "n_sink": kv["n_sink"]}
    own = {
        name: {key: given[key] for key in card.defaults if key in given}
        for name, card in KNOWN_METHODS.items()
    }
    own["random"] = {"seeds": kv["random_replicates"]}
    own["bm25"] = {"passage_tokens": kv["passage_tokens"]}
    return resolve_parameters({**own, **kv.get("presses", {})})
