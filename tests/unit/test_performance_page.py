"""docs/performance.md: what was measured is shown, what was not is named, what was missed is said."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The module that writes the page, in a folder without results."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["write_page.py"])
    yield importlib.import_module("write_page")
    sys.modules.pop("write_page", None)


def row(**changes: object) -> dict:
    plain = {"work": "sorting", "ours": "1 s", "theirs": "3 s", "peer": "slowsort 1.0", "bar": ">= 2x"}
    return {**plain, "ratio": [2.9, 3.0, 3.2], "met": True, **changes}


def keep(name: str, *rows: dict, note: str = "") -> None:
    folder = Path("results/bench")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"date": "2030-01-02", "machine": "a machine", "load": 0.1, "versions": {"numpy": "9.9"}}
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "note": note, "rows": rows, **facts}))


def written(page) -> tuple[int, str]:
    code = page.main()
    return code, Path("docs/performance.md").read_text()


def test_a_row_shows_both_sides_the_spread_of_the_ratio_and_the_verdict(page) -> None:
    keep("metrics_cost", row(), note="On real answers.")
    _, text = written(page)
    assert "| sorting | 1 s | slowsort 1.0: 3 s | 3 (2.9-3.2) | >= 2x | reached |" in text
    for fact in ("a machine", "2030-01-02", "numpy 9.9", "On real answers."):
        assert fact in text


def test_what_was_not_measured_is_named_with_its_command(page) -> None:
    keep("metrics_cost", row())
    code, text = written(page)
    assert code == 1
    for name in page.BENCHMARKS:
        assert (f"`python benchmarks/{name}.py`: not measured in this run." in text) == (
            name != "metrics_cost"
        )


def test_a_missed_bar_is_said_at_the_top_and_in_its_row(page) -> None:
    for name in page.BENCHMARKS:
        keep(name, row())
    assert written(page)[0] == 0
    keep("sqlite_cost", row(met=False, ratio=[1.1]))
    code, text = written(page)
    assert code == 1
    assert "- sqlite_cost: sorting: 1 s, ratio 1.1 (bar: >= 2x)" in text.partition("## ")[0]
    assert "| >= 2x | **missed** |" in text


def test_a_benchmark_that_fails_after_it_was_measured_is_not_passed_over(
    page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in page.BENCHMARKS:
        keep(name, row())
    monkeypatch.setattr(sys, "argv", ["write_page.py", "--broken", "growth"])
    assert written(page)[0] == 1
    assert "growth: ended with an error" in capsys.readouterr().out
    text = Path("docs/performance.md").read_text()
    assert "Ended with an error, so that figures may be missing: growth." in text.partition("## ")[0]
    assert "**Ended with an error**" in text.partition("`python benchmarks/growth.py`")[2]


def test_text_cannot_end_a_cell(page) -> None:
    keep("metrics_cost", row(work="a | b\nc"))
    assert "| a \\| b c |" in written(page)[1]


def test_pictures_of_growth_are_shown_where_there_are_any(page) -> None:
    Path("docs/figures").mkdir(parents=True)
    Path("docs/figures/growth_cells.svg").write_text("<svg/>")
    assert "![cells](figures/growth_cells.svg)" in written(page)[1]


def test_a_quick_page_shows_no_pictures_of_a_whole_run(page, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("docs/figures").mkdir(parents=True)
    Path("docs/figures/growth_cells.svg").write_text("<svg/>")
    monkeypatch.setattr(sys, "argv", ["write_page.py", "--quick"])
    assert "growth_cells.svg" not in written(page)[1]


def test_without_a_gpu_the_page_says_so_or_shows_what_one_measured_elsewhere(
    page, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "MEASURED", tmp_path / "measured")
    keep("gpu_sweep", row(ours=page.NO_GPU, met=None))
    assert "`python benchmarks/gpu_sweep.py`: not measured: no GPU." in written(page)[1]
    (tmp_path / "measured").mkdir()
    facts = {"date": "2031-01-01", "machine": "another machine", "versions": {"torch": "3.0"}}
    facts |= {"note": "A fast GPU.", "rows": [row(work="the grid")]}
    (tmp_path / "measured/gpu_sweep.json").write_text(json.dumps(facts))
    text = written(page)[1]
    assert "on another machine, 2031-01-01: another machine; torch 3.0" in text
    assert "| the grid |" in text
    assert "A fast GPU." in text
    assert "no GPU" not in text


def test_every_benchmark_of_make_bench_has_its_place_and_its_script(page) -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = makefile.partition("BENCHMARKS := ")[2].partition("\n\n")[0].replace("\\\n", " ").split()
    assert set(listed) == set(page.BENCHMARKS)
    assert [name for name in listed if not (ROOT / "benchmarks" / f"{name}.py").is_file()] == []
