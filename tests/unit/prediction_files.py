"""Predictions files for the tests of scoring and comparing."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def line(pred: Any = "Paris", answers: Any = ("Paris",), length: Any = 100, **more: Any) -> dict[str, Any]:
    """One line of a predictions file."""
    return {"pred": pred, "answers": answers, "all_classes": None, "length": length} | more


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """Write a predictions file; text stands for itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def records(n: int) -> list[dict[str, Any]]:
    """Lines that differ in reference answers and length."""
    return [line(f"city {i}", [f"city {i}"], 1000 + i) for i in range(n)]
