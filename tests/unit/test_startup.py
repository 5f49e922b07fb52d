"""What is imported before anything is done: no heavy package where not every run needs it."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(file.stem for file in (ROOT / "scripts").glob("*.py"))


@pytest.fixture(scope="module")
def imports():
    """The module of the benchmark that looks at imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import script_imports

        yield script_imports
    sys.modules.pop("script_imports", None)


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "train_tiny_reader"])
def test_a_script_imports_no_heavy_package_that_its_every_run_does_not_need(imports, script: str) -> None:
    loaded, _ = imports.imported(imports.imports_of(ROOT / "scripts" / f"{script}.py"))
    assert loaded <= imports.USES.get(script, frozenset())


def test_help_imports_neither_numpy_nor_what_reads_a_configuration(imports) -> None:
    code = (
        "import sys\nfrom kv_transition.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'pydantic', 'yaml'} & set(sys.modules)"
    )
    assert imports.imported(code)[0] == frozenset()


def test_a_heavy_import_is_found_wherever_it_comes_from(imports) -> None:
    assert "pandas" in imports.imported("import json\nfrom pandas.errors import ParserError")[0]


def test_examples_are_read_without_pandas(imports, tmp_path: Path) -> None:
    file = tmp_path / "examples.parquet"
    write = (
        "from kv_transition.data.normalize import CountedExample, write_examples\n"
        f"write_examples({str(file)!r}, [CountedExample('a', 'q', 'c', ['x', 'y'], {{'task': 't'}}, 'k', 7)])"
    )
    imports.imported(write)
    read = (
        "from kv_transition.data.normalize import read_examples\n"
        f"[example] = read_examples({str(file)!r})\n"
        "assert (example.answers, example.meta, example.token_len) == (['x', 'y'], {'task': 't'}, 7)"
    )
    assert imports.imported(read)[0] == frozenset({"pyarrow"})


def test_rows_go_into_the_database_without_pandas(imports, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table(
            {"key": ["a", "b", "c"], "n": [1, 2, 2], "x": [0.5, None, 1.5], "kept": [[1.0], [2.0, 3.0], None]}
        ),
        file,
    )
    insert = (
        "import sqlite3\nfrom pyarrow.parquet import ParquetFile\nfrom kv_transition.db.arrow_rows import insert_columns\n"
        "connection = sqlite3.connect(':memory:')\nconnection.execute('CREATE TABLE t (key, n, x, kept)')\n"
        f"insert_columns(connection, 't', ParquetFile({str(file)!r}).read())\n"
        "found = connection.execute('SELECT * FROM t').fetchall()\n"
        "assert found == [('a', 1, 0.5, '[1.0]'), ('b', 2, None, '[2.0,3.0]'), ('c', 2, 1.5, None)], found"
    )
    assert imports.imported(insert)[0] == frozenset({"pyarrow"})


def test_a_job_can_give_lists_to_arrow_without_pandas(imports, tmp_path: Path) -> None:
    """pyarrow imports pandas to see what a list is; a process that imports it afterwards has it all the same."""
    code = (
        "import sys\nfrom types import SimpleNamespace\nfrom kv_transition.files import write_parquet\n"
        "from kv_transition.run.script import job\n"
        f"with job(SimpleNamespace(log=[]), pandas={{pandas}}):\n"
        f"    write_parquet({str(tmp_path / 'x.parquet')!r}, {{'a': [1, 2, None], 'b': [['x'], [], None]}})\n"
    )
    assert imports.imported(code.replace("{pandas}", "False"))[0] == frozenset({"pyarrow"})
    assert "pandas" in imports.imported(code.replace("{pandas}", "True"))[0], (
        "else nothing is gained any more"
    )
    after = (
        code.replace("{pandas}", "False") + "import pandas\nassert pandas.DataFrame({'a': [1]}).a.sum() == 1"
    )
    assert "pandas" in imports.imported(after)[0]


def test_no_rule_runs_code_inside_snakemake() -> None:
    rules = [file.read_text(encoding="utf-8") for file in (ROOT / "rules").glob("*.smk")]
    assert not any(line.strip() == "run:" for text in rules for line in text.splitlines())
