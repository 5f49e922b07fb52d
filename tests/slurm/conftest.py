"""A Slurm for the tests of this folder, and the small experiment that runs on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, OnCluster
from project import SMALL, Project

SCRIPT = Path(__file__).with_name("cluster.sh")

#: Long enough that a job can be met while it works: 2 tasks x 48 examples x 10 answers.
LONGER = {
    **SMALL,
    "dataset": {"synthetic": {"n_documents": 72, "min_tokens": 64, "max_tokens": 512}},
    "binning": {"n_bins": 2, "n_per_bin": 24},
    "run": {"shards": 2},
    "cluster": {
        "inference": {"mem_mb": 1200, "runtime_minutes": 3},
        "scoring": {"mem_mb": 1000, "runtime_minutes": 3},
    },
}


#: All analysis tables come from these rules.
TABLE_RULES = ("bin_stats", "retention", "transition", "paired_tests", "effect_models", "costs")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Iterator[Cluster]:
    """A running Slurm of two nodes."""
    state = tmp_path_factory.mktemp("slurm")
    environment = {**os.environ, "SLURM_TEST_DIR": str(state)}

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=90, check=False
        )

    try:
        started = script("up")
        if started.returncode:
            missing(started.stderr.strip())
        yield Cluster(state, script)
    finally:
        script("down", "--purge")


@pytest.fixture(scope="session")
def on_cluster(
    cluster: Cluster, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., OnCluster]:
    """Makes a fresh clone that runs on the cluster, its experiment changed in the sections that are given."""

    def make(**changes: dict) -> OnCluster:
        folder = Project(root).copy(tmp_path_factory.mktemp("clone") / "project", results=False).folder
        (folder / "slurm").symlink_to(os.readlink(root / "slurm"))
        project = OnCluster(folder, cluster)
        project.configure(**{**LONGER, **changes})
        return project

    return make


@pytest.fixture(scope="session")
def local(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same experiment, run on this machine without Slurm as far as its tables."""
    project = Project(root).copy(tmp_path_factory.mktemp("local") / "project", results=False)
    project.configure(**LONGER)
    project.run("--until", *TABLE_RULES)
    return project
