"""Length bins by quantile, and the choice of examples inside them."""

import random
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.binning import assign_bins, bin_edges, eligible, select
from kv_transition.errors import UserError

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)
n_bins = st.integers(1, 9)
names = st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=1, max_size=60)


@dataclass(frozen=True)
class Sized:
    token_len: int


def test_distinct_lengths_are_shared_out_evenly() -> None:
    edges = bin_edges(range(1, 13), 4)
    assert edges == [3, 6, 9, 12]
    assert np.bincount(assign_bins(range(1, 13), edges)).tolist() == [3, 3, 3, 3]


def test_cut_points_are_the_ceiling_ranks() -> None:
    # 10 lengths, 4 bins: ranks ceil(2.5), ceil(5), ceil(7.5), 10.
    assert bin_edges([10, 20, 30, 40, 50, 60, 70, 80, 90, 100], 4) == [30, 50, 80, 100]


def test_equal_lengths_share_a_bin_and_emptied_bins_keep_their_index() -> None:
    tied = [5, 5, 5, 5, 5, 9]
    edges = bin_edges(tied, 3)
    assert edges == [5, 5, 9]
    assert assign_bins(tied, edges).tolist() == [0, 0, 0, 0, 0, 2]


def test_a_length_on_an_edge_belongs_to_the_lower_bin() -> None:
    assert assign_bins([3, 4, 6, 7, 12], [3, 6, 9, 12]).tolist() == [0, 1, 1, 2, 3]


def test_fewer_examples_than_bins_leave_bins_empty() -> None:
    edges = bin_edges([7, 8], 4)
    assert len(edges) == 4
    assert assign_bins([7, 8], edges).tolist() == [0, 2]


def test_no_lengths_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="0 lengths"):
        bin_edges([], 4)


@given(values=lengths, n=n_bins)
def test_every_example_is_in_exactly_one_bin_whose_bounds_hold_it(values: list[int], n: int) -> None:
    edges = bin_edges(values, n)
    bins = assign_bins(values, edges)
    assert len(edges) == n
    assert edges == sorted(edges)
    assert edges[-1] == max(values)
    for value, index in zip(values, bins.tolist(), strict=True):
        assert value <= edges[index]
        assert index == 0 or value > edges[index - 1]


@given(values=lengths, n=n_bins)
def test_bins_are_those_of_the_counting_definition(values: list[int], n: int) -> None:
    ordered = sorted(values)
    cuts = [ordered[-(-j * len(values) // n) - 1] for j in range(1, n)]
    assert assign_bins(values, bin_edges(values, n)).tolist() == [sum(v > c for c in cuts) for v in values]


@given(values=lengths, n=n_bins, seed=st.integers(0, 9))
def test_edges_do_not_depend_on_the_order_of_examples(values: list[int], n: int, seed: int) -> None:
    shuffled = random.Random(seed).sample(values, len(values))
    assert bin_edges(shuffled, n) == bin_edges(values, n)


@given(ids=names, n=st.integers(0, 20), more=st.integers(0, 20), seed=st.integers(0, 3))
def test_a_larger_choice_contains_the_smaller_one(ids: list[str], n: int, more: int, seed: int) -> None:
    bins = [len(example_id) % 3 for example_id in ids]
    small, large = select(ids, bins, n, seed), select(ids, bins, n + more, seed)
    assert set(small) <= set(large)
    for index in range(3):
        available = bins.count(index)
        assert sum(bins[ids.index(i)] == index for i in small) == min(n, available)


@given(ids=names, n=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_examples(
    ids: list[str], n: int, order: random.Random
) -> None:
    pairs = [(example_id, len(example_id) % 2) for example_id in ids]
    chosen = select(*zip(*pairs, strict=True), n, 0)
    order.shuffle(pairs)
    assert select(*zip(*pairs, strict=True), n, 0) == chosen


def test_the_choice_is_the_smallest_digests_of_seed_and_id() -> None:
    ids = [f"example-{i}" for i in range(20)]
    expected = sorted(ids, key=lambda i: sha256(f"7|{i}".encode()).hexdigest())[:5]
    assert select(ids, [0] * 20, 5, 7) == expected


def test_another_seed_chooses_others() -> None:
    ids = [f"example-{i}" for i in range(200)]
    assert select(ids, [0] * 200, 20, 0) != select(ids, [0] * 200, 20, 1)


def test_the_choice_ignores_length() -> None:
    """Not the first of each bin by length: the chosen have the bin's own spread."""
    ids = [f"example-{i}" for i in range(1000)]
    chosen = [int(i.split("-")[1]) for i in select(ids, [0] * 1000, 200, 0)]
    assert 450 < np.mean(chosen) < 550


def test_bounds_of_eligible_lengths_are_included() -> None:
    examples = [Sized(n) for n in (9, 10, 15, 20, 21)]
    assert eligible(examples, 10, 20) == examples[1:4]
    assert eligible(examples, None, 15) == examples[:3]
    assert eligible(examples, None, None) == examples


def test_a_filter_that_leaves_nothing_names_its_keys_and_the_lengths_there_are() -> None:
    with pytest.raises(UserError, match=r"dataset\.min_tokens.*dataset\.max_tokens.*9 to 21"):
        eligible([Sized(9), Sized(21)], 30, None)
