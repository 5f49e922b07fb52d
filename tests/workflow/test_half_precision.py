"""The noise floor through the whole workflow, with the real model in bfloat16."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import EXAMPLES, Project

pytestmark = [pytest.mark.workflow, pytest.mark.kvpress]

NOISE = {"infer_noise", "noise_floor"}


def configure(project: Project, **engine: object) -> None:
    project.configure(
        dataset={
            "tasks": ["phrasebook_qa"],
            "synthetic": {"n_documents": 24, "min_tokens": 64, "max_tokens": 256},
        },
        engine=engine,
        kv={"methods": ["streaming_llm"], "budgets": [32]},
    )


def test_only_computations_in_half_precision_have_the_rules(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    for engine, expected in (
        ({}, set()),
        ({"kind": "kvpress"}, set()),
        ({"kind": "kvpress", "dtype": "bfloat16", "noise_examples": 0}, set()),
        ({"kind": "kvpress", "dtype": "bfloat16"}, NOISE),
        ({"kind": "kvpress", "dtype": "auto"}, NOISE),
    ):
        configure(project, **engine)
        assert NOISE & set(project.due()) == expected, engine


def test_one_model_at_a_time_is_on_this_machines_gpu(fresh: Project, tmp_path: Path) -> None:
    """However many cores Snakemake is given: each job would load the model once more."""
    project = fresh.copy(tmp_path / "project", results=False)
    for device, limited in (("cuda", True), ("cpu", False)):
        configure(project, kind="kvpress", dtype="bfloat16", device=device)
        plan = project.call("-n").stdout
        jobs = re.findall(
            r"^rule infer_(?:sweep|noise):\n.*?resources: [^\n]*", plan, re.DOTALL | re.MULTILINE
        )
        assert len(jobs) == 2, plan
        assert ["local_gpu=1" in job for job in jobs] == [limited] * 2
    profile = yaml.safe_load((project.folder / "profiles/default/config.yaml").read_text())
    assert "local_gpu=1" in profile["resources"]


def test_the_floor_is_in_report_and_database_and_its_size_reruns_nothing_else(
    fresh: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "project", results=False)
    half = {"kind": "kvpress", "dtype": "bfloat16", "device": "cpu"}
    configure(project, **half, noise_examples=2)
    project.run()
    table = pd.read_parquet(project.folder / "results/small/analysis/noise_floor.parquet")
    assert table[["status", "n", "attention", "other_attention"]].values.tolist() == [
        ["ok", 2, "sdpa", "eager"]
    ]
    assert "**Noise floor of bfloat16:** n = 2 answers" in (project.folder / "results/report.md").read_text()
    assert "Noise floor of bfloat16:" in (project.folder / "results/report.html").read_text()
    with closing(sqlite3.connect(project.folder / "results/small/kv_transition.sqlite")) as database:
        stored = database.execute("SELECT task, n, status FROM noise_floor").fetchall()
    assert stored == [("phrasebook_qa", 2, "ok")]
    rows = project.journal_rows()
    assert rows == EXAMPLES * 3 + 2

    configure(project, **half, noise_examples=5)
    due = project.due()
    assert set(due) - {"all", "total"} == {
        *NOISE, "save_config", "build_report", "build_html", "assemble_database", "copy_report",
    }  # fmt: skip
    project.run(target="results/small/analysis/noise_floor.parquet")
    assert project.journal_rows() == rows + 3, "the first two answers are among the five"
