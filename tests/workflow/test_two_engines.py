"""A small copy of the default experiment in both engines that run in this process: equal scores, equal tables.

kvpress brings its own model, presses and attention; the two share no arithmetic. `random` draws the same positions in both.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from project import Project

from kv_transition.eval.failure_taxonomy import INFRASTRUCTURE

pytestmark = [pytest.mark.workflow, pytest.mark.kvpress]

TASKS = ("phrasebook_qa", "phrasebook_multi_qa")
METHODS = ["snapkv", "observed_attention", "tova", "streaming_llm", "random"]
BUDGETS = [16, 64, 128]
TABLES = (
    *("bin_stats", "retention", "transition", "paired_tests", "lossless", "effect_models", "macro", "costs"),
)
ENGINES = {
    "reference": {},
    # Only eager attention gives observed_attention what it reads.
    "kvpress": {"kind": "kvpress", "device": "cpu", "attn_implementation": "eager"},
}
#: What of a table may differ: the engine's name. No score is among it, and seconds are told by neither engine's sweep.
OWN = {"costs": ["engine"]}
#: Of the responses: when, by what and in how many seconds an answer was computed, and the key under which it is kept.
OWN_OF_ANSWERS = ["answer_key", "engine", "created", "prefill_s", "compress_s", "decode_s"]


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Project]:
    made = {}
    for kind, engine in ENGINES.items():
        own = Project(root).copy(tmp_path_factory.mktemp(kind) / "project", results=False)
        own.configure(
            dataset={"synthetic": {"n_documents": 32, "min_tokens": 64, "max_tokens": 320}},
            binning={"n_bins": 2, "n_per_bin": 6},
            engine=engine,
            kv={"methods": METHODS, "budgets": BUDGETS},
        )
        own.run_tables()
        made[kind] = own
    return made


def both(projects: dict[str, Project], file: str, own: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A file of both runs without the columns that may differ."""
    first, second = (
        pd.read_parquet(project.folder / "results/small" / file).drop(columns=own)
        for project in projects.values()
    )
    assert len(first)
    return first, second


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_equal(projects: dict[str, Project], task: str) -> None:
    first, second = both(projects, f"scores/{task}.parquet", [])
    assert set(first["method"]) == {"full", "no_context", *METHODS}
    assert first["status"].eq("ok").all()
    assert not first["failure"].isin(INFRASTRUCTURE).any()
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    # Answers that all say the same would be equal for no reason.
    assert first["pred_norm"].nunique() > len(first) / 10
    assert 0.1 < first["score"].mean() < 0.9


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_the_analysis_are_equal(projects: dict[str, Project], table: str) -> None:
    pd.testing.assert_frame_equal(
        *both(projects, f"analysis/{table}.parquet", OWN.get(table, [])), check_exact=True
    )


@pytest.mark.parametrize("task", TASKS)
def test_texts_and_everything_that_is_told_of_the_cache_are_equal(
    projects: dict[str, Project], task: str
) -> None:
    folder = projects["reference"].folder / "results/small"
    files = [file.relative_to(folder) for file in sorted(folder.glob(f"responses/{task}/*/*/*.parquet"))]
    assert len(files) == 2 + len(METHODS) * len(BUDGETS)
    for file in files:
        first, second = both(projects, str(file), OWN_OF_ANSWERS)
        pd.testing.assert_frame_equal(first, second, check_exact=True, obj=str(file))


def test_each_answer_was_computed_by_the_engine_that_was_asked_for(projects: dict[str, Project]) -> None:
    for kind, name in (("reference", "ReferenceEngine"), ("kvpress", "KVPressEngine")):
        files = sorted(projects[kind].folder.glob("results/small/responses/*/*/*/*.parquet"))
        engines = pd.concat(pd.read_parquet(file, columns=["engine"]) for file in files)["engine"]
        assert {json.loads(text)["class"] for text in engines} == {name}
