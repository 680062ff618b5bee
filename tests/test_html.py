"""Reading HTML: tables with each value under its column, what is hidden, XHTML, and work that grows with the length alone."""

from __future__ import annotations

import sys

import pytest

from memory3.text import read_documents
from memory3.text.readers import html, markup


def text_of(page: str, tmp_path, name: str = "a.html") -> str:
    path = tmp_path / name
    path.write_text(page, encoding="utf-8")
    (document,) = read_documents(path)
    return document.text


TABLES = {
    "empty cells keep their place": (
        "<table><tr><th>City</th><th>Tram</th><th>Ferry</th></tr><tr><td>Oslo</td><td></td><td>4</td></tr>"
        "<tr><td>Bonn</td><td>7</td><td> </td></tr><tr><td>Rome</td><td><br></td><td><span></span></td></tr></table>",
        "City\tTram\tFerry\nOslo\t\t4\nBonn\t7\t\nRome\t\t",
    ),
    "blocks within cells": (
        "<table><tr><th><p>Tool</p></th><th>Use</th></tr><tr><td><div>saw</div></td><td><p>wood</p><p>bone</p></td></tr>"
        "<tr><td>file<br>rasp</td><td><ul><li>iron</li><li>tin</li></ul></td></tr></table>",
        "Tool\tUse\nsaw\twood bone\nfile rasp\tiron tin",
    ),
    "cells over rows and columns": (
        "<table><tr><th rowspan=2>Port</th><th colspan=2>Ships</th></tr><tr><th>in</th><th>out</th></tr>"
        "<tr><td rowspan=2>Kiel</td><td>3</td><td>5</td></tr><tr><td>7</td><td>11</td></tr>"
        "<tr><td colspan=3>counted by hand</td></tr></table>",
        "Port\tShips\tShips\nPort\tin\tout\nKiel\t3\t5\nKiel\t7\t11\ncounted by hand\t\t",
    ),
    "sections in the order they are shown": (
        "<table><tfoot><tr><td>all</td><td>8</td></tr></tfoot><caption>Sums</caption><thead><tr><th>of</th><th>n</th></tr></thead>"
        "<tbody><tr><td>a</td><td>3</td></tr><tr><td>b</td><td>5</td></tr></tbody></table>",
        "Sums\nof\tn\na\t3\nb\t5\nall\t8",
    ),
    "a table in a cell of data": (
        "<table><tr><th>Kit</th><th>Parts</th><th>EUR</th></tr>"
        "<tr><td>A</td><td><table><tr><td>nut</td><td>2</td></tr></table></td><td>9</td></tr></table>",
        "Kit\tParts\tEUR\nA\tnut 2\t9",
    ),
    "a table that arranges the page": (
        "<table><tr><td><h2>News</h2><p>One.</p><p>Two.</p></td><td><table><tr><th>x</th><th>y</th></tr>"
        "<tr><td></td><td>1</td></tr></table></td></tr></table>",
        "News\n\nOne.\n\nTwo.\nx\ty\n\t1",
    ),
    "end tags left out": ("<table><tr><th>a<th>b<tr><td>1<td><tr><td><td>2</table>", "a\tb\n1\t\n\t2"),
    "hidden rows": (
        '<table><tr><th>a<th>b<tr hidden><td>1<td>2<tr style="display:none"><td>3<td>4<tr><td>5<td>6</table>',
        "a\tb\n5\t6",
    ),
    "spans without bound": (
        "<table><tr><td colspan=100000>wide</td><td>b</td></tr><tr><td rowspan=99999999999>c</td><td>d</td></tr></table>",
        "wide\twide\tb\nc\td",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name, tmp_path):
    page, expected = TABLES[name]
    assert text_of(f"<p>before</p>{page}<p>after</p>", tmp_path) == f"before\n\n{expected}\n\nafter"


def test_what_is_not_shown(tmp_path):
    page = (
        "<p>a<template>no</template><noscript>no</noscript><svg><title>no</title><text>no</text></svg></p><p hidden>no"
        "<p>b<span style='visibility : hidden'>no<b>no</b></span><select><option>no</select><textarea><p>no</textarea>"
        "<script>if (a<b) '</p>no'</script><!-- no --><!doctype x [<!ENTITY no 'no'>]>c</p><div hidden><div>no</div>no</div>d"
    )
    assert text_of(page, tmp_path) == "a\n\nbc\n\nd"


def test_xhtml(tmp_path):
    page = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html [ <!ENTITY a "b"> ]>\n<html xmlns="http://www.w3.org/1999/xhtml">'
        '<head><title/><script src="a.js"/><style/></head><body><p>one</p><p/><div hidden="hidden"/>two<textarea/>'
        "<![CDATA[ 3 < 4 &amp; <b> ]]><br/>&eacute;&#x41;&#0066;</body></html>"
    )
    assert text_of(page, tmp_path, "a.xhtml") == "one\n\ntwo 3 < 4 &amp; <b>\néAB"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("1 < 2 and <3 or a<b", "1 < 2 and <3 or a<b"),
        ('<a href="unclosed>x</a> y <a href=b>z</a>', "x y z"),
        ('<a title="a > b" href=x/>link</a>', "link"),
        (f"&#{'9' * 5000};&#{'0' * 5000}65;&#xD800;", "\ufffdA\ufffd"),
        ("<pre>\n  a\n\tb\n</pre><dl><dt>t<dd>d<dt>u</dl>", "  a\n\tb\n\n\nt\nd\nu"),
        ("<ul><li>a<ul><li>b<li>c</ul><li>d</ul>e", "a\n\nb\nc\n\nd\n\ne"),
        ("<b><p>a</b>b</p></td></table></div>c", "ab\n\nc"),
    ],
)
def test_odd_markup(page, expected, tmp_path):
    assert text_of(page, tmp_path) == expected


ADVERSE = {
    "nested": lambda n: "<div>" * n + "text" + "</div>" * n,
    "nested tables": lambda n: "<table><tr><th>x" * n,
    "unclosed": lambda n: "<b><p>x" * n,
    "end tags that close nothing": lambda n: "<span>" * n + "</div>" * n,
    "formatting": lambda n: "".join(f"<font size={i}>x<p>" for i in range(n)),
    "attributes": lambda n: "<a hidden " + " ".join(f"a{i}=1" for i in range(n)) + ">x",
    "tags without end": lambda n: '<a x=">" ' * n,
    "comments": lambda n: "<!--" * n,
    "declarations": lambda n: "<!doctype [>" * n,
    "sections": lambda n: "<![CDATA[" * n,
    "lists": lambda n: "<ul><b><li>" * n,
    "row spans": lambda n: "<table><tr>" + "<td rowspan=0>x" * n + "<tr><td>y" * n,
    "column spans": lambda n: "<table>" + "".join(f"<tr><td colspan={i}>a<td>b" for i in range(n)),
    "a long cell over rows": lambda n: "<table><tr><th rowspan=0>" + "x " * n + "<tr><td>y" * n,
}


def steps(page: str) -> int:
    """Lines of our own code that run, and characters that come out."""
    own, count = {html.__file__, markup.__file__, html.__file__.replace("html.py", "grid.py")}, 0

    def tracer(frame, event, _):
        nonlocal count
        count += event == "line"
        return tracer if frame.f_code.co_filename in own else None

    reader = html._Page()
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        for event in markup.events(page):
            reader.take(event)
        text, _ = reader.end()
    finally:
        sys.settrace(before)
    assert len(text) <= 20 * len(page) + 20_000
    return count


@pytest.mark.parametrize("name", ADVERSE)
def test_work_grows_with_the_length(name):
    assert steps(ADVERSE[name](1600)) < 2.5 * steps(ADVERSE[name](800)) + 2000


def test_powers_are_no_further_digits(tmp_path):
    (tmp_path / "a.html").write_text("<p>10<sup>6</sup> cells, 5·10<sup>-3</sup> m, H<sub>2</sub>O, note<sup>[1]</sup></p>")
    assert [d.text for d in read_documents(tmp_path / "a.html")] == ["10⁶ cells, 5·10⁻³ m, H2O, note[1]"]


def test_headings_and_pictures_in_cells_keep_their_columns(tmp_path):
    (tmp_path / "a.html").write_text(
        "<table><tr><td><b>Plan</b><td><h4>Setup</h4><td><h4>Month</h4><td>Free<tr><td>A<td><td>7<td><img alt=yes src=y>"
        "<tr><td>B<td>3<td><td>no <img alt=cross src=n></table>"
    )
    (document,) = read_documents(tmp_path / "a.html")
    assert document.text == "Plan\tSetup\tMonth\tFree\nA\t\t7\tyes\nB\t3\t\tno"
