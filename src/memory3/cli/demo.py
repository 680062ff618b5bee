"""``memory3 demo``: a real bank and three questions, in every mode."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from memory3.cli import options
from memory3.cli.ask import answer_json, place
from memory3.cli.loading import full_name, load_model
from memory3.cli.output import count, duration, err, message, out, print_json, printable, size
from memory3.cli.progress import WriteMeter
from memory3.cli.write import INTERRUPTED

if TYPE_CHECKING:
    from memory3.demo import DemoAnswer

__all__ = ["demo"]


def demo(
    everything: Annotated[
        bool, typer.Option("--all", help="All topics (about 1,100 references) instead of a part (about 410).")
    ] = False,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            "-b",
            callback=options.folder,
            help="Keep the bank in this folder instead of the cache folder.",
            metavar="DIR",
        ),
    ] = None,
    model: options.AnyModel = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Encode a part of Python's language reference and ask it three questions in every mode.

    The first run encodes for some minutes on two cores. A second run finds
    everything done and answers at once.

    [bold]Examples[/bold]

        memory3 demo
    """
    started = time.monotonic()
    from memory3.models.catalogue import DEFAULT_ADAPTED

    m3 = load_model(full_name(model or DEFAULT_ADAPTED), device=device)
    with err.status("opening the bank"):
        from memory3.bank import Bank
        from memory3.demo import PART_NAME, ask_all, bank_folder, documents

        texts = documents(everything=everything)
        folder = bank or bank_folder(m3, everything=everything)
        meter = WriteMeter(m3, sum(len(text.text.encode()) for text in texts))
        opened = Bank.open(folder, meter.writer)
    part = "all topics" if everything else PART_NAME
    message(f"Knowledge: Python's language reference, {part}, {size(meter.total or 0)} of text")
    try:
        with meter.shown():
            report = opened.write(meter.reading(texts), progress=meter)
    except KeyboardInterrupt:
        message(INTERRUPTED)
        raise typer.Exit(130) from None
    done = (
        f"{count(report.references, 'reference')} encoded in {duration(report.seconds)}"
        if report.written
        else "all encoded before"
    )
    message(f"Bank: {folder}, {count(len(opened), 'reference')}, {done}")

    answers: list[DemoAnswer] = []
    with err.status("answering") as status:
        for found in ask_all(m3, opened):
            answers.append(found)
            status.update(f"answering, {len(answers)} done")
    seconds = time.monotonic() - started
    if as_json:
        print_json(
            {
                "model": m3.name,
                "bank": str(folder),
                "part": part,
                "documents": len(texts),
                "references": len(opened),
                "write": dataclasses.asdict(report),
                "answers": [{"question": found.question, **answer_json(found.mode, found.answer)} for found in answers],
                "seconds": round(seconds, 3),
            }
        )
        return
    _print_answers(answers)
    out.print(
        f"\n{duration(seconds)} in all. The questions were chosen: of 30 that this part answers, the default model "
        f"got 15 right from memory, 18 from the text of "
        "the same references and 1 from neither; these are three of the 15. They show how it works, not how often it "
        "is right.",
        soft_wrap=True,
    )
    out.print(f'Ask your own: memory3 ask "..." --bank {folder} --mode all', soft_wrap=True)


def _print_answers(answers: Sequence[DemoAnswer]) -> None:
    for question in dict.fromkeys(found.question for found in answers):
        table = Table(title=Text(question, style="bold"), title_justify="left", expand=True, show_lines=True)
        table.add_column("mode")
        table.add_column("answer, top citation", ratio=1)
        for name in ("first token", "tokens /s", "prompt tokens", "read"):
            table.add_column(name, justify="right", width=8)
        for found in answers:
            if found.question == question:
                table.add_row(found.mode, _answer(found), *_figures(found))
        out.print()
        out.print(table)


def _answer(found: DemoAnswer) -> Text:
    """The answer in one paragraph, and where most of it was read."""
    from memory3.demo import MAX_NEW_TOKENS

    cut = "..." if found.answer.usage.answer_tokens == MAX_NEW_TOKENS else ""
    text = Text(" ".join(printable(found.answer.text).split()) + cut)
    if found.answer.citations:
        top = found.answer.citations[0]
        text.append(f"\n{top.share:.0%} {place(top)}", style="dim")
    return text


def _figures(found: DemoAnswer) -> list[str]:
    usage, timings = found.answer.usage, found.answer.timings
    read = size(usage.bytes_read) if usage.bytes_read else "-"
    return [f"{timings.first_token:.2f} s", f"{timings.tokens_per_second:.1f}", f"{usage.prompt_tokens:,}", read]
