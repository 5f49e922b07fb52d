"""Methods that shorten the text, beside one that shortens the cache, through the whole workflow."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from project import EXAMPLES, Project

pytestmark = pytest.mark.workflow

TASK = "phrasebook_qa"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Project:
    made = Project(root).copy(tmp_path_factory.mktemp("texts") / "project", results=False)
    made.configure(
        dataset={
            "tasks": [TASK],
            "synthetic": {"n_documents": 24, "min_tokens": 64, "max_tokens": 256},
        },
        kv={"methods": ["snapkv", "recent", "bm25"], "budgets": [16, 64, 128], "passage_tokens": 16},
        output={"figure_dpi": 50},
    )
    made.run()
    return made


def scores(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.folder / f"results/small/scores/{TASK}.parquet")


def test_every_answer_of_a_text_method_keeps_its_budget(project: Project) -> None:
    rows = scores(project)
    full = rows[rows["method"] == "full"].set_index("example_id")["prompt_tokens"]
    for method, budget in (("recent", 64), ("recent", 128), ("bm25", 64), ("bm25", 128)):
        own = rows[(rows["method"] == method) & (rows["budget"] == str(budget))].set_index("example_id")
        most = full.clip(upper=budget)
        assert len(own) == EXAMPLES
        assert own["status"].eq("ok").all()
        assert own["verified"].eq("measured").all()
        assert (own["prompt_tokens"] <= most).all()
        assert (own["prompt_tokens"] > most - (16 if method == "bm25" else 1)).all()
        assert own["kept_mean"].eq(own["prompt_tokens"]).all()


def test_a_budget_below_the_fixed_part_is_neither_asked_nor_scored(project: Project) -> None:
    rows = scores(project)
    tight = rows[rows["method"].isin(["recent", "bm25"]) & (rows["budget"] == "16")]
    infeasible = tight[tight["status"] == "infeasible"]
    assert len(infeasible)
    assert infeasible[["score", "f1", "failure", "prompt_tokens"]].isna().all(axis=None)
    stats = pd.read_parquet(project.folder / "results/small/analysis/bin_stats.parquet")
    pooled = stats[(stats["budget"] == "16") & (stats["bin_idx"] == -1) & (stats["policy"] == "zero")]
    shown = pooled.set_index("method")
    assert shown.loc["recent", "n_infeasible"] == (infeasible["method"] == "recent").sum()
    assert shown.loc["recent", "status"] == "infeasible"
    assert pd.isna(shown.loc["recent", "mean"])
    assert shown.loc["snapkv", "status"] == "ok"


def test_equal_prompts_have_one_row_in_the_journal(project: Project) -> None:
    rows = pd.concat(map(pd.read_parquet, project.folder.glob("results/small/responses/*/*/*/*.parquet")))
    asked = rows[rows["status"] == "ok"]
    inactive = asked[asked["method"].isin(["recent", "bm25"]) & ~asked["active"].astype(bool)]
    assert len(inactive)
    assert inactive["copied_from"].eq("full").all()
    assert project.journal_rows() == asked["answer_key"].nunique() < len(asked)


def test_the_report_and_the_database_tell_the_methods_apart(project: Project) -> None:
    page = (project.folder / "results/report.md").read_text().replace("\\", "")
    assert "recent and bm25 shorten the text before the model reads it" in page
    assert "recent and bm25 at 16: the fixed part of" in page
    assert "Robertson and Zaragoza (2009)" in page
    with sqlite3.connect(project.folder / "results/small/kv_transition.sqlite") as database:
        counts = dict(database.execute("SELECT status, count(*) FROM requests GROUP BY status").fetchall())
        none = database.execute(
            "SELECT count(*) FROM scored_answers WHERE status = 'infeasible' AND score IS NOT NULL"
        ).fetchone()
    assert set(counts) == {"ok", "infeasible"}
    assert none == (0,)


def test_nothing_is_left_to_do(project: Project) -> None:
    assert project.due() == {}
