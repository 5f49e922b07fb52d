"""Where a result comes from: configuration, code, packages and machine, without secrets or paths of the machine."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import kv_transition
from kv_transition.files import canonical_json, sha256_text

PACKAGES = (
    "numpy", "scipy", "pandas", "pyarrow", "statsmodels", "matplotlib", "jinja2", "pydantic", "tokenizers",
    "safetensors", "bm25s", "snakemake", "torch", "transformers", "kvpress",
)  # fmt: skip
_SECRET = re.compile(
    r"(^|_)(api_key|secret|password|passwd|authorization|access_token|credentials?)$", re.IGNORECASE
)


def collect(settings: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything a reader needs to know which code and configuration made a result.

    Parameters
    ----------
    settings : the resolved configuration. Its hash is that of the whole; what is shown is cleaned.
    extra : further facts, e.g. model_sha256 or tokenizer; they are cleaned too and win over collected ones. None: there
        is no such thing in this experiment.

    Returns
    -------
    A JSON-ready dictionary: kv_transition, config_hash, settings, git {commit, dirty}, python, platform, host, packages,
    and the extra facts.
    """
    facts: dict[str, Any] = {
        "kv_transition": kv_transition.__version__,
        "config_hash": sha256_text(canonical_json(settings)),
        "settings": cleaned(settings),
        "git": git_state(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "host": platform.node(),
        "packages": package_versions(),
    }
    facts.update({name: cleaned(fact) for name, fact in (extra or {}).items() if fact is not None})
    return facts


def answered_by(responses: Sequence[str | Path]) -> dict[str, list[str]]:
    """Engines and machines that computed the answers of response files, which need not be those of the report."""
    import pyarrow.parquet as pq

    found: dict[str, set[str]] = {"answered_by": set(), "answered_on": set()}
    for path in responses:
        columns = pq.read_table(path, columns=["engine", "host"]).to_pydict()
        for text in set(columns["engine"]) - {None}:
            found["answered_by"].add(
                ", ".join(f"{key} {value}" for key, value in sorted(json.loads(text).items()))
            )
        found["answered_on"].update(host for host in columns["host"] if host)
    return {name: sorted(values) for name, values in found.items() if values}


def model_remarks(responses: Sequence[str | Path]) -> list[str]:
    """What has to be known of the model that computed the answers of response files: a sentence each."""
    import pyarrow.parquet as pq

    engines: set[str] = set()
    for path in responses:
        engines.update(pq.read_table(path, columns=["engine"])["engine"].drop_null().to_pylist())
    facts = [json.loads(text) for text in sorted(engines)]
    remarks = []
    if any(fact.get("chat_template") == "none" for fact in facts):
        remarks.append("The model has no chat template: prompts were asked as plain text.")
    for name in sorted({fact["untested_model"] for fact in facts if "untested_model" in fact}):
        remarks.append(
            f"kvpress is not tested with models of class {name}. Before the run, its attention was compared with the model's own "
            "on a short text, and they agreed."
        )
    return remarks


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: str | Path = ".") -> dict[str, Any]:
    """The commit of a folder's work tree and whether tracked files differ from it; both None outside git."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cleaned(value: Any) -> Any:
    """A nested value without secrets, user names in web addresses, or absolute paths (their last part stays)."""
    if isinstance(value, Mapping):
        return {
            key: "(hidden)" if _SECRET.search(str(key)) and item else cleaned(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    return _cleaned_text(value) if isinstance(value, str) else value


def _cleaned_text(text: str) -> str:
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme == "file":
            return PurePosixPath(parts.path).name
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
    if text.startswith(("/", "~")):
        return PurePosixPath(text).name
    return PureWindowsPath(text).name if re.match(r"[A-Za-z]:[\\/]|\\\\", text) else text
