"""A stand-in for the Hugging Face hub on this machine: the requests that its client and `datasets` send, and faults.

It answers over HTTP on a port of 127.0.0.1, so HF_ENDPOINT has to name it before huggingface_hub is imported. Files come
by plain HTTP: it never offers hf-xet, and HF_HUB_DISABLE_XET=1 keeps the client from looking for it.
"""

import hashlib
import json
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

#: Answers that are no file: status and the code by which the client knows what is missing.
REFUSALS = {
    "no repository": (404, "RepoNotFound"),
    "no revision": (404, "RevisionNotFound"),
    "no file": (404, "EntryNotFound"),
    "gated": (401, "GatedRepo"),
    "forbidden": (403, None),
    "broken": (500, None),
}


@dataclass
class Repository:
    """A dataset repository with one commit, on the branch main.

    Attributes
    ----------
    files : contents by path.
    refusal : a key of REFUSALS that answers every request.
    drops : downloads that are cut off in the middle, still to come.
    resets : the same, but the connection is reset instead of closed.
    cut_at : the part of a file that comes before it is cut off.
    errors : downloads answered by status 500, still to come.
    corrupted : downloads with another byte in the middle, still to come.
    resumable : whether a download may start in the middle.
    plain : paths of small files, whose etag is no sha256.
    elsewhere : whether downloads are redirected to another host.
    """

    files: dict[str, bytes]
    refusal: str | None = None
    drops: int = 0
    resets: int = 0
    cut_at: float = 0.5
    errors: int = 0
    corrupted: int = 0
    resumable: bool = True
    plain: tuple[str, ...] = ("README.md",)
    elsewhere: bool = False
    commit: str = field(init=False)

    def __post_init__(self) -> None:
        names = json.dumps([[name, self.sha256(name)] for name in sorted(self.files)])
        self.commit = hashlib.sha1(names.encode()).hexdigest()

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def entry(self, name: str) -> dict[str, object]:
        """What the listing of a folder says of a file."""
        size, oid = len(self.files[name]), hashlib.sha1(self.files[name]).hexdigest()
        lfs = (
            {}
            if name in self.plain
            else {"lfs": {"oid": self.sha256(name), "size": size, "pointerSize": 130}}
        )
        return {"type": "file", "path": name, "size": size, "oid": oid, **lfs}


class HubServer:
    """Serves the repositories in `repositories`, by owner/name, and keeps the requests in `log`.

    `ranges` has, by repository, where downloads were resumed.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[str] = []
        self.ranges: dict[str, list[int]] = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.shutdown()
        self.http.server_close()

    def requests(self, method: str, *texts: str) -> int:
        """How many requests of a method had all the texts in their address."""
        return sum(line.startswith(f"{method} ") and all(text in line for text in texts) for line in self.log)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        self.server_hub.log.append(f"{self.command} {unquote(self.path)}")

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if parts[0] in ("api", "elsewhere") else parts
        self.name = "/".join(parts[1:3])
        repository = self.server_hub.repositories.get(self.name)
        revision = parts[4] if len(parts) > 4 else "main"
        if repository is None:
            self.refuse("no repository")
        elif repository.refusal:
            self.refuse(repository.refusal)
        elif revision not in ("main", repository.commit):
            self.refuse("no revision")
        elif api:
            self.describe(repository, parts[3] if len(parts) > 3 else "revision", "/".join(parts[5:]), body)
        elif "/".join(parts[5:]) not in repository.files:
            self.refuse("no file", repository.commit)
        else:
            self.serve(repository, "/".join(parts[5:]))

    def refuse(self, refusal: str, commit: str | None = None) -> None:
        status, code = REFUSALS[refusal]
        headers = {"X-Error-Message": refusal, **({"X-Error-Code": code} if code else {})}
        self.send(status, headers | ({"X-Repo-Commit": commit} if commit else {}), b"")

    def describe(self, repository: Repository, what: str, folder: str, body: bytes) -> None:
        """The repository as a whole, a folder's listing, or the paths that the request names."""
        entries = [repository.entry(name) for name in sorted(repository.files)]
        answer: object
        if what == "tree":
            inside = f"{folder}/" if folder else ""
            answer = [entry for entry in entries if str(entry["path"]).startswith(inside)]
            if not answer:
                self.refuse("no file", repository.commit)
                return
        elif what == "paths-info":
            form = parse_qs(body.decode())
            paths = form.get("paths") or json.loads(body or b"{}").get("paths", [])
            answer = [entry for entry in entries if entry["path"] in paths]
        else:
            siblings = [{"rfilename": name} for name in sorted(repository.files)]
            answer = {"id": "stand/in", "sha": repository.commit, "siblings": siblings, "private": False}
            answer |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        self.send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def serve(self, repository: Repository, name: str) -> None:
        content = repository.files[name]
        etag = hashlib.sha1(content).hexdigest() if name in repository.plain else repository.sha256(name)
        headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if repository.commit:
            headers |= {"X-Repo-Commit": repository.commit}
        if repository.elsewhere and not self.path.startswith("/elsewhere"):
            where = f"http://localhost:{self.server_hub.port}/elsewhere{self.path}"
            headers |= {"Location": where, "ETag": '"other"', "X-Linked-Etag": f'"{etag}"'}
            self.send(302, headers | {"X-Linked-Size": str(len(content))}, b"")
        elif self.command == "HEAD" or name in repository.plain:
            self.send(200, headers, content)
        elif repository.errors:
            repository.errors -= 1
            self.refuse("broken")
        else:
            self.send_file(repository, content, headers)

    def send_file(self, repository: Repository, content: bytes, headers: dict[str, str]) -> None:
        status, start = 200, 0
        if repository.resumable and (wanted := self.headers.get("Range")):
            status, start = 206, int(wanted.removeprefix("bytes=").split("-")[0])
            self.server_hub.ranges.setdefault(self.name, []).append(start)
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if repository.corrupted:
            repository.corrupted -= 1
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        content = content[start:]
        cut = max(int(len(content) * repository.cut_at), 1)
        if repository.drops:
            repository.drops -= 1
            self.send(status, headers, content, cut)
            self.close_connection = True
        elif repository.resets:
            repository.resets -= 1
            self.send(status, headers, content, cut)
            # A socket that must not linger is reset when it is closed.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True
        else:
            self.send(status, headers, content)

    def send(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        """The whole answer, or one that promises the content and ends after `cut` bytes of it."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
