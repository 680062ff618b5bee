"""HTML pages: the visible text, with the title as metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from memory3.text.readers.encoding import with_plain_newlines
from memory3.text.readers.source import Found, SourceFile

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".html", ".htm", ".xhtml")

_UNSEEN = (
    *("script", "style", "template", "noscript", "head", "svg", "iframe", "object", "canvas", "audio", "video"),
    *("select", "textarea", "datalist", "annotation"),
)
_SEPARATORS = {
    **dict.fromkeys(("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote"), "\n\n"),
    **dict.fromkeys(("article", "section", "header", "footer", "main", "nav", "aside", "form", "fieldset"), "\n\n"),
    **dict.fromkeys(("figure", "hr", "details"), "\n\n"),
    **dict.fromkeys(("div", "li", "dt", "dd", "tr", "br", "figcaption", "caption", "address", "summary", "legend"), "\n"),
    **dict.fromkeys(("td", "th"), "\t"),
}
_SPACE = re.compile(r"[ \t\n\r\f]+")
_HIDING_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


def read(file: SourceFile) -> Iterator[Found]:
    """One text per page."""
    page = LexborHTMLParser(file.decode(file.read()))
    title = page.css_first("head > title")
    name = _SPACE.sub(" ", title.text()).strip() if title is not None else ""
    root = page.body or page.root
    yield Found(_visible_text(root) if root is not None else "", {"title": name} if name else {})


def _visible_text(root: LexborNode) -> str:
    """Text in reading order. Blocks end lines, white space is folded as a browser does, ``<pre>`` keeps its own."""
    page = _Page()
    open_nodes: list[tuple[LexborNode, bool]] = [(root, False)]  # a stack of our own: pages may nest without bound
    while open_nodes:
        node, is_end = open_nodes.pop()
        if node.is_text_node:
            page.write(node.text_content or "")
            continue
        tag = node.tag
        if not is_end and (tag in _UNSEEN or node.is_comment_node or _is_hidden(node)):
            continue
        page.separate(_SEPARATORS.get(tag or "", ""))
        page.verbatim += (tag == "pre") * (-1 if is_end else 1)
        if not is_end:
            open_nodes.append((node, True))
            open_nodes.extend(reversed([(child, False) for child in node.iter(include_text=True)]))
    return "".join(page.parts)


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    return "hidden" in attributes or bool(_HIDING_STYLE.search(attributes.get("style") or ""))


class _Page:
    """Text written so far, and the separator owed before the next."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.owed = ""
        self.verbatim = 0

    def separate(self, separator: str) -> None:
        self.owed = max(self.owed, separator, key=("", " ", "\t", "\n", "\n\n").index)

    def write(self, text: str) -> None:
        if not self.verbatim:
            text = _SPACE.sub(" ", text)
            if text.startswith(" "):
                self.separate(" ")
            words = text.strip(" ")
        else:
            words = with_plain_newlines(text)
        if words:
            if self.parts:
                self.parts.append(self.owed)
            self.parts.append(words)
            self.owed = ""
        if not self.verbatim and text.endswith(" "):
            self.separate(" ")
