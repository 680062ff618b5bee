"""``memory3 report``: folders of results as one document."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memory3.cli import options
from memory3.cli.output import message, print_json

__all__ = ["report"]


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Folders that `memory3 eval` wrote.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="Markdown file to write.", metavar="FILE")],
    as_json: options.Json = False,
) -> None:
    """Make one document of several results, with the paper's own figures beside.

    [bold]Examples[/bold]

        memory3 report results/qa results/hallucination --out results.md
        memory3 report results/* -o results.md
    """
    from memory3.checkout import research
    from memory3.evaluation.report import read_results

    write_summary = research("report", "memory3 report").write_summary
    found = [read_results(path) for path in results]
    write_summary(target, found)
    if as_json:
        print_json({"written": str(target), "suites": [each["suite"] for each in found]})
    else:
        message(f"{target}: {', '.join(each['suite'] for each in found)}")
