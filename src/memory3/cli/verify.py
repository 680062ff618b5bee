"""``memory3 verify``: every row of a bank read and checked. No model is loaded."""

from __future__ import annotations

import typer

from memory3.cli import options
from memory3.cli.output import count, err, message, out, print_json

__all__ = ["verify"]


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
        print_json({"bank": bank, "ok": report.ok, **report.to_dict()})
    else:
        checked = f"{count(report.references, 'reference')} of {count(report.documents, 'document')}"
        lazy = f", {report.lazy:,} lazy" if report.lazy else ""
        out.print(f"{checked} checked{lazy}: {'all sound' if report.ok else count(len(report.problems), 'problem')}")
        for problem in report.problems:
            message(problem, kind="problem", style="bold red")
        if report.bad:
            message("delete the documents named above and write them again, or restore the bank from a copy")
    if not report.ok:
        raise typer.Exit(1)
