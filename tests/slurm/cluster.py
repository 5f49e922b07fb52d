"""What a test asks of Slurm, and the small experiment as it runs there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project import TARGET, Project


@dataclass(frozen=True)
class Job:
    """A job as Slurm lists it."""

    id: str
    state: str
    node: str
    rule: str


@dataclass(frozen=True)
class Cluster:
    """A running Slurm."""

    state: Path
    script: Callable[..., subprocess.CompletedProcess[str]]

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.state / "etc/slurm.conf")}

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self, folder: Path) -> list[Job]:
        """Jobs that were started from a folder, those that have ended included."""
        lines = self.call("squeue", "--noheader", "--states=all", "--format=%i|%T|%N|%k|%Z").splitlines()
        rows = [line.split("|") for line in lines]
        return [Job(*row[:4]) for row in rows if row[4] == str(folder)]

    def asks_for_gpu(self, job: Job) -> bool:
        return "TresPerJob=gres:gpu:1" in self.call("scontrol", "show", "job", job.id)

    def running(self, folder: Path) -> list[Job]:
        return [job for job in self.jobs(folder) if job.state == "RUNNING"]

    def freeze(self, jobs: list[Job]) -> None:
        """Stop jobs where they are; their time goes on."""
        self.call("scancel", "--signal=STOP", *(job.id for job in jobs))

    def go_on(self, jobs: list[Job]) -> None:
        self.call("scancel", "--signal=CONT", *(job.id for job in jobs))


class Run:
    """A Snakemake that runs in the background."""

    def __init__(self, project: Project, target: str, *options: str) -> None:
        self.log = project.folder / "run.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                project.command(*options, target=target),
                cwd=project.folder,
                env=project.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        """Wait until something is so while the run goes on."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the run ended too early: {self.text[-5000:]}"
            assert time.monotonic() < end, f"waited in vain: {self.text[-5000:]}"
            time.sleep(0.02)

    def end(self, seconds: float = 240) -> int:
        """The exit status; a run that does not end in time is killed and fails the test."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end after {seconds} s: {self.text[-5000:]}") from None

    def kill(self) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass(frozen=True)
class OnCluster(Project):
    """A clone of the project whose jobs go to Slurm."""

    cluster: Cluster

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.cluster.environment}

    def command(self, *options: str, target: str = TARGET) -> list[str]:
        """`snakemake --profile slurm`, only that it looks after its jobs more often."""
        return [
            *(sys.executable, "-m", "snakemake", "--profile", "slurm", target),
            *("--configfile", "small.yaml", "--slurm-init-seconds-before-status-checks", "2", *options),
        ]

    def answers(self) -> Counter[str]:
        """How often each answer is in the journal."""
        keys: Counter[str] = Counter()
        for file in self.folder.glob("journal/**/*.jsonl"):
            for line in file.read_text().splitlines():
                with suppress(ValueError):  # the torn last line of a killed job
                    keys[json.loads(line)["key"]] += 1
        return keys
