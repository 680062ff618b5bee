"""``memory3 prepare``: from raw text to the documents that are worth a memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from memory3.cli import options
from memory3.cli.output import count, duration, facts, message, out, print_json
from memory3.cli.progress import StepMeter

__all__ = ["prepare"]

READING = "How files are read"
RULES = "Thresholds of the rules"
_SHOWN = 10


def _share(text: str | None) -> float | None:
    """``70%`` or ``0.7`` as 0.7; None as None. What is no share is wrong usage."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    if found is None or not 0 <= float(found[1]) <= (100 if found[2] else 1):
        raise typer.BadParameter(f"{text!r} is no share: write 70% or 0.7")
    return float(found[1]) / 100 if found[2] else float(found[1])


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def prepare(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH", help="Files, folders and patterns: what `write` reads, and WARC (.warc.gz, .warc.wet.gz)."
        ),
    ],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="A new folder, or one to go on with.", metavar="DIR", callback=options.folder)
    ],
    without: Annotated[
        str,
        typer.Option(
            help="Stages to leave out, with commas: extraction, language, rules, duplicates, quality, personal.",
            metavar="STAGES",
        ),
    ] = "",
    language: Annotated[
        str,
        typer.Option(help="Languages to keep, with commas, such as en,de. Default: all; they are counted.", metavar="CODES"),
    ] = "",
    graded: Annotated[
        Path | None,
        typer.Option(
            help="Graded examples: records with a text and a grade. A judge of quality is fitted to them.", metavar="FILE"
        ),
    ] = None,
    keep_best: Annotated[
        str | None, typer.Option(help="Share of documents that the judge keeps, such as 70%.", metavar="SHARE")
    ] = None,
    min_grade: Annotated[float | None, typer.Option(help="Instead: least grade that it keeps.", metavar="X")] = None,
    keep_removed: Annotated[
        bool, typer.Option("--keep-removed", help="Keep what was removed, unmasked, in DIR/removed.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes. The result is the same with any number.", min=1, metavar="N")] = 1,
    language_threshold: Annotated[
        float,
        typer.Option(
            help="Least probability at which a text is of another language, and goes.",
            min=0,
            max=1,
            metavar="X",
            rich_help_panel=RULES,
        ),
    ] = 0.65,
    min_words: Annotated[
        int, typer.Option(help="Fewer words, and a document goes.", min=0, metavar="N", rich_help_panel=RULES)
    ] = 50,
    max_word_length: Annotated[
        float, typer.Option(help="Mean characters of its words.", min=0, metavar="X", rich_help_panel=RULES)
    ] = 10.0,
    max_non_alphabetic: Annotated[
        float,
        typer.Option(help="Share of characters that are no letters.", min=0, max=1, metavar="X", rich_help_panel=RULES),
    ] = 0.7,
    min_entropy: Annotated[
        float, typer.Option(help="Entropy of its words, in nats.", min=0, metavar="X", rich_help_panel=RULES)
    ] = 2.5,
    max_repeated_lines: Annotated[
        float, typer.Option(help="Share of repeated lines.", min=0, max=1, metavar="X", rich_help_panel=RULES)
    ] = 0.3,
    embedder: Annotated[
        str, typer.Option(help="Sentence embedder that the judge reads with.", metavar="MODEL", rich_help_panel=options.MODEL)
    ] = "all-minilm-l6-v2",
    text_field: Annotated[
        str | None,
        typer.Option(
            help="Field of a record (JSON, CSV, Parquet) that holds its text.", metavar="NAME", rich_help_panel=READING
        ),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(help="Field that holds its id; '' numbers the records.", metavar="NAME", rich_help_panel=READING),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of all text files.", metavar="NAME", rich_help_panel=READING)
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Largest document, unzipped. Default: 67MB.", metavar="SIZE", rich_help_panel=READING),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Turn raw text into documents that are worth a memory, for `write`.

    Takes the main text of web pages, keeps languages, drops what breaks the paper's
    rules, near-duplicates and what a judge grades low, and masks e-mail and IP
    addresses. A report in DIR says what each stage removed, with samples.
    Interrupted, the same command goes on where it stopped. Needs memory3[prepare].

    [bold]Examples[/bold]

        memory3 prepare docs/ crawl.warc.gz --out clean
        memory3 write clean --bank bank
        memory3 prepare docs/ --out clean --language en,de --workers 4
        memory3 prepare faq.jsonl --out clean --min-words 10 --without duplicates
        memory3 prepare docs/ --out clean --graded grades.jsonl --keep-best 70%
    """
    from memory3.preparing import PrepareSettings
    from memory3.preparing import prepare as run

    asked = PrepareSettings(
        without=_names(without),
        languages=_names(language),
        language_threshold=language_threshold,
        min_words=min_words,
        max_word_length=max_word_length,
        max_non_alphabetic=max_non_alphabetic,
        min_entropy=min_entropy,
        max_repeated_lines=max_repeated_lines,
        graded=str(graded) if graded else "",
        keep_best=_share(keep_best),
        min_grade=min_grade,
        embedder=embedder,
        keep_removed=keep_removed,
        text_field=text_field,
        id_field=id_field,
        encoding=encoding,
        max_bytes=options.byte_count(max_bytes) or PrepareSettings.max_bytes,
    )
    try:
        with StepMeter() as meter:
            found = run(paths, folder, asked, workers=workers, tell=meter)
    except KeyboardInterrupt:
        message("interrupted. Run the same command again to go on")
        raise typer.Exit(130) from None
    if as_json:
        print_json({"out": str(folder), **found})
        return
    _report(folder, found)


def _report(folder: Path, found: Mapping[str, Any]) -> None:
    for one in found["skipped"]["first"][:_SHOWN]:
        message(f"{one['place']}: {one['reason']}", kind="note", style="yellow")
    if found["skipped"]["count"] > _SHOWN:
        message(f"{found['skipped']['count'] - _SHOWN:,} more; {folder / 'report.json'} has them", kind="note", style="yellow")
    out.print(
        f"{count(found['read'], 'document')} read, {found['kept']:,} kept, in {duration(found['seconds'])} "
        f"({found['documents_per_second']:,.0f}/s)"
    )
    rows = {}
    for stage in found["stages"]:
        why = ", ".join(f"{reason} {number:,}" for reason, number in stage["reasons"].items())
        rows[stage["stage"]] = f"{stage['removed']:,} removed{': ' + why if why else ''}" if stage["ran"] else "left out"
    rows["personal"] = (
        f"{count(found['masked'], 'document')} masked" if "personal" in found["settings"]["stages"] else "left out"
    )
    if judge := found["judge"]:
        rows["judge"] = (
            f"{judge['agreement']:.1%} of pairs of held-out examples in the right order (chance 50%), "
            f"kept from grade {judge['least_grade']:.3f} on"
        )
    out.print(facts(rows))
    out.print(f"what was removed, with samples: {folder / 'report.html'}", soft_wrap=True)
    if not found["kept"]:
        message("nothing is left: see the report, and lower the thresholds", kind="note", style="yellow")
