"""The report as one file: a finished report.md laid out as a page that needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.errors import UserError
from kv_transition.files import write_text
from kv_transition.report.html_blocks import Layout, plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.tree import SyntaxTreeNode

TEMPLATES = Path(__file__).parent / "templates"
#: Longest description of the page in characters, as search and previews show it.
DESCRIPTION = 200
#: Identifiers that the page itself uses.
RESERVED = ("top", "main", "contents", "viewer")


@dataclass
class Section:
    """A part of the page under one heading of the second level.

    Attributes
    ----------
    title, content : finished HTML.
    parts : (anchor, title as HTML) of the headings below.
    facts : whether the section is one list and nothing else.
    """

    anchor: str
    title: str
    content: str = ""
    parts: list[tuple[str, str]] = field(default_factory=list)
    facts: bool = False


@dataclass
class Page:
    """A report as the template places it; `title` and `description` are plain text, the rest is HTML."""

    title: str
    description: str
    heading: str
    lede: str
    sections: list[Section]


def build_html(report_md: str | Path, out: str | Path) -> None:
    """Write report.md as one HTML file; the same report and figures give the same bytes.

    Parameters
    ----------
    report_md : the finished report. Its images and the files that it links are looked up beside it and embedded; its
        first heading is the title, and its first section is what the page opens with.
    out : the page.

    Raises
    ------
    UserError
        When the report is not there or has no title, or when a figure or a linked file is missing.
    """
    source = Path(report_md)
    if not source.is_file():
        raise UserError(f"{source} does not exist; build the report first")
    page = read_page(source.read_text(encoding="utf-8"), source)
    write_text(out, _render(page))


def read_page(markdown: str, source: Path) -> Page:
    """Lay a report out. `source` names its file, in whose folder everything that it embeds lies."""
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    layout = Layout(source, parser)
    nodes = SyntaxTreeNode(layout.tamed(parser.parse(markdown))).children
    if not nodes or (nodes[0].type, nodes[0].tag) != ("heading", "h1"):
        raise UserError(f"{source}: a report begins with its title (# ...)")
    anchors = Anchors()
    chapters = _chapters(nodes[1:])
    lede, sections = chapters[0][1], []
    for heading, content in chapters[1:]:
        assert heading is not None
        sections.append(_section(heading, content, layout, anchors))
    described = plain_text(lede[0]) if lede else ""
    return Page(
        title=plain_text(nodes[0]),
        description=_cut(described, DESCRIPTION),
        heading=layout.inline(nodes[0]),
        lede=layout.blocks(lede, anchors.of),
        sections=sections,
    )


class Anchors:
    """Anchors of headings: the words in lower case, as Markdown pages have them, and none twice."""

    def __init__(self) -> None:
        self._taken = set(RESERVED)

    def of(self, title: str) -> str:
        """The anchor of a heading that has not had one yet."""
        words = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") or "part"
        anchor, number = words, 1
        while anchor in self._taken:
            anchor, number = f"{words}-{number}", number + 1
        self._taken.add(anchor)
        return anchor


def _chapters(nodes: Sequence[SyntaxTreeNode]) -> list[tuple[SyntaxTreeNode | None, list[SyntaxTreeNode]]]:
    """What stands before the first heading of the second level, then each such heading with what follows it."""
    chapters: list[tuple[SyntaxTreeNode | None, list[SyntaxTreeNode]]] = [(None, [])]
    for node in nodes:
        if (node.type, node.tag) == ("heading", "h2"):
            chapters.append((node, []))
        else:
            chapters[-1][1].append(node)
    return chapters


def _section(
    heading: SyntaxTreeNode, content: list[SyntaxTreeNode], layout: Layout, anchors: Anchors
) -> Section:
    section = Section(anchors.of(plain_text(heading)), layout.inline(heading))
    section.content = layout.blocks(content, anchors.of, section.parts)
    section.facts = [node.type for node in content] == ["bullet_list"]
    return section


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters, ending with a whole word."""
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0].rstrip(",;:") + "…"


def _render(page: Page) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    environment.filters["html"] = Markup
    inlined: dict[str, Any] = {}
    for name in ("css", "js"):
        text = (TEMPLATES / f"report.{name}").read_text(encoding="utf-8")
        inlined |= {name: text, f"{name}_sha256": _csp_hash(text)}
    return environment.get_template("report.html.jinja").render(page=page, **inlined)


def _csp_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy admits exactly this inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
