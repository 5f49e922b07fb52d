"""Markdown that stays a page: text of models and users cannot become structure, tables line up, links are relative."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

#: Entities are never read as markup, so every character that could start some becomes one.
_STRUCTURE = re.compile(r"[&<>|`*_{}\[\]()#+\-!~\\:/@$^=\"'.]")
_LINK = re.compile(r"(?P<head>!?\[[^\]]*\]\()(?P<target>[^)\s]+)(?P<tail>\))")


def escape_text(text: object, limit: int | None = None) -> str:
    """Text of unknown origin as one line that shows exactly its characters in any Markdown renderer.

    Parameters
    ----------
    limit : longest result in characters of the text; what is cut off is marked by an ellipsis.
    """
    line = " ".join("".join(_visible(character) for character in str(text)).split())
    if limit is not None and len(line) > limit:
        line = line[: max(limit - 1, 0)].rstrip() + "…"
    return _STRUCTURE.sub(lambda match: f"&#{ord(match[0])};", line)


def _visible(character: str) -> str:
    """Line breaks become spaces; control, direction and lone-surrogate characters a replacement mark."""
    if character.isspace():
        return " "
    return (
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co"}
        else character
    )


def name_text(name: object) -> str:
    """A name from the configuration: only what a table or a heading would misread is escaped."""
    return re.sub(r"[&<>|`*\[\]\\]", lambda match: f"&#{ord(match[0])};", " ".join(str(name).split()))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int = 1) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right. Cells must be escaped already.

    Raises
    ------
    ValueError
        When a row has not as many cells as the header.
    """
    rules = ["---" if index < numbers_from else "--:" for index in range(len(header))]
    lines = [list(header), rules]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a table row has {len(row)} cells, its header {len(header)}: {list(row)}")
        lines.append([str(cell).replace("\n", " ") for cell in row])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def relative_link(target: str | Path, page: str | Path) -> str:
    """The address of a file as seen from a page, with forward slashes and escaped spaces."""
    relative = os.path.relpath(target, Path(page).parent)
    return quote(Path(relative).as_posix(), safe="/.~-_")


def move_links(markdown: str, source: str | Path, destination: str | Path) -> str:
    """Rewrite a page's relative links so that they lead to the same files from another place.

    Web addresses, anchors and absolute paths stay as they are.
    """

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[#/]", target):
            return match[0]
        return (
            match["head"] + relative_link(Path(source).parent / unquote(target), destination) + match["tail"]
        )

    return _LINK.sub(moved, markdown)
