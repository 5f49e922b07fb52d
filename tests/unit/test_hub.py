"""Tasks of the hub: whole and checked, or one line at once. A stand-in serves them; the real client fetches.

The client reads HF_ENDPOINT when it is imported, so it runs in processes of its own. HF_HUB_DISABLE_XET keeps it to
plain HTTP, which is all that the stand-in speaks.
"""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer, Repository

from kv_transition.data.longbench_loader import read_records

#: Runs the calls that come as lines of JSON; a small chunk makes a small file behave like a large one.
CLIENT = """
import json, sys, time
answers, sys.stdout = sys.stdout, sys.stderr
from huggingface_hub import constants
from kv_transition.data import longbench_loader
from kv_transition.errors import UserError
whole = constants.DOWNLOAD_CHUNK_SIZE
for line in sys.stdin:
    call = json.loads(line)
    constants.DOWNLOAD_CHUNK_SIZE = call["chunk"] or whole
    start, result, error = time.monotonic(), None, None
    try:
        result = getattr(longbench_loader, call["name"])(*call["args"], **call["options"])
    except UserError as raised:
        error = str(raised)
    seconds = time.monotonic() - start
    print(json.dumps([result, error, seconds, "datasets" in sys.modules]), file=answers, flush=True)
"""


@dataclass
class Answer:
    """What a call returned or said, how long it took, and whether `datasets` has been imported since the start."""

    result: Any
    error: str | None
    seconds: float
    imported_datasets: bool


class Client:
    """The library in a process of its own, with its own endpoint and cache."""

    def __init__(self, endpoint: str, home: Path, **environment: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        own = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self.log = (home / f"client-{time.monotonic_ns()}.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=kept | own | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def call(self, name: str, *args: Any, chunk: int | None = None, **options: Any) -> Answer:
        assert self.process.stdin
        assert self.process.stdout
        call = {"name": name, "args": args, "options": options, "chunk": chunk}
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the client ended: {Path(self.log.name).read_text()[-2000:]}"
        return Answer(*json.loads(line))

    def tasks(self, repo_id: str, revision: str | None = None) -> list[str]:
        answer = self.call("list_longbench_tasks", repo_id, revision)
        assert answer.error is None
        return answer.result

    def fetch(
        self, repo_id: str, task: str, out: Path, revision: str | None = None, **options: Any
    ) -> Answer:
        return self.call("fetch_from_hub", repo_id, task, revision, str(out), **options)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.log.close()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's cache; tests do not meet in it, because each has a repository of its own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub: HubServer, home: Path) -> Iterator[Client]:
    started = Client(hub.endpoint, home)
    yield started
    started.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "qa.jsonl"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Id of the test's own repository."""
    return f"owner/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


def record(number: int, **changes: Any) -> dict[str, Any]:
    base = {
        "input": f"Who, {number}? Où ?",
        "context": f"Story {number}.",
        "answers": ["me", "I"],
        "length": 2,
    }
    return base | {"dataset": "qa", "language": "en", "all_classes": None, "_id": str(number)} | changes


RECORDS = [record(number) for number in range(40)]


def lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records).encode()


def archive(**tasks: list[dict[str, Any]]) -> bytes:
    """A data.zip, stored without compression so that its size does not depend on a library."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for task, records in tasks.items():
            packed.writestr(f"data/{task}.jsonl", lines(records))
    return file.getvalue()


def zipped(**changes: Any) -> Repository:
    return Repository(
        {"LongBench.py": b"raise RuntimeError('never run')", "data.zip": archive(qa=RECORDS)}, **changes
    )


def card(*configurations: tuple[str, dict[str, str]]) -> bytes:
    """A README.md that names the data files of each configuration by split."""
    text = "---\nconfigs:\n"
    for configuration, splits in configurations:
        text += f"- config_name: {configuration}\n  data_files:\n"
        text += "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
    return (text + "---\n").encode()


def parquet(records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), file)
    return file.getvalue()


def dataset(**changes: Any) -> Repository:
    readme = card(("qa", {"test": "qa/test.parquet"}))
    return Repository({"README.md": readme, "qa/test.parquet": parquet(RECORDS)}, **changes)


def one_line(answer: Answer, at_most_s: float = 8) -> str:
    """The error that the user sees; the hub's client alone would take 24 s to say that nothing answers."""
    assert answer.error is not None
    assert "\n" not in answer.error
    assert answer.seconds < at_most_s
    return answer.error


def cached_bytes(home: Path, repo_id: str) -> list[bytes]:
    """What lies in the hub's cache for a repository, finished or not."""
    folder = home / "hub" / f"datasets--{repo_id.replace('/', '--')}" / "blobs"
    return [path.read_bytes() for path in folder.glob("*")]


# What the hub has


def test_an_archive_gives_its_tasks_and_records_without_the_datasets_library(
    hub: HubServer, tmp_path: Path, out: Path, name: str
) -> None:
    hub.repositories[name] = Repository({"data.zip": archive(qa=RECORDS, news_e=RECORDS[:1])})
    fresh = Client(hub.endpoint, tmp_path)
    assert fresh.tasks(name) == ["news_e", "qa"]
    answer = fresh.fetch(name, "qa", out)
    fresh.close()
    assert answer.error is None
    assert not answer.imported_datasets
    assert out.read_bytes() == lines(RECORDS)


def test_an_archive_comes_before_data_files_and_loading_scripts(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    hub.repositories[name] = zipped()
    hub.repositories[name].files |= {"qa/test.parquet": parquet(RECORDS[:1])}
    assert client.fetch(name, "qa", out).error is None
    assert read_records(out, "qa") == RECORDS


def test_an_archive_on_another_host_is_checked_by_the_checksum_of_the_hub(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    hub.repositories[name] = zipped(elsewhere=True, corrupted=1)
    assert client.fetch(name, "qa", out).error is None
    assert read_records(out, "qa") == RECORDS
    assert hub.requests("GET", f"/elsewhere/datasets/{name}") == 2


def test_one_data_json_of_longbench_v2_is_the_task_longbench_v2(
    hub: HubServer, client: Client, tmp_path: Path, name: str
) -> None:
    texts = ("domain", "sub_domain", "difficulty", "question", *(f"choice_{letter}" for letter in "ABCD"))
    row = {
        "_id": "1",
        **{text: f"{text}?" for text in texts},
        "length": "short",
        "answer": "B",
        "context": "C.",
    }
    hub.repositories[name] = Repository({"data.json": json.dumps([row, row | {"_id": "2"}]).encode()})
    assert client.tasks(name) == ["longbench_v2"]
    assert client.fetch(name, "longbench_v2", tmp_path / "longbench_v2.jsonl").error is None
    records = read_records(tmp_path, "longbench_v2")
    assert [r["_id"] for r in records] == ["1", "2"]
    assert records[0]["answers"] == ["B"]
    assert records[0]["extra"]["length_group"] == "short"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_dataset_of_data_files_gives_the_tasks_that_it_configures(
    hub: HubServer, client: Client, out: Path, name: str, ending: str
) -> None:
    readme = card(
        ("qa", {"train": f"qa/train.{ending}", "test": f"qa/test.{ending}"}),
        ("news", {"dev": f"n.{ending}"}),
    )
    written = lines if ending == "jsonl" else parquet
    hub.repositories[name] = Repository(
        {
            "README.md": readme,
            f"qa/train.{ending}": written(RECORDS[:1]),
            f"qa/test.{ending}": written(RECORDS),
            f"n.{ending}": written(RECORDS[:2]),
        }
    )
    assert client.tasks(name) == ["news", "qa"]
    assert client.fetch(name, "qa", out).error is None
    assert read_records(out, "qa") == RECORDS
    assert client.fetch(name, "news", out).error is None
    assert read_records(out, "qa") == RECORDS[:2]


def test_a_data_json_of_other_columns_is_a_dataset_like_others(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    files = {"README.md": card(("qa", {"test": "data.json"})), "data.json": json.dumps(RECORDS).encode()}
    hub.repositories[name] = Repository(files)
    assert client.tasks(name) == ["qa"]
    assert client.fetch(name, "qa", out).error is None
    assert read_records(out, "qa") == RECORDS


def test_a_dataset_of_several_splits_without_test_is_refused_with_their_names(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    readme = card(("qa", {"train": "a.jsonl", "dev": "b.jsonl"}))
    hub.repositories[name] = Repository(
        {"README.md": readme, "a.jsonl": lines(RECORDS), "b.jsonl": lines(RECORDS)}
    )
    assert "no split test; it has train, dev" in one_line(client.fetch(name, "qa", out))


def test_unfit_records_are_named_by_row_before_anything_is_written(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    bad = [record(number, answers="me") for number in range(2)]
    hub.repositories[name] = Repository(
        {"README.md": card(("qa", {"test": "a.jsonl"})), "a.jsonl": lines(bad)}
    )
    assert "row 1: answers is one text" in one_line(client.fetch(name, "qa", out))
    assert not out.exists()


def test_a_pinned_commit_in_the_cache_needs_no_hub(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    hub.repositories[name] = zipped()
    commit = hub.repositories[name].commit
    assert client.fetch(name, "qa", out, commit).error is None
    hub.repositories[name].refusal = "broken"
    out.unlink()
    assert client.fetch(name, "qa", out, commit).error is None
    assert read_records(out, "qa") == RECORDS


# What the hub has not


@pytest.mark.parametrize("task", ["QA", "news"])
@pytest.mark.parametrize("made", [zipped, dataset])
def test_a_missing_task_lists_the_tasks_that_are_there(
    hub: HubServer, client: Client, out: Path, name: str, made: Any, task: str
) -> None:
    hub.repositories[name] = made()
    message = one_line(client.fetch(name, task, out))
    assert f"{name} (revision newest) has no {task}" in message
    assert message.endswith("(case counts); it has qa")
    assert not out.exists()


def test_a_missing_repository_is_named(client: Client, out: Path, name: str) -> None:
    assert f"dataset.hub_id: the hub has no dataset {name}" in one_line(client.fetch(name, "qa", out))
    listed = client.call("list_longbench_tasks", name)
    assert "or name a folder that exists" in one_line(listed)


def test_a_missing_revision_is_named(hub: HubServer, client: Client, out: Path, name: str) -> None:
    hub.repositories[name] = zipped()
    message = one_line(client.fetch(name, "qa", out, "5e628be"))
    assert f"dataset.revision: {name} has no revision 5e628be" in message


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("gated", "is gated; accept its terms on the hub and set HF_TOKEN"),
        ("forbidden", "the hub refuses"),
        ("broken", "the hub answers 500"),
    ],
)
def test_a_refusal_is_told_at_once_and_leaves_no_file(
    hub: HubServer, client: Client, out: Path, name: str, refusal: str, message: str
) -> None:
    hub.repositories[name] = zipped(refusal=refusal)
    assert message in one_line(client.fetch(name, "qa", out))
    assert not out.exists()


def test_an_id_that_is_none_is_refused(client: Client, out: Path) -> None:
    assert "write owner/name" in one_line(client.fetch("owner/a/b", "qa", out))


def test_an_unreachable_hub_is_told_within_seconds(tmp_path: Path, out: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        alone = Client(endpoint, tmp_path)
        fetched, listed = alone.fetch("o/n", "qa", out), alone.call("list_longbench_tasks", "o/n")
        alone.close()
    for answer in (fetched, listed):
        assert f"cannot be reached at {endpoint}" in one_line(answer)
        assert "dataset.path" in one_line(answer)


def test_an_endpoint_that_is_no_hub_is_told(tmp_path: Path, out: Path) -> None:
    with HubServer() as other:
        other.repositories["o/n"] = zipped()
        other.repositories["o/n"].commit = ""
        alone = Client(other.endpoint, tmp_path)
        message = one_line(alone.fetch("o/n", "qa", out))
        alone.close()
    assert "HF_ENDPOINT" in message


# Broken downloads


def test_a_download_that_is_cut_off_once_is_resumed_where_it_ended(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    hub.repositories[name] = zipped(drops=1)
    assert client.fetch(name, "qa", out, chunk=1000).error is None
    assert read_records(out, "qa") == RECORDS
    assert hub.ranges[name] != []


@pytest.mark.parametrize("fault", [{"drops": 1, "resumable": False}, {"resets": 1}, {"errors": 1}])
def test_a_download_that_breaks_once_begins_again(
    hub: HubServer, client: Client, out: Path, name: str, fault: dict[str, Any]
) -> None:
    hub.repositories[name] = zipped(**fault)
    assert client.fetch(name, "qa", out, chunk=1000).error is None
    assert read_records(out, "qa") == RECORDS
    assert hub.requests("GET", f"{name}/resolve") == 2


@pytest.mark.parametrize(
    "fault",
    [
        {"drops": 1000},
        {"resets": 1000},
        {"errors": 1000},
        {"drops": 1000, "resumable": False, "cut_at": 0.9, "chunk": 1000},
    ],
    ids=["closed", "reset", "status 500", "starting from nothing"],
)
def test_a_download_that_always_breaks_ends_in_one_line_and_nothing_half_written(
    hub: HubServer, client: Client, home: Path, out: Path, name: str, fault: dict[str, Any]
) -> None:
    chunk = fault.get("chunk")
    hub.repositories[name] = zipped(**{key: value for key, value in fault.items() if key != "chunk"})
    message = one_line(client.fetch(name, "qa", out, chunk=chunk), at_most_s=15)
    assert "data.zip" in message or "500" in message
    assert hub.requests("GET", f"{name}/resolve") < 10
    assert not out.exists()
    assert cached_bytes(home, name) == []


# Checksums


@pytest.mark.parametrize("made", [zipped, dataset])
def test_a_file_with_a_wrong_checksum_is_fetched_once_more(
    hub: HubServer, client: Client, home: Path, out: Path, name: str, made: Any
) -> None:
    hub.repositories[name] = made(corrupted=1)
    assert client.fetch(name, "qa", out).error is None
    assert read_records(out, "qa") == RECORDS
    files = hub.repositories[name].files.values()
    assert all(content in files for content in cached_bytes(home, name))


@pytest.mark.parametrize("made", [zipped, dataset])
def test_a_checksum_that_stays_wrong_is_told_with_both_values_and_the_file_forgotten(
    hub: HubServer, client: Client, home: Path, out: Path, name: str, made: Any
) -> None:
    repository = hub.repositories[name] = made(corrupted=1000)
    message = one_line(client.fetch(name, "qa", out))
    large = next(path for path in repository.files if path.endswith((".zip", ".parquet")))
    content = repository.files[large]
    middle = len(content) // 2
    found = hashlib.sha256(
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    ).hexdigest()
    assert f"{large} of {name}" in message
    assert f"has the sha256 {found}, the hub names {repository.sha256(large)}" in message
    assert hub.requests("GET", f"{name}/resolve", large) == 2
    assert not out.exists()
    assert all(content in repository.files.values() for content in cached_bytes(home, name))


def test_a_file_of_the_cache_that_has_changed_is_fetched_again(
    hub: HubServer, client: Client, home: Path, out: Path, name: str
) -> None:
    hub.repositories[name] = zipped()
    commit = hub.repositories[name].commit
    client.fetch(name, "qa", out, commit)
    blob = next((home / "hub" / f"datasets--{name.replace('/', '--')}" / "blobs").glob("*"))
    blob.write_bytes(blob.read_bytes()[:-100])
    assert client.fetch(name, "qa", out, commit).error is None
    assert hub.requests("GET", f"{name}/resolve") == 2


def test_a_file_that_is_not_the_one_expected_is_refused_before_the_download(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    repository = hub.repositories[name] = zipped()
    message = one_line(client.fetch(name, "qa", out, sha256="0" * 64))
    assert f"has the sha256 {repository.sha256('data.zip')}, dataset.sha256 names {'0' * 64}" in message
    assert hub.requests("GET", f"{name}/resolve") == 0
    assert not out.exists()


def test_a_wrong_expectation_does_not_cost_the_file_of_the_cache(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    hub.repositories[name] = zipped()
    commit = hub.repositories[name].commit
    client.fetch(name, "qa", out, commit)
    assert "dataset.sha256 names" in one_line(client.fetch(name, "qa", out, commit, sha256="0" * 64))
    assert client.fetch(name, "qa", out, commit).error is None
    assert hub.requests("GET", f"{name}/resolve") == 1


def test_a_small_file_has_no_checksum_of_the_hub_but_the_expected_one_counts(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    repository = hub.repositories[name] = zipped(plain=("data.zip",))
    assert client.fetch(name, "qa", out, sha256=repository.sha256("data.zip").upper()).error is None
    out.unlink()
    message = one_line(client.fetch(name, "qa", out, sha256="0" * 64))
    assert f"has the sha256 {repository.sha256('data.zip')}, dataset.sha256 names" in message
    assert not out.exists()


def test_a_dataset_of_many_files_has_no_one_checksum(
    hub: HubServer, client: Client, out: Path, name: str
) -> None:
    hub.repositories[name] = dataset()
    message = one_line(client.fetch(name, "qa", out, sha256="0" * 64))
    assert "dataset.sha256" in message
    assert "remove the key" in message


# Offline


def test_offline_the_cache_serves_what_it_has_and_the_rest_is_told_at_once(
    hub: HubServer, tmp_path: Path, out: Path
) -> None:
    hub.repositories |= {"offline/zip": zipped(), "offline/set": dataset()}
    online = Client(hub.endpoint, tmp_path)
    for name in ("offline/zip", "offline/set"):
        assert online.fetch(name, "qa", out).error is None
    online.close()
    out.unlink()
    asked = len(hub.log)
    offline = Client(hub.endpoint, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.tasks("offline/zip") == ["qa"]
    right, wrong = hub.repositories["offline/zip"].sha256("data.zip"), "0" * 64
    assert offline.fetch("offline/zip", "qa", out, sha256=right).error is None
    assert read_records(out, "qa") == RECORDS
    other = one_line(offline.fetch("offline/zip", "qa", out, sha256=wrong))
    again = offline.fetch("offline/set", "qa", out)
    pinned = offline.fetch("offline/set", "qa", out, hub.repositories["offline/set"].commit)
    unknown = one_line(offline.fetch("offline/set", "news", out))
    changed = one_line(offline.fetch("offline/set", "qa", out, "5e628be" + "0" * 33))
    missing = one_line(offline.fetch("offline/other", "qa", out))
    offline.close()
    assert f"has the sha256 {right}, dataset.sha256 names {wrong}" in other
    assert again.error is None
    assert read_records(out, "qa") == RECORDS
    assert pinned.error is None
    assert "['qa']" in unknown
    assert "the cache has the commit" in changed
    assert "not in the hub's cache" in missing
    assert "HF_HUB_OFFLINE" in missing
    assert len(hub.log) == asked
