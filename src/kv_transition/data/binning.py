"""Length bins, and which examples of each bin are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from kv_transition.errors import UserError
from kv_transition.files import sha256_text


class HasLength(Protocol):
    """Anything with a prompt length."""

    @property
    def token_len(self) -> int: ...


E = TypeVar("E", bound=HasLength)


def eligible(examples: Sequence[E], min_tokens: int | None, max_tokens: int | None) -> list[E]:
    """The examples whose prompt has min_tokens to max_tokens tokens, both included (None: no bound).

    Raises
    ------
    UserError
        When none is left.
    """
    low, high = min_tokens or 0, np.inf if max_tokens is None else max_tokens
    kept = [example for example in examples if low <= example.token_len <= high]
    if not kept:
        lengths = [example.token_len for example in examples]
        there = (
            f"their prompts have {min(lengths)} to {max(lengths)} tokens"
            if lengths
            else "there is no example at all"
        )
        raise UserError(
            f"dataset.min_tokens ({min_tokens}), dataset.max_tokens ({max_tokens}): none of {len(lengths)} examples is "
            f"left; {there}; widen the bounds"
        )
    return kept


def bin_edges(lengths: Sequence[int] | npt.NDArray[np.int_], n_bins: int) -> list[int]:
    """Upper edges (inclusive) of quantile bins.

    Parameters
    ----------
    lengths : prompt lengths of all eligible examples, in any order; at least one.

    Returns
    -------
    n_bins edges, never falling; edge j (1-based) is the ceil(j n / n_bins)-th smallest length, the last one the
    longest. Two equal edges enclose a bin that ties have emptied.
    """
    ordered = np.sort(np.asarray(lengths, dtype=int))
    n = len(ordered)
    if n == 0 or n_bins < 1:
        raise ValueError(f"{n} lengths cannot be cut into {n_bins} bins")
    return [int(ordered[-(-j * n // n_bins) - 1]) for j in range(1, n_bins + 1)]


def assign_bins(lengths: Sequence[int] | npt.NDArray[np.int_], edges: Sequence[int]) -> npt.NDArray[np.int_]:
    """Bin index of every length: how many of the edges but the last are smaller. Equal lengths share a bin.

    Returns
    -------
    (n,) integers from 0 to len(edges) - 1.
    """
    return np.searchsorted(np.asarray(edges[:-1], dtype=int), np.asarray(lengths, dtype=int), side="left")


def select(
    example_ids: Sequence[str], bins: Sequence[int] | npt.NDArray[np.int_], n_per_bin: int, seed: int
) -> list[str]:
    """The examples of each bin that are run: those with the smallest sha256 of `<seed>|<example_id>`.

    The choice ignores order and length, and a larger `n_per_bin` adds examples without dropping any.

    Returns
    -------
    Ids by bin, inside a bin by digest.
    """
    taken: dict[int, int] = {}
    chosen: list[str] = []
    for index, _, example_id in sorted(
        (int(index), sha256_text(f"{seed}|{example_id}"), example_id)
        for example_id, index in zip(example_ids, bins, strict=True)
    ):
        taken[index] = taken.get(index, 0) + 1
        if taken[index] <= n_per_bin:
            chosen.append(example_id)
    return chosen
