"""A killed run goes on where it was; a second run of the same experiment is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import EXAMPLES, Project

pytestmark = pytest.mark.workflow

CELLS = 2 + 2 * (1 + 3)


def start(project: Project) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        project.command(),
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_rows(project: Project, rows: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while project.journal_rows() < rows:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_9_loses_at_most_the_examples_in_flight(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    project.configure(binning={"n_per_bin": 12})
    process = start(project)
    wait_for_rows(project, 5 * CELLS, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survived = project.journal_rows()
    assert survived < 2 * 24 * CELLS, "killed too late to show anything"
    project.run()
    in_flight = 2 * CELLS  # one example in each of the two jobs
    assert project.journal_rows() <= 2 * 24 * CELLS + in_flight
    assert project.due() == {}


def test_a_second_run_of_the_same_experiment_is_refused_in_one_line(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    project.configure(binning={"n_per_bin": 12})
    process = start(project)
    try:
        wait_for_rows(project, CELLS, process)
        second = project.call()
        assert second.returncode == 1
        assert second.stdout.count("experiment small is being run by another snakemake in this folder") == 1
        assert "Traceback" not in second.stdout
        assert process.wait(timeout=120) == 0, "the first run is not disturbed"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert project.journal_rows() == 2 * 24 * CELLS


def test_an_interrupted_extension_gives_back_what_was_finished(project: Project) -> None:
    """Snakemake removes a sweep's old files before it starts; the journal has them all."""
    before = project.bytes_of("results/small/responses/**/*.parquet")
    rows = project.journal_rows()
    project.configure(kv={"budgets": [16, 32, 64]})
    process = start(project)
    wait_for_rows(project, rows + 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    project.run_tables()
    after = project.bytes_of("results/small/responses/**/*.parquet")
    assert {path: after[path] for path in before} == before
    assert project.journal_rows() <= rows + 2 * EXAMPLES * 4 + 2 * 4
