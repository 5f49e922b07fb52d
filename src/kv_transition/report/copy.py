"""A finished report in another place."""

from __future__ import annotations

from pathlib import Path

from kv_transition.files import write_text
from kv_transition.report.markdown import move_links


def write_report_copy(src_report: str | Path, dst: str | Path) -> None:
    """Copy a report to another place, whole or not at all, with its relative links leading to the same files."""
    text = Path(src_report).read_text(encoding="utf-8")
    write_text(dst, move_links(text, src_report, dst))
