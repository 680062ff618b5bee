"""What the scheduler tells the workers of one step: which rows read memories, which, and where a row is found.

Plain data that vLLM sends between its processes. Memories go as the packed records of their bank, never decoded, and how
these are packed goes with the first of them: a worker opens no bank, and none that is rebuilt or deleted concerns it.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace

from memory3.bank.record import MemoryRecord

__all__ = ["Form", "Name", "Packed", "Row", "Span", "Step"]

#: A memory, the same for all requests that read it: bank, version of the bank, reference.
Name = tuple[str, str, str]


@dataclass(frozen=True)
class Form:
    """How records are packed, and what they were computed for: all that decodes them.

    Attributes:
        key: equal only where the rest is.
        manifest: of their bank, as JSON.
        codebook: of their codec, as a file has it; empty where the codec has none.
    """

    key: str
    manifest: str
    codebook: bytes


@dataclass(frozen=True)
class Packed:
    """A memory on its way.

    Attributes:
        name: of the memory.
        record: its bytes and what they are.
        form: key of the `Form` it is packed in.
    """

    name: Name
    record: MemoryRecord
    form: str


@dataclass(frozen=True)
class Span:
    """Tokens of a request that read the same.

    Attributes:
        start, end: which, counted from the request's first token.
        names: what they read, most similar first.
    """

    start: int
    end: int
    names: tuple[Name, ...]


@dataclass(frozen=True)
class Row:
    """A request's part of a step.

    Attributes:
        request: its id.
        slot: place in the paged cache where its first token of the step is written. No other request of the step writes
            there, and so a row of vLLM's batch is known by it.
        start, end: its tokens of the step, counted from its first.
        split: its tokens in front of the memories' place. They read none.
        shift: positions by which those lie further back than vLLM puts them.
        moved: positions by which memories move from where they were written.
        missing: tokens of the prefix that its prompt lacks, and that are read like a memory.
        spans: what the tokens behind ``split`` read.
        is_late: whether its context is complete in this step alone: another row writes blocks of it, which a prefix cache has
            given to both.
    """

    request: str
    slot: int
    start: int
    end: int
    split: int
    shift: int
    moved: int
    missing: int
    spans: tuple[Span, ...]
    is_late: bool = False

    @property
    def is_one(self) -> bool:
        """Whether it is a single token that may read memories, behind a context that is there: such rows are computed
        together.
        """
        return self.end - self.start == 1 and self.start >= self.split and not self.is_late


@dataclass
class Step:
    """All of a step.

    Attributes:
        rows: of requests that read memories.
        forms: of memories, that workers do not know yet.
        packed: memories that a request reads from now on.
        reads: which, by request, for those that read others than before.
        ended: requests that read nothing any more.
        tokens: of all requests of the step.
    """

    rows: list[Row] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    packed: list[Packed] = field(default_factory=list)
    reads: dict[str, tuple[Name, ...]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    tokens: int = 0

    def without(self, names: Set[Name]) -> tuple[Step, set[str]]:
        """This step as it is where some memories are not to be had, and the requests that it is wrong for."""
        wrong = {row.request for row in self.rows for span in row.spans if not names.isdisjoint(span.names)}
        wrong |= {request for request, read in self.reads.items() if not names.isdisjoint(read)}
        reads = {request: _left(read, names) for request, read in self.reads.items()}
        rows = [
            replace(row, spans=tuple(replace(span, names=_left(span.names, names)) for span in row.spans)) for row in self.rows
        ]
        return replace(self, rows=rows, reads=reads), wrong


def _left(names: tuple[Name, ...], gone: Set[Name]) -> tuple[Name, ...]:
    return tuple(name for name in names if name not in gone)
