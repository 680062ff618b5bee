"""``memory3 write``: documents into a bank."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memory3.cli import options
from memory3.cli.calibrate import ensure_code_book
from memory3.cli.keep_useful import asked_useful, gains_file, report_useful
from memory3.cli.loading import full_name, load_model
from memory3.cli.output import count, duration, err, message, out, print_json, size, tell_advice
from memory3.cli.progress import StepMeter, WriteMeter
from memory3.config import MemoryConfig
from memory3.errors import BankNotFound, ConfigError, SourceConflict
from memory3.retention import RetentionPolicy

if TYPE_CHECKING:
    from memory3.bank import WriteReport
    from memory3.cluster.pool import ShardPool
    from memory3.cluster.recipe import Recipe
    from memory3.types import Document

__all__ = ["INTERRUPTED", "report_write", "write"]

INTERRUPTED = "interrupted. What was committed is kept and the bank is whole: run the same command again to go on"

POLICY = "What becomes of memories (a bank remembers it)"
READING = "How files are read"
WORKERS = "Who encodes"

#: More processes on one machine than that are a slip.
_MOST_WORKERS = 1024
#: Skipped files and records that are shown to people; ``--json`` lists all.
_SHOWN = 20
#: Formats whose size on disk says little of the text in them.
_OPAQUE = (".pdf", ".parquet", ".gz")


def write(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Files, folders, patterns ('docs/**/*.md'), or - for standard input."),
    ],
    bank: options.Bank,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=(
                "Catalogue name, hub id or folder. Default: the bank's own; for a new one smollm2-135m-instruct with its "
                "adapter (by name alone: without)."
            ),
            metavar="MODEL",
        ),
    ] = None,
    adapter: options.Adapter = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help=(
                "Sentence embedder: catalogue name, hub id or folder. Default: the bank's own; all-minilm-l6-v2 for a new one."
            ),
            metavar="MODEL",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents of the bank that are not among these.")] = False,
    cold: Annotated[
        bool,
        typer.Option("--cold", help="Store texts only; each memory is encoded when it is first read.", rich_help_panel=POLICY),
    ] = False,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="As --cold, from now on; memories are stored when recalled.", rich_help_panel=POLICY),
    ] = False,
    after: Annotated[
        int | None,
        typer.Option(
            help="Store a memory at this recall of it; `memory3 plan` says where it pays. Means --auto.",
            metavar="N",
            min=1,
            rich_help_panel=POLICY,
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            help="Disk for memories, such as 10GB; those wanted least are dropped. Means --auto.",
            metavar="SIZE",
            rich_help_panel=POLICY,
        ),
    ] = None,
    keep_useful: Annotated[
        str | None,
        typer.Option(
            "--keep-useful",
            help=(
                "Memories for the most useful references of these documents alone: a share (50%) or a number. The model is "
                "asked about each with and without its text. The rest stay as text that is found, as with --cold."
            ),
            metavar="SHARE",
            rich_help_panel=POLICY,
        ),
    ] = None,
    usage: Annotated[
        Path | None,
        typer.Option(
            help="For --keep-useful: a log of recalls (CSV or JSON lines: document, count). Default: all are asked for alike.",
            metavar="FILE",
            rich_help_panel=POLICY,
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field of a record (JSON, CSV, Parquet) that holds its text.", metavar="NAME")
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(help="Field that holds its id; '' numbers the records.", metavar="NAME", rich_help_panel=READING),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of all text files. Default: told from each; guesses are noted.",
            metavar="NAME",
            rich_help_panel=READING,
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(
            help="Put before all ids, such as blog/; --prune then keeps to ids that begin so.", rich_help_panel=READING
        ),
    ] = "",
    stdin_id: Annotated[
        str | None, typer.Option("--id", help="Id of standard input.", metavar="NAME", rich_help_panel=READING)
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace documents of the same id from other sources.")] = False,
    wait: options.Wait = 0.0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Encode in so many processes, each with the model; this one commits.",
            metavar="N",
            min=1,
            max=_MOST_WORKERS,
            rich_help_panel=WORKERS,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Encode on a cluster of Ray: its address, auto for the one that runs here, local for a new one here.",
            metavar="ADDRESS",
            rich_help_panel=WORKERS,
        ),
    ] = None,
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
    """Encode documents into a bank.

    Documents that are in the bank unchanged cost nothing, changed ones are
    replaced. Interrupted, the same command goes on where it stopped. A bank
    remembers its model and settings: later writes need only --bank.

    [bold]Examples[/bold]

        memory3 write docs/ --bank bank
        memory3 write 'notes/**/*.md' report.pdf --bank bank
        memory3 write docs/ --bank bank --prune
        curl -s https://example.com/a.txt | memory3 write - --bank bank
        memory3 write docs/ --bank bank --after 3 --disk 10GB
        memory3 write faq.jsonl --text-field answer --bank faq
        memory3 write docs/ --bank small --codec product
        memory3 write docs/ --bank s3://bucket/bank
        memory3 write docs/ --bank bank --keep-useful 50% --usage recalls.csv
        memory3 write docs/ --bank bank --workers 4
        memory3 write docs/ --bank s3://bucket/bank --ray auto
        memory3 write docs/ --bank big --model Qwen/Qwen2.5-0.5B-Instruct
    """
    from memory3.text.readers import read_documents

    budget_bytes = options.byte_count(disk)
    elsewhere = workers is not None or ray is not None
    if ray is not None:
        from memory3.cluster.on_ray import require_ray

        require_ray()
    useful = asked_useful(keep_useful, usage, cold=cold, disk=disk, elsewhere=elsewhere)
    policy = RetentionPolicy("auto", after or 1, budget_bytes) if auto or after or budget_bytes else None
    name, config = _remembered(bank, model, adapter, context.params)
    skipped: list[tuple[str, str]] = []
    fields: dict[str, Any] = {"text_field": text_field, "id_field": id_field, "encoding": encoding, "prefix": prefix}
    if stdin_id and "-" not in map(str, paths):
        raise typer.BadParameter("--id names standard input: give - as a PATH")
    given = read_documents(*paths, **fields, stdin_id=stdin_id, on_skip=lambda place, reason: skipped.append((place, reason)))
    total = _source_bytes(paths)
    documents = _begun(given)

    def again() -> Iterable[Document]:
        nonlocal documents
        if "-" not in paths:
            return read_documents(*paths, **fields, on_skip=lambda place, reason: None)
        everything = list(documents)
        documents = iter(everything)
        return everything

    try:
        m3 = load_model(name, config, device=device, batch_size=batch_size)
        from memory3.bank import Bank
        from memory3.bank.retention import read_policy
        from memory3.bank.store import Store
        from memory3.cluster.recipe import Recipe

        is_new = not Store(bank).exists()
        if is_new:
            ensure_code_book(m3, again)
        is_lazy = cold or useful is not None or (policy or read_policy(Store(bank))).write == "auto"
        meter = WriteMeter(m3, total, lazy=is_lazy, elsewhere=elsewhere)
        recipe = Recipe(name, m3.config.to_json(), device, batch_size)
        with _pool(bank, recipe, workers, ray) as pool:  # first: Ray forks processes, which lancedb is not made for
            with err.status("opening the bank"):
                opened = Bank.open(bank, meter.writer, embedder=full_name(embedder) if embedder else None, write=policy)
            if is_new and not as_json and config.codec == "auto" and opened.manifest.codec == "raw":
                message(
                    f"memories are kept raw, {size(opened.manifest.record_bytes)} each: `memory3 calibrate --model "
                    f"{name}` before the first write makes that an eighth",
                    kind="note",
                )
            said = opened.advice()
            if said is not None and (said.refuted or (is_new and not as_json)):
                tell_advice(said)
            told = None
            with opened:
                with meter.shown():
                    report = opened.write(
                        meter.reading(documents if useful is None else useful.noting(documents)),
                        prune=prune,
                        replace=replace,
                        unread=given.unread,
                        prune_prefix=prefix,
                        lazy=cold or useful is not None or None,
                        progress=meter,
                        wait_seconds=wait,
                        pool=pool,
                    )
                if useful is not None:
                    with StepMeter() as steps:
                        told = useful.encode(m3, opened, gains_file(bank), steps)
        if pool is not None and pool.lost:
            message(f"{count(pool.lost, 'worker')} lost; their shards were encoded again", kind="note")
    except KeyboardInterrupt:
        message(INTERRUPTED)
        raise typer.Exit(130) from None
    except SourceConflict as error:
        report_write(bank, name, cast("WriteReport", error.report), skipped, as_json)
        raise
    report_write(bank, name, report, skipped, as_json, told)


def _pool(bank: str, recipe: Recipe, workers: int | None, ray: str | None) -> AbstractContextManager[ShardPool | None]:
    """Who encodes, if not this process."""
    from memory3.cluster.pool import SHARD_REFERENCES
    from memory3.cluster.spool import Spool

    size = max(SHARD_REFERENCES, 4 * recipe.batch_size)  # references of like length are encoded together
    if ray is not None:
        from memory3.cluster.on_ray import ray_pool

        return ray_pool(Spool.beside(bank), recipe, ray, workers, shard_references=size)
    if workers is None:
        return nullcontext()
    from memory3.cluster.process import local_pool

    return local_pool(Spool.beside(bank), recipe, workers, shard_references=size)


def report_write(
    bank: str,
    model: str,
    report: WriteReport,
    skipped: Sequence[tuple[str, str]],
    as_json: bool,
    useful: dict[str, Any] | None = None,
) -> None:
    """Print what a write did; ``useful``: what was kept of it, if not all."""
    each = report.bytes / report.references if report.references else 0.0
    if as_json:
        print_json(
            {
                "bank": bank,
                "model": model,
                "written": report.written,
                "added": report.added,
                "changed": report.changed,
                "replaced": [vars(each) for each in report.replaced],
                "conflicts": [vars(each) for each in report.conflicts],
                "unchanged": report.unchanged,
                "kept": [{"id": id_, "reason": reason} for id_, reason in report.kept],
                "removed": report.removed,
                "skipped": [{"place": place, "reason": reason} for place, reason in skipped],
                "references": report.references,
                "bytes": report.bytes,
                "bytes_per_reference": round(each),
                "seconds": round(report.seconds, 3),
                **({} if useful is None else {"useful": useful}),
            }
        )
        return
    for place, reason in skipped[:_SHOWN]:
        message(f"{place}: {reason}", kind="note", style="yellow")
    if len(skipped) > _SHOWN:
        message(f"{len(skipped) - _SHOWN} more; --json lists all", kind="note", style="yellow")
    for id_, reason in report.kept[:_SHOWN]:
        message(f"{id_} is kept because its file could not be read: {reason}", kind="note", style="yellow")
    for other in report.replaced[:_SHOWN]:
        message(f"{other.id} is replaced: it came from {other.stored}, now from {other.given}", kind="note", style="yellow")
    parts = [f"{count(report.written, 'document')} written", f"{report.unchanged:,} unchanged"]
    parts += [f"{report.removed:,} removed"] if report.removed else []
    parts += [f"{len(report.kept):,} kept"] if report.kept else []
    parts += [f"{len(skipped):,} skipped or altered"] if skipped else []
    out.print(", ".join(parts))
    if report.references:
        rate = report.references / max(report.seconds, 1e-6)
        each_text = f"{size(each)} each, " if each else ""
        out.print(f"{count(report.references, 'reference')}, {each_text}in {duration(report.seconds)} ({rate:.1f}/s)")
    if useful is not None:
        report_useful(useful)


def _remembered(bank: str, model: str | None, adapter: str | None, given: Mapping[str, Any]) -> tuple[str, MemoryConfig]:
    """Model and settings to write with: those of the bank where there is one, which must not be contradicted."""
    from memory3.bank import Bank
    from memory3.models.catalogue import DEFAULT_ADAPTED
    from memory3.models.chosen import settings_of

    try:
        manifest = Bank.describe(bank)
    except BankNotFound:
        name = full_name(model or DEFAULT_ADAPTED, adapter)
        return name, options.settings(settings_of(name) or MemoryConfig(), given)
    asked = options.settings(manifest.config, given)
    stored, wanted = ({**config.LATER, **config.to_dict()} for config in (manifest.config, asked))
    differing = [
        f"{name} {stored[name]!r}, not {wanted[name]!r}"
        for name in (*MemoryConfig.WRITING, *MemoryConfig.STORING)
        if stored[name] != wanted[name]
    ]
    if differing:
        raise ConfigError(
            f"the bank {bank} was written with {'; '.join(differing)}. Leave these options out to add to it, give another "
            f"folder, or re-encode it with `memory3 rebuild --bank {bank}` and these options"
        )
    return full_name(model or manifest.model, adapter), manifest.config


def _source_bytes(paths: Sequence[str]) -> int | None:
    """Bytes of text behind the sources, where file sizes tell it."""
    from memory3.text.readers.listing import locate
    from memory3.text.readers.source import ReadOptions

    if "-" in paths:
        return None
    quietly = ReadOptions(None, None, 1, lambda place, reason: None)
    files = [file.path for path in paths for file in locate(path).files(quietly)]
    if any(file.suffix.lower() in _OPAQUE for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def _begun(documents: Iterator[Document]) -> Iterator[Document]:
    """The same documents; the first is read now, so that what cannot be read fails before a model is loaded."""
    return itertools.chain(list(itertools.islice(documents, 1)), documents)
