"""The written report: readable, honest, and the same bytes for the same results."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from fake_tables import FakeStudy
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.errors import UserError
from kv_transition.files import read_parquet, write_parquet
from kv_transition.report.build import build_report, command
from kv_transition.report.copy import write_report_copy
from kv_transition.report.markdown import escape_text, move_links, table
from kv_transition.report.provenance import cleaned, collect, git_state

PROVENANCE = {
    "kv_transition": "0.1.0", "config_hash": "c0ffee", "git": {"commit": "abc123", "dirty": True}, "python": "3.11",
    "platform": "Linux", "host": "node7", "packages": {"numpy": "2.4.6"}, "model_sha256": "feed", "tokenizer": "tiny (beef)",
}  # fmt: skip


def small(**changes):
    return FakeStudy(
        **(
            {"n": 6, "edges": (60, 200, 800), "methods": ("snapkv", "random"), "budgets": (16, 64, 256)}
            | changes
        )
    )


def figure(folder, name):
    for suffix in ("svg", "png", "csv"):
        path = folder / "figures" / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    stem = folder / "figures" / name
    files = {suffix: stem.with_suffix(f".{suffix}") for suffix in ("svg", "png", "csv")}
    return {"name": name, "title": f"Figure {name}", "caption": "n = 6.", **files}


def write(study, folder, *, provenance=PROVENANCE, change=None):
    files = study.write(folder)
    if change:
        change(files)
    figures = [figure(folder, f"score_vs_budget__{task}") for task in study.tasks]
    build_report(
        settings=study.settings(), provenance=provenance, figures=figures, out=folder / "report.md", **files
    )
    return (folder / "report.md").read_text(encoding="utf-8")


def section(page, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]


def longbench_study(**changes):
    """A study of hotpotqa under the official protocol, all of whose scores are the official metric's."""
    return small(tasks=("hotpotqa",), protocol="official-2e00731f", metric="qa_f1", **changes)


def test_a_longbench_task_has_its_official_number_from_0_to_100(tmp_path):
    study = longbench_study()
    page = write(study, tmp_path / "demo")
    scores = study.scores()
    mean = scores.loc[(scores["method"] == "snapkv") & (scores["budget"] == "64"), "score"].mean()
    row = re.search(r"^\*\*LongBench score\*\*.*?^\| snapkv \|(.*?)$", page, re.M | re.S)[1]
    assert row.split("|")[2].strip() == f"{round(100 * mean, 2):.2f}"
    assert "comparable with published LongBench numbers" in page


def test_an_official_number_with_a_failed_request_is_called_incomplete(tmp_path):
    page = write(longbench_study(failing={("snapkv", "64", 0): 0.5}), tmp_path / "demo")
    table = re.search(r"^\*\*LongBench score\*\*(.*?)^\*\*Retention", page, re.M | re.S)[1]
    assert table.count("incomplete (9 of 12)") == 1


def with_manifest(**changes):
    """Change the manifests of a written study."""

    def change(files):
        for path in files["manifests"]:
            manifest = json.loads(Path(path).read_text())
            Path(path).write_text(json.dumps(manifest | changes))

    return change


def test_the_mean_of_a_sample_is_not_called_the_task_s_number(tmp_path):
    whole = write(longbench_study(), tmp_path / "a", change=with_manifest(n_records=12))
    assert "over 12 records" in whole
    assert "A sample of" not in whole
    assert "A sample of 12 of 200 records" in write(
        longbench_study(), tmp_path / "b", change=with_manifest(n_records=200)
    )


def test_longbench_e_has_a_row_for_each_of_its_bins(tmp_path):
    study = longbench_study(edges=(60, 200, 800, 1600))
    page = write(
        study, tmp_path / "demo", change=with_manifest(bin_by="length", bin_edges=[3999, 7999, 9000])
    )
    table = re.search(r"^\*\*LongBench score\*\*(.*?)^\*\*Retention", page, re.M | re.S)[1]
    scores = study.scores().query("method == 'full'")
    for index, name in enumerate(("0-4k", "4-8k", "8k+")):
        mean = scores.loc[scores["bin_idx"] == index, "score"].mean()
        assert f"| full | {name} | {100 * mean:.2f} |" in table


def test_changed_answers_are_not_called_comparable(tmp_path):
    page = write(
        small(tasks=("hotpotqa",), metric="qa_f1", protocol="official-2e00731f modified: stop"),
        tmp_path / "demo",
    )
    assert "not comparable with published LongBench numbers" in page


def test_prompts_that_lost_their_middle_are_counted(tmp_path):
    study = small()

    def shorten(files):
        for path in files["scores"]:
            scores = read_parquet(path)
            scores.loc[scores["example_id"] == scores["example_id"].iloc[0], "dropped_tokens"] = 100
            write_parquet(path, scores)

    page = write(study, tmp_path / "demo", change=shorten)
    assert "1 of 12 prompts were longer than the limit and lost their middle" in page
    assert "lost their middle" not in write(study, tmp_path / "other")


def test_own_prompts_are_never_called_comparable(tmp_path):
    page = write(small(tasks=("hotpotqa",), metric="qa_f1"), tmp_path / "demo")
    assert "not comparable with published LongBench numbers" in page
    assert "protocol own-1" in page


def test_tasks_of_another_origin_have_no_official_number(tmp_path):
    assert "LongBench score" not in write(small(), tmp_path / "demo")


def test_published_results_are_never_called_measured(tmp_path):
    study = small(published=True, protocol="published", metric="published", methods=("h2o", "snapkv"))
    page = write(study, tmp_path / "demo")
    assert "no budget was measured here" in section(page, "The answer")
    assert "word of the source" in section(page, "Were the budgets applied?")
    card = section(page, "Methods")
    assert "scores.csv, layout scores" in card
    assert "not known: published results do not say" in card
    for claim in ("arXiv", "window", "kv_transition", "measured in the cache", "may be evicted"):
        assert claim not in card, claim
    assert "What may be evicted" not in page


def test_many_tasks_have_a_table_of_their_transition_budgets_in_the_answer(tmp_path):
    tasks = tuple(f"task{index}" for index in range(4))
    answer = section(write(small(tasks=tasks), tmp_path / "demo"), "The answer")
    for task in tasks:
        assert re.search(rf"^\| {task} \| .*\[.*\] \|", answer, re.M), task


def test_the_first_line_names_the_experiment_and_the_answer_comes_first(tmp_path):
    page = write(small(), tmp_path / "demo")
    assert page.splitlines()[0] == "# Where does the tiny reader break? (demo)"
    headings = re.findall(r"^## (.*)$", page, re.M)
    assert headings[:2] == ["The answer", "What was tested"]
    answer = section(page, "The answer")
    assert "at least 90% of the full-cache score takes" in answer
    assert "10 curves" not in answer
    assert re.search(r"each holds 95% on its own; 6 curves were looked at", answer)


def test_equal_results_give_equal_bytes(tmp_path):
    def reverse(files):
        for path in files["tables"].values():
            write_parquet(path, read_parquet(path).iloc[::-1])
        for path in files["scores"]:
            write_parquet(path, read_parquet(path).iloc[::-1])

    study = small(failing={("random", "64", 1): 0.5})
    assert write(study, tmp_path / "a") == write(study, tmp_path / "b", change=reverse)


def test_a_censored_limit_is_never_written_as_a_number_in_the_report(tmp_path):
    def censor(files):
        path = files["tables"]["transition"]
        write_parquet(path, read_parquet(path).assign(T_point=">256", T_lower="<=16", T_upper=">256"))

    page = write(small(), tmp_path / "demo", change=censor)
    assert "| snapkv | &gt;256 [≤16, &gt;256] |" in page
    assert "**above 256 tokens** with snapkv (not limited by the tested budgets on either side)" in page
    assert "6 of 6 intervals have no upper limit" in section(page, "What could not be shown")


HOSTILE = "x | y\n\n# Owned\n</td><script>alert(1)</script> `code` ![i](http://a/b.png) [l](javascript:1) **b** \u202e $m$"


def test_model_text_cannot_break_the_page(tmp_path):
    plain = write(small(failing={("random", "64", 1): 0.5}), tmp_path / "plain")
    page = write(small(failing={("random", "64", 1): 0.5}, answer=HOSTILE), tmp_path / "hostile")
    assert len(page.splitlines()) == len(plain.splitlines())
    for mark in ("<script", "</td>", "# Owned", "](javascript", "![i]", "`code`", "\u202e"):
        assert mark not in page
    row = next(line for line in page.splitlines() if "Owned" in line)
    assert row.count("|") == 7


def shown(escaped):
    import html

    return html.unescape(escaped)


@given(st.text(max_size=80))
def test_escaped_text_is_one_line_without_markup_that_shows_the_same_words(text):
    escaped = escape_text(text)
    assert not re.search(r"[<>|`*_\[\]()~\\\n\r]", escaped)
    escaped.encode("utf-8")
    if text.isprintable() and not re.search(r"\s", text):
        assert shown(escaped) == text


def test_characters_that_cannot_be_written_or_turn_the_line_are_replaced():
    assert shown(escape_text("a\ud800b\u202ec\x00d")) == "a\ufffdb\ufffdc\ufffdd"


@given(st.text(min_size=30, max_size=60), st.integers(1, 20))
def test_long_text_is_cut_and_says_so(text, limit):
    cut = shown(escape_text(text, limit))
    assert len(cut) <= limit
    if len(shown(escape_text(text))) > limit:
        assert cut.endswith("…")


def test_every_figure_has_its_links_and_they_lead_somewhere(tmp_path):
    page = write(small(tasks=("phrasebook_qa", "phrasebook_multi_qa")), tmp_path / "demo")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) == 2 * 3
    assert all((tmp_path / "demo" / link).is_file() for link in links)
    assert page.index("score_vs_budget__phrasebook_qa.svg") < page.index("## Task phrasebook_multi_qa")


def test_a_figure_without_numbers_is_refused(tmp_path):
    study, folder = small(), tmp_path / "demo"
    files, drawn = study.write(folder), figure(folder, "score_vs_budget__phrasebook_qa")
    Path(drawn["csv"]).unlink()
    with pytest.raises(UserError, match=r"score_vs_budget__phrasebook_qa.*\.csv does not exist"):
        build_report(
            settings=study.settings(), provenance={}, figures=[drawn], out=folder / "report.md", **files
        )


def test_the_copy_has_links_that_work_from_where_it_lies(tmp_path):
    page = write(small(), tmp_path / "results" / "demo")
    write_report_copy(tmp_path / "results" / "demo" / "report.md", tmp_path / "results" / "report.md")
    copy = (tmp_path / "results" / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", copy)
    assert links
    assert all((tmp_path / "results" / link).is_file() for link in links)
    assert copy.splitlines()[0] == page.splitlines()[0]


def test_only_relative_links_move():
    text = "![a](f/x%20y.svg) [b](https://e.org/x) [c](#d) [e](/abs)"
    assert move_links(text, "r/demo/report.md", "r/report.md") == (
        "![a](demo/f/x%20y.svg) [b](https://e.org/x) [c](#d) [e](/abs)"
    )


def test_the_first_screen_says_what_was_tested_where_it_breaks_and_what_stays_open(tmp_path):
    answer = section(write(small(), tmp_path / "demo"), "The answer")
    assert "answered 12 prompts of 61 to 800 tokens" in answer
    assert "snapkv and random, each at 3 budgets from 16 to 256 tokens" in answer
    row = re.search(r"^\| snapkv \|.*$", answer, re.M)[0]
    assert "0.98 [0.81, 1.10], a fixed share fits" in row
    assert "Not shown: " in answer
    assert "Holm's correction over 3 comparisons" in answer


def test_a_difference_between_methods_needs_its_corrected_p_value(tmp_path):
    def not_shown(files):
        tests = read_parquet(files["tables"]["paired_tests"])
        write_parquet(files["tables"]["paired_tests"], tests.assign(p_adjusted=0.06, p=0.01))

    page = write(small(), tmp_path / "a")
    assert re.search(r"^\| snapkv \| .*64.* \(by 0\.\d\d", page, re.M)
    page = write(small(), tmp_path / "b", change=not_shown)
    assert "No difference between methods could be shown" in section(page, "The answer")
    assert "is shown to score higher than each" not in page
    assert "would often not be seen" in re.search(r"No difference between methods.*", page)[0]


def test_means_over_tasks_stand_on_their_own_and_only_with_more_than_one(tmp_path):
    page = write(small(tasks=("phrasebook_qa", "phrasebook_multi_qa")), tmp_path / "two")
    both = section(page, "All tasks together")
    assert "over 2 tasks" in both
    assert both.count("| snapkv | ") == 2
    assert "All tasks together" not in write(small(), tmp_path / "one")


def test_every_method_has_its_results_beside_its_card(tmp_path):
    methods = section(write(small(), tmp_path / "demo"), "Methods")
    assert re.search(r"### snapkv\n.*\| phrasebook_qa \| .* \| .* a fixed share fits \|", methods, re.S)


def test_the_report_says_how_to_make_it_again_and_how_to_cite_it(tmp_path):
    again = section(write(small(), tmp_path / "demo"), "Make it again, and cite it")
    assert "snakemake --cores all results/demo/report.md" in again
    assert "@misc{kv-transition-demo," in again
    assert "configuration sha256 c0ffee" in again
    assert "commit abc123" in again


def test_bins_of_cut_prompts_and_contexts_in_several_bins_are_said_before_the_numbers(tmp_path):
    def spoil(files):
        stats = read_parquet(files["tables"]["bin_stats"])
        stats.loc[stats["bin_idx"] == 1, "truncated_frac"] = 0.6
        stats.loc[stats["bin_idx"] == -1, "n_straddling_clusters"] = 2
        write_parquet(files["tables"]["bin_stats"], stats)

    answer = section(write(small(), tmp_path / "demo", change=spoil), "The answer")
    assert "more than half of the prompts of 201–800 tokens were cut" in answer
    assert "2 of 12 contexts have prompts in more than one length bin" in answer
    plain = section(write(small(), tmp_path / "plain"), "The answer")
    assert "were cut" not in plain
    assert "more than one length bin" not in plain


def test_bounds_are_shown_for_cells_that_miss_scores(tmp_path):
    def miss(files):
        stats = read_parquet(files["tables"]["bin_stats"])
        stats.loc[stats["method"] == "random", ["n_missing", "mean_missing_0", "mean_missing_1"]] = [
            3,
            0.25,
            0.5,
        ]
        write_parquet(files["tables"]["bin_stats"], stats)

    page = write(small(), tmp_path / "demo", change=miss)
    assert re.search(r"^\| random \| 16 \| 3 of 15 \| 0\.\d\d \| 0\.25 \| 0\.50 \|$", page, re.M)
    assert "if all missing ones were 0 or 1" not in write(small(), tmp_path / "none")


def test_a_policy_that_changes_a_headline_is_reported_and_one_that_does_not_is_too(tmp_path):
    assert "No headline label changes" in section(write(small(), tmp_path / "a"), "Failures")

    def differ(files):
        rows = read_parquet(files["tables"]["transition"])
        rows.loc[(rows["policy"] == "exclude") & (rows["method"] == "random"), "T_point"] = "16"
        write_parquet(files["tables"]["transition"], rows)

    failures = section(write(small(), tmp_path / "b", change=differ), "Failures")
    assert "These headline labels change" in failures
    assert re.search(r"\| phrasebook_qa \| random \| budget keeping 90% \| .* \| 16 \[", failures)


def test_failures_are_counted_and_shown(tmp_path):
    failures = section(write(small(failing={("random", "64", 1): 0.5}), tmp_path / "demo"), "Failures")
    assert re.search(r"\| phrasebook_qa \| random \| 64 \| 12 \|  \| 3 \|", failures)
    assert "ENGINE_ERROR" in failures
    assert "Which phrase&#63;" in failures or "Which phrase?" in failures


def test_what_makes_numbers_doubtful_is_said_before_them(tmp_path):
    def spoil(files):
        rows = read_parquet(files["tables"]["bin_stats"])
        rows["verified_frac"] = 0.5
        write_parquet(files["tables"]["bin_stats"], rows[rows["method"] != "no_context"])
        path = files["manifests"][0]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"warnings": ["bin 1 holds ties"]}))
        scores = read_parquet(files["scores"][0])
        write_parquet(files["scores"][0], scores.assign(one_token=True))

    study = small(failing={("random", "64", 1): 0.5}, first_token="full")
    answer = section(write(study, tmp_path / "demo", change=spoil), "The answer")
    assert "Only 50% of the answers" in answer
    assert "more than 5% of the requests failed with random 64" in answer
    assert "floor without context was not measured" in answer
    assert "bin 1 holds ties" in answer
    assert "100% of the answers are one token" in answer


def test_gates_are_explained_and_claim_nothing(tmp_path):
    def close(files):
        for name, study in (
            ("retention", small().retention("context_not_needed")),
            ("transition", small().transition("context_not_needed")),
        ):
            write_parquet(files["tables"][name], study)
        claims = read_parquet(files["tables"]["lossless"])
        claims = claims.assign(status="context_not_needed", smallest_lossless=None)
        write_parquet(files["tables"]["lossless"], claims)

    page = write(small(), tmp_path / "demo", change=close)
    answer = section(page, "The answer")
    assert "no transition budget could be determined: the full cache does not score" in answer
    assert "a true loss under" not in answer
    assert "does not score measurably above the model without any context" in section(
        page, "What could not be shown"
    )
    assert "| snapkv | not tested: the full cache does not score measurably above" in page


def test_what_a_sample_cannot_see_is_said(tmp_path):
    assert "80% power" in section(write(small(), tmp_path / "demo"), "What could not be shown")


def test_budgets_are_proved_by_what_was_kept(tmp_path):
    applied = section(write(small(), tmp_path / "demo"), "Were the budgets applied?")
    assert "| snapkv | 64 | 61 | 63.9 | 64 |" in applied or re.search(
        r"\| snapkv \| 64 \| 6[1-4] \| 6\d\.\d \| 64 \|", applied
    )
    assert "| 100% |" in applied


def test_any_tasks_and_shares_and_a_single_bin_make_a_report(tmp_path):
    study = small(
        tasks=tuple(f"task_{index}" for index in range(5)), edges=(60, 900), budgets=(0.1, 0.5), n=3
    )
    page = write(study, tmp_path / "demo")
    assert "of 5 tasks" in section(page, "The answer")
    assert "10% and 50% of the prompt" in section(page, "What was tested")


def test_the_command_puts_the_target_first(tmp_path):
    assert command("demo") == "snakemake --cores all results/demo/report.md"
    page = write(
        small(), tmp_path / "demo", provenance=PROVENANCE | {"configfile": "config/experiments/x.yaml"}
    )
    assert "snakemake --cores all results/demo/report.md --configfile config/experiments/x.yaml\n" in page


def test_provenance_is_printed_without_secrets_or_machine_paths(tmp_path):
    page = write(small(), tmp_path / "demo")
    for fact in ("c0ffee", "abc123, with uncommitted changes", "feed", "tiny (beef)", "node7", "numpy 2.4.6"):
        assert fact in page
    assert "/somewhere/private" not in page
    assert str(tmp_path) not in page


def test_collected_provenance_is_clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret")
    settings = {
        "engine": {"api_key": "sk-very-secret", "api_key_env": "SOME_API_KEY", "base_url": "https://me:pw@host/v1?key=1"},
        "kv": {"first_token": "full"},
        "model": {"path": "/home/someone/models/tiny"},
    }  # fmt: skip
    facts = collect(settings, {"weights": Path("/data/x/model.safetensors"), "tokenizer": "t"})
    text = json.dumps(facts)
    for private in ("sk-very-secret", "me:pw", "/home", "/data", str(tmp_path)):
        assert private not in text
    assert facts["settings"]["engine"]["api_key_env"] == "SOME_API_KEY"
    assert facts["settings"]["kv"]["first_token"] == "full"
    assert facts["settings"]["model"]["path"] == "tiny"
    assert facts["tokenizer"] == "t"
    assert facts["git"] == {"commit": None, "dirty": None}
    assert "numpy" in facts["packages"]


def test_cleaning_changes_nothing_else():
    value = {"a": [1, 2.5, None, True], "b": "https://host/v1", "rel": "resources/x", "text": "a/b c"}
    assert cleaned(value) == value


def test_git_names_the_commit_and_uncommitted_changes(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    state = git_state(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", state["commit"])
    assert state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


def test_a_table_row_of_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        table(["a"], [["1", "2"]])


def test_a_loss_beyond_the_margin_is_said_with_its_interval_and_asks_for_no_more_examples(tmp_path):
    def fail(files, diff):
        claims = read_parquet(files["tables"]["lossless"])
        claims = claims.assign(
            status="not_demonstrated",
            smallest_lossless=None,
            tested=[[256.0]] * len(claims),
            n_pairs_min=12.0,
        )
        write_parquet(files["tables"]["lossless"], claims.assign(n_needed=9.0, p_holm_methods=float("nan")))
        ratios = read_parquet(files["tables"]["retention"])
        write_parquet(files["tables"]["retention"], ratios.assign(diff_lo=diff - 0.1, diff_hi=diff + 0.1))

    page = write(small(), tmp_path / "lost", change=lambda files: fail(files, -0.3))
    assert "| snapkv | no: loses 0.20 to 0.40 at 256 | – | – | – |" in page
    page = write(small(), tmp_path / "open", change=lambda files: fail(files, -0.1))
    assert "| snapkv | not demonstrated (MDE 0.12) | – | – | not more than the 12 |" in page


def test_what_would_not_be_seen_is_not_read_off_cells_without_compression(tmp_path):
    def spoil(files):
        ratios = read_parquet(files["tables"]["retention"])
        large = ratios["budget"] == "256"
        ratios["mde"] = large.map({True: 0.001, False: 0.07})
        write_parquet(
            files["tables"]["retention"], ratios.assign(active_frac=large.map({True: 0.2, False: 1.0}))
        )

    page = write(small(), tmp_path / "demo", change=spoil)
    assert "a true loss under 0.07 would often not be seen" in section(page, "The answer")
    assert "0.001" not in section(page, "What could not be shown")


def test_the_only_bin_is_not_counted_twice(tmp_path):
    page = write(small(edges=(60, 900)), tmp_path / "demo")
    assert "2 curves were looked at" in section(page, "The answer")
    assert "in single length bins" not in section(page, "What could not be shown")
    assert page.count("| method | all lengths |\n") == 2


def test_means_over_tasks_mark_budgets_at_which_little_was_compressed(tmp_path):
    def spoil(files):
        rows = read_parquet(files["tables"]["macro"])
        rows["active_frac"] = (rows["budget"] == "256").map({True: 0.2, False: 1.0})
        rows.loc[rows["budget"] == "256", ["R_lo", "R_hi"]] = None
        write_parquet(files["tables"]["macro"], rows)

    page = write(small(tasks=("a", "b")), tmp_path / "demo", change=spoil)
    answer = section(page, "The answer")
    assert re.search(
        r"mean score over 2 tasks is kept.*snapkv \d+(\.\d)?% \[.*\] at 16 and .*% \(no interval\) at 256°",
        answer,
    )
    assert "°: fewer than 50% of the prompts were longer than that budget" in answer


def test_shares_of_published_results_are_of_what_their_source_says(tmp_path):
    study = small(
        published=True, protocol="published", metric="published", budgets=(0.5, 0.875), methods=("h2o",)
    )
    answer = section(write(study, tmp_path / "demo"), "The answer")
    assert "with h2o, at 2 budgets from 50% to 87.5% as the source counts it" in answer
    assert "of the prompt" not in answer.split("keeping")[0]
