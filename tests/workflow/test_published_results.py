"""Published scores go through the whole workflow: the numbers stay what they were, and a faulty table is refused."""

from __future__ import annotations

import csv
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from project import SMALL, Project

from kv_transition.files import float_round

pytestmark = pytest.mark.workflow

SCORES = "results/small/scores/trec.parquet"
TABLES = "results/small/analysis/bin_stats.parquet"
BUDGETS = [256, 512, 1024, 1536, 2048]

Rows = list[dict[str, str]]

#: Name in the table -> name here.
NAMES = {"hf": "full", "streamingllm": "streaming_llm", "made_up": "made_up"}


def read(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def configure(project: Project, tasks: list[str], source: Path | str = "scores.csv", **changes: dict) -> None:
    """The example configuration of the project, on few bootstrap replicates."""
    config: dict[str, Any] = yaml.safe_load(
        (project.folder / "config/experiments/published_scores.yaml").read_text()
    )
    config["experiment"] = {"id": "small"}
    config["dataset"]["tasks"] = tasks
    config["analysis"] = SMALL["analysis"]
    config["published"]["path"] = str(source)
    config["output"] = {"figure_dpi": 50}
    for section, keys in changes.items():
        config[section] = config.get(section, {}) | keys
    (project.folder / "small.yaml").write_text(yaml.safe_dump(config))


def published_means(rows: Rows) -> dict[tuple[str, str, str], float]:
    """(task, method, budget) -> mean score, computed from the table itself."""
    scores = defaultdict(list)
    for row in rows:
        scores[row["task"], NAMES[row["method"]], row["budget"] or "full"].append(float(row["score"]))
    return {key: math.fsum(values) / len(values) for key, values in scores.items()}


def check_means(project: Project, rows: Rows) -> None:
    """The means of the scores are the published ones, and the tables hold these to their ten digits."""
    expected = published_means(rows)
    scores = pd.concat(map(pd.read_parquet, project.folder.glob("results/small/scores/*.parquet")))
    kept = scores.groupby(["task", "method", "budget"])["score"].agg(lambda cell: math.fsum(cell) / len(cell))
    assert kept.to_dict() == pytest.approx(expected, rel=0, abs=1e-12)
    rounded = {key: float_round(mean) for key, mean in expected.items()}
    assert shown_means(project) == pytest.approx(rounded, rel=0, abs=1e-12)


def shown_means(project: Project) -> dict[tuple[str, str, str], float]:
    """(task, method, budget) -> mean score in the table that the report shows."""
    table = pd.read_parquet(project.folder / TABLES)
    table = table[(table["bin_idx"] == -1) & (table["policy"] == "zero")]
    return {(row.task, row.method, row.budget): row.mean for row in table.itertuples(index=False)}


@pytest.fixture(scope="session")
def scores(shared: Path) -> Rows:
    return read(shared / "budget_scores/scores.csv")


@pytest.fixture
def clean(fresh: Project, tmp_path: Path) -> Project:
    return fresh.copy(tmp_path / "project", results=False)


def test_all_tasks_to_the_report_with_the_published_means(clean: Project, shared: Path, scores: Rows) -> None:
    tasks = sorted({row["task"] for row in scores})
    assert len(tasks) == 13
    configure(clean, tasks, shared / "budget_scores/scores.csv")
    clean.run()
    check_means(clean, scores)
    report = (clean.folder / "results/report.md").read_text()
    sections = dict(section.split("\n", 1) for section in report.split("\n## Task ")[1:])
    assert sections.keys() == set(tasks)
    means = published_means(scores)
    for task, section in sections.items():
        shown = section.split("**Published score x 100**", 1)[1]
        assert f"| full | {100 * means[task, 'full', 'full']:.2f} |" in shown
        values = " | ".join(f"{100 * means[task, 'streaming_llm', str(budget)]:.2f}" for budget in BUDGETS)
        assert f"| streaming_llm | – | {values} |" in shown
    assert not (clean.folder / "journal").exists()
    assert clean.due() == {}


def test_a_ragged_grid_touches_a_changed_score_and_more_shards(clean: Project, scores: Rows) -> None:
    mine = [row for row in scores if row["task"] == "trec"]
    second = [
        row | {"method": "made_up", "score": str(float(row["score"]) / 2)}
        for row in mine
        if row["budget"] in ("512", "2048")
    ]
    rows = mine + second
    write(clean.folder / "scores.csv", rows)
    kv = {"methods": ["streaming_llm", "made_up"], "budgets_by_method": {"made_up": [512, 2048]}}
    configure(clean, ["trec"], kv={"budgets": BUDGETS, "no_context": False} | kv)
    clean.run()
    check_means(clean, rows)
    tables = clean.bytes_of("results/small/analysis/*.parquet")

    time.sleep(1.1)
    (clean.folder / "scores.csv").touch()
    assert clean.due() == {}

    changed = next(
        row for row in rows if (row["task"], row["budget"], row["score"]) == ("trec", "512", "1.0")
    )
    changed["score"] = "0.0"
    write(clean.folder / "scores.csv", rows)
    due = clean.due()
    assert {"import_published", "score_task", "bin_stats", "build_report"} <= due.keys()
    clean.run(target=TABLES)
    check_means(clean, rows)
    assert clean.bytes_of(TABLES) != {name: tables[name] for name in tables if name == TABLES}

    changed["score"] = "1.0"
    write(clean.folder / "scores.csv", rows)
    configure(clean, ["trec"], kv={"budgets": BUDGETS, "no_context": False} | kv, run={"shards": 3})
    clean.run("--until", "bin_stats", "retention", "transition", target="all_analysis")
    assert clean.bytes_of("results/small/analysis/*.parquet") == tables


def in_run(rows: Rows, budget: str, idx: int) -> int:
    return next(place for place, row in enumerate(rows) if (row["budget"], row["idx"]) == (budget, str(idx)))


def double(rows: Rows) -> None:
    place = in_run(rows, "512", 7)
    rows.insert(place + 1, rows[place])


def lose(rows: Rows) -> None:
    del rows[in_run(rows, "512", 7)]


def lose_in_full(rows: Rows) -> None:
    del rows[in_run(rows, "", 7)]


def move(rows: Rows) -> None:
    place = in_run(rows, "512", 7)
    rows[place], rows[place + 1] = rows[place + 1], rows[place]


def take_from_another_task(rows: Rows) -> None:
    place = in_run(rows, "512", 7)
    rows[place] = rows[place] | {"length": "12345"}


def percent(rows: Rows) -> None:
    rows[in_run(rows, "512", 7)]["score"] = "66.5"


#: name -> (what is done to the table, what the line says, whether published.allow_incomplete lifts it)
FAULTS: dict[str, tuple[Callable[[Rows], None], str, bool]] = {
    "doubled": (double, r"1 doubled \(line 410 repeats line 409\)", True),
    "missing": (lose, r"1 missing \(record 8\)", True),
    "missing in full": (lose_in_full, r"1 missing \(row 7\)", True),
    "reordered": (move, r"1 in another order \(line 410, record 8\)", True),
    "foreign": (take_from_another_task, r"line 409 has the length 12345", False),
    "in percent": (percent, r"line 409: score is 66.5, expected 0 to 1", False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_refused_in_one_line_that_names_the_row(
    clean: Project, scores: Rows, fault: str
) -> None:
    spoil, named, liftable = FAULTS[fault]
    budgets = ("", "256", "512")
    rows = [dict(row) for row in scores if row["task"] == "trec" and row["budget"] in budgets]
    rows.sort(key=lambda row: (int(row["budget"] or 0), int(row["idx"])))
    spoil(rows)
    write(clean.folder / "scores.csv", rows)
    kv = {"budgets": [256, 512], "no_context": False}
    configure(clean, ["trec"], kv=kv | {"methods": ["streaming_llm"]})
    checked = clean.kvt("validate", "-c", "small.yaml")
    assert checked.returncode == 2
    assert len(checked.stderr.splitlines()) == 1
    assert re.search(named, checked.stderr), checked.stderr
    assert "scores.csv" in checked.stderr
    allowed = clean.kvt("validate", "-c", "small.yaml", "--override", "published.allow_incomplete=true")
    assert (allowed.returncode == 0) is liftable
    if fault != "missing":
        return
    done = clean.call(target=SCORES)
    assert done.returncode != 0
    assert checked.stderr.strip() in done.stdout
    assert "Traceback" not in done.stdout
    config = yaml.safe_load((clean.folder / "small.yaml").read_text())
    config["published"]["allow_incomplete"] = True
    (clean.folder / "small.yaml").write_text(yaml.safe_dump(config))
    clean.run(target=SCORES)
    table = pd.read_parquet(clean.folder / SCORES)
    assert table["status"].value_counts().to_dict() == {"ok": len(rows), "absent": 1}
    assert table["failure"].isna().all()
    assert table.loc[table["status"] == "absent", "score"].isna().all()


def test_what_the_source_lacks_is_refused_by_validate(clean: Project, scores: Rows) -> None:
    write(clean.folder / "scores.csv", [row for row in scores if row["task"] == "trec"])
    configure(clean, ["trec"], kv={"budgets": [128, 256]})
    checked = clean.kvt("validate", "-c", "small.yaml")
    assert checked.returncode == 2
    assert "no results of streaming_llm 128" in checked.stderr
    assert "streaming_llm at 256, 512, 1024, 1536, 2048" in checked.stderr
    assert len(checked.stderr.splitlines()) == 1


def test_answers_in_longbench_folders_are_scored_as_their_authors_scored_them(
    clean: Project, shared: Path
) -> None:
    tasks = ["trec"]
    config = yaml.safe_load((clean.folder / "config/experiments/published_predictions.yaml").read_text())
    config["experiment"] = {"id": "small"}
    config["dataset"]["tasks"] = tasks
    config["published"]["path"] = str(shared / "predictions/pred")
    config["analysis"] = SMALL["analysis"]
    (clean.folder / "small.yaml").write_text(yaml.safe_dump(config))
    clean.run(target=TABLES)
    found = shown_means(clean)
    for run, cell in (
        ("llama3-8b-instruct", ("full", "full")),
        ("llama3-8b-instruct_S17-19-21-23", ("cross_layer_sharing", "f0.875")),
    ):
        theirs = json.loads((shared / f"predictions/pred/{run}/result.json").read_text())
        for task in tasks:
            assert round(100 * found[task, *cell], 2) == theirs[task]
