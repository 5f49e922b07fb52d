"""Figures of retention, length law and paired differences: what a reader of one is owed, whatever the tables hold."""

import math

import numpy as np
import pandas as pd
import pytest
from fake_tables import FakeStudy

from kv_transition.analysis.compare import holm
from kv_transition.analysis.figures.canvas import FigureContext
from kv_transition.analysis.figures.collapse import bin_colours, plot_collapse
from kv_transition.analysis.figures.forest import plot_forest
from kv_transition.analysis.figures.labels import looked_at, short_status
from kv_transition.analysis.figures.length_law import read_length_law
from kv_transition.analysis.figures.retention import plot_retention_vs_budget
from kv_transition.analysis.figures.transition import plot_transition_vs_length
from kv_transition.errors import UserError

TASK = "phrasebook_qa"
CONTEXT = FigureContext(
    scope="prompt", first_token="compressed", metrics={TASK: "F1"}, protocol="own-1", dpi=50
)
LAW = {"alpha1": (0.62, 0.41, 0.83), "rss": (1.5,), "rss_alpha1_0": (5.25,), "rss_alpha1_1": (2.75,)}
ABOUT = ["protocol", "metric", "length_unit"]


def small(**changes):
    return FakeStudy(**({"n": 6, "edges": (60, 200, 800), "methods": ("snapkv", "tova")} | changes))


def paired_tests(retention):
    """The comparisons with the full cache, as the table of that name has them."""
    groups = retention.groupby(["dataset", "task", "policy", "bin_idx"], sort=True)
    parts = []
    for (*_, bin_idx), cells in groups:
        p = np.linspace(0.0001, 0.4, len(cells))
        part = cells.rename(
            columns={"method": "method_b", "budget": "budget_b", "budget_value": "budget_value_b"}
        )
        part = part.assign(
            kind="full", method_a="full", budget_a="full", budget_value_a=math.nan, family=f"full|{bin_idx}", p=p,
            p_adjusted=holm(p), adjustment="holm", inactive=part["active_frac"] < 0.5, unreliable=False,
        )  # fmt: skip
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def effect_models(retention, status="ok", label="neither", flags=""):
    """A collapse model of every method, as the table of that name has it."""
    keys = ["dataset", "task", "policy", "method"]
    rows = []
    for key, cells in retention.groupby(keys, sort=True):
        for term, numbers in LAW.items():
            estimate, lo, hi = [*numbers, math.nan, math.nan][:3] if status == "ok" else [math.nan] * 3
            rows.append(
                dict(zip(keys, key, strict=True))
                | {
                    "model": "collapse", "term": term, "estimate": estimate, "se": math.nan, "lo": lo, "hi": hi,
                    "p": math.nan, "df": math.nan, "n_obs": 12, "n_clusters": 12, "n_bins": 2, "status": status,
                    "label": label if term == "alpha1" and status == "ok" else "", "flags": flags,
                    "x_center": 6.0, "z_center": 8.0,
                }
                | {name: cells[name].iloc[0] for name in ABOUT}
            )  # fmt: skip
    return pd.DataFrame(rows)


def tables(study, status="ok"):
    retention = study.retention(status).assign(unreliable=False)
    return {
        "stats": study.bin_stats(), "retention": retention, "tests": paired_tests(retention),
        "models": effect_models(retention), "transition": study.transition(status),
    }  # fmt: skip


def draw(of, folder, context=CONTEXT):
    return {
        "retention": plot_retention_vs_budget(
            of["retention"], TASK, folder / "retention", context, bin_stats=of["stats"], taus=(0.9, 0.95)
        ),
        "collapse": plot_collapse(
            of["stats"], of["models"], TASK, folder / "collapse", context, retention=of["retention"]
        ),
        "forest": plot_forest(of["retention"], of["tests"], TASK, folder / "forest", context),
        "transition": plot_transition_vs_length(
            of["transition"], TASK, folder / "transition", context, of["models"], of["stats"]
        ),
    }


def test_every_figure_has_picture_numbers_and_protocol(tmp_path):
    for name in draw(tables(small()), tmp_path):
        for suffix in ("svg", "png", "csv"):
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 0
        assert set(pd.read_csv(tmp_path / f"{name}.csv")["protocol"]) == {"own-1"}


def test_equal_tables_give_equal_bytes_whatever_the_order_of_their_rows(tmp_path):
    of = tables(small())
    draw(of, tmp_path / "a")
    draw({name: table.sample(frac=1, random_state=3) for name, table in of.items()}, tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_the_numbers_beside_the_retention_are_the_tables(tmp_path):
    of = tables(small())
    draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "retention.csv", dtype={"budget": str})
    table = of["retention"].query("policy == 'zero'")
    both = drawn.merge(table, on=["bin_idx", "method", "budget"], suffixes=("", "_table"))
    assert len(drawn) == len(table) == len(both)
    assert -1 in set(drawn["bin_idx"])
    for name in ("R", "R_lo", "R_hi"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_table"].to_numpy(), rel=1e-9)


def test_the_numbers_beside_the_length_law_are_the_tables(tmp_path):
    of = tables(small(budgets=(16, 64, 256)))
    draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "collapse.csv").set_index(["method", "bin_idx", "budget"]).sort_index()
    stats = of["stats"].query("policy == 'zero'").set_index(["method", "bin_idx", "budget"]).sort_index()
    assert len(drawn) == 2 * 2 * 3
    cell, full = stats.loc[("tova", 1, "64")], stats.loc[("full", 1, "full")]
    row = drawn.loc[("tova", 1, 64)]
    assert row["mean"] == pytest.approx(cell["mean"])
    assert row["ratio"] == pytest.approx(cell["mean"] / full["mean"])
    assert row["budget_tokens"] == 64
    assert row["budget_share"] == pytest.approx(64 / full["token_len_median"])
    assert (row["alpha1"], row["alpha1_lo"], row["alpha1_hi"]) == LAW["alpha1"]
    assert (row["rss"], row["rss_alpha1_0"], row["rss_alpha1_1"]) == (1.5, 5.25, 2.75)


def test_budgets_given_as_shares_are_tokens_too(tmp_path):
    of = tables(small(budgets=(0.25, 0.5)))
    draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "collapse.csv")
    assert set(drawn["budget_share"]) == {0.25, 0.5}
    assert drawn["budget_tokens"].to_numpy() == pytest.approx(
        (drawn["budget_share"] * drawn["token_len_median"]).to_numpy()
    )


def test_lengths_that_are_not_tokens_have_no_share(tmp_path):
    of = {name: table.assign(length_unit="words") for name, table in tables(small()).items()}
    assert "in words, not in tokens" in draw(of, tmp_path)["collapse"]
    assert pd.read_csv(tmp_path / "collapse.csv")["budget_share"].isna().all()


def test_the_numbers_beside_the_forest_are_the_tables_sorted_by_size(tmp_path):
    of = tables(small(budgets=(16, 64, 256)))
    draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "forest.csv")
    table = of["tests"].query("policy == 'zero' and bin_idx == -1")
    assert len(drawn) == len(table) == 6
    assert drawn["diff"].is_monotonic_increasing
    both = drawn.merge(
        table.assign(budget=table["budget_b"].astype(int)),
        left_on=["method", "budget"], right_on=["method_b", "budget"], suffixes=("", "_table"),
    )  # fmt: skip
    for name in ("diff", "diff_lo", "diff_hi", "p_adjusted", "mde"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_table"].to_numpy(), rel=1e-9)
    assert set(drawn["delta"]) == {0.05}


def test_the_exponent_beside_the_transition_is_the_models(tmp_path):
    of = tables(small())
    draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "transition.csv")
    assert set(drawn["alpha1"]) == {0.62}
    assert set(drawn["alpha1_label"]) == {"neither"}
    plot_transition_vs_length(of["transition"], TASK, tmp_path / "alone", CONTEXT)
    assert "alpha1" not in pd.read_csv(tmp_path / "alone.csv")


def test_every_caption_says_sample_interval_and_failure_policy(tmp_path):
    captions = draw(tables(small()), tmp_path)
    intervals = {
        "retention": "95% Fieller", "collapse": "95% bootstrap", "forest": "95% paired t", "transition": "95% fixed-sequence"
    }  # fmt: skip
    for name, caption in captions.items():
        assert "n = 12 examples in all" in caption or "n = 6 examples per length bin" in caption, name
        assert "a timeout or an engine error scores 0" in caption, name
        assert intervals[name] in caption, name
        assert "scope prompt" in caption, name
    for name in ("retention", "forest"):
        assert "holds 95% on its own" in captions[name]
    assert "tau = 0.9 and 0.95" in captions["retention"]
    assert "Holm" in captions["forest"]
    assert "within 0.05 of the full cache" in captions["forest"]
    assert "not from a line through these points" in captions["transition"]
    exclude = FigureContext("prompt", "full", policy="exclude", conf=0.9, dpi=50)
    for name, caption in draw(tables(small()), tmp_path, exclude).items():
        assert "left out" in caption, name
        assert "90%" in caption, name


def test_cells_that_are_no_evidence_are_hollow_in_every_figure(tmp_path):
    study = small(budgets=(16, 128, 512), failing={("tova", "16", 1): 0.5})
    of = tables(study)
    of["retention"].loc[
        of["retention"].eval("method == 'tova' and budget == '16' and bin_idx == 1"), "unreliable"
    ] = True
    of["tests"].loc[of["tests"].eval("method_b == 'tova' and budget_b == '16'"), "unreliable"] = True
    draw(of, tmp_path)
    for name in ("retention", "collapse"):
        hollow = pd.read_csv(tmp_path / f"{name}.csv").set_index(["bin_idx", "method", "budget"])["hollow"]
        assert hollow[0, "snapkv", 512], name
        assert hollow[1, "tova", 16], name
        assert not hollow[1, "snapkv", 128], name
    hollow = pd.read_csv(tmp_path / "forest.csv").set_index(["method", "budget"])["hollow"]
    assert hollow["tova", 16]
    assert not hollow["snapkv", 16]


def test_answers_of_one_token_make_every_curve_hollow(tmp_path):
    context = FigureContext("prompt", "full", one_token_share={TASK: 0.8}, dpi=50)
    captions = draw(tables(small()), tmp_path, context)
    for name in ("retention", "collapse", "forest"):
        assert pd.read_csv(tmp_path / f"{name}.csv")["hollow"].all(), name
        assert "cannot show the budget" in captions[name]


@pytest.mark.parametrize("status", ["no_reference", "too_few", "reference_too_weak", "context_not_needed"])
def test_a_closed_gate_leaves_points_without_limits_and_is_said(tmp_path, status):
    of = tables(small(), status)
    of["tests"]["status"] = "ok"
    captions = draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "retention.csv")
    assert drawn["R_lo"].isna().all()
    assert drawn["hollow"].all()
    assert short_status(status) in captions["forest"]
    assert f"left out of α₁: 61–200 tokens: {short_status(status)}" in captions["collapse"]


def test_a_limit_above_the_axis_is_marked(tmp_path):
    of = tables(small())
    wide = of["retention"].eval("bin_idx == 1 and method == 'tova' and budget == '32'")
    of["retention"].loc[wide, "R_hi"] = 9.0
    assert "An arrow" in plot_retention_vs_budget(of["retention"], TASK, tmp_path / "retention", CONTEXT)
    drawn = pd.read_csv(tmp_path / "retention.csv")
    assert drawn.loc[drawn["hi_clipped"], "R_hi"].tolist() == [9.0]
    plain = tables(small())["retention"]
    assert "An arrow" not in plot_retention_vs_budget(plain, TASK, tmp_path / "plain", CONTEXT)


def test_bins_of_cut_prompts_are_left_out_of_the_law_and_said(tmp_path):
    of = tables(small())
    of["stats"]["truncated_frac"] = np.where(of["stats"]["bin_idx"] == 1, 0.75, 0.5)
    captions = draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "transition.csv").set_index("bin_idx")["mostly_truncated"]
    assert drawn[1].all()
    assert not drawn[0].any()
    assert "full means the shortened document" in captions["transition"]
    assert "more than half of the prompts cut" in captions["collapse"]
    of["stats"]["truncated_frac"] = math.nan
    assert "shortened" not in plot_collapse(of["stats"], of["models"], TASK, tmp_path / "f", CONTEXT)


@pytest.mark.parametrize(
    "status", ["too_few_bins", "length_not_in_tokens", "no_transition_detected", "reference_too_weak"]
)
def test_a_law_without_an_exponent_is_a_word(tmp_path, status):
    of = tables(small())
    of["models"] = effect_models(of["retention"], status)
    law = read_length_law(of["models"], TASK, "tova", CONTEXT)
    assert law.words == f"no α₁: {short_status(status)}"
    assert law.misfit(0) == law.verdict == ""
    assert draw(of, tmp_path)
    assert set(pd.read_csv(tmp_path / "collapse.csv")["alpha1_status"]) == {status}


def test_a_status_in_a_figure_is_words_a_stranger_can_read():
    assert short_status("too_few") == "under 10 examples"
    assert short_status("too_few_bins") == "too few length bins"
    assert short_status("some_new_status") == "some new status"
    assert (looked_at(1), looked_at(5)) == ("1 was looked at", "5 were looked at")


def test_a_law_reads_as_it_was_estimated():
    retention = small().retention()
    law = read_length_law(effect_models(retention, label="relative"), TASK, "tova", CONTEXT)
    assert law.words == "α₁ = 0.62 [0.41, 0.83]"
    assert law.verdict == "relative budget"
    assert law.misfit(0) == "rss 5.25 at α₁ = 0, 1.5 free"
    assert law.misfit(1) == "rss 2.75 at α₁ = 1, 1.5 free"
    bound = effect_models(retention, flags="width_at_bound")
    assert "bound" not in read_length_law(bound, TASK, "tova", CONTEXT).words
    bound = effect_models(retention, flags="inactive_budgets,interval_at_bound")
    assert "(at a bound)" in read_length_law(bound, TASK, "tova", CONTEXT).words
    no_interval = effect_models(retention).assign(lo=math.nan, hi=math.nan)
    assert read_length_law(no_interval, TASK, "tova", CONTEXT).words == "α₁ = 0.62, no interval"
    assert read_length_law(no_interval, TASK, "h2o", CONTEXT).words == "no α₁: not estimated"


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": (60, 800), "methods": ("snapkv",), "budgets": (96,)},
        {
            "methods": tuple(f"method_{index}" for index in range(9)),
            "n": 3,
            "budgets": (16, 32, 64, 128, 256),
        },
        {"budgets": (0.05, 0.25, 0.75)},
        {"full_score": 0.0},
        {"n": 1},
        {"missing": {("snapkv", "64", 0), ("snapkv", "64", 1)}},
    ],
    ids=["one of each", "nine methods", "shares", "all zero", "one example", "a budget without cells"],
)
def test_odd_studies_can_be_drawn(tmp_path, changes):
    captions = draw(tables(small(**changes)), tmp_path)
    assert all(captions.values())


@pytest.mark.parametrize("status", ["no_pairs", "too_few", "infeasible", "degenerate"])
def test_differences_that_were_not_estimated_stand_last(tmp_path, status):
    of = tables(small(budgets=(16, 64)))
    lost = of["tests"]["method_b"] == "snapkv"
    of["tests"].loc[lost, "status"] = status
    if status != "degenerate":
        of["tests"].loc[lost, ["diff", "diff_lo", "diff_hi", "p", "p_adjusted", "mde"]] = math.nan
    draw(of, tmp_path)
    drawn = pd.read_csv(tmp_path / "forest.csv")
    assert len(drawn) == 4
    assert drawn["status"].tolist()[2:] == [status] * 2 or status == "degenerate"


def test_a_method_that_is_not_applicable_is_named_and_not_drawn(tmp_path):
    of = tables(small())
    for name, column in (("stats", "method"), ("retention", "method"), ("tests", "method_b")):
        gone = of[name][column] == "tova"
        of[name].loc[gone, "status"] = "not_applicable"
    captions = draw(of, tmp_path)
    for name in ("retention", "collapse", "forest"):
        assert "Not applicable, because the records have no question: tova" in captions[name], name
    assert set(pd.read_csv(tmp_path / "forest.csv")["method"]) == {"snapkv"}


def test_a_task_without_a_full_cache_says_so_in_every_figure(tmp_path):
    of = tables(small(), "no_reference")
    of["stats"] = of["stats"][of["stats"]["method"] != "full"]
    lost = ["R", "R_lo", "R_hi", "diff", "diff_lo", "diff_hi", "mde"]
    of["retention"] = of["retention"].assign(n_pairs=0, n_clusters=0, **dict.fromkeys(lost, math.nan))
    of["tests"] = of["tests"][of["tests"]["kind"] != "full"]
    captions = draw(of, tmp_path)
    assert set(pd.read_csv(tmp_path / "forest.csv")["status"]) == {"no_reference"}
    assert "full cache not run" in captions["forest"]
    assert "was not run" in captions["collapse"]
    assert pd.read_csv(tmp_path / "collapse.csv").empty


def test_panels_without_prompt_lengths_are_numbered(tmp_path):
    of = tables(small())
    assert plot_retention_vs_budget(of["retention"], TASK, tmp_path / "f", CONTEXT)
    assert pd.read_csv(tmp_path / "f.csv")["token_len_min"].isna().all()


def test_a_task_without_rows_is_the_users_to_mend(tmp_path):
    of = tables(small())
    with pytest.raises(UserError, match="no rows for task 'other'"):
        plot_retention_vs_budget(of["retention"], "other", tmp_path / "f", CONTEXT)
    with pytest.raises(UserError, match="no rows for task 'other'"):
        plot_collapse(of["stats"], of["models"], "other", tmp_path / "f", CONTEXT)
    with pytest.raises(UserError, match="no comparison with the full cache"):
        plot_forest(of["retention"], of["tests"].assign(kind="method"), TASK, tmp_path / "f", CONTEXT)


def test_longer_prompts_are_darker():
    def luminance(colour):
        red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = [luminance(colour) for colour in bin_colours(8)]
    assert shades == sorted(shades, reverse=True)
    assert len(set(bin_colours(8))) == 8
