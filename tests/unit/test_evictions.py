"""What each method keeps, checked against its formula written out at full length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kv_transition.engines.attention import causal_attention
from kv_transition.engines.evictions import EVICTIONS, LayerPrefill, average_pool, random, top_positions
from kv_transition.errors import ConfigError
from kv_transition.methods import KNOWN_METHODS, canonical_name, resolve_parameters

HEADS, KV_HEADS, WIDTH = 4, 2, 8
PARAMETERS = resolve_parameters({"snapkv": {"window": 6, "kernel": 3}})


def a_layer(n: int, seed: int = 0, index: int = 0, example_id: str = "example") -> LayerPrefill:
    rng = np.random.default_rng(seed)
    queries, keys, values = (
        rng.normal(size=(heads, n, WIDTH)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    _, received = causal_attention(queries, keys, values, with_received=True)
    return LayerPrefill(index, example_id, queries, keys, values, received)


def all_attention(layer: LayerPrefill) -> np.ndarray:
    """The whole (H, n, n) attention matrix in float64."""
    keys = np.repeat(layer.keys.astype(float), HEADS // KV_HEADS, axis=0)
    logits = layer.queries.astype(float) @ keys.transpose(0, 2, 1) / np.sqrt(WIDTH)
    logits[:, np.triu(np.ones(logits.shape[1:], dtype=bool), k=1)] = -np.inf
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


def scores(method: str, layer: LayerPrefill, replicate: int = 0) -> np.ndarray:
    return EVICTIONS[method].score(layer, PARAMETERS[method], replicate)


def kept(method: str, layer: LayerPrefill, budget: int) -> list[set[int]]:
    return [set(head.tolist()) for head in top_positions(scores(method, layer), budget)]


def test_every_known_method_that_evicts_has_an_eviction_here_or_in_kvpress():
    of_kvpress = {name for name, card in KNOWN_METHODS.items() if card.needs_kvpress}
    assert set(EVICTIONS) == {name for name, card in KNOWN_METHODS.items() if card.evicts_tokens} - of_kvpress


# The cut


@given(st.data())
def test_the_cut_keeps_k_positions_and_none_that_scores_below_an_evicted_one(data):
    n = data.draw(st.integers(1, 40))
    values = data.draw(arrays(np.float32, (2, n), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])))
    k = data.draw(st.integers(1, n))
    positions = top_positions(values, k)
    assert positions.shape == (2, k)
    for head, own in enumerate(positions.tolist()):
        assert own == sorted(set(own))
        evicted = sorted(set(range(n)) - set(own))
        if evicted:
            cut, best_evicted = values[head, own].min(), values[head, evicted].max()
            assert cut >= best_evicted
            level = [at for at in own if values[head, at] == best_evicted]
            lost = [at for at in evicted if values[head, at] == best_evicted]
            assert not level or not lost or min(level) > max(lost), "of equal scores the later is kept"


def test_scores_that_are_not_numbers_are_an_error_and_not_a_choice():
    with pytest.raises(ValueError, match="not numbers"):
        top_positions(np.array([[1.0, np.nan, 2.0]]), 2)


# The methods


def test_snapkv_scores_are_the_windows_attention_averaged_over_neighbours_and_group():
    layer, window = a_layer(30), 6
    votes = all_attention(layer)[:, -window:, :-window].mean(axis=1)
    pooled = np.stack([np.convolve(head, np.ones(3) / 3, mode="same") for head in votes])
    expected = pooled.reshape(KV_HEADS, 2, -1).mean(axis=1)
    assert scores("snapkv", layer)[:, :-window] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("budget", [7, 12, 29])
def test_snapkv_always_keeps_its_window(budget):
    assert all(set(range(24, 30)) <= head for head in kept("snapkv", a_layer(30), budget))


def test_snapkv_clamps_its_window_to_the_prompt_less_one():
    assert all(head == {1, 2, 3, 4} for head in kept("snapkv", a_layer(5), 4))


def test_pooling_counts_zeros_beyond_the_ends():
    assert average_pool(np.array([[3.0, 0.0, 0.0, 6.0]]), 3).tolist() == [[1.0, 1.0, 2.0, 2.0]]


@pytest.mark.parametrize("budget", [5, 9, 19])
def test_streaming_llm_keeps_the_sinks_and_the_most_recent_positions(budget):
    expected = {0, 1, 2, 3} | set(range(20 - (budget - 4), 20))
    assert kept("streaming_llm", a_layer(20), budget) == [expected, expected]


def test_streaming_llm_below_its_sinks_keeps_the_first_ones():
    assert kept("streaming_llm", a_layer(20), 2) == [{0, 1}, {0, 1}]


def test_streaming_llm_needs_more_positions_than_sinks():
    with pytest.raises(ValueError, match="n_sink = 4"):
        scores("streaming_llm", a_layer(4))


@pytest.mark.parametrize("n", [30, 300, 513], ids=lambda n: f"{n} positions")
def test_observed_attention_divides_what_a_position_received_by_the_queries_that_saw_it(n):
    layer = a_layer(n)
    expected = all_attention(layer).sum(axis=1) / np.arange(n, 0, -1)
    assert scores("observed_attention", layer) == pytest.approx(
        expected.reshape(KV_HEADS, 2, n).mean(axis=1), rel=1e-4
    )


def test_tova_keeps_what_the_last_position_attends_to_the_same_in_every_head():
    layer = a_layer(30)
    votes = all_attention(layer)[:, -1, :-1].mean(axis=0)
    expected = {29, *np.argsort(votes)[-9:].tolist()}
    assert kept("tova", layer, 10) == [expected, expected]


def test_knorm_keeps_the_keys_with_the_smallest_norms():
    layer = a_layer(30)
    norms = np.linalg.norm(layer.keys.astype(float), axis=-1)
    assert kept("knorm", layer, 10) == [set(np.argsort(head)[:10].tolist()) for head in norms]


def test_random_depends_on_example_layer_and_replicate_alone():
    base = random(a_layer(50, seed=1), {}, 0)
    assert (random(a_layer(50, seed=2), {}, 0) == base).all()
    for other in (
        random(a_layer(50, index=1), {}, 0),
        random(a_layer(50, example_id="other"), {}, 0),
        random(a_layer(50), {}, 1),
    ):
        assert (other != base).all()


def test_random_keeps_every_position_equally_often():
    counts = np.zeros(20)
    for number in range(2000):
        for head in top_positions(random(a_layer(20, example_id=str(number)), {}, 0), 5):
            counts[head] += 1
    assert counts / 4000 == pytest.approx(np.full(20, 0.25), abs=0.03)


@pytest.mark.parametrize("method", EVICTIONS)
def test_an_eviction_leaves_the_shared_prefill_untouched(method):
    layer = a_layer(40)
    before = [array.copy() for array in (layer.queries, layer.keys, layer.values, layer.received)]
    kept(method, layer, 11)
    for old, new in zip(before, (layer.queries, layer.keys, layer.values, layer.received), strict=True):
        assert (old == new).all()


# The table of methods


def test_an_alias_is_the_method():
    assert canonical_name("h2o") == "observed_attention"


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'snapvk' is unknown; known are snapkv, streaming_llm"):
        canonical_name("snapvk")


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        ({"snapkv": {"windows": 8}}, "kv.methods.snapkv.windows: no such hyper-parameter.*window, kernel"),
        ({"snapkv": {"window": 0}}, "kv.methods.snapkv.window: 0 is not valid"),
        ({"snapkv": {"kernel": 4}}, "kv.methods.snapkv.kernel: 4 is even"),
        ({"streaming_llm": {"n_sink": 1.5}}, "kv.methods.streaming_llm.n_sink: 1.5 is not valid"),
    ],
)
def test_a_wrong_hyper_parameter_is_named(configured, message):
    with pytest.raises(ConfigError, match=message):
        resolve_parameters(configured)


def test_hyper_parameters_of_all_methods_are_resolved_whatever_is_configured():
    resolved = resolve_parameters({"snapkv": {"window": 4}, "tova": {}})
    assert resolved["snapkv"] == {"window": 4, "kernel": 5}
    assert resolved["streaming_llm"] == {"n_sink": 4}
    assert set(resolved) == set(KNOWN_METHODS)


@pytest.mark.parametrize("card", KNOWN_METHODS.values(), ids=lambda card: card.name)
def test_a_method_card_names_its_paper_and_what_differs_from_it(card):
    assert card.differs
    assert "arXiv:" in card.paper or card.name == "bm25" or card.paper.startswith("none: the ")
