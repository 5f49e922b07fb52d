"""A hash of what code does: comments, docstrings and layout do not count, so editing them reruns nothing."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


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


@cache
def _file_hash(path: Path, modified_ns: int) -> str:
    text = path.read_text(encoding="utf-8")
    return source_hash(text) if path.suffix == ".py" else hashlib.sha256(text.encode()).hexdigest()


def code_version(script: str | Path, modules: Iterable[str]) -> str:
    """Hash of a rule's script and of the library modules it depends on.

    Parameters
    ----------
    script : the rule's script.
    modules : names inside kv_transition, "eval" (a whole package, with its templates) or "data/prompts".
    """
    files = [Path(script)]
    for module in modules:
        path = PACKAGE / module
        found = (
            [file for file in path.rglob("*") if file.suffix in {".py", ".jinja", ".sql"}]
            if path.is_dir()
            else [path.with_suffix(".py")]
        )
        files += sorted(found)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{_file_hash(file, file.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]
