"""Made-up scores with a known truth: profiles of scores, pairs, curves and clusters, for `coverage.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Clusters = NDArray[np.int64]

#: Share of examples that take their cluster's draw; the correlation within clusters is its square.
REPEATED = 0.5
ICC = REPEATED**2
#: Share of answers on a curve that compression changes without losing them.
CHANGED = 0.10


@dataclass(frozen=True)
class Profile:
    """A distribution of scores: some are exactly 0, some exactly 1, the others Beta(a, b)."""

    name: str
    zeros: float
    ones: float
    a: float = 1.0
    b: float = 1.0

    @property
    def mean(self) -> float:
        """The true mean."""
        return self.ones + (1 - self.zeros - self.ones) * self.a / (self.a + self.b)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Independent scores."""
        u, inner = rng.random(shape), rng.beta(self.a, self.b, shape)
        return np.where(u < self.zeros, 0.0, np.where(u < self.zeros + self.ones, 1.0, inner))


@dataclass(frozen=True)
class Scenario:
    """Paired scores: compression loses an answer with probability 1 - retention and changes others.

    A lost answer scores 0; of the others a share `changed` is answered anew, with a score from the same profile.
    """

    profile: Profile
    retention: float
    changed: float

    @property
    def name(self) -> str:
        """Profile, retention and share of changed answers."""
        return f"{self.profile.name}, R = {self.retention:g}, {self.changed:.0%} changed"

    @property
    def difference(self) -> float:
        """The true mean difference, compressed minus full."""
        return (self.retention - 1) * self.profile.mean

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Scores of the compressed and of the full cache."""
        full, anew = self.profile.draw(rng, shape), self.profile.draw(rng, shape)
        kept = np.where(rng.random(shape) < self.changed, anew, full)
        return np.where(rng.random(shape) < self.retention, kept, 0.0), full


F1_08 = Profile("F1, 8 % zeros", 0.08, 0.30, 2.0, 1.5)
F1_35 = Profile("F1, 35 % zeros", 0.35, 0.25, 2.0, 2.0)
F1_60 = Profile("F1, 60 % zeros", 0.60, 0.15, 2.0, 2.0)
F1_88 = Profile("F1, 88 % zeros", 0.88, 0.04, 1.5, 3.0)
EM_10 = Profile("exact match, mean 0.1", 0.9, 0.1)
EM_50 = Profile("exact match, mean 0.5", 0.5, 0.5)
ROUGE = Profile("ROUGE-like", 0.0, 0.0, 8.0, 24.0)
PROFILES = (F1_08, F1_35, F1_60, F1_88, EM_10, EM_50, ROUGE)
SCENARIOS = (
    Scenario(F1_08, 1.0, 0.15),
    Scenario(F1_35, 1.0, 0.10),
    Scenario(F1_60, 1.0, 0.10),
    Scenario(EM_50, 1.0, 0.10),
    Scenario(ROUGE, 1.0, 0.15),
    Scenario(F1_08, 0.9, 0.30),
    Scenario(F1_35, 0.8, 0.30),
    Scenario(EM_50, 0.6, 0.30),
    Scenario(ROUGE, 0.5, 0.30),
)


def shapes(tau: float) -> dict[str, tuple[float, ...]]:
    """True retention at six budgets. "cliff" is a hair under tau at one budget, which tempts the upper limit most."""
    return {
        "gradual": (0.30, 0.50, 0.65, 0.80, 0.90, 0.97),
        "steep": (0.05, 0.10, 0.40, 0.95, 0.99, 1.00),
        "plateau": (0.60, 0.79, 0.89, 0.94, 0.949, 0.99),
        "cliff": (0.30, 0.50, tau - 0.1, tau - 0.001, 0.99, 1.00),
        "dip": (0.50, 0.85, 0.96, 0.82, 0.93, 0.98),
        "near lossless": (0.94, 0.97, 0.98, 0.99, 1.00, 1.00),
        "never": (0.20, 0.30, 0.40, 0.50, 0.60, 0.70),
    }


def draw_curves(
    rng: np.random.Generator, profile: Profile, shape: Sequence[float], size: tuple[int, int]
) -> tuple[Array, Array]:
    """Scores at the budgets, (sets, budgets, n), and of the full cache, (sets, n).

    What a small budget retains a larger one with a higher retention retains too, as with nested caches.
    """
    full, loss = profile.draw(rng, size), rng.random(size)
    compressed = []
    for retention in shape:
        kept = np.where(rng.random(size) < CHANGED, profile.draw(rng, size), full)
        compressed.append(np.where(loss < retention, kept, 0.0))
    return np.stack(compressed, axis=1), full


def alone(n: int) -> Clusters:
    """Every example is a cluster of its own."""
    return np.arange(n, dtype=np.int64)


def in_fours(n: int) -> Clusters:
    """Clusters of 1, 2, 3 and 4 examples in turns; the last one may be cut short."""
    return np.repeat(np.arange(n), np.resize([1, 2, 3, 4], n))[:n].astype(np.int64)


def alike(rng: np.random.Generator, clusters: Clusters, *scores: Array) -> list[Array]:
    """Examples of a cluster that are alike: (sets, 2 n) independent draws give (sets, n) scores.

    A share REPEATED of the examples, chosen at random, takes a draw that belongs to its cluster. Two examples of a cluster
    so have the same draw with probability ICC, which is their correlation, and no score changes its distribution.
    """
    n = len(clusters)
    taken = rng.random((len(scores[0]), n)) < REPEATED
    source = np.where(taken, n + clusters, np.arange(n))
    return [np.take_along_axis(values, source, axis=1) for values in scores]
