"""Texts, pages and archives that tests of ``memory3 prepare`` read."""

from __future__ import annotations

import gzip
import io
import json
import random

SUBJECTS = ("bridge", "river", "library", "orchard", "engine", "harbour", "glacier", "violin", "lantern", "market", "castle")
VERBS = ("crosses", "feeds", "holds", "shelters", "drives", "guards", "shapes", "carries", "marks", "serves", "outlasts")
OBJECTS = ("the valley", "old traders", "winter grain", "a quiet town", "many pilgrims", "the northern road", "its builders")


def prose(seed, sentences=9):
    """A text of different sentences, other ones for each seed; some 70 words."""
    draw = random.Random(seed)
    parts = []
    for _ in range(sentences):
        subject, verb, goal = draw.choice(SUBJECTS), draw.choice(VERBS), draw.choice(OBJECTS)
        parts.append(f"The {subject} of {draw.randrange(1000, 9999)} {verb} {goal} near {draw.choice(SUBJECTS)}ton.")
    return " ".join(parts)


def page(text, title="A page"):
    """A web page with a menu around its text."""
    menu = "".join(f'<li><a href="/{n}">Menu entry {n}</a></li>' for n in range(11))
    paragraphs = "".join(f"<p>{part}</p>" for part in text.split("\n\n"))
    return (
        f"<html><head><title>{title}</title></head><body><nav><ul>{menu}</ul></nav>"
        f"<article><h1>{title}</h1>{paragraphs}</article><footer>Imprint and cookies</footer></body></html>"
    )


def lines(records):
    """JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def warc_record(url, body, kind="response", status="200 OK", media="text/html; charset=utf-8"):
    """The bytes of one record, by warcio."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=False)
    payload = io.BytesIO(body if isinstance(body, bytes) else body.encode())
    about = {"WARC-Date": "2026-11-30T00:00:00Z"}
    if kind == "conversion":
        about["Content-Type"] = "text/plain"
        record = writer.create_warc_record(url, kind, payload=payload, warc_headers_dict=about)
    else:
        headers = StatusAndHeaders(status, [("Content-Type", media)], protocol="HTTP/1.1")
        record = writer.create_warc_record(url, kind, payload=payload, http_headers=headers, warc_headers_dict=about)
    writer.write_record(record)
    return out.getvalue()


def zipped(*records):
    """Records as an archive has them, each zipped for itself."""
    return b"".join(gzip.compress(record, mtime=0) for record in records)
