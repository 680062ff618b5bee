"""The report as one page of HTML that needs no other file. All texts in it are strangers': each is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["page"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;padding:.2rem .8rem .2rem 0;text-align:left;"
    "vertical-align:top}td.n{text-align:right}pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:inherit}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: as ``report.json`` has it.
    """
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>memory3 prepare</title>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style>'
    yield f"<h1>memory3 prepare</h1><p>{report['read']:,} documents were read, {report['kept']:,} are left.</p>"
    yield "<table><tr><th>stage<th>in<th>removed<th>why"
    for stage in report["stages"]:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in stage["reasons"].items())
        yield (
            f'<tr><td>{escape(stage["stage"])}<td class="n">{stage["in"]:,}<td class="n">{stage["removed"]:,}'
            f"<td>{escape(why if stage['ran'] else 'left out')}"
        )
    yield "</table>"
    if report["languages"]:
        counts = ", ".join(f"{code}: {count:,}" for code, count in report["languages"].items())
        yield f"<p>Languages: {escape(counts)}.</p>"
    yield f"<p>Personal data was masked in {report['masked']:,} documents.</p>"
    if judge := report["judge"]:
        yield (
            f"<p>Quality was judged by a fit to {judge['examples']:,} graded examples of {escape(judge['source'])}. Of two "
            f"held-out examples with different grades it puts the better one first in {judge['agreement']:.1%} (chance: 50%). "
            f"Kept from grade {judge['least_grade']:.3f} on.</p>"
        )
    if report["skipped"]["count"]:
        yield f"<h2>Passed over or altered while reading: {report['skipped']['count']:,}</h2><ul>"
        for one in report["skipped"]["first"]:
            yield f"<li>{escape(one['place'])}: {escape(one['reason'])}"
        yield "</ul>"
    for stage in report["stages"]:
        if stage["samples"]:
            yield f"<h2>Removed by {escape(stage['stage'])}: a sample</h2><table><tr><th>document<th>why<th>text"
            for one in stage["samples"]:
                near = f"<br>kept: {escape(one['near'])}" if one.get("near") else ""
                yield f"<tr><td>{escape(one['id'])}<td>{escape(one['reason'])}{near}<td><pre>{escape(one['text'])}</pre>"
            yield "</table>"
