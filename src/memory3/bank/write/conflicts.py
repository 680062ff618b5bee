"""What a write says of documents that have another source than those of the bank."""

from __future__ import annotations

from memory3.bank.reports import WriteReport
from memory3.errors import SourceConflict

__all__ = ["check_conflicts"]


def check_conflicts(report: WriteReport) -> None:
    """Raise SourceConflict where documents were left out, since the bank has others of the same id.

    Args:
        report: of the write, which is done.
    """
    if report.conflicts:
        some = "; ".join(f"{each.id!r} came from {each.stored}, now from {each.given}" for each in report.conflicts[:3])
        raise SourceConflict(
            f"{len(report.conflicts)} not written: under the same id the bank has a document from another source: {some}. "
            "To keep both, put a prefix before these ids (--prefix NAME/); to replace, give --replace. "
            "All else was written, nothing was pruned",
            report,
        )
