"""A copy of the project in another folder, and Snakemake called there."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "scripts", "config", "profiles", "envs", "resources", "src", "docs/captions")


@dataclass(frozen=True)
class Called:
    """What a call printed and what it cost: seconds of the clock, and CPU seconds with all child processes."""

    text: str
    wall: float
    cpu: float


def copy_project(folder: Path) -> None:
    """What the workflow needs, without results, journal and caches; the sources compiled, as after the first call."""
    folder.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / part).is_file():
            shutil.copyfile(ROOT / part, folder / part)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder / "src")], check=True)


def snakemake(folder: Path, *options: str) -> Called:
    """Call Snakemake in a folder, with the copy's own library.

    Raises
    ------
    SystemExit
        With the end of its output when it fails.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{folder.name}: snakemake {' '.join(options)}:\n{done.stdout[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Called(done.stdout, wall, cpu)
