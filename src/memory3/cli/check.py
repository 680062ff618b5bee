"""``memory3 check``: may memories of a model be trusted, what do they cost, and what do they gain here?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as RichTable
from rich.text import Text

from memory3.cli import options
from memory3.cli.command import first_screen
from memory3.cli.edge import sentence
from memory3.cli.loading import full_name, load_model, open_bank
from memory3.cli.output import message, out, print_json
from memory3.cli.progress import StepMeter
from memory3.config import MemoryConfig
from memory3.errors import UnsupportedModel
from memory3.files import write_atomically

if TYPE_CHECKING:
    from memory3.codec import Codec
    from memory3.llm import Memory3
    from memory3.types import Reference

__all__ = ["check"]


def check(
    context: typer.Context,
    model: options.AnyModel = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            "-b",
            callback=options.folder,
            help="Check on the texts of this bank, with its model, its settings and its codec.",
            metavar="DIR",
        ),
    ] = None,
    data: options.Data = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="Also write the page to this file. It needs no other.", metavar="FILE")
    ] = None,
    questions: Annotated[
        int, typer.Option(help="Questions at most. More make the intervals narrower.", min=12, metavar="N")
    ] = 160,
    margin: Annotated[
        float,
        typer.Option(
            help="What a budget may lose against all pairs, as a share of what text gains over nothing.",
            min=0.001,
            max=1,
            metavar="X",
        ),
    ] = 0.1,
    budget: Annotated[str | None, first_screen(options.Budget)] = None,
    preset: options.Preset = None,
    layers: options.Layers = None,
    selector: options.Selector = None,
    reference_length: options.ReferenceLength = None,
    memory_prefix: options.MemoryPrefix = None,
    dtype: options.Dtype = None,
    codec: options.Codec = None,
    device: options.Device = None,
    model_dtype: options.ModelDtype = None,
    batch_size: options.BatchSize = 16,
    as_json: options.Json = False,
) -> None:
    """Say whether memories of a model can be trusted, what they cost and what they gain.

    Reads your own documents from memory and as text, and compares: logits, how
    likely the answers of questions made from them are under several budgets, what
    packing costs, and how fast it is here. The last line is a verdict: use, use
    with more bytes, or don't. Takes some minutes for the default model on two
    cores. Exit status 1 says don't.

    [bold]Examples[/bold]

        memory3 check
        memory3 check --model Qwen/Qwen2.5-0.5B-Instruct --data docs/
        memory3 check --bank bank --html check.html
    """
    given = options.named(context.params)  # a bank remembers its own
    if bank is not None and (data or given):
        names = [f"--{name.replace('_', '-')}" for name in [*(["data"] if data else []), *given]]
        raise typer.BadParameter(f"a bank has its own texts and settings: leave out either --bank or {', '.join(names)}")
    if page is not None and not page.absolute().parent.is_dir():
        raise typer.BadParameter(f"--html {page}: there is no folder {page.absolute().parent}")
    from memory3.checking.check import check_refused
    from memory3.models.catalogue import DEFAULT_ADAPTED
    from memory3.models.chosen import settings_of

    name = full_name(model or (_model_of(bank) if bank else DEFAULT_ADAPTED))
    try:
        if bank is not None:
            from memory3.checking.questions import of_bank

            m3, opened = open_bank(bank, model, device=device, dtype=model_dtype, embedder=False)
            m3.batch_size = batch_size
            found = _measured(m3, of_bank(opened, questions), questions, margin, opened.pin().codec)
        else:
            config = options.settings(settings_of(name) or MemoryConfig(), context.params)
            m3 = load_model(name, config, device=device, dtype=model_dtype, batch_size=batch_size)
            found = _measured(m3, _drawn(m3, data, questions), questions, margin, None)
    except UnsupportedModel as error:
        found = check_refused(name, sentence(error))
    _report(found, page, as_json)
    if not found["verdict"]["ok"]:
        raise typer.Exit(1)


def _model_of(bank: Path) -> str:
    from memory3.bank import Bank

    return Bank.describe(bank).model


def _drawn(m3: Memory3, data: list[str] | None, questions: int) -> list[Reference]:
    from memory3.calibration.sample import default_documents
    from memory3.checking.questions import sampled
    from memory3.text.readers import read_documents

    return sampled(m3, read_documents(*data) if data else default_documents(), questions)


def _measured(
    m3: Memory3, references: Sequence[Reference], questions: int, margin: float, codec: Codec | None
) -> dict[str, Any]:
    from memory3.checking.check import check as measure

    with StepMeter() as meter:

        def tell(done: float, what: str) -> None:
            meter("checking:", int(100 * done), 100, what)

        return measure(m3, references, questions=questions, margin=margin, codec=codec, progress=tell)


def _report(found: dict[str, Any], page: Path | None, as_json: bool) -> None:
    from memory3.checking.pages import about, html_page, sections

    if page is not None:
        write_atomically(page, html_page(found))
    if as_json:
        print_json(found)
        return
    if "not_kept" in found:
        message(f"the verdict could not be kept: {found['not_kept']}", kind="warning", style="yellow")
    verdict, *parts = sections(found)
    for part in parts:
        out.print(Text(part.title, "bold"))
        for paragraph in part.paragraphs:
            out.print(Text(paragraph))
        for table in part.tables:
            shown = RichTable(box=None, pad_edge=False)
            for column in table.columns:
                shown.add_column(column)
            for row in table.rows:
                shown.add_row(*map(str, row))
            out.print(shown)
            if table.caption:
                out.print(Text(table.caption, "dim"))
        out.print()
    message(about(found))
    if page is not None:
        message(f"written to {page}")
    out.print(Text(verdict.paragraphs[0], "bold green" if found["verdict"]["ok"] else "bold red"))
