"""HTML and XHTML as a stream of tags and texts, in time linear in the length, whatever the markup.

Builds no tree. A tree of HTML is quadratic by its own rules: an end tag looks through all that is open, formatting left
open is opened again in every block, and attributes are compared with each other.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["End", "Start", "Text", "attributes_of", "events"]


class Start(NamedTuple):
    """A start tag. ``closed``: it ends with ``/>``, and so has no content."""

    tag: str
    attributes: str
    closed: bool


class End(NamedTuple):
    """An end tag."""

    tag: str


class Text(NamedTuple):
    """Characters between two tags. ``within``: the element whose content can be nothing but text, "" for all others."""

    text: str
    within: str = ""


#: Elements whose content is text up to their end tag, and whether character references count in it.
_TEXT_ALONE = {
    **dict.fromkeys(("script", "style", "iframe", "noembed", "noframes", "xmp"), False),
    **dict.fromkeys(("title", "textarea"), True),
}
_VALUE = r"=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s>\"'][^\s>]*+|)"
_TAG = re.compile(rf"<(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|{_VALUE})*+)>")
_TAG_TO_THE_NEXT_END = re.compile(r"<(/?)([a-zA-Z][^\s/>]*+)([^>]*+)>")
_DOCTYPE = re.compile(r"<!doctype[^>\[]*+(?:\[[^\]]{0,999}+\]\s*+)?>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([^\s/=>"']++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>]*+)))?""")
_LEADING_ZEROS = re.compile(r"&#0+(?=[0-9])")
_BEYOND_UNICODE = re.compile(r"&#[0-9]{8,}+;?")


def events(markup: str) -> Iterator[Start | End | Text]:
    """The tags and texts of a page in order. Comments, doctypes and processing instructions are left out.

    CDATA sections are text. What never ends, ends with the page: a comment, an element of text alone. A ``<`` that opens
    no tag is text.
    """
    position = since = 0
    tag_pattern = _TAG
    while (opening := markup.find("<", position)) >= 0:
        after, event = _passed_over(markup, opening), None
        if after is None:
            tag = tag_pattern.match(markup, opening)
            if tag is None and tag_pattern is _TAG and _TAG_TO_THE_NEXT_END.match(markup, opening):
                # Quotes run to the end of the page from here on: no tag behind may look for the end of its own again.
                tag_pattern = _TAG_TO_THE_NEXT_END
                continue
            if tag is None:
                if opening > markup.rfind(">"):
                    break
                position = opening + 1
                continue
            after, name = tag.end(), tag[2].lower()
            event = End(name) if tag[1] else Start(name, tag[3], _is_closed(tag[3]))
        if since < opening:
            yield Text(_characters(markup[since:opening]))
        if event is not None:
            yield event
        elif markup.startswith("<![CDATA[", opening):
            yield Text(markup[opening + 9 : after].removesuffix("]]>"))
        if isinstance(event, Start) and not event.closed and event.tag in _TEXT_ALONE:
            start, (end, after) = after, _end_of(event.tag, markup, after)
            text = markup[start:end]
            yield Text(_characters(text) if _TEXT_ALONE[event.tag] else text, event.tag)
            yield End(event.tag)
        elif isinstance(event, Start) and event.tag == "pre" and markup.startswith("\n", after):
            after += 1  # belongs to the tag
        position = since = after
    if since < len(markup):
        yield Text(_characters(markup[since:]))


def attributes_of(attributes: str) -> dict[str, str]:
    """Values by name in lower case; the first of two counts, as it does in browsers."""
    values: dict[str, str] = {}
    for found in _ATTRIBUTE.finditer(attributes):
        values.setdefault(found[1].lower(), _characters(found[2] or found[3] or found[4] or ""))
    return values


def _passed_over(markup: str, opening: int) -> int | None:
    """End of the comment, CDATA section, declaration or instruction that begins here; None if none does."""
    if markup.startswith("<!--", opening):
        return _behind(markup, "-->", opening + 2)
    if markup.startswith("<![CDATA[", opening):
        return _behind(markup, "]]>", opening + 9)
    if markup.startswith("<!", opening):
        doctype = _DOCTYPE.match(markup, opening)
        return doctype.end() if doctype else _behind(markup, ">", opening)
    if markup.startswith(("<?", "</"), opening) and not markup[opening + 1 : opening + 3].removeprefix("/").isalpha():
        return _behind(markup, ">", opening)
    return None


def _is_closed(attributes: str) -> bool:
    """Whether a tag ends with a slash that is no part of a value without quotes."""
    last = attributes.rstrip()[-1:] and attributes.rsplit(None, 1)[-1]
    return last.endswith("/") and ("=" not in last or last.endswith(("'/", '"/')))


def _behind(markup: str, mark: str, start: int) -> int:
    place = markup.find(mark, start)
    return len(markup) if place < 0 else place + len(mark)


def _end_of(tag: str, markup: str, start: int) -> tuple[int, int]:
    """Where the text of an element ends, and its end tag."""
    end = re.compile(rf"</{tag}(?=[\s/>])[^>]*+>?", re.IGNORECASE).search(markup, start)
    return (end.start(), end.end()) if end else (len(markup), len(markup))


def _characters(text: str) -> str:
    """Text with its character references resolved. Numbers beyond all characters become U+FFFD."""
    if "&" not in text:
        return text
    return html.unescape(_BEYOND_UNICODE.sub("\ufffd", _LEADING_ZEROS.sub("&#", text)))
