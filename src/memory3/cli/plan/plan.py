"""``memory3 plan``: what knowledge costs in weights, memory and text, before disks are bought."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from memory3.cli import options
from memory3.cli.output import message, out, print_json
from memory3.cli.plan.capacity import bank_usage, capacity, chosen_machine, counted
from memory3.cli.plan.views import PlanSubject, View, allocation, costs, storage, traffic
from memory3.codec.registry import default_codec
from memory3.config import MemoryConfig
from memory3.models.sizes import sizes_of
from memory3.planner.capacity import CorpusSize
from memory3.planner.storage import reference_count
from memory3.planner.usage import DocumentUsage, read_usage

__all__ = ["plan"]

USE = "How it is used"

#: References of made-up traffic where nobody says, and the most that are simulated.
_SIMULATED, _MOST = 10_000, 10_000_000


def plan(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=(
                "memory3-2.4b (the paper's), catalogue name, hub id or folder. Only its config is read. Default: the "
                "bank's, else smollm2-135m-instruct."
            ),
            metavar="MODEL",
        ),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(help="How many references there are, such as 1.12e8.", metavar="N"),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="Documents to count instead: a file, a folder or a pattern; may be given several times.",
            metavar="PATH",
        ),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(help="Profile: h100, a100, rtx4090, cpu-16.", metavar="NAME"),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Time this machine for a profile; seconds. The disk timed is that of temporary files.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Hold the predictions against this machine, with the model and a bank; minutes.",
            rich_help_panel=options.MACHINE,
        ),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(
            help="Of the machine per hour. Default: the profile's.", metavar="AMOUNT", rich_help_panel=options.MACHINE
        ),
    ] = None,
    hours: Annotated[
        float,
        typer.Option(help="Time there is for writing.", metavar="HOURS", rich_help_panel=options.MACHINE),
    ] = 168.0,
    usage: Annotated[
        Path | None,
        typer.Option(
            help="How often each document was recalled: CSV or JSON lines of document id and count.",
            metavar="FILE",
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            "-b",
            callback=options.folder,
            help="Take model, settings, codec, embedder and recalls from this bank.",
            metavar="DIR",
        ),
    ] = None,
    zipf: Annotated[
        float | None,
        typer.Option(help="Made-up traffic with this exponent, about 1 for most.", metavar="EXPONENT", rich_help_panel=USE),
    ] = None,
    recalls: Annotated[str, typer.Option(help="Recalls of made-up traffic.", metavar="N", rich_help_panel=USE)] = "1e5",
    disk: Annotated[
        str | None,
        typer.Option(
            help="Disk for memories, such as 10GB; those that pay least are dropped.", metavar="SIZE", rich_help_panel=USE
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="Sentence embedder: all-minilm-l6-v2, BAAI/bge-m3. Default: the bank's, else all-minilm-l6-v2.",
            metavar="NAME",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
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
    codec: options.Codec = None,
    as_json: options.Json = False,
) -> None:
    """Plan: which knowledge belongs in weights, memory or text, and what it costs.

    Arithmetic on a model's sizes; no weights are loaded. Costs of a reference are
    shown by the paper's formulas and for this library's own format.

    [bold]Examples[/bold]

        memory3 plan --model memory3-2.4b --figure costs.png
        memory3 plan --model memory3-2.4b --references 1.12e8
        memory3 plan --path docs/ --measure
        memory3 plan --machine h100 --price 2.5
        memory3 plan --usage recalls.csv --figure allocation.png
        memory3 plan --zipf 1 --references 1e5 --recalls 1e6 --disk 10GB
        memory3 plan --model Qwen/Qwen2.5-0.5B-Instruct --budget adaptive:1/4
    """
    from memory3.models.catalogue import DEFAULT_EMBEDDER, DEFAULT_MODEL

    base, used = MemoryConfig(), None
    if bank is not None:
        if usage is not None:
            raise typer.BadParameter("has its own statistics: give --usage or --bank", param_hint="--bank")
        manifest, used = bank_usage(bank)
        base, model, embedder = manifest.config, model or manifest.model, embedder or manifest.embedder
    elif usage is not None:
        used = read_usage(usage)
    model = model or DEFAULT_MODEL
    written = config = options.settings(base, context.params)
    shape = sizes_of(model)
    if config.codec == "auto":
        config = config.replace(codec=default_codec(shape.head_dim))
    number = None if references is None else reference_count(references)
    asked = PlanSubject(model, shape, config, embedder or DEFAULT_EMBEDDER, number)
    views: list[View] = []
    if machine is not None and measure:
        raise typer.BadParameter("is measured or named, not both", param_hint="--machine")
    if references is not None and path:
        raise typer.BadParameter("are given or counted, not both", param_hint="--references")
    corpus = counted(path, model, config) if path else None if number is None else CorpusSize(number)
    if corpus is not None:
        asked = dataclasses.replace(asked, references=corpus.references)
        views.append(storage(asked, corpus))
    if machine is not None or measure:
        chosen = chosen_machine(asked, machine, measure, price, corpus.tokens if corpus else 0.0)
        views.append(capacity(asked, corpus, chosen, hours))
    elif price is not None:
        raise typer.BadParameter("needs --machine or --measure", param_hint="--price")
    if check:
        from memory3.cli.plan.check import check as check_predictions

        views.append(check_predictions(asked, written))
    if used is not None:
        views += _used(asked, used, figure, disk)
    if zipf is not None:
        views.append(_made_up(asked, zipf, recalls, disk))
    if disk is not None and used is None and zipf is None:
        raise typer.BadParameter("needs --usage, --bank or --zipf: a budget is spent on what is recalled", param_hint="--disk")
    if not views or (figure is not None and used is None):
        views.insert(0, costs(asked, figure))
    if as_json:
        print_json({"model": model, "config": config.to_dict(), **{name: value for name, value, _ in views}})
    else:
        for _, _, tables in views:
            for table in tables:
                out.print(table)
    if figure is not None:
        message(f"drawn into {figure}")


def _used(asked: PlanSubject, usage: list[DocumentUsage], figure: Path | None, disk: str | None) -> list[View]:
    """A usage log's allocation, and the same counts in random order as traffic."""
    from memory3.planner.traffic import shuffled

    views = [allocation(asked, usage, figure)]
    if 0 < sum(use.count for use in usage) <= _MOST:
        views.append(traffic(asked, shuffled(usage), options.byte_count(disk)))
    return views


def _made_up(asked: PlanSubject, exponent: float, recalls: str, disk: str | None) -> View:
    from memory3.planner.traffic import zipf

    documents, number = asked.references or _SIMULATED, reference_count(recalls)
    if max(documents, number) > _MOST:
        raise typer.BadParameter(f"traffic of at most {_MOST:,} references and recalls is simulated", param_hint="--recalls")
    asked = dataclasses.replace(asked, references=documents)
    return traffic(asked, zipf(documents, number, exponent), options.byte_count(disk))
