"""A user's mistake is one clear line: exit code 2 from the commands, and the same line from plain Snakemake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from project import SMALL, Project

pytestmark = pytest.mark.workflow

RECORD = {"_id": "1", "input": "What?", "context": "The door.", "answers": ["door"], "length": 2}
RECORD |= {"dataset": "mine", "language": "en", "all_classes": None}


def lines(*records: object) -> str:
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


LOCAL = {"dataset": {"path": "records", "tasks": ["mine"], "name": "own"}}

#: name -> (changes of the configuration, content of records/mine.jsonl, the line)
MISTAKES = {
    "an unknown key": ({"kv": {"bugdets": [16]}}, "", "kv.bugdets: unknown key; did you mean budgets"),
    "a wrong type": ({"binning": {"n_bins": "four"}}, "", "binning.n_bins: "),
    "an unknown method": ({"kv": {"methods": ["snapvk"]}}, "", "kv.methods: 'snapvk' is unknown"),
    "a budget of 0": ({"kv": {"budgets": [0, 16]}}, "", "kv.budgets: 0 is no budget"),
    "an unset variable": ({"model": {"path": "${NO_SUCH_FOLDER}"}}, "", "variable NO_SUCH_FOLDER is not set"),
    "a model folder without weights": ({"model": {"path": "empty"}}, "", "empty holds no weights"),
    "a missing task file": ({"dataset": LOCAL["dataset"] | {"tasks": ["Mine"]}}, lines(RECORD), "Mine"),
    "a broken line": (LOCAL, lines(RECORD, '{"_id": "2", '), "mine.jsonl, line 2"),
    "doubled ids": (LOCAL, lines(RECORD, RECORD), "mine.jsonl: lines 1 and 2 have the same _id"),
    "the same record twice": (
        LOCAL,
        lines(RECORD | {"_id": ""}, RECORD | {"_id": ""}),
        "records 1 and 2 have the same",
    ),
    "another model": ({"model": {"path": "qwen"}}, "", "qwen/config.json"),
    "a file for another task": (
        {"dataset": LOCAL["dataset"] | {"path": "records/mine.jsonl", "tasks": ["b"]}},
        "",
        "mine.jsonl has no b.jsonl (case counts); it has mine",
    ),
    "no examples left": (
        {"dataset": LOCAL["dataset"] | {"min_tokens": 9000}},
        lines(RECORD),
        "dataset.min_tokens",
    ),
}


@pytest.fixture
def clean(fresh: Project, tmp_path: Path) -> Project:
    project = fresh.copy(tmp_path / "project", results=False)
    (project.folder / "empty").mkdir()
    shutil.copytree(project.folder / "resources/tiny-reader", project.folder / "qwen")
    project.edit("qwen/config.json", "LlamaForCausalLM", "Qwen2ForCausalLM")
    (project.folder / "records").mkdir()
    return project


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_everywhere(clean: Project, mistake: str) -> None:
    changes, records, expected = MISTAKES[mistake]
    (clean.folder / "records/mine.jsonl").write_text(records)
    config = {
        section: {**SMALL.get(section, {}), **changes.get(section, {})} for section in {**SMALL, **changes}
    }
    config["engine"] = {"unknown_token_limit": 1}
    (clean.folder / "small.yaml").write_text(yaml.safe_dump(config))

    checked = clean.kvt("validate", "-c", "small.yaml")
    assert (checked.returncode, checked.stdout) == (2, "")
    assert expected in checked.stderr
    assert len(checked.stderr.splitlines()) == 1

    stage = clean.kvt("report", "-c", "small.yaml")
    assert (stage.returncode, stage.stderr) == (2, checked.stderr)

    plain = clean.call()
    assert plain.returncode == 1
    assert checked.stderr.strip() in plain.stdout
    assert "Traceback" not in plain.stdout


def test_classes_that_records_lack_are_seen_before_anything_runs(clean: Project) -> None:
    (clean.folder / "records/mine.jsonl").write_text(lines(RECORD))
    clean.configure(**LOCAL, scoring={"formats": {"mine": "class"}})
    checked = clean.kvt("validate", "-c", "small.yaml")
    assert checked.returncode == 2
    assert "scoring.formats.mine" in checked.stderr


def test_a_good_configuration_is_said_to_be_valid(clean: Project) -> None:
    checked = clean.kvt("validate", "-c", "small.yaml", "--override", "kv.window=4")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "small.yaml: valid\n", "")


def test_the_resolved_configuration_can_be_printed_and_used(clean: Project) -> None:
    printed = clean.kvt("validate", "-c", "small.yaml", "--override", "kv.window=4", "--print-config")
    assert yaml.safe_load(printed.stdout)["kv"]["window"] == 4
    (clean.folder / "resolved.yaml").write_text(printed.stdout)
    assert clean.kvt("resolve", "-c", "resolved.yaml").stdout == printed.stdout


def test_wrong_usage_is_exit_code_2(clean: Project) -> None:
    assert clean.kvt("validate", "--no-such-option").returncode == 2
    assert clean.kvt("no-such-command").returncode == 2
    assert clean.kvt("validate", "-c", "missing.yaml").returncode == 2


def test_stage_commands_build_their_stage_and_pass_options_on(clean: Project) -> None:
    assert (
        clean.kvt("prepare", "-c", "small.yaml", "--override", "kv.window=4", "--cores", "2").returncode == 0
    )
    assert (clean.folder / "results/small/data/phrasebook_qa/manifest.json").is_file()
    assert not (clean.folder / "results/small/responses").exists()
    planned = clean.kvt("run", "-c", "small.yaml", "-n")
    assert planned.returncode == 0
    assert "infer_sweep" in planned.stdout + planned.stderr
    assert not (clean.folder / "results/small/responses").exists()


def test_real_text_is_refused_by_the_tiny_reader_and_runs_when_the_guard_is_lifted(
    clean: Project, shared: Path
) -> None:
    shutil.copy(shared / "longbench/multi_news.jsonl", clean.folder / "records/multi_news.jsonl")
    dataset = {"path": "records", "tasks": ["multi_news"], "name": "longbench"}
    (clean.folder / "small.yaml").write_text(
        yaml.safe_dump(SMALL | {"dataset": dataset, "binning": {"n_bins": 2, "n_per_bin": 3}})
    )
    refused = clean.call()
    assert refused.returncode == 1
    assert "engine.unknown_token_limit" in refused.stdout
    assert "Traceback" not in refused.stdout
    lifted = ["--override", "engine.unknown_token_limit=1"]
    done = clean.kvt("report", "-c", "small.yaml", *lifted)
    assert done.returncode == 0, done.stderr
    report = (clean.folder / "results/report.md").read_text()
    assert "multi_news" in report
