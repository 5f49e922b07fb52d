"""The benchmarks in one process: they run, find wrong answers and a known exponent, and a trial gives no verdict on time."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = ("record", "llama_models", "one_by_one", "kvpress_sweep", "gpu_sweep", "sweep_cost")
MODULES += ("growth", "growth_points", "growth_figure")
MODULES += ("sqlite_cost", "bootstrap_cost", "metrics_cost", "tokenise_cost", "made_up_files")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Imports a benchmark by name; what it writes goes to a folder of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def kept(name: str) -> dict:
    """What a benchmark has written."""
    return json.loads(Path(f"results/bench/{name}.json").read_text())


def rows_with(name: str, words: str) -> list[dict]:
    return [row for row in kept(name)["rows"] if words in row["work"]]


# Trials and what a row says


def test_a_trial_gives_a_verdict_on_values_but_none_on_time(bench, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["bootstrap_cost.py", "--quick"])
    row, bootstrap = bench("record").Row, bench("bootstrap_cost")
    slow = row("limits", "9 ms", "3 ms", "scipy", (0.3,), "<= 1 ms", False)
    for same, code in ((True, 0), (False, 1)):
        found = [slow, row("difference", "0", bar="== 0", met=same)]
        monkeypatch.setattr(bootstrap, "race", lambda repeats, found=found: found)
        assert bootstrap.main() == code
        quick = json.loads((bench("record").FOLDER / "bootstrap_cost.json").read_text())["rows"]
        assert [(one["bar"], one["met"]) for one in quick] == [("", None), ("== 0", same)]


def test_a_trial_of_the_database_gives_no_verdict(bench, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sqlite_cost.py", "--quick"])
    row, database = bench("record").Row, bench("sqlite_cost")
    missed = row("study", "9 s", "1 s", "pandas", (0.1,), ">= 1.2x", False)
    monkeypatch.setattr(bench("made_up_files"), "write_study", lambda folder, requests: None)
    monkeypatch.setattr(database, "write_flat", lambda path, rows: None)
    monkeypatch.setattr(database, "race", lambda *_: [missed])
    assert database.main() == 0
    quick = json.loads((bench("record").FOLDER / "sqlite_cost.json").read_text())["rows"]
    assert [(one["bar"], one["met"]) for one in quick] == [("", None)] * 2


def test_the_bar_of_f1_is_for_new_answers_to_gold_answers_that_were_scored_before(bench, monkeypatch):
    metrics = bench("metrics_cost")
    answers = {metrics.RUN: ["red", "blue"], metrics.OTHER_RUN: ["red", "a sky"]}
    monkeypatch.setattr(
        metrics, "read_rows", lambda run, tasks, rows: [(text, ["sky"]) for text in answers[run]]
    )
    timed = []

    def seconds(score, rows, rounds, before):
        timed.append(([text for text, _ in before], [text for text, _ in rows]))
        return 1.0

    monkeypatch.setattr(metrics, "seconds", seconds)
    contest = metrics.Contest("qa_f1", "theirs", metrics.reference_f1, ("qasper",), 2, 6, keeps_gold=True)
    values, again, first = metrics.rows_of(contest, 1, 1)
    assert (["red", "blue"], ["a sky"]) in timed
    assert ([], ["red", "blue"]) in timed
    assert (values.bar, values.met) == ("== 0", True)
    assert (again.bar, first.bar) == (">= 6x", "")


def test_a_round_of_a_metric_begins_without_what_the_last_one_kept(bench):
    metrics = bench("metrics_cost")
    kept = []

    def score(row):
        metric = metrics.longbench_metrics.OFFICIAL_METRICS["qa_f1"]
        (golds,) = [
            cell.cell_contents for cell in metric.__closure__ if hasattr(cell.cell_contents, "cache_info")
        ]
        kept.append(golds.cache_info().currsize)
        metric(*row, ())

    metrics.seconds(score, [("red", ["sky"]), ("blue", ["sky"])], 2, [])
    assert kept == [0, 1, 0, 1]


def test_a_text_that_occurs_twice_is_tokenised_once(bench):
    first, again = bench("tokenise_cost").counting_rows(1, 10)
    assert first.work.startswith("prompts tokenised to count 12 records with 10 distinct texts")
    assert (first.bar, first.met) == ("== 10", True)
    assert (again.bar, again.met) == ("== 0", True)


# Fits and figures


def test_a_fit_finds_the_exponent_of_a_power_and_no_error(bench):
    sizes = [10, 20, 50, 100]
    fit = bench("growth_figure").fit_power(sizes, [3 * size**1.5 for size in sizes])
    assert fit.exponent == pytest.approx(1.5)
    assert fit.factor == pytest.approx(3)
    assert fit.error == pytest.approx(0, abs=1e-9)


def test_the_standard_error_of_an_exponent_is_that_of_a_regression_line(bench):
    from scipy.stats import linregress

    rng = np.random.default_rng(0)
    sizes = np.geomspace(10, 1000, 7)
    values = 0.2 * sizes**0.8 * np.exp(rng.normal(0, 0.2, 7))
    theirs = linregress(np.log(sizes), np.log(values))
    fit = bench("growth_figure").fit_power(sizes, values)
    assert (fit.exponent, fit.error) == pytest.approx((theirs.slope, theirs.stderr))


def test_two_sizes_have_an_exponent_without_an_error(bench):
    assert str(bench("growth_figure").fit_power([1, 10], [1, 100])) == "2.00"


def test_the_upper_half_shows_the_growth_that_start_up_hides(bench):
    sizes = [10, 30, 100, 300, 1000, 3000]
    whole, upper = bench("growth").both_fits(sizes, [2 + 0.01 * size for size in sizes])
    assert whole.exponent < 0.6 < 0.7 < upper.exponent


def made_up_points(bench, name: str, peaks=(100.0, 101.0, 102.0, 103.0)) -> list:
    growth = bench("growth")
    sizes = growth.SERIES[name].sizes[: len(peaks)]
    return [
        growth.Point(curve, size, (), (0.1 * size, 0.11 * size, 0.12 * size), peak)
        for curve in growth.SERIES[name].curves
        for size, peak in zip(sizes, peaks, strict=True)
    ]


@pytest.mark.parametrize("name", ["prompt_length", "cells", "examples", "jobs", "database"])
def test_every_series_is_drawn_with_its_exponents(bench, name, tmp_path):
    growth, figure = bench("growth"), bench("growth_figure")
    series = growth.SERIES[name]
    path = tmp_path / "figure.svg"
    figure.draw_growth(made_up_points(bench, name), figure.Axis(series.title, series.axis), path)
    assert path.read_text().startswith("<?xml")


def test_an_axis_of_values_that_hardly_differ_has_numbers_and_does_not_make_much_of_them(bench):
    from matplotlib.figure import Figure

    figure, points = bench("growth_figure"), made_up_points(bench, "examples", (171.0, 184.0, 188.0, 195.0))
    axes = Figure().add_subplot()
    peaks = [(point.peak_mb,) for point in points]
    figure._panel(axes, points, figure.Axis("Shards", "examples"), "memory", "MB", peaks)
    low, high = axes.get_ylim()
    assert [tick for tick in axes.get_yticks() if low <= tick <= high] == [150, 200]
    assert high / low > 2.5


def test_memory_that_grows_with_the_examples_misses_the_bar(bench):
    growth = bench("growth")
    flat = growth.rows_of("examples", made_up_points(bench, "examples"))
    grown = growth.rows_of("examples", made_up_points(bench, "examples", (100.0, 110.0, 120.0, 140.0)))
    assert [row.met for row in flat if row.bar] == [True]
    assert [row.met for row in grown if row.bar] == [False]


def test_a_series_that_is_not_asked_for_stays_as_it_was_measured(bench, monkeypatch):
    growth = bench("growth")
    points = {name: made_up_points(bench, name) for name in growth.SERIES}
    monkeypatch.setattr(growth, "measure", lambda name, series, given: points[name])
    growth.main([])
    before = kept("growth")["rows"]
    monkeypatch.setattr(growth, "measure", lambda name, series, given: points[name][:-1])
    growth.main(["--only", "cells"])
    after = kept("growth")["rows"]
    changed = [row["work"] for row in before if row not in after]
    assert changed
    assert all("cells of the grid" in work for work in changed)
    assert len(list(Path("docs/figures").glob("growth_*.svg"))) == 5


def test_a_point_survives_its_journey_from_the_process_that_measured_it(bench, capsys):
    growth, points = bench("growth"), bench("growth_points")
    points.main(["examples", "3", "--repeats", "2"])
    (point,) = growth.as_points(capsys.readouterr().out)
    assert (point.size, len(point.cpu), len(point.wall)) == (3, 2, 2)
    assert 0 < point.before_mb <= point.peak_mb


def test_few_cells_keep_as_much_on_average_as_many(bench):
    points = bench("growth_points")
    means = {}
    for count in (1, 4, 12, 24, 48):
        cells = points._spread_cells(count, 2048)
        assert len(set(cells)) == count
        assert all(64 <= cell.budget < 2048 for cell in cells)
        means[count] = np.mean(np.log([cell.budget for cell in cells]))
    assert max(means.values()) - min(means.values()) < 0.05


# The reference engine


def test_the_reference_engines_sweep_is_compared_in_turns(bench):
    assert bench("sweep_cost").main(["--quick"]) == 0
    (row,) = kept("sweep_cost")["rows"]
    assert len(row["ratio"]) == 2
    assert row["met"] is None, "the bar is that of 4,096 tokens"


# The engine kvpress


@pytest.mark.kvpress
def test_a_model_has_as_many_parameters_as_its_shape_says(bench):
    models = bench("llama_models")
    for shape in ("tiny", "28m"):
        model = models.random_model(shape)
        assert sum(one.numel() for one in model.parameters()) == models.parameter_count(shape)
    assert models.parameter_count("28m") > 20e6
    assert models.parameter_count("1b") == pytest.approx(1.24e9, rel=0.01)


@pytest.mark.kvpress
def test_every_way_to_run_the_full_cache_gives_the_pipelines_answer(bench):
    models, peers = bench("llama_models"), bench("one_by_one")
    model = models.random_model("tiny")
    ids = models.random_ids(100, 512)
    expected = peers.OneByOne(model).answer(ids, models.FULL, 6)
    for name, run in peers.full_runs(models.loaded_model(model)).items():
        assert run(ids, 6) == expected, name


@pytest.mark.kvpress
def test_the_pipeline_keeps_the_cells_budget(bench):
    models, peers = bench("llama_models"), bench("one_by_one")
    model = models.random_model("tiny")
    peer, lengths = peers.OneByOne(model), []
    generate = peer.pipeline.generate_answer

    def watched(question_ids, cache, context_length, max_new_tokens):
        lengths.append([layer.keys.shape[2] for layer in cache.layers])
        return generate(question_ids, cache, context_length, max_new_tokens)

    peer.pipeline.generate_answer = watched
    for cell in models.grid(200):
        peer.answer(models.random_ids(200, 512), cell, 2)
        assert lengths[-1] == [cell.budget - 1] * 3, "and the last prompt token, which is read afterwards"


@pytest.mark.kvpress
def test_the_sweep_is_compared_with_kvpress_one_cell_at_a_time(bench):
    assert bench("kvpress_sweep").main(["--quick", "--threads", "1"]) == 0
    (tokens,) = rows_with("kvpress_sweep", "answers equal")
    assert tokens["met"]
    assert tokens["ours"].startswith("13 of 13 (13 distinct, 0 equal to full)")
    (logits,) = rows_with("kvpress_sweep", "logits")
    assert logits["met"]
    (memory,) = rows_with("kvpress_sweep", "peak memory")
    assert memory["ratio"][0] > 0
    assert kept("kvpress_sweep")["versions"]["kvpress"]


@pytest.mark.kvpress
def test_a_wrong_answer_is_found(bench, monkeypatch):
    measure, sweep = bench("kvpress_sweep"), bench("llama_models").sweep

    def swapped(loaded, ids, cells, new_tokens):
        answers = sweep(loaded, ids, cells, new_tokens)
        if len(cells) > 2:
            one, other = cells[1:3]
            answers[one], answers[other] = answers[other], answers[one]
        return answers

    monkeypatch.setattr(measure, "sweep", swapped)
    monkeypatch.setattr(measure, "memory_row", lambda *_: bench("record").Row("peak memory", "0 MB"))
    assert measure.main(["--quick", "--threads", "1"]) == 1
    (tokens,) = rows_with("kvpress_sweep", "answers equal")
    assert tokens["met"] is False
    assert tokens["ours"].startswith("11 of 13")


@pytest.mark.kvpress
def test_logits_of_another_cell_are_far(bench):
    farthest, rng = bench("kvpress_sweep").farthest, np.random.default_rng(0)
    ours = list(rng.normal(size=(4, 300)).astype(np.float32))
    assert farthest([row + 1e-5 for row in ours], ours) < 1e-4
    assert farthest(ours, ours[:3]) > 0.1


@pytest.mark.kvpress
def test_without_a_gpu_it_says_so_and_nothing_fails(bench, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench("gpu_sweep").main([]) == 0
    (row,) = kept("gpu_sweep")["rows"]
    assert row["ours"] == "no GPU here, not measured"


@pytest.mark.kvpress
def test_the_gpu_script_measures_speed_noise_and_exactness(bench):
    asked = ["--device", "cpu", "--model", "tiny", "--quick"]
    assert bench("gpu_sweep").main(asked) == 0
    (exact,) = rows_with("gpu_sweep", "float32, 320 tokens")
    assert exact["met"]
    assert exact["ours"].startswith("13 of 13")
    (noise,) = rows_with("gpu_sweep", "noise floor")
    assert " of 13" in noise["theirs"]


@pytest.mark.kvpress
def test_out_of_time_it_writes_what_it_has(bench):
    asked = ["--device", "cpu", "--model", "tiny", "--quick", "--budget-seconds", "0"]
    assert bench("gpu_sweep").main(asked) == 0
    (row,) = kept("gpu_sweep")["rows"]
    assert row["ours"] == "no time left"
