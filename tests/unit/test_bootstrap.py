"""The keyed bootstrap: the documented stream, and independence of everything that must not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transition.analysis import bootstrap
from kv_transition.analysis.bootstrap import resample_counts, resampled_ratio, resampled_sums, stream_key

KEY = stream_key(42, "d01_relative", 0)


def counts(key, n_clusters, replicates):
    return np.concatenate(list(resample_counts(key, n_clusters, replicates)))


def test_the_stream_is_the_documented_one():
    assert KEY == 90127230878088487180729351550478698260
    assert int(np.random.Philox(key=KEY).random_raw()) == 18335134167494499498
    assert counts(KEY, 40, 3)[0, :10].tolist() == [0, 0, 1, 1, 1, 1, 2, 1, 4, 2]


def test_seed_dataset_and_bin_each_change_the_stream():
    keys = {stream_key(*args) for args in ((42, "a", 0), (43, "a", 0), (42, "b", 0), (42, "a", 1))}
    assert len(keys) == 4


@given(st.integers(1, 12), st.integers(1, 9))
def test_each_replicate_draws_as_many_clusters_as_there_are(n_clusters, replicates):
    drawn = counts(KEY, n_clusters, replicates)
    assert drawn.shape == (replicates, n_clusters)
    assert (drawn.sum(axis=1) == n_clusters).all()


@given(st.integers(1, 7), st.integers(1, 20))
def test_fewer_replicates_are_the_first_of_more(n_clusters, replicates):
    assert np.array_equal(counts(KEY, n_clusters, 40)[:replicates], counts(KEY, n_clusters, replicates))


@given(st.integers(1, 7), st.integers(1, 25), st.integers(1, 60))
def test_blocks_do_not_change_the_draws(n_clusters, replicates, block):
    whole = counts(KEY, n_clusters, replicates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "BLOCK_ENTRIES", block)
        assert np.array_equal(counts(KEY, n_clusters, replicates), whole)


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 1000))
def test_a_column_does_not_feel_the_other_columns(n_clusters, others, seed):
    rng = np.random.default_rng(seed)
    columns = rng.random((others + 1, n_clusters))
    alone = resampled_sums(columns[:1], KEY, 50)
    assert np.array_equal(resampled_sums(columns, KEY, 50)[:1], alone)
    assert np.array_equal(resampled_sums(columns[::-1], KEY, 50)[-1:], alone)


def test_totals_are_those_of_the_drawn_clusters():
    sums = np.array([[0.1, 0.7, 0.3], [1, 2, 1]])
    assert resampled_sums(sums, KEY, 20) == pytest.approx(sums @ counts(KEY, 3, 20).T, abs=1e-9)


def test_replicates_average_to_the_sample_mean():
    y = np.linspace(0, 1, 30)
    totals = resampled_sums(np.stack([y, np.ones(30)]), KEY, 4000)
    means = resampled_ratio(totals[0], totals[1])
    assert means.mean() == pytest.approx(0.5, abs=0.005)
    assert means.std() == pytest.approx(y.std() / np.sqrt(30), rel=0.05)


def test_nothing_to_divide_by_is_no_ratio():
    assert np.isnan(resampled_ratio(np.array([0.0]), np.array([0.0]))).all()
    assert resampled_sums(np.zeros((2, 0)), KEY, 5).tolist() == [[0.0] * 5] * 2
