"""``memory3 compact``: a bank tidied up. No model is loaded."""

from __future__ import annotations

from memory3.cli import options
from memory3.cli.output import count, err, out, print_json, size

__all__ = ["compact"]


def compact(bank: options.Bank, wait: options.Wait = 0.0, as_json: options.Json = False) -> None:
    """Tidy a bank up: merge files, give back space, renew indexes.

    Needs as much free space as what it writes anew, for some minutes, while readers
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
                "bank": bank,
                "bytes_before": before.bytes,
                "bytes": after.bytes,
                "fragments_before": before.fragments,
                "fragments": after.fragments,
            }
        )
    else:
        fragments = f"{count(before.fragments, 'fragment')} to {after.fragments:,}"
        out.print(f"{size(before.bytes)} to {size(after.bytes)}, {fragments}")
