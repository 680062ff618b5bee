"""Reports of results: Markdown, and one HTML page with plots inside that needs no other file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memory3.errors import InputError
from memory3.evaluation.plots import plots
from memory3.evaluation.tables import ResultTable, Section, sections
from memory3.files import read_bounded, write_atomically

__all__ = ["markdown", "page", "read_results", "write_report"]

_MOST_BYTES = 1 << 30
#: What makes a link of brackets, and a mark to link to.
_LINK = re.compile(r"\]([(\[:])")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24;
  background: #fff; }
h1, h2, h3 { line-height: 1.2; margin: 2.2rem 0 .6rem; } h1 { margin-top: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 1.2rem; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #d8dee4; vertical-align: top;
  white-space: nowrap; }
th { border-bottom: 2px solid #8c959f; } caption { caption-side: top; text-align: left; color: #57606a; padding: .4rem 0; }
.flag { border-left: 4px solid #bf8700; background: #fff8c5; padding: .5rem .8rem; } svg { max-width: 100%; height: auto; }
details { color: #57606a; font-size: .9rem; } pre { overflow-x: auto; }
"""


def read_results(path: Path) -> dict[str, Any]:
    """results.json of a folder, or that file.

    Raises:
        InputError: there is none, or it is none.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        found = json.loads(read_bounded(file, _MOST_BYTES))  # not the standard's JSON alone: a figure may be NaN
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: has no readable results.json: give a folder that `memory3 eval` wrote") from None
    if not isinstance(found, dict) or "suite" not in found:
        raise InputError(f"{file}: is no result of `memory3 eval`")
    return found


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """``report.md`` and ``report.html`` of a results folder."""
    text, page = markdown(results) + "\n", _told(_page, results)
    write_atomically(folder / "report.md", text)
    write_atomically(folder / "report.html", page)


def markdown(results: Mapping[str, Any], level: int = 1, beside: Sequence[Section] = ()) -> str:
    """Results as Markdown.

    Args:
        results: of one suite, as `read_results` gives them.
        level: of its heading.
        beside: sections to stand after its own.

    Raises:
        InputError: they lack what results of `memory3 eval` have.
    """
    return _told(_markdown, results, level, beside)


def _told(tell: Callable[..., str], results: Mapping[str, Any], *more: Any) -> str:
    """What ``tell`` makes of results; InputError where they lack what results of `memory3 eval` have."""
    try:
        return tell(results, *more)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"results.json is damaged, or of another version ({error!r:.200}): run `memory3 eval` again"
        ) from error


def _title(results: Mapping[str, Any]) -> str:
    return f"{results['suite']}: {results['model']}"


def _about(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['cores']} cores" if machine["device"] == "cpu" else machine["device"]
    limit = results.get("limit")
    items = "all items" if limit is None else f"at most {limit} items a task"
    settings = "" if results["suite"] == "speed" else f", seed {results['seed']}, {items}"
    said = f"{results['finished']}; {versions}; commit {machine['commit'] or 'unknown'}; {where}{settings}"
    return f"{said}. Brackets are 95% bootstrap intervals."


def _markdown(results: Mapping[str, Any], level: int, beside: Sequence[Section]) -> str:
    lines = ["#" * level + " " + _plain(_title(results)), "", _plain(_about(results)), ""]
    for section in (*sections(results), *beside):
        lines += _markdown_section(section, level + 1)
    return "\n".join(lines)


def _markdown_section(section: Section, level: int) -> list[str]:
    lines = ["#" * level + " " + _plain(section.title), ""]
    for paragraph in section.paragraphs:
        lines += [_plain(paragraph), ""]
    for table in section.tables:
        lines += [*([_plain(table.caption), ""] if table.caption else []), *_markdown_table(table), ""]
    for part in section.parts:
        lines += _markdown_section(part, level + 1)
    return lines


def _markdown_table(table: ResultTable) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_plain(str(cell)).replace("|", "\\|") for cell in cells) + " |"

    return [line(table.columns), "|" + "---|" * len(table.columns), *map(line, table.rows)]


def _plain(text: str) -> str:
    """Text on one line of Markdown that stands for itself.

    No HTML, no link, no picture, whatever a name from a model or a data set has in it.
    """
    line = " ".join(text.replace("\\", "\\\\").split())
    line = html.escape(line, quote=False).replace("`", "\\`")
    return _LINK.sub(r"]\\\1", re.sub(r"^\[", r"\\[", line))


def _page(results: Mapping[str, Any]) -> str:
    settings = {k: v for k, v in results.items() if k != "tasks"}
    return page(_title(results), _about(results), sections(results), settings, plots(results))


def page(
    title: str,
    about: str,
    parts: Sequence[Section],
    settings: Mapping[str, Any],
    drawings: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """One HTML page without scripts that needs no other file. All text is escaped.

    Args:
        title: of the page.
        about: where its figures come from.
        parts: its sections.
        settings: what stands at its end, folded.
        drawings: SVG of ours by the title of the section that it belongs to.
    """
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(about)}</p>"]
    for section in parts:
        body += _html_section(section, 2, (drawings or {}).get(section.title, []))
    folded = html.escape(json.dumps(settings, indent=2))
    body.append(f"<details><summary>Settings and versions</summary><pre>{folded}</pre></details>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _html_section(section: Section, level: int, drawings: Sequence[str] = ()) -> list[str]:
    out = [f"<h{level}>{html.escape(section.title)}</h{level}>"]
    kind = ' class="flag"' if section.title == "Flagged" else ""
    out += [f"<p{kind}>{html.escape(text)}</p>" for text in section.paragraphs]
    out += drawings
    for table in section.tables:
        caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
        head = "".join(f"<th>{html.escape(str(c))}</th>" for c in table.columns)
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in table.rows)
        out.append(f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>')
    for part in section.parts:
        out += _html_section(part, level + 1)
    return out
