"""``memory3 write --keep-useful``: memories for the most useful references of a write, text for the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from xxhash import xxh3_128_hexdigest

from memory3.cli.output import count, message, out
from memory3.cli.progress import StepMeter

if TYPE_CHECKING:
    from memory3.bank import Bank
    from memory3.llm import Memory3
    from memory3.planner.usage import DocumentUsage
    from memory3.types import Document

__all__ = ["KeepUseful", "Wanted", "asked_useful", "gains_file", "report_useful"]

_SHOWN = 5


@dataclass(frozen=True)
class Wanted:
    """How many references are to have memories.

    Attributes:
        number: of them, or their share of all if it is a `Fraction`.
    """

    number: int | Fraction

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """``50%`` or ``300``. What is neither is wrong usage.

        Args:
            text: as the option has it.
        """
        found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(%?)\s*", text, re.ASCII)
        wrong = typer.BadParameter(
            f"--keep-useful {text!r}: write a share above 0% and up to 100%, such as 50%, or a number of references from 1"
        )
        if found is None or (not found[2] and "." in found[1]):
            raise wrong
        number = Fraction(found[1])
        if not number or (found[2] and number > 100):
            raise wrong
        return cls(number / 100 if found[2] else int(number))

    def of(self, references: int) -> int:
        """How many of so many; a share is rounded up.

        Args:
            references: how many there are.
        """
        return min(references, self.number if isinstance(self.number, int) else math.ceil(self.number * references))


class KeepUseful:
    """What one write keeps."""

    def __init__(self, wanted: str, usage: Path | None) -> None:
        """
        Args:
            wanted: a share or a number, as the option has it.
            usage: a log of recalls, read now, so that a wrong one fails before a model is loaded.
        """
        from memory3.planner.usage import read_usage

        self._wanted = Wanted.parse(wanted)
        self._log: list[DocumentUsage] = [] if usage is None else read_usage(usage)
        self._ids: set[str] = set()

    def noting(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents; their references are those that are compared.

        Args:
            documents: read one by one.
        """
        for document in documents:
            self._ids.add(document.id)
            yield document

    def encode(self, m3: Memory3, bank: Bank, path: Path, meter: StepMeter) -> dict[str, Any]:
        """Measure, and give the most useful references memories. The texts of all are in the bank.

        Args:
            m3: is asked.
            bank: holds the documents.
            path: where gains are kept until all is done.
            meter: is told.
        """
        from memory3.usefulness import Gains, most_useful, usage_of

        listed = sorted((entry for entry in bank.documents() if entry.id in self._ids), key=lambda entry: entry.id)
        references = bank.references([f"{entry.id}#{n}" for entry in listed for n in range(entry.references)])
        usage, unknown = usage_of(self._log, references)
        measured = Gains(m3, path)
        gains = measured.of(references, lambda done, total: meter("references asked about", done, total, ""))
        kept = most_useful(gains, usage, self._wanted.of(len(references)))
        made = bank.encode(kept, progress=lambda done, total: meter("memories encoded", done, total, ""))
        measured.forget()
        return {
            "references": len(references),
            "kept": len(kept),
            "encoded": made,
            "left_as_text": len(references) - len(kept),
            "least": min((usage[id_] * gains[id_].nats for id_ in kept), default=None),
            "without_a_question": sum(not gain.questions for gain in gains.values()),
            "unknown_in_usage": unknown,
        }


def asked_useful(
    wanted: str | None, usage: Path | None, *, cold: bool, disk: str | None, elsewhere: bool
) -> KeepUseful | None:
    """What --keep-useful and --usage say; what contradicts them is wrong usage.

    Args:
        wanted: --keep-useful; None: it is not asked for.
        usage: --usage.
        cold, disk: the options of these names.
        elsewhere: whether other processes are to encode.
    """
    if wanted is None:
        if usage is not None:
            raise typer.BadParameter("--usage says which references are useful: give --keep-useful too, such as 50%")
        return None
    if cold:
        raise typer.BadParameter("--cold encodes nothing and --keep-useful some: give one of them")
    if disk is not None:
        raise typer.BadParameter("--disk and --keep-useful both say how many memories are kept: give one of them")
    if elsewhere:
        raise typer.BadParameter("--keep-useful encodes in this process: leave out --workers and --ray")
    return KeepUseful(wanted, usage)


def gains_file(bank: str) -> Path:
    """Where gains are kept until a write is done: beside a bank that is a folder, for another in the cache.

    Args:
        bank: a folder or a URL.
    """
    from memory3.bank.address import is_store_url
    from memory3.models.catalogue import cache_dir

    if is_store_url(bank):
        folder = cache_dir() / "gains"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{xxh3_128_hexdigest(bank.rstrip('/').encode())}.jsonl"
    path = Path(bank).expanduser().absolute()
    return path.with_name(f"{path.name}.gains.jsonl")


def report_useful(found: dict[str, Any]) -> None:
    """Say what was kept, and what was not.

    Args:
        found: by `KeepUseful.encode`.
    """
    if unknown := found["unknown_in_usage"]:
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        message(f"the usage log names what is not among these documents: {', '.join(unknown[:_SHOWN])}{more}", kind="note")
    least = "" if found["least"] is None else f", from a usefulness of {found['least']:.2f} nats on"
    out.print(
        f"the {found['kept']:,} most useful of {count(found['references'], 'reference')} have memories "
        f"({found['encoded']:,} encoded now{least}); {found['left_as_text']:,} are left as text, encoded when first read; "
        f"nothing could be asked about {found['without_a_question']:,}"
    )
