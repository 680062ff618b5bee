"""``memory3 plan``: what knowledge costs in weights, memory and text, before disks are bought."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from memory3.cli import options, planning
from memory3.cli.output import message, out, print_json
from memory3.config import MemoryConfig

__all__ = ["plan"]

CORPUS = "What is to be remembered"


def plan(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="memory3-2.4b (the paper's), catalogue name, hub id or folder. Only its config is read.",
            metavar="MODEL",
        ),
    ] = "smollm2-135m-instruct",
    references: Annotated[
        str | None,
        typer.Option(help="How many references there are, such as 1.12e8.", metavar="N", rich_help_panel=CORPUS),
    ] = None,
    codec: Annotated[str, typer.Option(help="How vectors are stored: raw, or vq14 (14 bytes each).", metavar="NAME")] = "raw",
    embedder: Annotated[
        str, typer.Option(help="Sentence embedder: all-minilm-l6-v2, BAAI/bge-m3.", metavar="NAME")
    ] = "all-minilm-l6-v2",
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw costs by number of uses into this PNG.", metavar="FILE", dir_okay=False),
    ] = None,
    preset: options.Preset = None,
    layers: options.Layers = None,
    budget: options.Budget = None,
    selector: options.Selector = None,
    reference_length: options.ReferenceLength = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Plan: which knowledge belongs in weights, memory or text, and what it costs.

    Arithmetic on a model's sizes; no weights are loaded. Costs of a reference are
    shown by the paper's formulas and for this library's own format.

    [bold]Examples[/bold]

        memory3 plan --model memory3-2.4b --figure costs.png
        memory3 plan --model memory3-2.4b --references 1.12e8
        memory3 plan --model Qwen/Qwen2.5-0.5B-Instruct --budget adaptive:1/4
    """
    from memory3.theory.shape import shape_of
    from memory3.theory.storage import reference_count

    changes: dict[str, str | int | None] = {
        "layers": layers,
        "budget": budget,
        "selector": selector,
        "reference_length": reference_length,
        "dtype": dtype,
    }
    config = options.settings(MemoryConfig(), preset, changes)
    shape = shape_of(model)
    number = None if references is None else reference_count(references)
    asked = planning.Asked(model, shape, config, codec, embedder, number)
    views: list[tuple[str, Any, list[RenderableType]]] = []
    if number is not None:
        views.append(planning.storage(asked, number))
    if not views or figure is not None:
        views.insert(0, planning.costs(asked, figure))
    if as_json:
        print_json({"model": model, "config": config.to_dict(), **{name: value for name, value, _ in views}})
    else:
        for _, _, tables in views:
            for table in tables:
                out.print(table)
    if figure is not None:
        message(f"drawn into {figure}")
