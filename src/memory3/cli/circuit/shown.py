"""What the commands that find circuits do with a report: write it, draw it, show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from memory3.cli.output import count, message, out, print_json
from memory3.errors import InputError
from memory3.files import write_atomically

__all__ = ["give", "ready", "rows"]

#: Edges on a terminal.
_MOST = 20


def ready(figure: Path | None) -> None:
    """Raise MissingDependency where a package is missing: now, and not after minutes.

    Args:
        figure: file of a picture that is wanted; None: none is.
    """
    from memory3.interpret.picture import drawing
    from memory3.interpret.rates import statistics

    statistics()
    if figure is not None:
        drawing()


def give(report: Mapping[str, Any], title: str, target: Path | None, figure: Path | None, as_json: bool) -> None:
    """Write, draw and show the report of a circuit.

    Args:
        report: with the model's ``layers``.
        title: above the picture.
        target: file of the report; None: none.
        figure: file of the picture; None: none.
        as_json: print the report, and no tables.
    """
    if figure is not None:
        from memory3.interpret.picture import picture

        _written(figure, picture(report, title, figure.suffix.lower()[1:]))
    if target is not None:
        _written(target, json.dumps(report, indent=1) + "\n")
    if as_json:
        print_json(report)
    else:
        _show(report)


def _written(path: Path, content: str | bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give a file in a folder that exists") from error
    message(f"written to {path}")


def _show(report: Mapping[str, Any]) -> None:
    circuit = report["circuit"]
    out.print(
        Text(f"{count(report['texts'], 'text')}, {report['edges in all']:,} edges, baseline {report['baseline']}", "bold")
    )
    rows(
        ("", "log-likelihood of the answer, nats", "share"),
        [
            ("all edges", f"{circuit['all edges']:.2f}", "100%"),
            *(
                (f"{each['edges']:,} heaviest alone", f"{each['kept alone']:.2f}", _share(each["share"]))
                for each in circuit["sizes"]
            ),
            ("no edge", f"{circuit['no edge']:.2f}", "0%"),
            *((f"without the {each['edges']:,} heaviest", f"{each['cut']:.2f}", "") for each in circuit["sizes"]),
        ],
    )
    varied = "unknown" if circuit["variance"] is None else f"{circuit['variance']:.2f}"
    out.print(
        f"what the circuit says is {circuit['kind']}: its variance over texts is {varied}, threshold {circuit['threshold']:g}"
    )
    against = report["gradient against exact"]
    told = ", ".join(f"{name} {against[name]:.2f}" for name in ("all", "attention", "MLPs") if against.get(name) is not None)
    if told:
        out.print(f"rank correlation of gradient and ablation, {against['edges']} edges: {told}")
    out.print(Text(f"\nthe {min(_MOST, len(report['edges']))} heaviest edges", "bold"))
    rows(
        ("edge", "weight", "exact", "variance", "writes"),
        [_edge(edge) for edge in report["edges"][:_MOST]],
    )


def _edge(edge: Mapping[str, Any]) -> tuple[str, ...]:
    # A terminal is narrow: an edge is said in one column.
    name = f"{edge['layer']} MLP at {edge['to']}"
    if edge["head"] is not None:
        name = f"{edge['layer']}.{edge['head']} {edge['source']} > {edge['to']}"
    says = edge["writes"] if edge["kind"] == "specific" else [each[0] for each in edge["writes in the first texts"]]
    return (
        name,
        f"{edge['weight']:+.3f}",
        "" if edge["exact"] is None else f"{edge['exact']:+.3f}",
        "" if edge["variance"] is None else f"{edge['variance']:.2f}",
        " ".join(repr(word) for word in says[:3]),
    )


def rows(columns: tuple[str, ...], values: list[tuple[str, ...]]) -> None:
    """A table without borders.

    Args:
        columns: their names.
        values: as text.
    """
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for value in values:
        table.add_row(*map(Text, value))
    out.print(table)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
