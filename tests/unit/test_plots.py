"""Figures: what a reader of one is owed, and the same bytes for the same tables."""

import math
import re
from itertools import pairwise

import pandas as pd
import pytest
from fake_tables import FakeStudy
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.analysis.figures.canvas import legible, spread
from kv_transition.analysis.figures.cells import length_bins
from kv_transition.analysis.figures.labels import read_estimate
from kv_transition.analysis.figures.palette import CATEGORICAL, SETTLED, method_styles
from kv_transition.analysis.plots import (
    FigureContext,
    draw_task,
    plot_heatmap,
    plot_score_vs_budget,
    plot_transition_vs_length,
)
from kv_transition.errors import UserError
from kv_transition.report.build import drawn_figures

TASK = "phrasebook_qa"
CONTEXT = FigureContext(scope="prompt", first_token="compressed", metrics={TASK: "F1"}, dpi=60)


def small(**changes):
    return FakeStudy(**({"n": 6, "edges": (60, 200, 800), "methods": ("snapkv", "tova")} | changes))


def draw_all(study, folder, context=CONTEXT, status="ok"):
    stats, retention, transition = study.bin_stats(), study.retention(), study.transition(status)
    return {
        "score": plot_score_vs_budget(stats, TASK, folder / "score", context),
        "heatmap": plot_heatmap(stats, TASK, folder / "heatmap", context),
        "retention": plot_heatmap(stats, TASK, folder / "retention", context, retention),
        "transition": plot_transition_vs_length(transition, TASK, folder / "transition", context),
    }


def test_every_figure_has_its_numbers_beside_it(tmp_path):
    study = small()
    for name in draw_all(study, tmp_path):
        for suffix in ("svg", "png", "csv"):
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 0
    drawn = pd.read_csv(tmp_path / "score.csv")
    table = study.bin_stats().query("policy == 'zero' and bin_idx >= 0")
    merged = drawn.merge(table, on=["bin_idx", "method", "budget"], suffixes=("", "_table"))
    assert len(drawn) == len(table) == len(merged)
    assert merged["mean"].to_numpy() == pytest.approx(merged["mean_table"].to_numpy())
    assert merged["hi"].to_numpy() == pytest.approx(merged["hi_table"].to_numpy())


def test_a_task_is_drawn_from_files_with_captions_beside_the_figures(tmp_path):
    study = small()
    files = study.write(tmp_path)
    draw_task(
        TASK,
        tables=files["tables"],
        scores=files["scores"][0],
        folder=tmp_path / "f",
        settings=study.settings(),
    )
    figures = drawn_figures(sorted((tmp_path / "f").glob("*.txt")))
    assert [figure["name"].partition("__")[0] for figure in figures] == [
        *("score_vs_budget", "transition_vs_length", "collapse", "retention_vs_budget", "heatmap", "forest"),
        *("pareto", "latency", "failures"),
    ]
    for figure in figures:
        assert figure["caption"].endswith(".")
        assert TASK in figure["title"]
        assert all(figure[suffix].is_file() for suffix in ("svg", "png", "csv"))


def test_the_numbers_beside_a_figure_say_by_which_prompts_they_came(tmp_path):
    study = small()
    files = study.write(tmp_path)
    draw_task(
        TASK,
        tables=files["tables"],
        scores=files["scores"][0],
        folder=tmp_path / "f",
        settings=study.settings(),
    )
    for path in (tmp_path / "f").glob("*.csv"):
        assert set(pd.read_csv(path)["protocol"]) == {"own-1"}


def test_a_bin_that_is_not_cut_by_tokens_has_its_own_name(tmp_path):
    stats = small().bin_stats().assign(bin_name="4000–7999 words")
    assert {one.lengths for one in length_bins(stats)} == {"4000–7999 words"}


def test_hollow_marks_follow_the_configured_shares(tmp_path):
    stats = small(budgets=(16, 128)).bin_stats()
    strict = FigureContext("prompt", "compressed", min_active_share=1.0, max_failures=0.2, dpi=60)
    caption = plot_score_vs_budget(stats, TASK, tmp_path / "f", strict)
    assert "fewer than 100% of the prompts" in caption
    assert "more than 20% of the requests" in caption
    drawn = pd.read_csv(tmp_path / "f.csv").set_index(["bin_idx", "method", "budget"])["hollow"]
    assert drawn[0, "snapkv", "128"]
    assert not drawn[0, "snapkv", "16"]


def test_equal_tables_give_equal_bytes(tmp_path):
    study = small()
    shuffled = study.bin_stats().sample(frac=1, random_state=3)
    for folder, stats in ((tmp_path / "a", study.bin_stats()), (tmp_path / "b", shuffled)):
        plot_score_vs_budget(stats, TASK, folder / "score", CONTEXT)
        plot_heatmap(stats, TASK, folder / "heatmap", CONTEXT)
    for name in ("score", "heatmap"):
        for suffix in ("svg", "png", "csv"):
            first, second = ((tmp_path / side / f"{name}.{suffix}").read_bytes() for side in "ab")
            assert first == second, f"{name}.{suffix}"


def test_a_users_matplotlib_settings_change_nothing(tmp_path):
    import matplotlib

    stats = small().bin_stats()
    plot_score_vs_budget(stats, TASK, tmp_path / "plain", CONTEXT)
    with matplotlib.rc_context(
        {"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "black", "xtick.direction": "in"}
    ):
        plot_score_vs_budget(stats, TASK, tmp_path / "loud", CONTEXT)
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "loud.svg").read_bytes()


def test_no_date_and_no_machine_path_is_in_a_figure(tmp_path):
    draw_all(small(), tmp_path)
    for path in tmp_path.glob("*.svg"):
        text = path.read_text()
        assert "<dc:date>" not in text
        assert str(tmp_path) not in text


def test_every_caption_states_sample_policy_scope_first_token_and_hollow_marks(tmp_path):
    for name, caption in draw_all(small(), tmp_path).items():
        assert "n = 6 examples per length bin" in caption, name
        assert "a timeout or an engine error scores 0" in caption, name
        assert "scope prompt" in caption, name
        assert "first_token compressed" in caption, name
    captions = draw_all(small(), tmp_path)
    assert "quasi-Wilson" in captions["score"]
    assert "not a test" in captions["score"]
    assert "Hollow" in captions["score"]
    assert "hollow" in captions["transition"]
    assert "fixed-sequence" in captions["transition"]
    exclude = plot_score_vs_budget(
        small().bin_stats(), TASK, tmp_path / "x", FigureContext("prompt", "full", policy="exclude", dpi=60)
    )
    assert "left out" in exclude
    assert "first_token full" in exclude


def test_a_floor_that_was_not_measured_is_said(tmp_path):
    stats = small().bin_stats()
    caption = plot_score_vs_budget(stats[stats["method"] != "no_context"], TASK, tmp_path / "f", CONTEXT)
    assert "not measured" in caption


def test_cells_that_are_no_evidence_are_hollow(tmp_path):
    study = small(budgets=(16, 128, 512), failing={("tova", "16", 1): 0.5})
    plot_score_vs_budget(study.bin_stats(), TASK, tmp_path / "f", CONTEXT)
    drawn = pd.read_csv(tmp_path / "f.csv").set_index(["bin_idx", "method", "budget"])["hollow"]
    assert drawn[0, "snapkv", "512"]
    assert not drawn[1, "snapkv", "128"]
    assert drawn[1, "tova", "16"]


def test_answers_of_one_token_with_a_full_first_token_make_the_curve_hollow_and_say_so(tmp_path):
    context = FigureContext("prompt", "full", one_token_share={TASK: 0.8}, dpi=60)
    caption = plot_score_vs_budget(small().bin_stats(), TASK, tmp_path / "f", context)
    assert "cannot show the budget" in caption
    assert pd.read_csv(tmp_path / "f.csv")["hollow"].all()


def test_a_heatmap_has_a_row_for_every_cell_even_an_absent_one(tmp_path):
    study = small(budgets=(16, 64, 256), missing={("tova", "64", 1)}, failing={("snapkv", "16", 0): 0.5})
    plot_heatmap(study.bin_stats(), TASK, tmp_path / "f", CONTEXT)
    drawn = pd.read_csv(tmp_path / "f.csv").set_index(["method", "bin_idx", "budget"])
    assert len(drawn) == 2 * 2 * 3 + 2
    assert drawn.loc[("tova", 1, "64"), "status"] == "absent"
    assert math.isnan(drawn.loc[("tova", 1, "64"), "value"])
    assert drawn.loc[("tova", 1, "64"), "hatched"]
    assert drawn.loc[("snapkv", 0, "16"), "hatched"]
    assert not drawn.loc[("snapkv", 1, "64"), "hatched"]


def test_retention_behind_a_closed_gate_is_hatched(tmp_path):
    study = small()
    plot_heatmap(study.bin_stats(), TASK, tmp_path / "f", CONTEXT, study.retention("reference_too_weak"))
    assert pd.read_csv(tmp_path / "f.csv")["hatched"].all()


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": (60, 800), "methods": ("snapkv",), "budgets": (64,)},
        {"methods": tuple(f"method_{index}" for index in range(20)), "n": 3, "budgets": (16, 64)},
        {"budgets": (0.05, 0.25, 0.75)},
        {"full_score": 0.0},
        {"n": 1},
        {"missing": {("snapkv", "64", 0), ("snapkv", "64", 1)}},
    ],
    ids=["one of each", "20 methods", "shares", "all zero", "one example", "a budget without cells"],
)
def test_odd_studies_can_be_drawn(tmp_path, changes):
    captions = draw_all(small(**changes), tmp_path)
    assert all(captions.values())


def test_transitions_that_are_all_censored_or_gated_can_be_drawn(tmp_path):
    study = small(budgets=(16,))
    for side, label in (("left", "<=16"), ("right", ">16")):
        table = study.transition().assign(T_point=label, T_lower="<=16", T_upper=">16")
        table = table.assign(censored_point=side, T_point_tokens=math.nan)
        assert plot_transition_vs_length(table, TASK, tmp_path / side, CONTEXT)
    assert plot_transition_vs_length(study.transition("too_few"), TASK, tmp_path / "gated", CONTEXT)


def test_a_task_without_rows_is_the_users_to_mend(tmp_path):
    study = small()
    with pytest.raises(UserError, match=r"no rows for task 'other'.*phrasebook_qa"):
        plot_score_vs_budget(study.bin_stats(), "other", tmp_path / "f", CONTEXT)
    with pytest.raises(UserError, match=r"tau 0\.5.*0\.9, 0\.95"):
        plot_transition_vs_length(
            study.transition(), TASK, tmp_path / "f", FigureContext("prompt", "full", tau=0.5, dpi=60)
        )


@pytest.mark.parametrize(
    ("label", "side", "budget"), [("64", "none", 64), ("<=f0.05", "left", 0.05), (">512", "right", 512)]
)
def test_labels_are_read_as_what_they_bound(label, side, budget):
    estimate = read_estimate(label)
    assert (estimate.side, estimate.budget) == (side, budget)
    assert (estimate.rank == math.inf) == (side == "right")


def test_twenty_methods_look_different_and_known_ones_keep_their_looks():
    many = method_styles([*SETTLED, *(f"m{index}" for index in range(20 - len(SETTLED)))])
    assert len({(style.colour, style.marker) for style in many.values()}) == 20
    assert method_styles(["tova"])["tova"] == many["tova"]
    assert "full" not in method_styles(["full", "no_context", "tova"])
    assert all(re.fullmatch(r"#[0-9A-F]{6}", colour) for colour in CATEGORICAL)


heights = st.lists(st.floats(-0.2, 1.2), max_size=25)


@given(heights)
def test_labels_never_collide_leave_the_panel_or_change_their_order(wishes):
    placed = spread(wishes, 0.1, 0.0, 1.0)
    assert len(placed) == len(wishes)
    gap = min(0.1, 1.0 / max(len(wishes) - 1, 1))
    ordered = sorted(placed)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    assert all(high - low >= gap - 1e-9 for low, high in pairwise(ordered))
    by_wish = sorted(range(len(wishes)), key=lambda index: (wishes[index], index))
    assert [placed[index] for index in by_wish] == ordered


def test_labels_with_room_stay_where_they_belong():
    assert spread([0.2, 0.8], 0.1, 0, 1) == pytest.approx([0.2, 0.8])


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12, unique=True))
def test_tick_labels_keep_their_distance_and_the_last_one(values):
    values = sorted(values)
    chosen = legible(values, ["512"] * len(values), 2.5, -1.0, 11.0)
    assert chosen[-1] == len(values) - 1
    inches = [(values[index] + 1) / 12 * 2.5 for index in chosen]
    assert all(high - low > 0.2 for low, high in pairwise(inches))
