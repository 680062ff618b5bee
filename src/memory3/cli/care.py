"""``memory3 info``, ``verify``, ``delete`` and ``compact``: looking after a bank. None of them loads a model."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from memory3.cli import options
from memory3.cli.output import count, err, facts, message, out, print_json, printable, size
from memory3.retention import RetentionPolicy

__all__ = ["compact", "delete", "info", "verify"]


def info(
    bank: options.Bank,
    documents: Annotated[bool, typer.Option("--documents", help="List the documents, too.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show what a bank holds: model, settings, counts, sizes.

    [bold]Examples[/bold]

        memory3 info --bank bank
        memory3 info --bank bank --documents --json
    """
    from memory3.bank import Bank

    opened = Bank.open(bank, None, create=False)
    manifest, sizes = opened.manifest, opened.info()
    entries = sorted(opened.documents(), key=lambda entry: entry.id) if documents else []
    config = manifest.config.to_dict()
    if as_json:
        about = {
            "bank": str(bank),
            "format_version": manifest.format_version,
            "model": manifest.model,
            "fingerprint": manifest.fingerprint,
            "embedder": manifest.embedder,
            "dimension": manifest.dimension,
            "codec": manifest.codec,
            "config": config,
            "shape": {**dataclasses.asdict(manifest.shape), "layers": list(manifest.shape.layers)},
            "policy": dataclasses.asdict(opened.policy),
            **{name: value for name, value in sizes.to_dict().items() if name != "cache"},
        }
        if documents:
            about["document_list"] = [
                {"id": entry.id, "source": entry.source, "references": entry.references} for entry in entries
            ]
        print_json(about)
        return
    cold = f", {sizes.lazy:,} of them cold (text only)" if sizes.lazy else ""
    out.print(
        facts(
            {
                "bank": f"{bank} (format {manifest.format_version})",
                "model": f"{manifest.model} (fingerprint {manifest.fingerprint})",
                "embedder": f"{manifest.embedder} ({manifest.dimension} numbers)",
                "holds": f"{count(sizes.documents, 'document')}, {count(sizes.references, 'reference')}{cold}",
                "on disk": f"{size(sizes.bytes)}; a memory has {size(sizes.record_bytes)} ({manifest.codec})",
                "writing": _policy(opened.policy),
                "search": f"{sizes.index}{f', {sizes.unindexed:,} not indexed yet' if sizes.unindexed else ''}",
                "settings": ", ".join(f"{name} {value}" for name, value in config.items()),
                "memory": f"{manifest.shape.pairs:,} pairs in {len(manifest.shape.layers)} layers x "
                f"{manifest.shape.kv_heads} heads of {manifest.shape.head_dim} {manifest.shape.dtype}",
            }
        )
    )
    if documents:
        table = Table("document", "source", "references", box=None, header_style="bold", padding=(0, 2, 0, 0))
        for entry in entries:
            table.add_row(Text(printable(entry.id)), Text(printable(entry.source)), f"{entry.references:,}")
        out.print(table)


def _policy(policy: RetentionPolicy) -> str:
    if policy.write == "now":
        return "now: documents are encoded when they are written"
    within = f", within {size(policy.disk_bytes)}" if policy.disk_bytes else ""
    return f"auto: a memory is stored at recall {policy.after:,} of its reference{within}"


def verify(bank: options.Bank, as_json: options.Json = False) -> None:
    """Read every row of a bank and check it.

    Checksums, lengths, completeness of documents. What is wrong is listed, and
    the exit status is 1.

    [bold]Examples[/bold]

        memory3 verify --bank bank
    """
    from memory3.bank import Bank

    with err.status("reading every row"):
        report = Bank.open(bank, None, create=False).verify()
    if as_json:
        print_json({"bank": str(bank), "ok": report.ok, **report.to_dict()})
    else:
        checked = f"{count(report.references, 'reference')} of {count(report.documents, 'document')}"
        cold = f", {report.lazy:,} cold" if report.lazy else ""
        out.print(f"{checked} checked{cold}: {'all sound' if report.ok else count(len(report.problems), 'problem')}")
        for problem in report.problems:
            message(problem, kind="problem", style="bold red")
        if report.bad:
            message("delete the documents named above and write them again, or restore the bank from a copy")
    if not report.ok:
        raise typer.Exit(1)


def delete(
    bank: options.Bank,
    document_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids as `info --documents` lists them.", show_default=False)
    ] = None,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="Leave no byte of these, nor of what was deleted or replaced before. Writes the bank anew."
        ),
    ] = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Remove documents from a bank.

    They are no longer found or read, but their text stays in old files of the
    bank until it is compacted, ten minutes later or more. --purge removes it at
    once, and needs as much free space as the bank has; programs that have the
    bank open must refresh it, or open it again.

    Exit status 1 if one of them is not there; the others are removed all the same.

    [bold]Examples[/bold]

        memory3 delete guide/intro.md --bank bank
        memory3 delete --purge --bank bank
    """
    from memory3.bank import Bank

    if not document_ids and not purge:
        raise typer.BadParameter("name documents to delete, or give --purge for what was deleted before", param_hint="ID")
    opened = Bank.open(bank, None, create=False)
    there = {entry.id for entry in opened.documents()}
    wanted = list(dict.fromkeys(document_ids or ()))
    deleted = opened.delete(wanted, purge=purge, wait_seconds=wait)
    missing = [name for name in wanted if name not in there]
    if as_json:
        print_json(
            {
                "bank": str(bank),
                "deleted": deleted,
                "missing": missing,
                "documents": len(list(opened.documents())),
            }
        )
    else:
        out.print(f"{count(deleted, 'document')} deleted{', no byte of what was deleted is left' if purge else ''}")
        if deleted and not purge:
            message(
                f"their text stays in the bank's old files until it is compacted later; `memory3 delete --purge --bank {bank}` removes it now",
                kind="note",
            )
    for name in missing:
        message(
            f"the bank has no document {name!r}; list them with `memory3 info --bank {bank} --documents`",
            kind="error",
            style="bold red",
        )
    if missing:
        raise typer.Exit(1)


def compact(bank: options.Bank, wait: options.Wait = 0.0, as_json: options.Json = False) -> None:
    """Tidy a bank up: merge files, give back space, renew indexes.

    Needs as much free space as the bank has, for some minutes, while readers
    may still use the old files.

    [bold]Examples[/bold]

        memory3 compact --bank bank
    """
    from memory3.bank import Bank

    opened = Bank.open(bank, None, create=False)
    before = opened.info()
    with err.status("compacting"):
        opened.compact(wait_seconds=wait)
    after = opened.info()
    if as_json:
        print_json(
            {
                "bank": str(bank),
                "bytes_before": before.bytes,
                "bytes": after.bytes,
                "fragments_before": before.fragments,
                "fragments": after.fragments,
            }
        )
    else:
        fragments = f"{count(before.fragments, 'fragment')} to {after.fragments:,}"
        out.print(f"{size(before.bytes)} to {size(after.bytes)}, {fragments}")
