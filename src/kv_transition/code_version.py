"""A hash of what a rule's code does: its script and all library modules it imports, however far away.

Comments, docstrings and layout do not count, so editing them reruns nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kv_transition.files import canonical_json, write_text

PACKAGE = Path(__file__).parent

#: Modules through which every script reports; what they do cannot change a result.
WITHOUT_INFLUENCE = {PACKAGE / "run/script.py", PACKAGE / "errors.py"}
#: Files beside a package's modules that its code reads.
DATA_SUFFIXES = {".jinja", ".css", ".js", ".sql"}


def _strip_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            first = body[0] if body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]


def source_hash(source: str) -> str:
    """Hash of a Python source's syntax tree without docstrings."""
    tree = ast.parse(source)
    _strip_docstrings(tree)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _module_file(name: str) -> Path | None:
    """The file of a module of this package, None for anything else."""
    if name.split(".")[0] != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*name.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports, at its top or inside functions; `from a import b` may name the module a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _read(path: Path, modified_ns: int, cache_dir: Path | None) -> tuple[str, tuple[str, ...]]:
    """Hash of a source and the names in this package that it imports.

    Parsing them all takes a second, so what was read is kept in `cache_dir` under the hash of the text.
    """
    text = path.read_bytes()
    entry = None if cache_dir is None else cache_dir / "code" / f"{_text_hash(text)}.json"
    if entry is not None:
        try:
            known = json.loads(entry.read_text(encoding="utf-8"))
            return str(known["hash"]), tuple(known["imports"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    source = text.decode()
    names = {name for name in _imported(ast.parse(source)) if name.split(".")[0] == PACKAGE.name}
    found = source_hash(source), tuple(sorted(names))
    if entry is not None:
        write_text(entry, canonical_json({"hash": found[0], "imports": found[1]}))
    return found


@cache
def _reader() -> bytes:
    """What decides how a source is read: this module, and Python's syntax trees."""
    return f"{sys.version_info}{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}".encode()


def _text_hash(text: bytes) -> str:
    return hashlib.sha256(_reader() + text).hexdigest()[:32]


def _of(path: Path, cache_dir: Path | None) -> tuple[str, tuple[str, ...]]:
    return _read(path, path.stat().st_mtime_ns, cache_dir)


def modules_of(script: str | Path, cache_dir: str | Path | None = None) -> list[Path]:
    """Files of this package that a script depends on, directly or through others, package data included."""
    kept = None if cache_dir is None else Path(cache_dir)
    found: set[Path] = set()
    waiting = [Path(script)]
    while waiting:
        for name in _of(waiting.pop(), kept)[1]:
            file = _module_file(name)
            if file is not None and file not in found and file not in WITHOUT_INFLUENCE:
                found.add(file)
                waiting.append(file)
    folders = {file.parent for file in found} - {PACKAGE}
    data = {file for folder in folders for file in folder.rglob("*") if file.suffix in DATA_SUFFIXES}
    return sorted(found | data)


def code_version(script: str | Path, cache_dir: str | Path | None = None) -> str:
    """Hash of a rule's script and of everything it imports from this package.

    Parameters
    ----------
    cache_dir : folder that keeps what was read of each source, safe for concurrent writers; may be deleted.
    """
    kept = None if cache_dir is None else Path(cache_dir)
    digest = hashlib.sha256()
    for file in [Path(script), *modules_of(script, kept)]:
        is_code = file.suffix == ".py"
        content = _of(file, kept)[0] if is_code else hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.name}:{content}\n".encode())
    return digest.hexdigest()[:16]
