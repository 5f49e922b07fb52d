"""The official tables are fetched whole and unchanged, or not at all, and what is wrong is said at once."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kv_transition.data import protocol_tables
from kv_transition.data.protocol_tables import ADDRESS_VARIABLE, SHA256, fetch_tables
from kv_transition.errors import UserError
from kv_transition.paths import LONGBENCH_COMMIT


class Mirror(ThreadingHTTPServer):
    """Serves a folder; `fault` says how one of its files is served instead, `asked` how often each was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.fault, self.asked = folder, "", Counter[str]()
        self.faults_left = 10**6

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/config/"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/config/")
        self.server.asked[name] += 1
        content, fault = (self.server.folder / name).read_bytes(), ""
        if name == "model2maxlen.json" and self.server.faults_left > 0:
            self.server.faults_left -= 1
            fault = self.server.fault
        if fault in ("404", "403", "503"):
            self.send_error(int(fault))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(10**9 if fault == "endless" else len(content)))
        self.end_headers()
        if fault == "broken off":
            content = content[:50]
        elif fault == "another file":
            content = content.replace(b"3500", b"3501")
        elif fault == "endless":
            content *= 1000
        if fault in ("silent", "drops"):
            self.serve_slowly(content, fault)
        else:
            self.wfile.write(content)

    def serve_slowly(self, content: bytes, fault: str) -> None:
        """Nothing at all, or a byte at a time."""
        for byte in content[:40]:
            if fault == "drops":
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            time.sleep(0.1)


@pytest.fixture
def source(shared: Path) -> Path:
    return shared / "longbench_config"


@pytest.fixture
def mirror(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    server = Mirror(source)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv(ADDRESS_VARIABLE, server.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(protocol_tables, "PAUSE_S", 0.01)
    yield server
    server.shutdown()
    server.server_close()


def check(path: Path, source: Path) -> None:
    """The file holds the tables as they are."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["commit"] == LONGBENCH_COMMIT
    assert content["sha256"] == SHA256
    for key, name in (
        ("prompts", "dataset2prompt.json"),
        ("max_new_tokens", "dataset2maxlen.json"),
        ("max_length", "model2maxlen.json"),
    ):
        assert content[key] == json.loads((source / name).read_text(encoding="utf-8"))


def test_tables_are_taken_from_a_folder(source: Path, tmp_path: Path) -> None:
    fetch_tables(tmp_path / "new" / "tables.json", source)
    check(tmp_path / "new" / "tables.json", source)


def test_tables_are_downloaded_once_each(mirror: Mirror, source: Path, tmp_path: Path) -> None:
    fetch_tables(tmp_path / "tables.json")
    check(tmp_path / "tables.json", source)
    assert mirror.asked == dict.fromkeys(SHA256, 1)


def test_a_folder_and_a_download_give_the_same_bytes(mirror: Mirror, source: Path, tmp_path: Path) -> None:
    fetch_tables(tmp_path / "a.json", source)
    fetch_tables(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("fault", "reason", "asked"),
    [
        ("404", "status 404", 1),
        ("403", "status 403", 1),
        ("another file", r"model2maxlen\.json is not LongBench's .*expected 2405c0b8", 1),
        ("endless", r"is not LongBench's", 1),
        ("silent", "ConnectionError", 1),
        ("drops", "TimeoutError", 1),
        ("broken off", "the connection broke off", 3),
        ("503", "status 503", 3),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str, asked: int
) -> None:
    """The two slow servers end by themselves only after 4 s, with another reason than the limit that is broken."""
    mirror.fault = fault
    if fault == "silent":
        monkeypatch.setattr(protocol_tables, "READ_S", 0.3)
    if fault == "drops":
        monkeypatch.setattr(protocol_tables, "FILE_S", 0.5)
    with pytest.raises(UserError, match=reason) as error:
        fetch_tables(tmp_path / "tables.json")
    assert "\n" not in str(error.value)
    assert mirror.asked["model2maxlen.json"] == asked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["broken off", "503"])
def test_what_passes_by_itself_is_tried_again(
    mirror: Mirror, source: Path, tmp_path: Path, fault: str
) -> None:
    mirror.fault, mirror.faults_left = fault, 2
    fetch_tables(tmp_path / "tables.json")
    check(tmp_path / "tables.json", source)


def test_without_a_network_the_way_out_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv(ADDRESS_VARIABLE, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits for another attempt"))
    with pytest.raises(UserError, match=r"cannot be downloaded \(ConnectionError\); .*protocol\.path"):
        fetch_tables(tmp_path / "tables.json")


def test_a_failure_leaves_the_file_that_was_there(mirror: Mirror, source: Path, tmp_path: Path) -> None:
    fetch_tables(tmp_path / "tables.json", source)
    mirror.fault = "404"
    with pytest.raises(UserError):
        fetch_tables(tmp_path / "tables.json")
    check(tmp_path / "tables.json", source)


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in SHA256:
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def test_a_missing_file_of_a_folder_is_named(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path / "config")
    (folder / "dataset2maxlen.json").unlink()
    with pytest.raises(UserError, match=r"protocol\.path: .*config/dataset2maxlen\.json cannot be read"):
        fetch_tables(tmp_path / "tables.json", folder)


@pytest.mark.parametrize("name", SHA256)
def test_a_changed_file_of_a_folder_is_refused_by_its_checksum(
    source: Path, tmp_path: Path, name: str
) -> None:
    folder = copied(source, tmp_path / "config")
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(UserError, match=rf"{name} is not LongBench's at commit 2e00731f: .*{SHA256[name]}"):
        fetch_tables(tmp_path / "tables.json", folder)
    assert not (tmp_path / "tables.json").exists()
