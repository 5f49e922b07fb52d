"""`kv-transition plan`: what a run would ask and take, said before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kv_transition import paths
from kv_transition.cli import main
from kv_transition.commands import plan as plan_command
from kv_transition.commands import plan_work, workflow
from kv_transition.commands.plan_estimates import measured, orphans
from kv_transition.commands.workflow import Preview
from kv_transition.data.synthetic import make_records
from kv_transition.run.runner import Shard, infer_shard
from kv_transition.settings import from_mapping, load_settings
from kv_transition.slices import answer_slice

Captured = pytest.CaptureFixture[str]

EXAMPLES = 2 * 3
#: full, no_context, snapkv at two budgets, random at two budgets three times each.
REQUESTS = {"full": 1, "no_context": 1, "snapkv": 2, "random": 6}


@pytest.fixture
def folder(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configuration of a small experiment, no Snakefile, results or journal."""
    monkeypatch.chdir(tmp_path)
    config = {
        "experiment": {"id": "small"},
        "dataset": {
            "tasks": ["phrasebook_qa"],
            "synthetic": {"n_documents": 24, "min_tokens": 64, "max_tokens": 256},
        },
        "binning": {"n_bins": 2, "n_per_bin": 3},
        "model": {"path": str(root / "resources/tiny-reader")},
        "kv": {"methods": ["snapkv", "random"], "budgets": [16, 64]},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def planned(capsys: Captured, *overrides: str) -> dict[str, Any]:
    """The plan as JSON."""
    given = [word for text in overrides for word in ("--override", text)]
    assert main(["plan", "-c", "small.yaml", "--json", *given]) == 0
    return json.loads(capsys.readouterr().out)


def words(capsys: Captured, *overrides: str) -> str:
    given = [word for text in overrides for word in ("--override", text)]
    assert main(["plan", "-c", "small.yaml", *given]) == 0
    return capsys.readouterr().out


def methods(plan: dict[str, Any], value: str) -> dict[str, int]:
    return {one["method"]: one[value] for one in plan["tasks"][0]["methods"]}


def answer(*cells: tuple[str, str]) -> int:
    """Answer cells as the workflow does; returns the new journal rows."""
    settings = from_mapping(load_settings("small.yaml"))
    task = settings.dataset.tasks[0]
    manifest = plan_work._manifest(settings, task, lambda file: False)
    shard = Shard(
        manifest,
        0,
        1,
        answer_slice(settings, task),
        str(plan_work.model_hash(settings)),
        plan_work._protocol(settings, task),
    )
    files = {cell: Path("out", *cell, "000.parquet") for cell in cells}
    return infer_shard(shard, files, settings.run.model_dump())


def test_before_any_run_every_request_is_to_be_computed(folder: Path, capsys: Captured) -> None:
    plan = planned(capsys)
    assert plan["cells"] == 6
    assert plan["tasks"][0]["examples"] == EXAMPLES
    wanted = {method: count * EXAMPLES for method, count in REQUESTS.items()}
    assert methods(plan, "requests") == methods(plan, "to_compute") == wanted
    assert plan["total"]["answered"] == 0
    assert plan["total"]["to_compute"] == sum(wanted.values())
    assert not (folder / "journal").exists(), "a plan computes nothing"
    assert not (folder / "results").exists(), "a plan writes nothing"


def test_what_the_journal_has_is_not_to_be_computed(folder: Path, capsys: Captured) -> None:
    new = answer(("full", "full"), ("snapkv", "16"))
    assert new == 2 * EXAMPLES
    plan = planned(capsys)
    assert methods(plan, "answered") == {"full": EXAMPLES, "no_context": 0, "snapkv": EXAMPLES, "random": 0}
    assert methods(plan, "to_compute")["snapkv"] == EXAMPLES
    before = plan["total"]["to_compute"]
    assert answer(("no_context", "full"), ("snapkv", "64"), ("random", "16"), ("random", "64")) == before
    text = words(capsys)
    assert "to compute: nothing; every answer is there" in text
    assert "time:" not in text


def test_an_answer_that_failed_is_to_be_computed_again(folder: Path, capsys: Captured) -> None:
    answer(("full", "full"))
    journal = next(folder.glob("journal/*/*.jsonl"))
    rows = journal.read_text().splitlines(keepends=True)
    rows[0] = rows[0].replace('"failure":null', '"failure":"ENGINE_ERROR"')
    journal.write_text("".join(rows))
    assert methods(planned(capsys), "to_compute")["full"] == 1


def test_a_method_or_hyper_parameter_more_adds_its_own_requests_only(folder: Path, capsys: Captured) -> None:
    answer(("full", "full"), ("snapkv", "16"), ("snapkv", "64"))
    plan = planned(capsys, "kv.methods=[snapkv, tova]", "kv.no_context=false")
    assert methods(plan, "to_compute") == {"full": 0, "snapkv": 0, "tova": 2 * EXAMPLES}
    other = planned(capsys, "kv.methods=[snapkv]", "kv.no_context=false", "kv.kernel=3")
    assert methods(other, "to_compute") == {"full": 0, "snapkv": 2 * EXAMPLES}


def test_budgets_that_keep_the_whole_prompt_are_copies_and_cost_no_tokens(
    folder: Path, capsys: Captured
) -> None:
    plan = planned(capsys, "kv.methods=[snapkv]", "kv.budgets=[4000]", "kv.no_context=false")
    total = plan["total"]
    assert (total["to_compute"], total["copies"]) == (2 * EXAMPLES, EXAMPLES)
    assert total["new_tokens"] == 16 * EXAMPLES


def test_a_sweep_reads_a_prompt_once_and_a_server_once_for_each_request(
    folder: Path, capsys: Captured
) -> None:
    only = ("kv.methods=[snapkv]", "kv.no_context=false")
    swept = planned(capsys, *only)["total"]["prompt_tokens"]
    asked = planned(capsys, *only, "engine.kind=openai_compat")["total"]["prompt_tokens"]
    assert swept > EXAMPLES * 64
    assert asked == 3 * swept


def test_a_context_that_questions_share_is_read_once_in_scope_context(folder: Path, capsys: Captured) -> None:
    records = make_records("phrasebook_qa", 3, 200, 256, 1)
    asked = [
        {**record, "_id": f"{record['_id']}-{name}", "input": f"Tell me the harbour phrase of {name}."}
        for record in records
        for name in ("Otto", "Ugo")
    ]
    (folder / "data").mkdir()
    (folder / "data/phrasebook_qa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    only = ("dataset.path=data", "kv.methods=[snapkv]", "kv.no_context=false", "kv.first_token=compressed")
    whole = planned(capsys, *only, "kv.scope=prompt")["total"]["prompt_tokens"]
    shared = planned(capsys, *only, "kv.scope=context")["total"]["prompt_tokens"]
    assert whole > 6 * 150
    assert whole / 2 < shared < whole / 2 + 3 * 60, "the questions alone are read for themselves"


def test_texts_that_do_not_fit_into_a_budget_are_not_asked(folder: Path, capsys: Captured) -> None:
    plan = planned(capsys, "kv.methods=[recent]", "kv.budgets=[4]", "kv.no_context=false")
    assert methods(plan, "not_asked") == {"full": 0, "recent": EXAMPLES}
    assert plan["total"]["to_compute"] == EXAMPLES
    assert "not asked: 6 requests" in words(capsys, "kv.methods=[recent]", "kv.budgets=[4]")


def test_time_is_known_only_from_answers_of_this_model(folder: Path, capsys: Captured) -> None:
    assert planned(capsys)["time"]["engine_s"] is None
    assert "time: not known; the journal has no timings of this model and engine" in words(capsys)
    answer(("full", "full"))
    plan = planned(capsys)
    assert plan["time"]["engine_s"] > 0
    assert plan["disk"]["journal_bytes"] > 500 * plan["total"]["to_compute"]
    assert "by 6 earlier answers" in words(capsys)


def row(prefill: float | None, compress: float | None, decode: float | None, **more: Any) -> dict[str, Any]:
    timings = {"latency_s": None, "ttfb_s": None, "prefill_s": prefill, "compress_s": compress}
    timings |= {"decode_s": decode, "timing_scope": "sweep"}
    result = {"prompt_tokens": 1000, "copied_from": None, "failure": None, "timings": timings}
    return {"engine": {"dtype": "float32"}, "result": {**result, **more}}


def write_journal(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"torn')


def test_shared_work_of_a_sweep_is_counted_once(tmp_path: Path) -> None:
    # 2 s to read 1,000 tokens; 0.5 s + 3.5 s for 2 answers; a copied answer takes nothing.
    rows = [row(2.0, None, 3.5), row(None, 0.5, None), row(None, None, None, copied_from="full")]
    write_journal(tmp_path / "j", rows)
    found = measured(tmp_path / "j", {"dtype": "float32"})
    assert found is not None
    assert found.rows == 3
    assert found.seconds(prompt_tokens=500, answers=10) == pytest.approx(500 * 0.002 + 10 * 2.0)
    assert found.seconds(prompt_tokens=0, answers=0) == 0
    assert measured(tmp_path / "j", {"dtype": "bfloat16"}) is None


def test_a_context_that_had_been_read_says_nothing_about_reading(tmp_path: Path) -> None:
    write_journal(tmp_path / "j", [row(2.0, 0.0, 3.5), row(0.0, 0.0, 3.5)])
    found = measured(tmp_path / "j", {"dtype": "float32"})
    assert found is not None
    assert found.prefill_s_per_token == pytest.approx(0.002)


def test_a_server_is_measured_by_whole_requests_in_flight_together(tmp_path: Path) -> None:
    one = row(None, None, None)
    one["result"]["timings"] |= {"latency_s": 0.5, "timing_scope": "request"}
    write_journal(tmp_path / "j", [one])
    found = measured(tmp_path / "j", {"dtype": "float32"})
    assert found is not None
    assert found.seconds(prompt_tokens=10_000, answers=80, concurrency=8) == pytest.approx(5.0)
    assert found.seconds(prompt_tokens=10_000, answers=80) is None, "no sweep was timed"


def test_records_that_were_not_fetched_must_be_prepared_first(folder: Path, capsys: Captured) -> None:
    hub = ("dataset.hub_id=owner/name", "dataset.tasks=[trec]")
    plan = planned(capsys, *hub)
    assert plan["unprepared"] == {"trec": "its records from the hub"}
    assert plan["total"]["requests"] == 0
    text = words(capsys, *hub)
    assert "trec: its records from the hub must be prepared first (kv-transition prepare)" in text
    assert "to compute: not known yet" in text
    assert "every answer is there" not in text


def test_a_manifest_that_a_run_would_make_anew_is_not_trusted(folder: Path) -> None:
    settings = from_mapping(load_settings("small.yaml"))
    file = folder / settings.files.manifest("phrasebook_qa")
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    work = plan_work.work_of(settings, lambda path: False)
    assert work[0].examples == EXAMPLES


def shown(monkeypatch: pytest.MonkeyPatch, preview: Preview) -> None:
    """Let Snakemake say this."""
    monkeypatch.setattr(plan_command, "preview", lambda config, overrides: preview)


def test_files_of_another_configuration_are_named_and_kept(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = "results/small/report.md", "results/small/scores/gone.parquet"
    for name in (mine, other, "results/small/logs/x.log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    shown(monkeypatch, Preview({"build_report": 1}, {"params changed": ["build_report"]}, {mine: True}))
    plan = planned(capsys)
    assert plan["orphans"] == [other]
    assert (plan["jobs"], plan["files"]) == ({"build_report": 1}, 1)
    text = words(capsys)
    assert "jobs: 1 (build_report 1); 1 file in all" in text
    assert "params changed: build_report" in text
    assert (
        f"orphans: 1 file in results/small of another configuration; no run reads or deletes them: {other}"
        in text
    )
    assert (folder / other).exists()
    assert orphans(paths.run_dir("never-run"), {}) == []


def test_answers_in_files_that_no_run_makes_anew_need_no_journal(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = from_mapping(load_settings("small.yaml")).files
    written = [files.responses("phrasebook_qa", "snapkv/16", shard) for shard in ("000", "001")]
    shown(monkeypatch, Preview(files={written[0]: False, written[1]: True}))
    plan = planned(capsys, "run.shards=2")
    assert methods(plan, "answered") == {"full": 0, "no_context": 0, "snapkv": EXAMPLES / 2, "random": 0}


def test_without_a_snakefile_jobs_are_not_known(folder: Path, capsys: Captured) -> None:
    assert planned(capsys)["jobs"] is None
    assert "jobs: not known; there is no Snakefile in this folder" in words(capsys)


def test_snakemakes_words_are_read() -> None:
    dry_run = (
        "Job stats:\njob            count\n-----------  -------\nscore_task         2\nall_reports        1\n"
        "total              3\n\nReasons:\n    (check individual jobs above for details)\n"
        "    params have changed since last execution:\n        score_task, build_report\n\n"
    )
    assert workflow._jobs(dry_run) == {"score_task": 2}
    assert workflow._jobs("Nothing to be done") == {}
    assert workflow._reasons(dry_run) == {
        "params have changed since last execution": ["score_task", "build_report"]
    }
    summary = (
        "output_file\tdate\trule\tlog-file(s)\tstatus\tplan\n"
        "r/a\tMon\tx\t-\tok\tno update\nr/b\t-\tx\t-\tmissing\tupdate pending\n"
    )
    assert workflow._files(summary) == {"r/a": False, "r/b": True}
    seen = Preview(files=workflow._files(summary))
    assert [seen.is_current(file) for file in ("r/a", "r/b", "r/c")] == [True, False, False]


def test_a_mistake_in_the_configuration_is_one_line_and_2(folder: Path, capsys: Captured) -> None:
    assert main(["plan", "-c", "small.yaml", "--override", "kv.budgets=[1]"]) == 2
    assert capsys.readouterr().err.startswith("error: kv.budgets: 1 is no budget")
    assert main(["plan", "-c", "absent.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
