"""``memory3 info``: what a bank holds. No model is loaded."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from memory3.cli import options
from memory3.cli.output import count, facts, out, print_json, printable, size
from memory3.codec.registry import shown
from memory3.retention import RetentionPolicy

if TYPE_CHECKING:
    from memory3.bank.tiers import TierStatistics

__all__ = ["info"]


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
            "bank": bank,
            "format_version": manifest.format_version,
            "model": manifest.model,
            "fingerprint": manifest.fingerprint,
            "embedder": manifest.embedder,
            "dimension": manifest.dimension,
            "codec": manifest.codec,
            "config": config,
            "shape": manifest.shape.to_dict(),
            "policy": dataclasses.asdict(opened.policy),
            **sizes.to_dict(),
        }
        if documents:
            about["document_list"] = [
                {"id": entry.id, "source": entry.source, "references": entry.references} for entry in entries
            ]
        print_json(about)
        return
    lazy = f", {sizes.lazy:,} of them lazy (text only)" if sizes.lazy else ""
    out.print(
        facts(
            {
                "bank": f"{bank} (format {manifest.format_version})",
                "model": f"{manifest.model} (fingerprint {manifest.fingerprint})",
                "embedder": f"{manifest.embedder} ({manifest.dimension} numbers)",
                "holds": f"{count(sizes.documents, 'document')}, {count(sizes.references, 'reference')}{lazy}",
                "on disk": f"{size(sizes.bytes)}; a memory has {size(sizes.record_bytes)} ({shown(manifest.codec)})",
                "writing": _policy(opened.policy),
                "cache": _cache(sizes.tiers),
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


def _cache(tiers: TierStatistics) -> str:
    """Bounds of the tiers, and what lies on disk. No model is loaded here, so none is on a device."""
    device = "device 0 (1 GiB for a model on a GPU; a CPU reads from RAM)"
    disk = (
        f"disk {size(tiers.disk.capacity)}, {size(tiers.disk.bytes)} of it in use by all banks"
        if tiers.disk.capacity
        else "disk 0 (the bank lies on it)"
    )
    return f"{device}, RAM {size(tiers.ram.capacity)}, {disk}"


def _policy(policy: RetentionPolicy) -> str:
    if policy.write == "now":
        return "now: documents are encoded when they are written"
    within = f", within {size(policy.disk_bytes)}" if policy.disk_bytes else ""
    return f"auto: a memory is stored at recall {policy.after:,} of its reference{within}"
