"""LongBench's official prompts and lengths: fetched at one commit, checked, and kept in one file.

The texts are LongBench's (MIT), so they are no part of this project; their checksums are, so that a prompt is the official
one or there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from kv_transition.errors import UserError
from kv_transition.files import write_json
from kv_transition.paths import LONGBENCH_COMMIT

#: File -> SHA-256 at LONGBENCH_COMMIT.
SHA256 = {
    "dataset2prompt.json": "56d22ad4f382169c2b8a11ff4c982a4a1bea096c8152b0f0b85b64686b157c30",
    "dataset2maxlen.json": "72966b3c0933e214591637fb085798c5e687ebff4ddaab5d99bbc31120532022",
    "model2maxlen.json": "2405c0b85b215a504fb6a8f69c4982db7e2be2d53d177c69891cdcf0fe78f3ce",
}
ADDRESS = f"https://raw.githubusercontent.com/THUDM/LongBench/{LONGBENCH_COMMIT}/LongBench/config"
#: Environment variable with the address of a mirror: a folder that holds the three files.
ADDRESS_VARIABLE = "KV_TRANSITION_PROTOCOL_URL"

ATTEMPTS = 3
#: Seconds between attempts, for a connection, between bytes, and for one file.
PAUSE_S, CONNECT_S, READ_S, FILE_S = 1.0, 5.0, 10.0, 30.0
#: Far above the size of the files (6 kB); of a longer one no more is read, and its checksum is wrong.
MOST_BYTES = 50_000

REMEDY = "download the files elsewhere and set protocol.path to their folder"


def fetch_tables(out_path: str | Path, folder: str | Path | None = None) -> None:
    """Write LongBench's tables as one JSON file, whole or not at all.

    Parameters
    ----------
    out_path : file with commit, sha256 (of each table), prompts (task -> template), max_new_tokens (task -> answer
        length) and max_length (model -> longest prompt), in tokens.
    folder : holds the three tables; by default they are downloaded from GitHub, or from the mirror that the environment
        variable KV_TRANSITION_PROTOCOL_URL names.

    Raises
    ------
    UserError
        At once for a file that is missing or not the official one, and without a network; after a few attempts for a
        connection that breaks off or a server in trouble.
    """
    read: Callable[[str], bytes] = _download if folder is None else lambda name: _read(Path(folder), name)
    prompts, max_new_tokens, max_length = (json.loads(_checked(name, read(name))) for name in SHA256)
    write_json(
        out_path,
        {
            "commit": LONGBENCH_COMMIT,
            "sha256": SHA256,
            "prompts": prompts,
            "max_new_tokens": max_new_tokens,
            "max_length": max_length,
        },
    )


def _checked(name: str, content: bytes) -> bytes:
    """The content, if it is the official file's."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise UserError(
            f"protocol: {name} is not LongBench's at commit {LONGBENCH_COMMIT[:8]}: its SHA-256 is {digest}, expected "
            f"{SHA256[name]}; take the file from that commit, unchanged"
        )
    return content


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise UserError(
            f"protocol.path: {folder / name} cannot be read ({error.strerror}); the folder must hold {', '.join(SHA256)} of "
            f"LongBench at commit {LONGBENCH_COMMIT[:8]}"
        ) from None


def _download(name: str) -> bytes:
    """The bytes behind an address; only what may pass by itself is tried again."""
    import requests

    address = f"{(os.environ.get(ADDRESS_VARIABLE) or ADDRESS).rstrip('/')}/{name}"
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            return _body(address)
        except requests.HTTPError as error:
            reason = f"status {error.response.status_code}"
            if error.response.status_code < 500:
                break
        except requests.exceptions.ChunkedEncodingError:
            reason = "the connection broke off"
        except (requests.RequestException, TimeoutError) as error:
            reason = type(error).__name__
            break
    raise UserError(f"protocol: {address} cannot be downloaded ({reason}); {REMEDY}")


def _body(address: str) -> bytes:
    import requests

    end = time.monotonic() + FILE_S
    content = bytearray()
    with requests.get(address, timeout=(CONNECT_S, READ_S), stream=True) as answer:
        answer.raise_for_status()
        # Byte by byte, because a larger piece is only handed over when it is whole, however slowly it comes.
        for byte in answer.iter_content(1):
            content += byte
            if time.monotonic() > end:
                raise TimeoutError
            if len(content) > MOST_BYTES:
                break
    return bytes(content)
