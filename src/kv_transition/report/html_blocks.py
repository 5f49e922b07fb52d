"""Blocks of a Markdown report as HTML: tables in scroll boxes, figures embedded, links that need no other file.

The parser reads no HTML, so markup in the text stays text. What could lead out of the page is taken away here: images
from anywhere but the report's folder, and links to anything but the page, the web (only when clicked) and embedded files.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from kv_transition.errors import UserError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from markdown_it.tree import SyntaxTreeNode

#: Kinds of files that are embedded; links to others become text, since only this one file is passed on.
IMAGES = {".svg": "image/svg+xml", ".png": "image/png"}
DOWNLOADS = {".csv": "text/csv", ".txt": "text/plain", ".json": "application/json"}
#: A table with more rows than this is folded.
FOLD_ROWS = 30

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//")
_INTERVAL = re.compile(r"(\S{1,7}) (\[[^\[\]]*\])(?:, (.*))?")
_VIEW_BOX = re.compile(rb'<svg\b[^>]*\bviewBox="0 0 ([\d.]+) ([\d.]+)"')


def plain_text(node: SyntaxTreeNode) -> str:
    """The text of a block without its markup."""
    return "".join(
        " " if part.type in {"softbreak", "hardbreak"} else part.content
        for part in node.walk()
        if part.type in {"text", "code_inline", "softbreak", "hardbreak"}
    )


class Layout:
    """Turns the blocks of one report into HTML.

    Parameters
    ----------
    source : the report; what it embeds lies in its folder.
    parser : what parsed it.
    """

    def __init__(self, source: Path, parser: MarkdownIt) -> None:
        from markdown_it.renderer import RendererHTML

        self.source = source
        self.parser = parser
        self._renderer = RendererHTML(parser)

    def tamed(self, tokens: list[Token]) -> list[Token]:
        """The tokens of a page with every image embedded or taken out, and every link safe and self-sufficient."""
        for index, token in enumerate(tokens):
            if token.type == "inline" and token.children:
                token.children = self._tamed_inline(token.children)
                if tokens[index - 1].type == "td_open" and tokens[index - 2].type != "tr_open":
                    token.children = _interval_apart(token.children)
            elif token.type in {"th_open", "td_open"}:
                aligned = token.attrs.pop("style", "")
                if aligned == "text-align:right":
                    token.attrs["class"] = "num"
        return tokens

    def _tamed_inline(self, children: list[Token]) -> list[Token]:
        kept: list[Token] = []
        opened: list[tuple[Token, int]] = []
        for child in children:
            kept.append(child)
            if child.type == "image":
                self._embed_image(child)
            elif child.type == "link_open":
                opened.append((child, len(kept) - 1))
                self._aim_link(child)
            elif child.type == "link_close":
                link, start = opened.pop()
                child.hidden = link.hidden
                if link.meta.get("picture"):
                    # The figure is in the page and can be saved from there; twice would double the page.
                    del kept[start:]
        return kept

    def _embed_image(self, token: Token) -> None:
        target = str(token.attrs.get("src", ""))
        if _SCHEME.match(target):
            token.type, token.tag, token.content = "text", "", f"[image: {token.content}]"
            token.attrs, token.children = {}, None
            return
        path = self._file(target)
        if path is None or path.suffix.lower() not in IMAGES:
            raise UserError(
                f"{self.source}: the figure {target} is no SVG or PNG file in the report's folder"
            )
        content = path.read_bytes()
        token.meta["name"] = path.name
        token.attrs["src"] = data_uri(content, IMAGES[path.suffix.lower()])
        token.attrs["decoding"] = "async"
        if box := _VIEW_BOX.search(content[:4000]):
            token.attrs |= {"width": round(float(box[1]) * 4 / 3), "height": round(float(box[2]) * 4 / 3)}

    def _aim_link(self, token: Token) -> None:
        target = str(token.attrs.get("href", ""))
        if target.startswith("#"):
            return
        if re.match(r"https?://", target):
            token.attrs["rel"] = "noopener noreferrer"
            return
        link_kind = Path(target).suffix.lower()
        token.meta["picture"] = link_kind in IMAGES and not _SCHEME.match(target)
        kind = DOWNLOADS.get(link_kind)
        path = None if kind is None or _SCHEME.match(target) else self._file(target)
        if kind is None or path is None:
            token.hidden = True
            return
        token.attrs["href"] = data_uri(path.read_bytes(), kind)
        token.attrs["download"] = path.name

    def _file(self, target: str) -> Path | None:
        """The file that a relative link leads to; None outside the report's folder."""
        folder = self.source.parent.resolve()
        path = (folder / unquote(target)).resolve()
        if not target or not path.is_relative_to(folder):
            return None
        if not path.is_file():
            raise UserError(f"{self.source}: {unquote(target)} does not exist; draw the figures again")
        return path

    def inline(self, node: SyntaxTreeNode) -> str:
        """The content of a heading or paragraph."""
        inline = next(child for child in node.children if child.type == "inline")
        return self._spans(_spans_of(inline))

    def _spans(self, tokens: Sequence[Token]) -> str:
        return self._renderer.renderInline(tokens, self.parser.options, {})

    def _plain(self, node: SyntaxTreeNode) -> str:
        return self._renderer.render(node.to_tokens(), self.parser.options, {})

    def blocks(
        self,
        nodes: Sequence[SyntaxTreeNode],
        anchor: Callable[[str], str],
        parts: list[tuple[str, str]] | None = None,
    ) -> str:
        """Consecutive blocks as HTML.

        Parameters
        ----------
        anchor : gives a heading its anchor.
        parts : takes (anchor, title) of the headings of the third level.
        """
        html, index = [], 0
        while index < len(nodes):
            node, rest = nodes[index], nodes[index + 1 :]
            after = rest[0] if rest else None
            used = 1
            if node.type == "heading":
                name = anchor(plain_text(node))
                title = self.inline(node)
                if parts is not None and node.tag == "h3":
                    parts.append((name, title))
                html.append(f'<{node.tag} id="{escape(name)}">{title}</{node.tag}>\n')
            elif _image(node) is not None:
                caption = after if after is not None and after.type == "paragraph" else None
                html.append(self._figure(node, caption))
                used += caption is not None
            elif node.type == "table":
                html.append(self._table(node, ""))
            elif after is not None and after.type == "table" and _is_title(node):
                html.append(self._table(after, self.inline(node)))
                used += 1
            elif node.type == "fence" or node.type == "code_block":
                html.append(f'<div class="code">{self._plain(node).rstrip()}</div>\n')
            elif _is_note(nodes, index):
                html.append(f'<p class="note">{self.inline(node)}</p>\n')
            else:
                html.append(self._plain(node))
            index += used
        return "".join(html)

    def _table(self, node: SyntaxTreeNode, title: str) -> str:
        """A table in a box that scrolls; a long one folds. Its first column are the names of the rows."""
        rows = sum(part.type == "tr" for part in node.walk()) - 1
        header = []
        for cell in node.walk():
            if cell.type == "th":
                header.append(plain_text(cell))
                cell.nester_tokens.opening.attrs["scope"] = "col"  # type: ignore[union-attr]
            elif cell.type == "td":
                _name_row(cell)
        label = re.sub(r"<[^>]*>", "", title) or escape("Table: " + ", ".join(filter(None, header)))
        kind = "table-box" if header[0] else "table-box card"
        box = f'<div class="{kind}" role="region" tabindex="0" aria-label="{label}">\n{self._plain(node)}</div>\n'
        if rows > FOLD_ROWS:
            shown = escape(", ".join(filter(None, header)))
            box = f'<details class="fold">\n<summary><b>{rows} rows</b> <span>{shown}</span></summary>\n{box}</details>\n'
        return f'<p class="table-title">{title}</p>\n{box}' if title else box

    def _figure(self, node: SyntaxTreeNode, caption: SyntaxTreeNode | None) -> str:
        """An embedded image with its caption; the files that the caption ends with become downloads.

        The SVG is in the page already as the image, so its download link is filled by the script.
        """
        image = _image(node)
        assert image is not None
        children = list(_spans_of(caption.children[0])) if caption is not None else []
        links = _pop_downloads(children)
        downloads = [self._spans(link) for link in links]
        name = escape(image.meta["name"])
        downloads.append(
            f'<a class="own" download="{name}" hidden>{escape(Path(name).suffix[1:].upper())}</a>'
        )
        return (
            f'<figure>\n<div class="plate">{self._spans([image])}</div>\n<figcaption>\n<p>{self._spans(children)}</p>\n'
            f'<p class="downloads">{" ".join(downloads)}</p>\n</figcaption>\n</figure>\n'
        )


def _spans_of(inline: SyntaxTreeNode) -> list[Token]:
    """The spans of a line of text."""
    return (inline.token.children or []) if inline.token else []


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _image(node: SyntaxTreeNode) -> Token | None:
    """The image of a paragraph that is nothing else."""
    if node.type != "paragraph":
        return None
    spans = node.children[0].children
    return spans[0].token if len(spans) == 1 and spans[0].type == "image" else None


def _is_title(node: SyntaxTreeNode) -> bool:
    """Whether a paragraph begins in bold, as the title of what follows does."""
    spans = (
        [span for span in node.children[0].children if plain_text(span)] if node.type == "paragraph" else []
    )
    return bool(spans) and spans[0].type == "strong"


def _is_note(nodes: Sequence[SyntaxTreeNode], index: int) -> bool:
    """Whether a block is the paragraph that explains the table above it."""
    node = nodes[index]
    above = nodes[index - 1].type if index else ""
    below = nodes[index + 1].type if index + 1 < len(nodes) else ""
    return node.type == "paragraph" and above == "table" and below != "table" and not _is_title(node)


def _name_row(cell: SyntaxTreeNode) -> None:
    """The first cell of a row is its name, unless it is a number."""
    assert cell.nester_tokens is not None
    opening, closing = cell.nester_tokens
    if cell.previous_sibling is None and "class" not in opening.attrs:
        opening.tag = closing.tag = "th"
        opening.attrs["scope"] = "row"


def _interval_apart(children: list[Token]) -> list[Token]:
    """A number and the interval behind it, "0.93 [0.90, 0.96], words", so that the interval can stand below."""
    from markdown_it.token import Token

    if any(not child.type.startswith("text") for child in children):
        return children
    match = _INTERVAL.fullmatch("".join(child.content for child in children))
    if not match:
        return children
    return [
        Token("text", "", 0, content=f"{match[1]} "),
        Token("span_open", "span", 1, attrs={"class": "interval"}),
        Token("text", "", 0, content=match[2]),
        Token("span_close", "span", -1),
        *([Token("text", "", 0, content=f" {match[3]}")] if match[3] else []),
    ]


def _pop_downloads(children: list[Token]) -> list[list[Token]]:
    """Take the download links from the end of a caption, with the commas between them; in their order."""
    links: list[list[Token]] = []
    end = len(children)
    while end:
        last = children[end - 1]
        if last.type == "text" and not last.content.strip(" ,;."):
            end -= 1
            continue
        start = _link_before(children, end)
        if start is None:
            break
        links.insert(0, children[start:end])
        end = start
    if links:
        del children[end:]
        if children and children[-1].type == "text":
            children[-1].content = children[-1].content.rstrip()
    return links


def _link_before(children: Sequence[Token], end: int) -> int | None:
    """Where the download link begins that ends before `end`; None where none does."""
    if children[end - 1].type != "link_close":
        return None
    start = max(index for index in range(end) if children[index].type == "link_open")
    return start if "download" in children[start].attrs else None
