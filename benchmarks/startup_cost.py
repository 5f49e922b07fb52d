"""What a job costs before it works: Snakemake's kinds of jobs, and what each script of the workflow imports.

    python benchmarks/startup_cost.py            about two minutes
    python benchmarks/startup_cost.py --quick    two turns fewer, four scripts

A job that does nothing is measured as shell command, as `script:`, as `script:` that imports pandas and as `run:`: CPU
seconds of a call with some of them, less those of a call with one, so that Snakemake's own start is not in it. The imports
of every script are timed in a new Python, children excluded. Ends with 1 if a script imports a heavy package that its
every run does not need, or a rule has `run:`.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from record import Row, save, spread
from script_imports import ROOT, USES, imported, imports_of, scripts

#: What a job that does nothing looks like.
KINDS = {
    "shell:": 'shell: "touch {output}"',
    "script:": 'script: "bare.py"',
    "script: that imports pandas": 'script: "pandas_only.py"',
    "run:": 'run: open(output[0], "w").close()',
}
HELP = "from kv_transition.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"


def cpu_of(call: Callable[[], object]) -> float:
    """CPU seconds of the processes that a call starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def call_jobs(folder: Path, kind: str, jobs: int) -> None:
    """Run so many jobs of a kind."""
    folder.mkdir()
    work = KINDS[kind]
    (folder / "Snakefile").write_text(
        f"rule all:\n    input: expand('{{i}}.txt', i=range({jobs}))\n\n"
        f"rule one:\n    output: '{{i}}.txt'\n    {work}\n"
    )
    (folder / "bare.py").write_text('open(snakemake.output[0], "w").close()\n')
    (folder / "pandas_only.py").write_text('import pandas\nopen(snakemake.output[0], "w").close()\n')
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


def job_rows(turns: int, jobs: int) -> list[Row]:
    """What one job of each kind costs."""
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(turns):
        for kind, seconds in spent.items():
            with tempfile.TemporaryDirectory(prefix="startup_") as folder:
                many = cpu_of(lambda: call_jobs(Path(folder, "many"), kind, 1 + jobs))  # noqa: B023
                one = cpu_of(lambda: call_jobs(Path(folder, "one"), kind, 1))  # noqa: B023
            seconds.append((many - one) / jobs * 1e3)
    peer = f"Snakemake {version('snakemake')}"
    return [
        Row(f"a job that does nothing, `{kind}`", "", spread(ms, "CPU ms"), peer)
        for kind, ms in spent.items()
    ]


def import_rows(turns: int, every: int) -> list[Row]:
    """What the scripts, the command's help and, beside them, bare Python and pandas import."""
    codes = {
        f"imports of scripts/{script.name}": (imports_of(script), script.stem)
        for script in scripts()[::every]
    }
    codes["kv-transition --help"] = (HELP, "help")
    compared = {"bare Python": "pass", "import pandas": "import pandas"}
    ours: dict[str, list[float]] = {name: [] for name in codes}
    theirs: dict[str, list[float]] = {name: [] for name in compared}
    loaded: dict[str, frozenset[str]] = {}
    for _ in range(turns):
        for name, (code, _) in codes.items():
            loaded[name], seconds = imported(code)
            ours[name].append(1e3 * seconds)
        for name, code in compared.items():
            theirs[name].append(1e3 * imported(code)[1])
    rows = [
        Row(name, "", spread(ms, "CPU ms"), "Python " + sys.version.split()[0]) for name, ms in theirs.items()
    ]
    for name, (_, script) in codes.items():
        allowed = USES.get(script, frozenset())
        packages = ", ".join(sorted(loaded[name])) or "none"
        bar = f"heavy packages: {', '.join(sorted(allowed)) or 'none'}"
        cost = f"{spread(ours[name], 'CPU ms')}; {packages}"
        rows.append(Row(name, cost, bar=bar, met=loaded[name] <= allowed))
    return rows


def run_blocks() -> Row:
    """How many rules have `run:`."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "rules").glob("*.smk")]
    found = sum(len(re.findall(r"^ +run:", text, re.MULTILINE)) for text in texts)
    return Row("rules with `run:`", str(found), bar="0", met=found == 0)


def main() -> int:
    """Measure and keep; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="see that it works: one turn, few jobs and scripts"
    )
    options = parser.parse_args()
    turns = 1 if options.quick else options.turns
    rows = [
        run_blocks(),
        *job_rows(turns, 1 if options.quick else 8),
        *import_rows(turns, 7 if options.quick else 1),
    ]
    note = (
        "pandas is also loaded by pyarrow itself, the first time that it makes an array of values (about 0.3 CPU s, a peer's "
        "cost that comes after the imports), so by every script that writes Parquet."
    )
    save("startup_cost", rows, ["snakemake", "pandas", "pyarrow"], note)
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
