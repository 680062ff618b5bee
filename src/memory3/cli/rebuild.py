"""``memory3 rebuild``: the documents of a bank encoded anew."""

from __future__ import annotations

from typing import Annotated

import typer

from memory3.cli import options
from memory3.cli.calibrate import ensure_code_book
from memory3.cli.loading import full_name, load_model
from memory3.cli.output import message
from memory3.cli.progress import WriteMeter
from memory3.cli.write import INTERRUPTED, report_write

__all__ = ["rebuild"]


def rebuild(
    context: typer.Context,
    bank: options.Bank,
    model: options.Model = None,
    adapter: options.Adapter = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="Sentence embedder: catalogue name, hub id or folder. Default: the bank's own.",
            metavar="MODEL",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    wait: options.Wait = 0.0,
    preset: options.Preset = None,
    layers: options.Layers = None,
    budget: options.Budget = None,
    selector: options.Selector = None,
    reference_length: options.ReferenceLength = None,
    memory_prefix: options.MemoryPrefix = None,
    dtype: options.Dtype = None,
    codec: options.Codec = None,
    device: options.Device = None,
    batch_size: options.BatchSize = 16,
    as_json: options.Json = False,
) -> None:
    """Encode a bank's documents anew, from the texts it holds.

    For another model, settings, codec or embedder. The bank can be read
    with the old model until the end, when the new memories take its place at
    once. Interrupted, the same command goes on where it stopped.

    [bold]Examples[/bold]

        memory3 rebuild --bank bank --model Qwen/Qwen2.5-0.5B-Instruct
        memory3 rebuild --bank bank --budget adaptive:1/4
        memory3 rebuild --bank bank --codec product
    """
    from memory3.bank import Bank
    from memory3.bank.rebuild import stored_documents
    from memory3.bank.store import Store

    manifest = Bank.describe(bank)
    config = options.settings(manifest.config, context.params)
    name = full_name(model or manifest.model, adapter)
    try:
        m3 = load_model(name, config, device=device, batch_size=batch_size)
        ensure_code_book(m3, lambda: stored_documents(Store(bank).snapshot()))
        meter = WriteMeter(m3, None)
        with meter.shown():
            report = Bank.rebuild(
                bank, meter.writer, embedder=full_name(embedder) if embedder else None, progress=meter, wait_seconds=wait
            )
    except KeyboardInterrupt:
        message(INTERRUPTED)
        raise typer.Exit(130) from None
    report_write(bank, name, report, (), as_json)
