"""The workflow asks a server in another process: the same numbers as here, and nothing is lost or asked twice on the way."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
import pytest
from project import SMALL, Project

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from fault_server import FaultProcess

pytestmark = pytest.mark.workflow

TASK = "phrasebook_qa"
ANSWERS = "all_responses"
TWO_AT_ONCE = ("--resources", "server=2")
NOWHERE = "http://127.0.0.1:1/v1"
COLUMNS = ["score", "em", "f1", "failure", "kept_mean", "kept_min", "kept_max", "active", "status"]
IDENTITY = ["example_id", "method", "budget", "replicate"]

#: The fault server's log is complete when nothing more comes for this long, in seconds.
QUIET_S = 0.1

#: Retries that do not keep the tests waiting.
PATIENCE = {
    "connect_timeout_s": 2,
    "read_timeout_s": 5,
    "max_attempts": 4,
    "backoff_s": 0.02,
    "backoff_max_s": 0.1,
}


class Server:
    """`kv-transition serve` of a project; started again it has the same port."""

    def __init__(self, project: Project, log: Path, *options: str, **environment: str) -> None:
        self.project, self.log, self.options, self.environment = project, log, options, environment
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Return when it accepts requests."""
        command = [sys.executable, "-m", "kv_transition", "serve", "--model", "resources/tiny-reader"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *self.options],
                cwd=self.project.folder,
                env={**self.project.environment, "OPENBLAS_NUM_THREADS": "1", **self.environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("serving tiny-reader on "), self.log.read_text()

    def stop(self) -> None:
        """End it as its user would."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()

    def answered(self) -> Counter[str]:
        """Good answers by method and budget, from the access log."""
        return Counter(re.findall(r"POST \S+ 200 (\S+)", self.log.read_text()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()


def configure(project: Project, base_url: str, **changes: dict[str, Any]) -> None:
    """The small experiment on one task, asked of a server."""
    http = {**PATIENCE, "base_url": base_url, **changes.pop("http", {})}
    dataset = {**SMALL["dataset"], "tasks": [TASK], **changes.pop("dataset", {})}
    fixed = {"engine": {"kind": "openai_compat"}, "output": {"figure_dpi": 50}}
    kv = {**SMALL["kv"], "budgets_by_method": {"random": [16]}}
    project.configure(http=http, dataset=dataset, **{**fixed, "kv": kv, **changes})


def table(project: Project, name: str = f"scores/{TASK}") -> pd.DataFrame:
    return pd.read_parquet(project.folder / f"results/small/{name}.parquet")


def responses(project: Project) -> pd.DataFrame:
    files = project.folder.glob("results/small/responses/*/*/*/*.parquet")
    return pd.concat(map(pd.read_parquet, files), ignore_index=True)


def journal(project: Project) -> list[dict[str, Any]]:
    """Whole lines of the journal; a killed writer may leave half of one."""
    files = project.folder.glob("journal/**/*.jsonl")
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def copy_of(project: Project, folder: Path) -> Project:
    """The project with its results and all its dates, as if it had been run there."""
    shutil.copytree(project.folder, folder / "project", symlinks=True)
    return Project(folder / "project")


def told(project: Project, *options: str, target: str = ANSWERS) -> str:
    """The one line that a command which fails has to say."""
    done = project.call(*options, target=target)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if " error: " in line]
    assert len(lines) == 1, done.stdout[-3000:]
    return lines[0]


@pytest.fixture(scope="module")
def server(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(fresh, tmp_path_factory.mktemp("served") / "access.log") as running:
        yield running


@pytest.fixture
def clean(fresh: Project, tmp_path: Path) -> Project:
    return fresh.copy(tmp_path / "project", results=False)


@pytest.fixture(scope="module")
def served(fresh: Project, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small experiment, asked of the server, to its report. Tests work on copies of it, or only read."""
    project = fresh.copy(tmp_path_factory.mktemp("served") / "project", results=False)
    configure(project, server.base_url)
    project.run(*TWO_AT_ONCE)
    return project


def test_the_server_gives_the_numbers_of_the_engine_behind_it(served: Project, tmp_path: Path) -> None:
    local = copy_of(served, tmp_path)
    shutil.rmtree(local.folder / "journal")
    for part in ("responses", "scores", "analysis"):
        shutil.rmtree(local.folder / "results/small" / part)
    configure(local, NOWHERE, engine={"kind": "reference"})
    local.run("--until", "bin_stats", "retention", "transition", target="all_analysis")
    own, here = table(served).set_index(IDENTITY), table(local).set_index(IDENTITY)
    pd.testing.assert_frame_equal(own[COLUMNS].sort_index(), here[COLUMNS].sort_index())
    assert own["verified"].eq("measured").all()
    for name in ("bin_stats", "retention", "transition"):
        name = f"analysis/{name}"
        pd.testing.assert_frame_equal(table(served, name), table(local, name), obj=name)


def test_written_again_from_the_journal_nothing_is_asked_and_no_server_is_needed(
    served: Project, server: Server, tmp_path: Path
) -> None:
    assert served.due() == {}
    project = copy_of(served, tmp_path)
    configure(project, NOWHERE)
    before, rows = project.bytes_of("results/small/responses/**/*.parquet"), project.journal_rows()
    answered = server.answered()
    shutil.rmtree(project.folder / "results")
    server.stop()
    try:
        project.run(*TWO_AT_ONCE, target=ANSWERS)
    finally:
        server.start()
    assert project.bytes_of("results/small/responses/**/*.parquet") == before
    assert project.journal_rows() == rows
    assert server.answered() == answered


def test_another_budget_asks_its_own_cells_where_it_takes_something_away(
    served: Project, server: Server, tmp_path: Path
) -> None:
    project = copy_of(served, tmp_path)
    configure(
        project, server.base_url, kv={"budgets": [16, 64, 128], "budgets_by_method": {"random": [16, 128]}}
    )
    before = server.answered()
    printed = project.run(target=ANSWERS)
    assert re.search(r"^infer_shard +2$", printed, re.MULTILINE), "one job for each of the two new cells"
    rows = responses(project)
    new = rows[rows["budget"] == "128"]
    assert set(new["active"]) == {True, False}, "some prompts are shorter than 128 tokens"
    active = new[new["active"]].groupby("method").size()
    assert server.answered() - before == {f"{method}@128": count for method, count in active.items()}
    copied = new[~new["active"]]
    assert copied["copied_from"].eq("full").all()
    full = rows[rows["method"] == "full"].set_index("example_id")["text"]
    assert copied["text"].tolist() == full[copied["example_id"]].tolist()
    assert copied["latency_s"].isna().all()


#: 24 examples, the full cache and one budget: more than a shard that is its own probe.
MANY = {
    "binning": {"n_bins": 2, "n_per_bin": 12},
    "kv": {"methods": ["snapkv"], "budgets": [16], "no_context": False},
}
ASKED = 2 * 24


@pytest.fixture(scope="module")
def prepared(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An experiment of which nothing has been asked yet."""
    project = fresh.copy(tmp_path_factory.mktemp("prepared") / "project", results=False)
    configure(project, NOWHERE, **MANY)
    project.run(target="all_manifests")
    return project


@pytest.fixture
def ready(prepared: Project, tmp_path: Path) -> Project:
    """A copy of it."""
    return copy_of(prepared, tmp_path)


def complete(project: Project) -> pd.DataFrame:
    """The responses, when every example has one good row in each cell."""
    rows = responses(project)
    assert Counter(rows[IDENTITY].value_counts()) == {1: ASKED}
    assert rows["failure"].isna().all()
    return rows


def test_a_server_that_goes_away_ends_the_run_in_one_line_and_the_next_run_completes_it(
    ready: Project,
) -> None:
    with FaultProcess({"latency_s": 0.01, "faults": {"unknown": ["ok"] * 30 + ["die"]}}) as server:
        configure(ready, server.base_url, http={"model": "served", "concurrency": 4}, **MANY)
        line = told(ready)
        assert f"{TASK} snapkv 16: " in line
        assert "run the same command again" in line
        good = {row["key"] for row in journal(ready) if not row["result"]["failure"]}
        assert len(good) >= 24
        before = server.settled("answered", QUIET_S).total()
        server.script = {}
        server.start()
        ready.run(target=ANSWERS)
        assert server.settled("answered", QUIET_S).total() - before == ASKED - len(good)
    complete(ready)


def test_a_killed_run_goes_on_and_doubles_nothing(ready: Project) -> None:
    with FaultProcess({"latency_s": 0.05}) as server:
        configure(ready, server.base_url, http={"model": "served", "concurrency": 4}, **MANY)
        process = subprocess.Popen(
            ready.command(target=ANSWERS),
            cwd=ready.folder,
            env=ready.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while ready.journal_rows() < 10:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        survived = len(journal(ready))
        assert survived < ASKED, "killed too late to show anything"
        ready.run(target=ANSWERS)
        assert server.settled("answered", QUIET_S).total() <= ASKED + 4
    complete(ready)
    keys = [row["key"] for row in journal(ready)]
    assert len(keys) == len(set(keys)) == ASKED


def processes_that_show(secret: str) -> list[str]:
    """Command lines on this machine that hold a text."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:
            continue
        if secret.encode() in line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def files_that_hold(secret: str, folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 100
    return [str(file) for file in files if secret.encode() in file.read_bytes()]


def run_with_key(project: Project, secret: str, target: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and the command lines that showed the key while it ran."""
    shown: list[str] = []
    with (project.folder / "printed").open("w+") as printed:
        process = subprocess.Popen(
            project.command(target=target),
            cwd=project.folder,
            env={**project.environment, "MY_KEY": secret},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            shown += processes_that_show(secret)
            time.sleep(0.05)
    return process.returncode, (project.folder / "printed").read_text(), shown


def test_the_key_is_found_nowhere(ready: Project, tmp_path: Path) -> None:
    secret = "sk-known-0123456789abcdef-secret"
    with Server(ready, tmp_path / "access.log", "--api-key-env", "SERVED_KEY", SERVED_KEY=secret) as server:
        http = {"api_key_env": "MY_KEY"}
        configure(ready, server.base_url, http=http, **MANY)
        code, printed, shown = run_with_key(ready, secret, "results/small/kv_transition.sqlite")
        assert code == 0, printed[-3000:]
        assert server.answered() == {"full": 24, "snapkv@16": 24}
    assert (ready.folder / "results/small/kv_transition.sqlite").exists()
    complete(ready)
    assert shown == []
    assert files_that_hold(secret, tmp_path) == []


def test_a_wrong_key_is_one_line_and_is_found_nowhere_even_if_the_server_repeats_it(
    ready: Project, tmp_path: Path
) -> None:
    secret = "sk-wrong-0123456789abcdef-secret"
    with FaultProcess({"faults": {"*": ["401*"]}}, log=tmp_path / "log") as server:
        configure(ready, server.base_url, http={"model": "served", "api_key_env": "MY_KEY"}, **MANY)
        code, printed, shown = run_with_key(ready, secret, ANSWERS)
        assert server.settled("asked", QUIET_S).total() == 1, "one answer is enough to know"
    assert code != 0
    lines = [line for line in printed.splitlines() if " error: " in line]
    assert len(lines) == 1
    assert "refuses the key that http.api_key_env names" in lines[0]
    assert secret[:6] not in printed, "the server repeats the key's beginning and end, too"
    assert shown == []
    assert files_that_hold(secret, tmp_path) == []


def test_an_unknown_model_is_one_line_with_those_that_there_are(ready: Project, server: Server) -> None:
    configure(ready, server.base_url, http={"model": "nobody"}, **MANY)
    before = server.log.read_text().count("POST")
    assert "http.model: 'nobody' is unknown to the server, which lists tiny-reader" in told(ready)
    assert server.log.read_text().count("POST") == before + 1


def test_a_server_that_is_not_there_is_one_line(ready: Project) -> None:
    configure(ready, NOWHERE, **MANY)
    assert f"http.base_url: {NOWHERE} cannot be reached" in told(ready)
    assert ready.journal_rows() == 0


def test_a_server_that_ignores_the_budget_is_one_line_after_one_question(ready: Project) -> None:
    with FaultProcess({"kv": "none"}) as server:
        configure(ready, server.base_url, http={"model": "served"}, **MANY)
        assert "snapkv at 16: server ignored the budget: the reply has no kv object" in told(ready)
        assert server.settled("asked", QUIET_S).total() == 24 + 1, "the full cache's, and one with a budget"


TRANSIENT = [
    "429:0.01",
    "500",
    "503",
    "drop_before",
    "drop_inside",
    "reset_before",
    "no_finish",
    "stall_inside",
]
LASTING = ["400*", "malformed*", "html*", "trickle*", "503*"]


def test_with_thirty_percent_hurt_every_example_ends_with_one_row(clean: Project) -> None:
    draw, names = random.Random(11), [f"ex{number}" for number in range(40)]
    hurt = draw.sample(names, 12)
    faults = {name: [draw.choice(TRANSIENT), "ok", draw.choice(TRANSIENT)] for name in hurt[5:]}
    faults |= dict(zip(hurt[:5], ([fault] for fault in LASTING), strict=True))
    (clean.folder / "records").mkdir()
    filler = " ".join(f"word{number}" for number in range(30))
    records = [
        {"_id": name, "input": f"Who is it? id={name};", "context": f"{name} {filler}", "answers": ["answer"]}
        for name in names
    ]
    (clean.folder / f"records/{TASK}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    http = {"model": "served", "read_timeout_s": 0.3, "total_timeout_s": 1.0}
    with FaultProcess({"latency_s": 0.005, "faults": faults}) as server:
        configure(
            clean,
            server.base_url,
            http=http,
            dataset={"path": "records", "name": "own"},
            binning={"n_bins": 1, "n_per_bin": 40},
            kv=MANY["kv"],
            run={"allow_failed_reference": True, "max_failure_rate": 0.2},
        )
        clean.run(target=ANSWERS)
        answered = server.settled("answered", QUIET_S)
    rows = responses(clean)
    assert Counter(rows[["example_id", "method"]].value_counts()) == {1: 80}
    failed = rows[rows["failure"].notna()]
    assert Counter(failed["example_id"]) == dict.fromkeys(hurt[:5], 2)
    assert set(failed.loc[failed["failure"] == "TIMEOUT", "example_id"]) == {
        name for name in hurt[:5] if faults[name] == ["trickle*"]
    }
    assert failed["error"].str.len().gt(0).all()
    good = rows[rows["failure"].isna()]
    assert (good["text"] == "answer to " + good["example_id"]).all()
    assert answered == Counter(good["example_id"]), "what was answered and received is not asked again"
    assert (good["attempts"] > 1).sum() >= 10
