"""A cell of the grid as a press of kvpress, with a compression ratio that keeps exactly the budget.

kvpress keeps max(1, int(n * (1 - ratio))) of n positions. With ratio = 1 - b / n, rounding loses a position of many pairs
(n, b); half a position more than b never rounds to another number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import kvpress
import torch
from kvpress.utils import compute_n_kept
from torch.nn import functional

from kv_transition.engines.evictions import random_scores
from kv_transition.errors import UserError
from kv_transition.methods import KNOWN_METHODS, SNAPKV_PRESETS

#: The version that the methods of `SHARED_PREFILL` were proved on; with another one every cell runs by itself.
PROVED_VERSION = "0.5.5"
#: Methods whose presses only look at a layer's whole keys, values and hidden states, and may look at the same ones.
SHARED_PREFILL = frozenset(
    {
        "snapkv",
        "pyramidkv",
        "streaming_llm",
        "observed_attention",
        "tova",
        "knorm",
        "keydiff",
        "expected_attention",
        "lagkv",
        "random",
    }
)
#: How SnapKV's votes of the query heads of one KV head become scores.
AGGREGATIONS = ("mean", "max", "per_query_head")
#: Classes that cannot be given by name -> why.
REFUSED = {
    **dict.fromkeys(
        ("DecodingPress", "PrefillDecodingPress", "CompressionRatioDecodingPress", "DMSPress"),
        "it evicts while decoding, so no number of kept positions is its budget",
    ),
    **dict.fromkeys(
        ("KeyRerotationPress", "FinchPress"), "it moves the kept keys to other positions than the question's"
    ),
    "ThinKPress": "it removes dimensions of the keys, not positions",
    **dict.fromkeys(
        ("DuoAttentionPress", "SimLayerKVPress"), "what it keeps follows from its own rule, not from a budget"
    ),
    **dict.fromkeys(
        ("ComposedPress", "PerLayerCompressionPress"), "each of its parts has a budget of its own"
    ),
    **dict.fromkeys(("BasePress", "ScorerPress"), "it is what presses are made of, and evicts nothing"),
}
#: Classes that give the layers differently many positions.
LAYERWISE = ("PyramidKVPress", "KVzipPress", "KVgradPress", "KVComposePress")


@dataclass
class SinksFirstPress(kvpress.StreamingLLMPress):
    """StreamingLLM by its two ranges of positions, without scores; a budget below the sinks keeps the earliest of them."""

    def compress(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """The sinks and the last positions."""
        count = keys.shape[2]
        if count <= self.n_sink:
            raise ValueError(
                f"streaming_llm needs a prompt longer than its n_sink = {self.n_sink} positions; this one has {count}"
            )
        kept = compute_n_kept(count, self.compression_ratio)
        sinks = min(self.n_sink, kept)
        first_late = count - (kept - sinks)
        ranges = [torch.cat([part[:, :, :sinks], part[:, :, first_late:]], dim=2) for part in (keys, values)]
        return ranges[0], ranges[1]


@dataclass
class SeededRandomPress(kvpress.ScorerPress):
    """The reference engine's draws: they depend on the example, the layer and the replicate, and on nothing else."""

    example_id: str = ""
    replicate: int = 0

    def score(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> Any:
        """Numbers from 0 to 1."""
        drawn = random_scores(self.example_id, module.layer_idx, self.replicate, keys.shape[1:3])
        return torch.from_numpy(drawn)[None].to(keys.device)


@dataclass
class PooledSnapKVPress(kvpress.SnapKVPress):
    """SnapKV with the choices in which its implementations differ.

    Parameters
    ----------
    pooling : "average" or "max" over `kernel_size` neighbouring positions.
    aggregation : "mean" or "max" over the query heads of a KV head, or "per_query_head": no aggregation, every query head
        keeps positions of its own, at so many times the bytes, as the published implementations do, which repeat keys and
        values for the query heads before they choose.
    """

    pooling: str = "max"
    aggregation: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("average", "max") or self.aggregation not in AGGREGATIONS:
            raise ValueError(f"pooling is average or max, aggregation is {', '.join(AGGREGATIONS)}")

    def score(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> Any:
        """Votes of the window, pooled, then aggregated, (1, heads, n); the window itself above all."""
        batch, heads, count, _ = keys.shape
        window, kernel = self.window_size, self.kernel_size
        if attentions is not None:
            weights = attentions[..., -window:, :-window]
        else:
            weights = self.compute_window_attention(
                module, hidden_states, keys, window, kwargs["position_embeddings"]
            )
        pool = functional.avg_pool1d if self.pooling == "average" else functional.max_pool1d
        votes = pool(weights.mean(dim=-2), kernel_size=kernel, padding=kernel // 2, stride=1)
        if self.aggregation == "per_query_head":
            scores = votes
        else:
            votes = votes.view(batch, heads, -1, count - window)
            scores = votes.mean(2) if self.aggregation == "mean" else votes.amax(2)
        above = (scores.max() + 1).expand(*scores.shape[:2], window)
        return torch.cat([scores, above], dim=2)

    def compress(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """(1, KV heads, kept, d) keys and values, or (1, query heads, kept, d)."""
        if self.aggregation != "per_query_head":
            theirs: tuple[Any, Any] = super().compress(
                module, hidden_states, keys, values, attentions, kwargs
            )
            return theirs
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        count = compute_n_kept(keys.shape[2], self.compression_ratio)
        # The query heads of a KV head one after the other, so that its keys need not be repeated.
        kept = scores.topk(count, dim=-1).indices.view(1, keys.shape[1], -1)
        chosen = [rows_at(part, kept).view(1, -1, count, keys.shape[3]) for part in (keys, values)]
        return chosen[0], chosen[1]


#: Names that are no class of kvpress -> the class they stand for.
OWN_CLASSES: Mapping[str, type] = {
    PooledSnapKVPress.__name__: PooledSnapKVPress,
    "snapkv_paper": PooledSnapKVPress,
    "snapkv_kvcache_factory": PooledSnapKVPress,
    "snapkv_kvpress": kvpress.SnapKVPress,
}


def rows_at(part: Any, positions: Any) -> Any:
    """Whole rows of keys or values (1, K, n, d) at positions (1, K, count): (1, K, count, d).

    What `gather` copies number by number; five times as fast on a CPU.
    """
    _, heads, count, width = part.shape
    starts = torch.arange(0, heads * count, count, device=part.device)
    flat = (positions[0] + starts[:, None]).reshape(-1)
    return part[0].reshape(-1, width).index_select(0, flat).view(1, heads, -1, width)


def compress(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
) -> tuple[Any, Any]:
    """What a press keeps of a layer's whole keys and values, (1, K, n, d) each; those are left as they are.

    A press that only scores, and leaves the cutting to kvpress's `ScorerPress`, is cut here: the same positions, in whatever
    order, which no attention depends on. Any other press does it itself.
    """
    if getattr(press.compress, "__func__", None) is not kvpress.ScorerPress.compress:
        theirs: tuple[Any, Any] = press.compress(module, hidden, keys, values, attentions, kwargs)
        return theirs
    scores = press.score(module, hidden, keys, values, attentions, kwargs)
    count = compute_n_kept(keys.shape[2], press.compression_ratio)
    kept = scores.topk(count, dim=-1, sorted=False).indices
    return rows_at(keys, kept), rows_at(values, kept)


def sharing(parameters: Mapping[str, Mapping[str, Any]], version: str) -> frozenset[str]:
    """Methods whose cells may share one prefill: those of `SHARED_PREFILL`, and SnapKV as others have it.

    Parameters
    ----------
    parameters : method -> hyper-parameters.
    version : of kvpress; there are none where nothing was proved on it.
    """
    if version != PROVED_VERSION:
        return frozenset()
    return SHARED_PREFILL | {name for name, own in parameters.items() if own.get("press") in OWN_CLASSES}


def is_layerwise(method: str, parameters: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the layers of a method may keep differently many positions."""
    if method in KNOWN_METHODS:
        return KNOWN_METHODS[method].layerwise
    return method in parameters and parameters[method].get("press") in LAYERWISE


def make_press(
    method: str, parameters: Mapping[str, Any], keep: int, count: int, example_id: str, replicate: int
) -> Any:
    """The press that keeps `keep` of `count` positions.

    Parameters
    ----------
    parameters : the method's hyper-parameters; with the key `press` those of a class given by name.

    Raises
    ------
    UserError
        For a class that is not known or cannot be used.
    """
    # PyramidKV rounds to whole positions itself.
    ratio = 1 - (keep + 0.5) / count
    if "press" in parameters:
        press = named_press(method, parameters)
        press.compression_ratio = 1 - keep / count if isinstance(press, kvpress.PyramidKVPress) else ratio
        _fit_window(press, method, keep, count)
        return press
    if method == "pyramidkv":
        ratio = 1 - keep / count
    return FIXED[method](ratio, _Parameters(parameters, count, example_id, replicate))


@dataclass(frozen=True)
class _Parameters:
    """What a method's press is made of."""

    own: Mapping[str, Any]
    count: int
    example_id: str
    replicate: int

    @property
    def window(self) -> dict[str, int]:
        """SnapKV's; a prompt has to be longer than its window."""
        return {
            "window_size": min(self.own["window"], self.count - 1),
            "kernel_size": self.own["kernel"],
        }

    def some(self, *names: str) -> dict[str, Any]:
        """Hyper-parameters that kvpress calls the same."""
        return {name: self.own[name] for name in names}


#: Method -> its press, from the compression ratio and the parameters.
FIXED: Mapping[str, Callable[[float, _Parameters], Any]] = {
    "snapkv": lambda ratio, of: kvpress.SnapKVPress(ratio, **of.window),
    "pyramidkv": lambda ratio, of: kvpress.PyramidKVPress(ratio, **of.window, **of.some("beta")),
    "streaming_llm": lambda ratio, of: SinksFirstPress(ratio, **of.some("n_sink")),
    "observed_attention": lambda ratio, of: kvpress.ObservedAttentionPress(ratio),
    "tova": lambda ratio, of: kvpress.TOVAPress(ratio),
    "knorm": lambda ratio, of: kvpress.KnormPress(ratio),
    "keydiff": lambda ratio, of: kvpress.KeyDiffPress(ratio),
    "expected_attention": lambda ratio, of: kvpress.ExpectedAttentionPress(
        ratio, **of.some("n_future_positions", "n_sink")
    ),
    "lagkv": lambda ratio, of: kvpress.LagKVPress(ratio, **of.some("n_sink", "lag_size")),
    "random": lambda ratio, of: SeededRandomPress(ratio, of.example_id, of.replicate),
    "adakv_snapkv": lambda ratio, of: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio, **of.window)),
    "adakv_expected_attention": lambda ratio, of: kvpress.AdaKVPress(
        kvpress.ExpectedAttentionPress(ratio, **of.some("n_future_positions", "n_sink"))
    ),
}


def named_press(where: str, parameters: Mapping[str, Any]) -> Any:
    """A press of a class given by name; parameters that name a press are made into one.

    Raises
    ------
    UserError
        Naming the key of kv.presses.
    """
    name = str(parameters["press"])
    key = f"kv.presses.{where}"
    given = {
        parameter: named_press(f"{where}.{parameter}", value)
        if isinstance(value, Mapping) and "press" in value
        else value
        for parameter, value in parameters.items()
        if parameter != "press"
    }
    # `press: AdaKVPress` has a parameter of the name press itself.
    if "inner" in given:
        given["press"] = given.pop("inner")
    own = SNAPKV_PRESETS.get(name, {})
    kind = OWN_CLASSES.get(name) or getattr(kvpress, name, None)
    if not (isinstance(kind, type) and issubclass(kind, kvpress.BasePress) and is_dataclass(kind)):
        raise UserError(
            f"{key}: kvpress has no press {name!r}; name a class such as SnapKVPress, or {', '.join(SNAPKV_PRESETS)}"
        )
    if name in REFUSED:
        raise UserError(f"{key}: {name} cannot be used here: {REFUSED[name]}")
    known = set(inspect.signature(kind).parameters)
    if unknown := sorted(set(given) - known):
        raise UserError(
            f"{key}.{unknown[0]}: {name} has no such parameter; it has {', '.join(sorted(known))}"
        )
    if "compression_ratio" in given:
        raise UserError(f"{key}.compression_ratio: the budgets decide that; leave it out")
    kernel = {**own, **given}.get("kernel_size", 1)
    if isinstance(kernel, int) and kernel % 2 == 0:
        raise UserError(
            f"{key}.kernel_size: {kernel} is even; give an odd number, so that the pooling is centred"
        )
    if any(getattr(value, "aggregation", None) == "per_query_head" for value in given.values()):
        raise UserError(
            f"{key}: {name} cannot take over a press that keeps positions for every query head; set aggregation: mean in it"
        )
    try:
        press = kind(**{**own, **given})
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{key}: {name} refuses its parameters: {error}") from None
    if not hasattr(press, "compression_ratio"):
        raise UserError(f"{key}: {name} has no compression_ratio, so it cannot be given a budget")
    return press


def _fit_window(press: Any, method: str, keep: int, count: int) -> None:
    """A window may not fill the budget, and only a shorter prompt makes it smaller."""
    for inner in vars(press).values():
        if isinstance(inner, kvpress.BasePress):
            _fit_window(inner, method, keep, count)
    window = getattr(press, "window_size", None)
    if not isinstance(window, int):
        return
    # The re-read last prompt token may count against the budget too.
    if 2 * window > keep + 1:
        raise UserError(
            f"kv.presses.{method}: its window_size {window} is more than half of the {keep} positions that a budget keeps, and "
            "one curve has one window; lower it or raise kv.budgets"
        )
    press.window_size = min(window, count - 1)
