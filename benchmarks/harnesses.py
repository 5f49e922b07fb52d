"""Whole evaluation runs over the same questions: this workflow, lm-eval and inspect_ai, each by its own command.

The peers live in .venv-peers (`make peers`). Every run has a folder of its own, so none finds what another has cached.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import yaml
from punctual_server import BUDGET

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers"
DRIVERS = ROOT / "benchmarks/peers"
#: What a folder needs for the workflow to run there.
PARTS = ("Snakefile", "rules", "scripts", "config", "profiles", "envs", "resources", "src")
CONCURRENCY = 8
TASK = "punctual"

#: A task of lm-eval: the same prompts, and the answer compared to the gold one.
LM_EVAL_TASK = {
    "task": TASK,
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{context}}\n\n{{input}}",
    "doc_to_target": "{{answers[0]}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 64},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def peer(package: str) -> str:
    """A peer with its version: "lm-eval 0.4.13"."""
    name = package.lower().replace("-", "_")
    found = metadata.distributions(path=[str(path) for path in PEERS.glob("lib/python*/site-packages")])
    versions = [one.version for one in found if one.metadata["Name"].lower().replace("-", "_") == name]
    if not versions:
        raise SystemExit(f"{package} is not in {PEERS.name}; run `make peers`")
    return f"{package} {versions[0]}"


def write_questions(path: Path, count: int, size: int) -> Path:
    """As many records, in the form of LongBench's, each with a text of its own of about `size` bytes."""
    filler = "the quick brown fox jumps over the lazy dog " * (size // 44 + 1)
    with path.open("w") as file:
        for number in range(count):
            record = {"_id": f"ex{number}", "input": f"question {number}", "answers": ["word"]}
            record |= {"context": f"{filler[: size - 30]} {number}"}
            # lm-eval's reader of tables wants the same columns in every record.
            file.write(json.dumps({**record, "length": size // 5}) + "\n")
    return path


@dataclass
class Command:
    """A command line with its folder and what it adds to the environment."""

    arguments: Sequence[str | Path]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it as a process group of its own; what it prints is added to `printed` in its folder."""
        with (self.folder / "printed").open("ab") as printed:
            return subprocess.Popen(
                [str(argument) for argument in self.arguments],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def printed(self) -> str:
        """The end of what it printed."""
        return (self.folder / "printed").read_text(errors="replace")[-2000:]


@dataclass(frozen=True)
class Spent:
    """Wall seconds, CPU seconds with all children, and exit code of a command."""

    wall_s: float
    cpu_s: float
    code: int


def spend(command: Command, must_end_well: bool = True) -> Spent:
    """Run a command to its end."""
    start = time.perf_counter()
    process = command.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and must_end_well:
        raise SystemExit(f"{command.arguments[0]} ended with {process.returncode}:\n{command.printed()}")
    return Spent(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, process.returncode)


def kill_when(command: Command, due: Callable[[], bool]) -> None:
    """Run a command, and `kill -9` it and all of its children when it is time."""
    process = command.start()
    while not due():
        if process.poll() is not None:
            raise SystemExit(f"{command.arguments[0]} ended before it was killed:\n{command.printed()}")
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ours(folder: Path, questions: int, size: int, base_url: str) -> Command:
    """The workflow up to its scores, each question asked of the whole cache and of one budget: two requests each."""
    folder.mkdir()
    for part in PARTS:
        (folder / part).symlink_to(ROOT / part)
    (folder / "records").mkdir()
    write_questions(folder / f"records/{TASK}.jsonl", questions, size)
    config = {
        "experiment": {"id": "bench"},
        "dataset": {"name": TASK, "path": "records", "tasks": [TASK]},
        "model": {"name": "served", "path": None},
        "tokenizer": {"name": "length"},
        "binning": {"n_bins": 1, "n_per_bin": None, "by": "length"},
        "engine": {"kind": "openai_compat"},
        "http": {"base_url": base_url, "model": "served", "concurrency": CONCURRENCY},
        "kv": {"methods": ["snapkv"], "budgets": [BUDGET], "first_token": "full", "no_context": False},
    }
    (folder / "bench.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "all_scores", "--cores", "2", "--configfile", "bench.yaml"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return Command(command, folder, {"PATH": path})


def lm_eval(folder: Path, questions: int, size: int, base_url: str, *options: str) -> Command:
    """lm-eval as its users call it for a server; by default it keeps nothing of an unfinished run."""
    folder.mkdir()
    data = write_questions(folder / "questions.jsonl", questions, size)
    task = {**LM_EVAL_TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(task))
    model = f"base_url={base_url}/chat/completions,model=served,num_concurrent={CONCURRENCY},max_retries=3"
    command: list[str | Path] = [
        PEERS / "bin/lm_eval",
        "run",
        "--model",
        "local-chat-completions",
        "--model_args",
        model,
    ]
    command += ["--tasks", TASK, "--include_path", folder, "--apply_chat_template", "--output_path", "out"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    return Command([*command, *options], folder, {**offline, "OPENAI_API_KEY": "none"})


def _inspect(folder: Path, base_url: str, *arguments: str | Path) -> Command:
    limits = ["--max-connections", str(CONCURRENCY), "--display", "none", "--log-dir", "logs"]
    address = {"PUNCTUAL_BASE_URL": base_url, "PUNCTUAL_API_KEY": "none", "RECORDS": "questions.jsonl"}
    return Command([PEERS / "bin/inspect", *arguments, *limits], folder, address)


def inspect_ai(folder: Path, questions: int, size: int, base_url: str) -> Command:
    """`inspect eval`, everything else as it is by default."""
    folder.mkdir()
    write_questions(folder / "questions.jsonl", questions, size)
    shutil.copyfile(DRIVERS / "inspect_task.py", folder / "task.py")
    return _inspect(folder, base_url, "eval", "task.py", "--model", "openai-api/punctual/served")


def inspect_retry(folder: Path, base_url: str) -> Command:
    """`inspect eval-retry` of the run in this folder that was killed."""
    (log,) = (folder / "logs").glob("*.eval")
    return _inspect(folder, base_url, "eval-retry", log.relative_to(folder))


def inspect_status(folder: Path) -> str:
    """What the newest log in this folder says of its run: "success", "error", "started"."""
    log = max((folder / "logs").glob("*.eval"))
    command: list[str | Path] = [PEERS / "bin/inspect", "log", "dump", "--header-only", log]
    return str(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["status"])
