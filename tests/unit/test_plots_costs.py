"""Figures of failures, times and sizes: what a reader of one is owed, whatever the responses leave unsaid."""

import math

import numpy as np
import pandas as pd
import pytest
from fake_tables import FakeStudy

from kv_transition.analysis.costs import COSTS
from kv_transition.analysis.figures.canvas import FigureContext
from kv_transition.analysis.figures.failures import OUTCOMES, plot_failures
from kv_transition.analysis.figures.latency import plot_latency
from kv_transition.analysis.figures.pareto import is_dominated, plot_pareto, size_words
from kv_transition.errors import UserError

TASK = "phrasebook_qa"
CONTEXT = FigureContext(scope="prompt", first_token="compressed", metrics={TASK: "F1"}, dpi=60)


def small(**changes):
    return FakeStudy(**({"n": 6, "edges": (60, 200, 800), "methods": ("snapkv", "tova")} | changes))


def stats_of(study):
    """The study's bin_stats; each example has one label, as in the real table."""
    table = study.bin_stats()
    return table.assign(n_truncated=table["n_truncated"].where(table["n_engine_error"] == 0, 0))


def costs_of(study, served=True):
    """Costs whose numbers follow from the kept tokens; served: every request was timed by its client."""
    stats = study.bin_stats().query("policy == 'zero'")
    kept = stats["kept_mean"]
    out = stats[["dataset", "task", "method", "bin_idx", "budget", "budget_value"]].copy()
    out["n"] = out["n_examples"] = out["n_clusters"] = stats["n"]
    out["n_not_asked"], out["n_failed"], out["n_copied"] = 0, stats["n_engine_error"], 0
    out["n_timed"] = stats["n"] - stats["n_engine_error"] if served else 0
    for name, seconds in {
        "latency_median": 1.0,
        "latency_p95": 2.0,
        "ttfb_median": 0.3,
        "ttfb_p95": 0.6,
    }.items():
        out[name] = seconds + kept / 1000 if served else math.nan
        out[f"{name}_lo"], out[f"{name}_hi"] = out[name] * 0.9, out[name] * 1.2
    name = "decode_tokens_per_s_median"
    out[name] = 50 - kept / 100 if served else math.nan
    out[f"{name}_lo"], out[f"{name}_hi"] = out[name] - 2, out[name] + 2
    out["prompt_tokens_mean"], out["completion_tokens_mean"] = stats["token_len_median"], 4.0
    out["attempts_mean"], out["attempts_max"], out["kept_mean"] = 1.25, 5.0, kept
    out["bytes_kept_mean"], out["bytes_kept_lo"], out["bytes_kept_hi"] = kept * 768, kept * 700, kept * 800
    out["peak_tokens_mean"] = kept + 4
    out["timing_scope"] = "request" if served else "sweep"
    out["engine"], out["host"], out["status"] = "OpenAICompat", "node7", "ok" if served else "not_timed"
    return out.assign(protocol="own-1", metric="", length_unit="tokens")[list(COSTS)]


def draw_all(study, folder, context=CONTEXT):
    stats, costs = stats_of(study), costs_of(study)
    return {
        "failures": plot_failures(stats, TASK, folder / "failures", context),
        "latency": plot_latency(costs, TASK, folder / "latency", context, concurrency=8),
        "pareto": plot_pareto(stats, costs, TASK, folder / "pareto", context),
    }


def test_every_figure_has_its_files_and_says_by_which_prompts(tmp_path):
    for name in draw_all(small(), tmp_path, FigureContext("prompt", "full", protocol="own-1", dpi=60)):
        for suffix in ("svg", "png", "csv"):
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 0
        assert set(pd.read_csv(tmp_path / f"{name}.csv")["protocol"]) == {"own-1"}


def test_equal_tables_give_equal_bytes(tmp_path):
    study = small()
    stats, costs = stats_of(study), costs_of(study)
    for side, order in (("a", 1), ("b", 2)):
        shuffled = stats.sample(frac=1, random_state=order)
        plot_failures(shuffled, TASK, tmp_path / side / "failures", CONTEXT)
        plot_latency(costs.sample(frac=1, random_state=order), TASK, tmp_path / side / "latency", CONTEXT)
        plot_pareto(
            shuffled, costs.sample(frac=1, random_state=order), TASK, tmp_path / side / "pareto", CONTEXT
        )
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_every_caption_states_sample_policy_scope_and_first_token(tmp_path):
    for name, caption in draw_all(small(), tmp_path).items():
        assert "n = 12 examples in all" in caption, name
        assert "a timeout or an engine error scores 0" in caption, name
        assert "scope prompt" in caption, name
        assert "first_token compressed" in caption, name
        assert "interval" in caption, name
        assert caption.endswith("."), name


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": (60, 800), "methods": ("snapkv",), "budgets": (64,)},
        {"methods": tuple(f"method_{index}" for index in range(13)), "n": 3, "budgets": (16, 64)},
        {"budgets": (0.05, 0.25, 0.75)},
        {"full_score": 0.0},
        {"n": 1},
        {"missing": {("snapkv", "64", 0), ("snapkv", "64", 1)}},
        {"failing": {(method, "16", bin_idx): 1.0 for method in ("snapkv", "tova") for bin_idx in (0, 1)}},
    ],
    ids=["one of each", "13 methods", "shares", "all zero", "one example", "a cell is absent", "all failed"],
)
def test_odd_studies_can_be_drawn(tmp_path, changes):
    assert all(draw_all(small(**changes), tmp_path).values())


def test_a_task_without_rows_is_the_users_to_mend(tmp_path):
    study = small()
    with pytest.raises(UserError, match=r"no rows for task 'other'.*phrasebook_qa"):
        plot_failures(stats_of(study), "other", tmp_path / "f", CONTEXT)
    with pytest.raises(UserError, match=r"costs: no rows for task 'other'.*phrasebook_qa"):
        plot_latency(costs_of(study), "other", tmp_path / "f", CONTEXT)


# --- failures ---


def counts(folder):
    drawn = pd.read_csv(folder / "f.csv")
    return {
        (method, budget): dict(zip(rows["outcome"], rows["count"], strict=True))
        for (method, budget), rows in drawn.groupby(["method", "budget"])
    }


def with_counts(stats, method, budget, **changes):
    chosen = (stats["method"] == method) & (stats["budget"] == budget) & (stats["bin_idx"] == -1)
    return stats.assign(**{name: stats[name].mask(chosen, value) for name, value in changes.items()})


def test_the_segments_of_a_bar_are_the_tables_counts_and_make_it_whole(tmp_path):
    study = small()
    changes = {"n_truncated": 3, "n_refusal": 2, "n_timeout": 1, "n_format_error": 0, "n_empty_output": 1}
    stats = with_counts(stats_of(study), "tova", "16", **changes)
    plot_failures(stats, TASK, tmp_path / "f", CONTEXT)
    found = counts(tmp_path)["tova", "16"]
    assert {name.removeprefix("n_"): count for name, count in changes.items()}.items() <= found.items()
    assert found["scored"] == 12 - 7
    drawn = pd.read_csv(tmp_path / "f.csv")
    shares = drawn.groupby(["method", "budget"])["share"].sum()
    assert shares.to_numpy() == pytest.approx(np.ones(len(shares)))
    assert len(drawn) == len(OUTCOMES) * (2 * len(study.budgets) + 2)


def test_infrastructure_is_told_apart_from_what_the_model_did(tmp_path):
    study = small(failing={("tova", "16", 0): 1.0})
    caption = plot_failures(stats_of(study), TASK, tmp_path / "f", CONTEXT)
    drawn = pd.read_csv(tmp_path / "f.csv").query("method == 'tova' and budget == '16' and count > 0")
    assert dict(zip(drawn["outcome"], drawn["kind"], strict=True))["engine_error"] == "infrastructure"
    assert "Hatched: the infrastructure's failures" in caption
    assert {outcome.name for outcome in OUTCOMES if "////" in outcome.look.get("hatch", "")} == {
        "engine_error",
        "timeout",
    }


@pytest.mark.parametrize("policy", ["zero", "exclude"])
def test_counts_are_the_same_under_both_policies(tmp_path, policy):
    study = small(failing={("tova", "16", 0): 1.0})
    plot_failures(
        stats_of(study), TASK, tmp_path / "f", FigureContext("prompt", "full", policy=policy, dpi=60)
    )
    found = counts(tmp_path)["tova", "16"]
    assert (found["engine_error"], found["absent"]) == (6, 0)


def test_failed_requests_are_not_taken_for_absent_ones_where_there_is_only_the_policy_exclude(tmp_path):
    stats = stats_of(small(failing={("tova", "16", 0): 1.0})).query("policy == 'exclude'")
    context = FigureContext("prompt", "full", policy="exclude", dpi=60)
    plot_failures(stats, TASK, tmp_path / "f", context)
    found = counts(tmp_path)["tova", "16"]
    assert (found["engine_error"], found["absent"]) == (6, 0)
    assert sum(found.values()) == 12


def test_what_was_not_asked_is_no_failure(tmp_path):
    stats = with_counts(
        stats_of(small()), "tova", "16", n=0, n_missing=12, n_infeasible=9, n_not_applicable=2, n_truncated=0
    )
    caption = plot_failures(stats, TASK, tmp_path / "f", CONTEXT)
    found = counts(tmp_path)["tova", "16"]
    assert (found["infeasible"], found["not_applicable"], found["absent"], found["scored"]) == (9, 2, 1, 0)
    assert "no failure and no score of 0" in caption


# --- latency ---


def test_the_times_beside_the_figure_are_the_tables(tmp_path):
    costs = costs_of(small())
    plot_latency(costs, TASK, tmp_path / "f", CONTEXT)
    drawn = pd.read_csv(tmp_path / "f.csv", dtype={"budget": str})
    merged = drawn.merge(costs.query("bin_idx == -1"), on=["method", "budget"], suffixes=("", "_table"))
    assert len(drawn) == len(merged) == 2 * 6 + 2
    for name in ("latency_median", "latency_p95_hi", "ttfb_p95_lo", "decode_tokens_per_s_median"):
        assert merged[name].to_numpy() == pytest.approx(merged[f"{name}_table"].to_numpy())


def test_a_caption_of_times_says_what_was_timed_where_and_what_is_not_in_it(tmp_path):
    study = small(failing={("tova", "16", 0): 1.0})
    costs = costs_of(study)
    costs.loc[(costs["method"] == "snapkv") & (costs["budget"] == "512"), ["n_copied", "n_timed"]] = [9, 3]
    caption = plot_latency(costs, TASK, tmp_path / "f", CONTEXT, concurrency=8)
    for words in (
        "timing_scope request",
        "95% bootstrap percentile intervals",
        "up to 8 requests of a job were in flight",
        "node7",
        "warm-up",
        "1.25 on average, 5 at most",
        "Failed requests have no latency: 6 of 168",
        "9 answers are copies",
        "3 to 12 timed requests",
    ):
        assert words in caption
    few = costs[costs["budget"] == "full"]
    assert "at the same time is not known" in plot_latency(few, TASK, tmp_path / "f", CONTEXT)
    assert "one request of a job" in plot_latency(few, TASK, tmp_path / "f", CONTEXT, concurrency=1)


def test_where_nothing_was_timed_the_figure_says_why(tmp_path):
    swept = costs_of(small(), served=False)
    assert "No request was timed" in plot_latency(swept, TASK, tmp_path / "f", CONTEXT)
    assert "timing_scope sweep" in plot_latency(swept, TASK, tmp_path / "f", CONTEXT)
    failed = swept.assign(n_failed=swept["n"])
    assert "every request failed" in plot_latency(failed, TASK, tmp_path / "f", CONTEXT)
    published = swept.assign(timing_scope=None, host=None)
    assert "hold no times" in plot_latency(published, TASK, tmp_path / "f", CONTEXT)
    assert (tmp_path / "f.png").stat().st_size > 0
    assert len(pd.read_csv(tmp_path / "f.csv")) == 14


def test_measures_that_nobody_knows_have_no_panel(tmp_path):
    costs = costs_of(small())
    unknown = [name for name in costs if name.startswith(("ttfb", "decode"))]
    plot_latency(costs, TASK, tmp_path / "five", CONTEXT)
    caption = plot_latency(costs.assign(**dict.fromkeys(unknown, math.nan)), TASK, tmp_path / "two", CONTEXT)
    assert "Tokens per second" not in caption
    assert (tmp_path / "two.svg").stat().st_size < (tmp_path / "five.svg").stat().st_size


# --- pareto ---


def test_a_point_is_dominated_by_one_that_is_no_worse_on_both_and_better_on_one():
    points = [(10.0, 0.5), (10.0, 0.4), (20.0, 0.5), (20.0, 0.9)]
    assert [is_dominated(point, points) for point in points] == [False, True, True, False]
    assert not is_dominated((10.0, 0.5), [(10.0, 0.5), (10.0, 0.5)])


def test_sizes_and_scores_beside_the_figure_are_the_tables(tmp_path):
    study = small()
    stats, costs = stats_of(study), costs_of(study)
    caption = plot_pareto(stats, costs, TASK, tmp_path / "f", CONTEXT)
    drawn = pd.read_csv(tmp_path / "f.csv", dtype={"budget": str}).set_index(["method", "budget"])
    pooled = costs.query("bin_idx == -1").set_index(["method", "budget"])
    scores = stats.query("bin_idx == -1 and policy == 'zero'").set_index(["method", "budget"])
    assert set(drawn["kept_as"]) == {"bytes"}
    for key in (("snapkv", "64"), ("tova", "512"), ("full", "full")):
        assert drawn.loc[key, "kept"] == pytest.approx(pooled.loc[key, "bytes_kept_mean"])
        assert drawn.loc[key, "kept_hi"] == pytest.approx(pooled.loc[key, "bytes_kept_hi"])
        assert drawn.loc[key, "mean"] == pytest.approx(scores.loc[key, "mean"])
        assert drawn.loc[key, "lo"] == pytest.approx(scores.loc[key, "lo"])
    assert "not the peak of memory" in caption
    assert "SnapKV" in caption
    assert size_words(pooled.loc[("full", "full"), "bytes_kept_mean"], "bytes") in caption


def test_the_weaker_method_at_the_same_size_is_dominated(tmp_path):
    study = small()
    plot_pareto(stats_of(study), costs_of(study), TASK, tmp_path / "f", CONTEXT)
    dominated = pd.read_csv(tmp_path / "f.csv", dtype={"budget": str}).set_index(["method", "budget"])
    assert dominated.loc[("tova", "32"), "dominated"]
    assert not dominated.loc[("snapkv", "32"), "dominated"]
    assert not dominated.loc[("no_context", "full"), "drawn"]


def test_a_cell_with_failed_requests_dominates_nothing(tmp_path):
    study = small()
    stats = stats_of(study)
    chosen = stats["method"] == "snapkv"
    caption = plot_pareto(stats.assign(unreliable=chosen), costs_of(study), TASK, tmp_path / "f", CONTEXT)
    drawn = pd.read_csv(tmp_path / "f.csv", dtype={"budget": str}).set_index(["method", "budget"])
    assert not drawn.loc[("tova", "32"), "dominated"]
    assert "they dominate nothing" in caption


def test_without_bytes_sizes_are_tokens_and_without_either_words(tmp_path):
    study = small()
    stats = stats_of(study)
    costs = costs_of(study).assign(bytes_kept_mean=math.nan, bytes_kept_lo=math.nan, bytes_kept_hi=math.nan)
    caption = plot_pareto(stats, costs, TASK, tmp_path / "f", CONTEXT)
    assert "mean prompt tokens kept" in caption
    assert "bytes of the keys" not in caption
    drawn = pd.read_csv(tmp_path / "f.csv", dtype={"budget": str}).set_index(["method", "budget"])
    assert set(drawn["kept_as"]) == {"tokens"}
    caption = plot_pareto(stats, costs.assign(kept_mean=math.nan), TASK, tmp_path / "f", CONTEXT)
    assert "No size is known" in caption
    assert (tmp_path / "f.png").stat().st_size > 0


def test_cells_without_a_size_or_a_score_are_named_and_not_drawn(tmp_path):
    study = small(methods=("snapkv", "tova", "random"))
    stats, costs = stats_of(study), costs_of(study)
    costs.loc[costs["method"] == "random", ["bytes_kept_mean", "kept_mean"]] = math.nan
    infeasible = (stats["method"] == "tova") & (stats["budget"] == "16")
    stats.loc[infeasible, "status"] = "infeasible"
    stats.loc[infeasible, ["mean", "lo", "hi"]] = math.nan
    caption = plot_pareto(stats, costs, TASK, tmp_path / "f", CONTEXT)
    assert "their size is not known: 6 cells (random)" in caption
    assert "fill in more than 5%" in caption
    drawn = pd.read_csv(tmp_path / "f.csv", dtype={"budget": str}).set_index(["method", "budget"])["drawn"]
    assert not drawn["tova", "16"]
    assert drawn["tova", "32"]


def test_a_full_cache_of_unknown_size_is_said(tmp_path):
    study = small()
    costs = costs_of(study)
    costs.loc[costs["method"] == "full", ["bytes_kept_mean", "kept_mean"]] = math.nan
    caption = plot_pareto(stats_of(study), costs, TASK, tmp_path / "f", CONTEXT)
    assert "size of the full cache is not known" in caption


@pytest.mark.parametrize(
    ("size", "words"),
    [(512.0, "512 B"), (98304.0, "96 KiB"), (1572864.0, "1.5 MiB"), (3.5 * 2**30, "3.5 GiB")],
)
def test_sizes_are_named_in_powers_of_1024(size, words):
    assert size_words(size, "bytes") == words
    assert size_words(1234.0, "tokens") == "1,234"
