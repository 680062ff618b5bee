"""Options that the commands of ``memory3 circuit`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memory3.cli import options

__all__ = ["Baseline", "Edges", "Exact", "Figure", "Model", "Seed", "Target", "Threshold", "check_figure"]

HOW = "How edges are weighed"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        callback=options.not_empty,
        help="Catalogue name, hub id or folder, or one of these+ADAPTER. Default: smollm2-135m-instruct as it is.",
        metavar="MODEL",
    ),
]
Target = Annotated[Path | None, typer.Option("--out", "-o", help="Write all that was found, as JSON.", metavar="FILE")]
Figure = Annotated[Path | None, typer.Option(help="Draw the circuit into this SVG or PNG.", metavar="FILE", dir_okay=False)]
Edges = Annotated[int, typer.Option(help="Edges of the circuit.", min=1, max=10_000, metavar="N")]
Baseline = Annotated[
    str,
    typer.Option(
        help="What stands in for an edge that is out: mean (of the texts) or zero (nothing, as in the paper).",
        metavar="mean|zero",
        rich_help_panel=HOW,
    ),
]
Exact = Annotated[
    int,
    typer.Option(
        help="Heaviest edges that are also taken out one by one, and as many others. 0: none.",
        min=0,
        max=10_000,
        metavar="N",
        rich_help_panel=HOW,
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        help="Variance of the outputs over texts below which an edge is specific.",
        min=0,
        max=1,
        metavar="X",
        rich_help_panel=HOW,
    ),
]
Seed = Annotated[int, typer.Option(help="Of what is drawn.", metavar="N", rich_help_panel=HOW)]


def check_figure(figure: Path | None) -> None:
    """Raise a usage error for a picture of another format."""
    if figure is not None and figure.suffix.lower() not in (".svg", ".png"):
        raise typer.BadParameter(f"{figure}: a picture is a .svg or a .png", param_hint="--figure")
