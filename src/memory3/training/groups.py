"""Groups: what one pass reads together; made by `memory3.training.sampling`, kept in a run's folder.

A group is up to k references and the rows that read them, of one of these kinds:

    memory      questions read the references as memories
    text        questions with the same references as text in the prompt
    none        prompts of the records as they are, and questions without references
    continue    texts behind memories of similar texts
    plain       texts alone
    recite      references said again from their memories, each called by its first tokens
    packed      sequences of many chunks, without memories: ordinary pretraining
    chunks      the paper's recipe: sequences of many chunks; each chunk retrieves one reference, and reads those of the chunks
                before it, too
    prompt      a prompt reads what is retrieved for it, and is answered
    preference  the same with two answers: a row for the better one, and a row for the other
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memory3.files import write_atomically

__all__ = ["Group", "TrainingRow", "answer_row", "by_length", "read_groups", "text_row", "without_memories", "write_groups"]


@dataclass(frozen=True)
class TrainingRow:
    """A sequence of one group.

    Attributes:
        tokens: ids, what stands behind the memories included and the memories not.
        scored: how many of the last tokens count for the loss.
        answer: how many of them read what they would while being decoded (`memory3.recall.chunks`).
        chunks: ids of the references that each chunk reads; empty: all chunks read all of the group's.
        before: of a preference, log-likelihood of the scored tokens, in nats, under the model before training.
    """

    tokens: tuple[int, ...]
    scored: int
    answer: int = 0
    chunks: tuple[tuple[str, ...], ...] = ()
    before: float = 0.0


@dataclass(frozen=True)
class Group:
    """What one pass reads together.

    Attributes:
        kind: see the module.
        references: id and tokens of each; empty where nothing is read as memory.
        rows: that read them.
    """

    kind: str
    references: tuple[tuple[str, tuple[int, ...]], ...]
    rows: tuple[TrainingRow, ...]

    def to_json(self) -> str:
        """One line."""
        rows = [[list(r.tokens), r.scored, r.answer, [list(ids) for ids in r.chunks], r.before] for r in self.rows]
        return json.dumps([self.kind, [[name, list(tokens)] for name, tokens in self.references], rows])

    @classmethod
    def from_json(cls, line: str) -> Group:
        """Inverse of `to_json`."""
        kind, references, rows = json.loads(line)
        return cls(
            kind,
            tuple((name, tuple(tokens)) for name, tokens in references),
            tuple(
                TrainingRow(tuple(tokens), n, answer, tuple(map(tuple, chunks)), before)
                for tokens, n, answer, chunks, before in rows
            ),
        )


def answer_row(prompt: Sequence[int], answer: Sequence[int]) -> TrainingRow:
    """A prompt, and its answer, of which every token counts and is read as it would be while being decoded. Token ids."""
    return TrainingRow((*prompt, *answer), len(answer), len(answer))


def text_row(tokens: Sequence[int]) -> TrainingRow:
    """A text, of which all tokens but the first count."""
    return TrainingRow(tuple(tokens), len(tokens) - 1)


def by_length(rows: Iterable[TrainingRow]) -> tuple[TrainingRow, ...]:
    """The rows, shortest first."""
    return tuple(sorted(rows, key=lambda row: len(row.tokens)))


def without_memories(group: Group) -> Group:
    """The same sequences, to be read alone: ordinary pretraining."""
    return Group("packed", (), tuple(TrainingRow(row.tokens, row.scored) for row in group.rows))


def read_groups(path: Path) -> list[Group]:
    """The groups of a file that `write_groups` wrote."""
    return [Group.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """One line each; the file is there whole or not at all.

    Args:
        path: of the file.
        groups: in order.
    """
    write_atomically(path, "".join(group.to_json() + "\n" for group in groups))
