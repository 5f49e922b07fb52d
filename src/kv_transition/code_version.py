"""A hash of what a rule's code does: its script and all library modules it imports, however far away.

Comments, docstrings and layout do not count, so editing them reruns nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent

#: Modules through which every script reports; what they do cannot change a result.
WITHOUT_INFLUENCE = {PACKAGE / "run/script.py", PACKAGE / "errors.py"}
#: Files beside a package's modules that its code reads.
DATA_SUFFIXES = {".jinja", ".sql"}


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
def _read(path: Path, modified_ns: int) -> tuple[str, tuple[Path, ...]]:
    """Hash of a source and the files of this package that it imports."""
    text = path.read_text(encoding="utf-8")
    files = {_module_file(name) for name in _imported(ast.parse(text))}
    return source_hash(text), tuple(sorted(file for file in files if file is not None))


def modules_of(script: str | Path) -> list[Path]:
    """Files of this package that a script depends on, directly or through others, package data included."""
    found: set[Path] = set()
    waiting = [Path(script)]
    while waiting:
        path = waiting.pop()
        for file in _read(path, path.stat().st_mtime_ns)[1]:
            if file not in found and file not in WITHOUT_INFLUENCE:
                found.add(file)
                waiting.append(file)
    folders = {file.parent for file in found} - {PACKAGE}
    data = {file for folder in folders for file in folder.rglob("*") if file.suffix in DATA_SUFFIXES}
    return sorted(found | data)


def code_version(script: str | Path) -> str:
    """Hash of a rule's script and of everything it imports from this package."""
    digest = hashlib.sha256()
    for file in [Path(script), *modules_of(script)]:
        is_code = file.suffix == ".py"
        content = (
            _read(file, file.stat().st_mtime_ns)[0]
            if is_code
            else hashlib.sha256(file.read_bytes()).hexdigest()
        )
        digest.update(f"{file.name}:{content}\n".encode())
    return digest.hexdigest()[:16]
