"""How many jobs a touch makes due: every file of the project and its records, beside Snakemake's own default.

    python benchmarks/touched_cost.py    about a minute; --quick is the same

Ours is the experiment config/experiments/quick.yaml, run once; then every file of the project is touched, sources, scripts,
records and model, and in another turn every result and every log. The bare workflow has ten jobs with one script and no
profile; its script is touched, then its input. Ends with 1 if a touch makes a job of ours due.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from project_copy import copy_project, snakemake
from record import Row, save

OURS = ("results/report.md", "--configfile", "config/experiments/quick.yaml", "--cores", "2")
BARE = """
rule all:
    input: expand("{i}.txt", i=range(10))

rule one:
    input: "input.csv"
    output: "{i}.txt"
    script: "one.py"
"""


def touch(*folders: Path) -> int:
    """Touch every file there; returns how many."""
    time.sleep(1.1)  # later than anything that was written, whatever the clock of the file system
    files = [file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*"))]
    files = [file for file in files if file.is_file() and "__pycache__" not in file.parts]
    for file in files:
        file.touch()
    return len(files)


def due(folder: Path, *options: str) -> int:
    """Jobs of a dry run, the target's own not counted."""
    text = snakemake(folder, *options, "-n").text
    counted = re.findall(
        r"^(\w+)\s+(\d+)$", text.partition("Job stats:")[2].partition("\ntotal")[0], re.MULTILINE
    )
    return sum(int(jobs) for rule, jobs in counted if rule != "all")


def main() -> int:
    """Measure and keep; 0 if nothing of ours is due."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the same: it is short")
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="touched_") as folder:
        ours, bare = Path(folder, "ours"), Path(folder, "bare")
        copy_project(ours)
        jobs = len(re.findall(r"^Finished jobid", snakemake(ours, *OURS).text, re.MULTILINE))
        parts = [
            ours / part
            for part in ("Snakefile", "rules", "scripts", "config", "resources", "src", "profiles")
        ]
        touched = touch(*parts), due(ours, *OURS)
        results = touch(*(path for path in (ours / "results").rglob("*") if path.is_file())), due(ours, *OURS)
        bare.mkdir()
        for name, text in (
            ("Snakefile", BARE),
            ("one.py", 'open(snakemake.output[0], "w")'),
            ("input.csv", "1\n" * 200_000),
        ):
            (bare / name).write_text(text)
        snakemake(bare, "--cores", "2")
        touch(bare / "one.py")
        script = due(bare, "--cores", "2")
        snakemake(bare, "--cores", "2")
        touch(bare / "input.csv")
        data = due(bare, "--cores", "2")
    peer = f"bare Snakemake {version('snakemake')}"
    rows = [
        Row(
            f"every file of the project touched ({touched[0]} files)",
            f"{touched[1]} of {jobs} jobs",
            f"{script} of 10 jobs for a touched script, {data} of 10 for a touched input of 400 kB",
            peer,
            bar="0 jobs",
            met=touched[1] == 0,
        ),
        Row(
            f"every result touched ({results[0]} files)",
            f"{results[1]} of {jobs} jobs",
            bar="0 jobs",
            met=results[1] == 0,
        ),
    ]
    save("touched_cost", rows, ["snakemake"])
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
