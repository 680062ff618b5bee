"""``memory3 delete``: documents out of a bank. No model is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from memory3.cli import options
from memory3.cli.output import count, message, out, print_json

__all__ = ["delete"]


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
                "bank": bank,
                "deleted": deleted,
                "missing": missing,
                "documents": len(list(opened.documents())),
            }
        )
    else:
        out.print(f"{count(deleted, 'document')} deleted{', no byte of what was deleted is left' if purge else ''}")
        if deleted and not purge:
            message(
                f"their text stays in the bank's old files until it is compacted later; `memory3 delete --purge "
                f"--bank {bank}` removes it now",
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
