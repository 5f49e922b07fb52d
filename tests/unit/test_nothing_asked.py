"""Requests that were never made: from their rows through scores, tables, figures and report they are missing, never 0."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from example_tables import CFG
from fake_tables import FakeStudy
from task_files import response, write_manifest, write_shard

from kv_transition.analysis.aggregate import BIN_STATS, RETENTION, bin_stats, retention
from kv_transition.analysis.cells import POOLED
from kv_transition.analysis.effect_models import write_effect_models
from kv_transition.analysis.lossless import write_lossless
from kv_transition.analysis.macro import write_macro
from kv_transition.analysis.paired_tests import write_paired_tests
from kv_transition.analysis.plots import draw_task
from kv_transition.analysis.queries import read_examples
from kv_transition.analysis.tables import CELL_KEYS, write_table
from kv_transition.analysis.transition import KEYS, TRANSITION, transition
from kv_transition.errors import UserError
from kv_transition.eval.score import score_task
from kv_transition.files import read_parquet, write_parquet
from kv_transition.report.build import build_report

NOTHING = {
    "text": None,
    "finish_reason": None,
    "completion_tokens": None,
    "prompt_tokens": None,
    "kept_mean": None,
    "kept_min": None,
    "kept_max": None,
    "verified": "no",
}
SCORING = {
    "primary": "f1",
    "metrics": {},
    "formats": {"trivia": "number"},
    "refusal_patterns": [],
    "first_line_tasks": [],
    "code": "v1",
}
TASK = "phrasebook_qa"

# Scores


@pytest.mark.parametrize("status", ["infeasible", "not_applicable"])
def test_what_was_not_asked_has_neither_score_nor_failure(tmp_path: Path, status: str) -> None:
    manifest = write_manifest(tmp_path / "manifest.json")
    rows = [response(f"e{i}", "recent", 8) for i in range(3)]
    rows.append(response("e3", "recent", 8, status=status, **NOTHING))
    table = score_task(
        manifest_path=manifest,
        response_paths=[write_shard(tmp_path / "responses", rows)],
        scoring=SCORING,
        cache_dir=tmp_path / "cache",
    )
    (row,) = [row for row in table.to_pylist() if row["example_id"] == "e3"]
    assert row["status"] == status
    assert [row[name] for name in ("score", "em", "f1", "pred_norm", "failure")] == [None] * 5
    assert not any(row[name] for name in row if name.startswith("flag_") or name == "one_token")
    assert {row["status"] for row in table.to_pylist()} == {"ok", status}


def test_the_row_is_wanted_all_the_same(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "manifest.json")
    shard = write_shard(tmp_path / "responses", [response(f"e{i}", "recent", 8) for i in range(3)])
    with pytest.raises(UserError, match="1 missing"):
        score_task(
            manifest_path=manifest, response_paths=[shard], scoring=SCORING, cache_dir=tmp_path / "cache"
        )


# Tables


@dataclass
class Analysed:
    """A study whose budget 16 fits no prompt, 64 all but one of 24, and to whose records bm25 is not applicable."""

    files: dict[str, Any]
    settings: dict[str, Any]
    stats: pd.DataFrame
    ratios: pd.DataFrame
    curves: pd.DataFrame

    def cell(self, method: str, budget: str, bin_idx: int = POOLED, policy: str = "zero") -> pd.Series:
        return self._one(self.stats, method=method, budget=budget, bin_idx=bin_idx, policy=policy)

    def ratio(self, method: str, budget: str, bin_idx: int = POOLED, policy: str = "zero") -> pd.Series:
        return self._one(self.ratios, method=method, budget=budget, bin_idx=bin_idx, policy=policy)

    def curve(self, method: str, bin_idx: int = POOLED) -> pd.Series:
        return self._one(self.curves, method=method, bin_idx=bin_idx, policy="zero", tau=0.9)

    @staticmethod
    def _one(table: pd.DataFrame, **keys: Any) -> pd.Series:
        found = table[np.logical_and.reduce([table[name] == value for name, value in keys.items()])]
        assert len(found) == 1
        return found.iloc[0]


class Study(FakeStudy):
    def scores(self) -> pd.DataFrame:
        scores = super().scores()
        recent, bm25 = scores["method"] == "recent", scores["method"] == "bm25"
        first = scores["example_id"] == f"{TASK}-0-000"
        infeasible = recent & ((scores["budget"] == "16") | ((scores["budget"] == "64") & first))
        scores.loc[infeasible, "status"] = "infeasible"
        scores.loc[bm25, "status"] = "not_applicable"
        nothing = infeasible | bm25
        scores.loc[nothing, ["score", "em", "f1", "kept_mean", "kept_min", "kept_max"]] = np.nan
        scores.loc[nothing, ["failure", "pred_norm"]] = None
        scores.loc[nothing, "verified"] = "no"
        scores.loc[nothing, "flag_truncated"] = False
        return scores


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    study = Study(n=12, edges=(60, 200, 800), methods=("snapkv", "recent", "bm25"), budgets=(16, 64, 256))
    files = study.write(tmp_path_factory.mktemp("study"))
    inputs = read_examples(files["scores"], files["manifests"])
    stats, ratios, curves = bin_stats(*inputs, CFG), retention(*inputs, CFG), transition(*inputs, CFG)
    paths = files["tables"]
    write_table(stats, BIN_STATS, list(CELL_KEYS), CFG, paths["bin_stats"])
    write_table(ratios, RETENTION, list(CELL_KEYS), CFG, paths["retention"])
    write_table(curves, TRANSITION, list(KEYS), CFG, paths["transition"])
    for name, write in (
        *(("paired_tests", write_paired_tests), ("lossless", write_lossless)),
        *(("effect_models", write_effect_models), ("macro", write_macro)),
    ):
        write(files["scores"], files["manifests"], CFG, paths[name])
    return Analysed(files, study.settings(), stats, ratios, curves)


@pytest.mark.parametrize("policy", ["zero", "exclude"])
def test_they_are_missing_under_both_policies_and_counted(analysed: Analysed, policy: str) -> None:
    row = analysed.cell("recent", "64", policy=policy)
    assert (row["n"], row["n_missing"], row["n_infeasible"], row["n_not_applicable"]) == (23, 1, 1, 0)
    assert row["infeasible_frac"] == pytest.approx(1 / 24)
    assert row["status"] == "ok", "under 5%"
    scores = read_parquet(analysed.files["scores"][0])
    answered = scores[(scores["method"] == "recent") & (scores["budget"] == "64")]["score"].dropna()
    assert row["mean"] == pytest.approx(answered.mean())
    assert row["verified_frac"] == 1, "nothing was sent that could be proved"
    assert analysed.ratio("recent", "64", policy=policy)["n_pairs"] == 23


def test_a_cell_with_more_than_five_percent_infeasible_says_nothing(analysed: Analysed) -> None:
    for bin_idx, budget in ((POOLED, "16"), (0, "16"), (0, "64")):
        stats, ratio = (table("recent", budget, bin_idx) for table in (analysed.cell, analysed.ratio))
        assert stats["status"] == ratio["status"] == ratio["R0_status"] == "infeasible"
        assert stats[["mean", "lo", "hi", "boot_lo", "f1_mean"]].isna().all()
        assert ratio[["R", "R_lo", "R0", "diff", "ni_p", "tost_p", "boot_lo"]].isna().all()
    assert analysed.cell("recent", "64", 0)["n"] == 11
    assert analysed.cell("recent", "64", 1)["status"] == "ok", "bins are judged each for itself"


def test_an_infeasible_budget_is_no_point_of_the_curve_and_is_flagged(analysed: Analysed) -> None:
    curve = analysed.curve("recent")
    assert list(curve["budgets"]) == [64, 256]
    assert "infeasible" in curve["flags"].split(",")
    assert "missing_budget" not in curve["flags"]
    assert list(analysed.curve("recent", 0)["budgets"]) == [256]
    assert analysed.curve("snapkv")["flags"].find("infeasible") < 0


def test_a_method_that_is_not_applicable_has_no_curve(analysed: Analysed) -> None:
    for bin_idx in (POOLED, 0, 1):
        assert analysed.cell("bm25", "64", bin_idx)["status"] == "not_applicable"
        assert analysed.ratio("bm25", "64", bin_idx)["status"] == "not_applicable"
        curve = analysed.curve("bm25", bin_idx)
        assert (curve["status"], list(curve["budgets"])) == ("not_applicable", [])
    counts = analysed.cell("bm25", "256")[["n", "n_not_applicable", "n_infeasible"]]
    assert counts.tolist() == [0, 24, 0]
    assert np.isnan(analysed.cell("bm25", "256")["mean"])


def test_a_method_whose_every_budget_is_infeasible_is_called_so(analysed: Analysed) -> None:
    table, clusters = read_examples(analysed.files["scores"], analysed.files["manifests"])
    only = table[(table["method"] != "recent") | (table["budget"] == "16")]
    curves = transition(only, clusters, CFG)
    assert set(curves.loc[curves["method"] == "recent", "status"]) == {"infeasible"}


def test_the_other_cells_do_not_move(analysed: Analysed) -> None:
    table, clusters = read_examples(analysed.files["scores"], analysed.files["manifests"])
    alone = bin_stats(table[table["method"].isin(["full", "no_context", "snapkv"])], clusters, CFG)
    together = analysed.stats[analysed.stats["method"].isin(["full", "no_context", "snapkv"])]
    pd.testing.assert_frame_equal(alone.reset_index(drop=True), together.reset_index(drop=True))


# Figures and report


@pytest.fixture(scope="module")
def drawn(analysed: Analysed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    files = analysed.files
    draw_task(
        TASK, tables=files["tables"], scores=files["scores"][0], folder=folder, settings=analysed.settings
    )
    return folder


def test_figures_leave_out_what_says_nothing_and_say_so(drawn: Path) -> None:
    for figure in ("score_vs_budget", "heatmap", "transition_vs_length", "retention_vs_budget", "collapse"):
        caption = (drawn / f"{figure}__{TASK}.txt").read_text()
        assert "Not applicable, because the records have no question: bm25." in caption
    score = pd.read_csv(drawn / f"score_vs_budget__{TASK}.csv")
    infeasible = score[(score["method"] == "recent") & (score["budget"] == "16")]
    assert infeasible["mean"].isna().all()
    assert "bm25" not in set(pd.read_csv(drawn / f"heatmap__{TASK}.csv")["method"])
    assert "Not drawn: budgets" in (drawn / f"score_vs_budget__{TASK}.txt").read_text()


def report_of(analysed: Analysed, folder: Path) -> str:
    build_report(
        settings=analysed.settings, provenance={}, figures=[], out=folder / "report.md", **analysed.files
    )
    return (folder / "report.md").read_text()


def test_the_report_has_one_sentence_for_each_reason(analysed: Analysed, tmp_path: Path) -> None:
    page = report_of(analysed, tmp_path)
    assert "bm25 needs a question: not applicable on phrasebook_qa." in page.replace("\\", "")
    plain = page.replace("\\", "")
    assert re.search(r"recent at 16: the fixed part of 24 of 24 prompts .* the cell is not shown", plain)
    assert re.search(r"recent at 64: the fixed part of 1 of 24 prompts .* these are left out", plain)
    assert "A method that compresses the cache read the whole text in its prefill, and these did not" in plain
    tables = plain.partition("## Task")[2].partition("## Failures")[0]
    assert not re.search(r"^\| bm25 ", tables, re.M)
    assert re.search(r"^\| recent \| – \| 0\.\d\d", tables, re.M), "budget 16 has a dash, not a zero"
    failures = plain.partition("## Failures")[2].partition("## What")[0]
    assert "bm25" not in failures, "nothing was asked, so nothing failed"


def test_nothing_is_said_of_texts_where_no_method_shortens_them(tmp_path: Path) -> None:
    study = FakeStudy(n=6, edges=(60, 200, 800), methods=("snapkv",), budgets=(16, 64))
    files = study.write(tmp_path)
    build_report(settings=study.settings(), provenance={}, figures=[], out=tmp_path / "report.md", **files)
    page = (tmp_path / "report.md").read_text()
    assert "before the model reads it" not in page
    assert "not applicable" not in page


def test_score_files_of_one_task_only_method_not_applicable_can_still_be_drawn(
    analysed: Analysed, tmp_path: Path
) -> None:
    """The only method of an experiment may be one that a task has no use for."""
    tables = {}
    for name, path in analysed.files["tables"].items():
        table = read_parquet(path)
        own = [column for column in ("method", "method_a", "method_b") if column in table]
        tables[name] = tmp_path / f"{name}.parquet"
        write_parquet(tables[name], table[table[own].isin(["full", "no_context", "bm25", ""]).all(axis=1)])
    draw_task(
        TASK, tables=tables, scores=analysed.files["scores"][0], folder=tmp_path, settings=analysed.settings
    )
    assert (tmp_path / f"transition_vs_length__{TASK}.png").stat().st_size
