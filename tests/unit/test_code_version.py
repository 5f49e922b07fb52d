"""Editing what code says reruns nothing; editing what it does reruns its stage."""

from pathlib import Path

from kv_transition.code_version import code_version, source_hash

SOURCE = '"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 1\n'


def test_comments_docstrings_and_layout_do_not_count() -> None:
    edited = '"""Other."""\n# a comment\n\n\ndef f(x):\n    "Another."\n    return (x + 1)  # why\n'
    assert source_hash(edited) == source_hash(SOURCE)


def test_what_the_code_does_counts() -> None:
    assert source_hash(SOURCE.replace("+ 1", "+ 2")) != source_hash(SOURCE)


def test_a_rule_depends_on_its_script_and_its_modules(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(SOURCE)
    version = code_version(script, ["eval"])
    assert version != code_version(script, ["budgets"])
    script.write_text(SOURCE.replace("+ 1", "- 1"))
    assert version != code_version(script, ["eval"])
