"""Editing what code says reruns nothing; editing what it does reruns its stage."""

from pathlib import Path

import pytest

from kv_transition.code_version import PACKAGE, code_version, modules_of, source_hash

SOURCE = '"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 1\n'


def test_comments_docstrings_and_layout_do_not_count() -> None:
    edited = '"""Other."""\n# a comment\n\n\ndef f(x):\n    "Another."\n    return (x + 1)  # why\n'
    assert source_hash(edited) == source_hash(SOURCE)


def test_what_the_code_does_counts() -> None:
    assert source_hash(SOURCE.replace("+ 1", "+ 2")) != source_hash(SOURCE)


def test_a_rule_depends_on_its_script(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(SOURCE)
    version = code_version(script)
    script.write_text(SOURCE.replace("+ 1", "- 1"))
    assert version != code_version(script)


def test_a_rule_depends_on_what_its_modules_import(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("from kv_transition.run import runner\n")
    names = {str(file.relative_to(PACKAGE)) for file in modules_of(script)}
    assert {"run/runner.py", "engines/reference.py", "budgets.py", "files.py", "data/synthetic.py"} <= names


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ("infer_sweep", "engines/evictions.py", "eval/metrics.py"),
        ("score_task", "eval/metrics.py", "engines/evictions.py"),
        ("retention", "analysis/intervals.py", "analysis/figures/score.py"),
        ("plot_figures", "analysis/figures/score.py", "report/wording.py"),
        ("build_report", "report/templates/report.md.jinja", "eval/metrics.py"),
        ("assemble_database", "db/schema.sql", "analysis/intervals.py"),
        ("normalize_task", "data/tokenizer.py", "engines/reference.py"),
    ],
)
def test_each_stage_hashes_its_own_code_and_not_that_of_later_ones(
    root: Path, rule: str, inside: str, outside: str
) -> None:
    names = {str(file.relative_to(PACKAGE)) for file in modules_of(root / "scripts" / f"{rule}.py")}
    assert inside in names
    assert outside not in names


def test_what_was_read_is_kept_and_counts_only_for_the_same_text(tmp_path: Path) -> None:
    script, cache = tmp_path / "s.py", tmp_path / "cache"
    script.write_text(SOURCE)
    version = code_version(script, cache)
    assert version == code_version(script)
    entries = list(cache.rglob("*.json"))
    assert len(entries) == 1
    script.write_text(SOURCE.replace("+ 1", "- 1"))
    assert code_version(script, cache) == code_version(script) != version
    for entry in cache.rglob("*.json"):
        entry.write_text("torn")
    script.touch()
    assert code_version(script, cache) == code_version(script)
