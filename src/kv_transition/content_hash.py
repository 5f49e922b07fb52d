"""Hashes of leaf files (weights, records), kept so that a 16 GB model is not read again for every dry run."""

from __future__ import annotations

import json
from pathlib import Path

from kv_transition.files import canonical_json, sha256_file, sha256_text, write_text

#: What decides a model's answers in its folder; a card or a picture does not.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")


def cached_sha256(path: str | Path, cache_dir: str | Path) -> str:
    """Content hash of a file, taken from the cache while its size and modification time are those of the entry.

    Parameters
    ----------
    path : file to hash.
    cache_dir : folder with one small entry per file, safe for concurrent writers.
    """
    file = Path(path).resolve()
    stat = file.stat()
    entry = Path(cache_dir) / "sha256" / f"{sha256_text(str(file))[:32]}.json"
    stamp = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        known = json.loads(entry.read_text(encoding="utf-8"))
        if {key: known[key] for key in stamp} == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = sha256_file(file)
    write_text(entry, canonical_json({**stamp, "sha256": digest}))
    return digest


def model_files(folder: str | Path) -> list[str]:
    """Weights, configuration and tokenizer of a model folder, sorted."""
    return sorted({str(file) for pattern in MODEL_FILES for file in Path(folder).glob(pattern)})


def model_sha256(folder: str | Path, cache_dir: str | Path) -> str:
    """One hash for everything in a model folder that decides its answers."""
    return sha256_text(
        canonical_json({Path(file).name: cached_sha256(file, cache_dir) for file in model_files(folder)})
    )
