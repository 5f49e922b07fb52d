"""What a job asks of a cluster is in the configuration, and reruns nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.workflow

INFERENCE = {"mem_mb": 1234, "runtime_minutes": 56, "gpus": 1, "cpus_per_task": 7}


def resources(project: Project, rule: str) -> dict[str, str]:
    """What the first job of a rule asks for, by `snakemake -n`."""
    text = project.run("-n").split(f"rule {rule}:", 1)[1]
    line = re.search(r"^ *resources: (.*)$", text, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in line[1].split(", ")) if line else {}


def test_a_job_that_loads_the_model_asks_for_what_the_configuration_says(
    fresh: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    project.configure(cluster={"inference": INFERENCE})
    asked = resources(project, "infer_sweep")
    assert asked["mem_mb"] == "1234"
    assert asked["runtime"] == "56"
    assert asked["gpu"] == "1"
    assert asked["cpus_per_task"] == "7"


def test_a_job_that_asks_a_server_needs_no_gpu(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    project.configure(
        engine={"kind": "openai_compat"},
        http={"base_url": "http://127.0.0.1:1/v1"},
        cluster={"inference": INFERENCE},
    )
    asked = resources(project, "infer_shard")
    assert asked["mem_mb"] == "1234"
    assert asked["server"] == "1"
    assert "gpu" not in asked


def test_other_resources_rerun_no_inference_and_no_analysis(project: Project) -> None:
    project.configure(cluster={"inference": INFERENCE})
    due = project.due()
    assert "save_config" in due
    assert not due.keys() & {"infer_sweep", "score_task", "bin_stats", "paired_tests", "plot_figures"}
