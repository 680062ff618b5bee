"""From questions to prompts, and from generated tokens to answers with their citations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory3.answer import Answer, Timings, Usage
from memory3.prompt import Prompt, PromptBuilder
from memory3.recall.generate import Recall
from memory3.recall.nothing import why_nothing
from memory3.recall.request import RecallStatistics
from memory3.recall.retrieval import Retrieval, within
from memory3.types import Citation, Reference

if TYPE_CHECKING:
    from memory3.bank import Bank

__all__ = ["Asked", "cite", "collect", "prepare"]


@dataclass(frozen=True)
class Asked:
    """A question that is ready for the model.

    Attributes:
        tokens: of its prompt.
        note: why it reads nothing of the bank that was asked; empty where it does, or where no bank was asked.
        passages: in mode text, what was put into the prompt; None in other modes.
    """

    tokens: list[int]
    note: str = ""
    passages: list[Citation] | None = None


def prepare(
    prompts: Sequence[Prompt], each: Sequence[Retrieval], builder: PromptBuilder, bank: Bank | None, mode: str
) -> list[Asked]:
    """Make prompts of questions; in mode text with the passages that are found for them.

    Args:
        prompts: questions or chats.
        each: what each of them looks up.
        builder: of the model's prompts.
        bank: where to look.
        mode: ``"memory"``, ``"text"`` or ``"none"``.

    Raises:
        InputError: an empty question, or a chat that the model's template refuses.
    """
    if mode == "none" or bank is None:
        return [Asked(builder.build(prompt)) for prompt in prompts]
    notes = why_nothing(bank, each)
    if mode == "memory":
        pairs = zip(prompts, notes, strict=True)
        return [Asked(builder.build(prompt, "none" if note else mode), note) for prompt, note in pairs]
    asked = []
    for prompt, note, found in zip(prompts, notes, _found(prompts, each, builder, bank), strict=True):
        references = bank.references([name for name, _ in found])
        tokens = builder.build(prompt, mode, [reference.token_ids for reference in references])
        weight = sum(max(score, 0.0) for _, score in found) or 1.0
        cited = [cite(r, max(score, 0.0) / weight, score) for r, (_, score) in zip(references, found, strict=True)]
        asked.append(Asked(tokens, note, cited))
    return asked


def _found(
    prompts: Sequence[Prompt], each: Sequence[Retrieval], builder: PromptBuilder, bank: Bank
) -> list[list[tuple[str, float]]]:
    """Ids and scores of what every prompt reads as text."""
    if any(retrieval.references is not None for retrieval in each):
        return [[(name, 0.0) for name in retrieval.references or ()] for retrieval in each]
    common = each[0]
    hits = bank.search([builder.query(prompt) for prompt in prompts], common.k, where=common.where)
    return [[(hit.reference_id, hit.score) for hit in within(row, common.gap)] for row in hits]


def collect(
    asked: Sequence[Asked],
    said: Sequence[Sequence[int]],
    tokenizer: Any,
    bank: Bank | None,
    recall: Recall | None,
    timings: Timings,
) -> list[Answer]:
    """Answers of what was generated, several to a question where several were asked for.

    Args:
        asked: the questions.
        said: token ids of every answer, those of a question one after the other.
        tokenizer: of the model.
        bank: that was read.
        recall: that it was read by, in mode memory.
        timings: of all of them.
    """
    answers = []
    per_question = max(1, len(said) // len(asked))  # num_return_sequences
    beams = recall.rows // len(asked) if recall is not None and recall.rows else 1
    for n, ids in enumerate(said):
        question = asked[n // per_question]
        citations, usage = question.passages or [], Usage(len(question.tokens), len(ids))
        if recall is not None and bank is not None:
            row = n // per_question * beams + n % per_question
            shares = recall.shares(row)
            references = bank.references([name for name, _, _ in shares])
            citations = [cite(r, share, score) for r, (_, share, score) in zip(references, shares, strict=True)]
            did = recall.requests[row].statistics if row < recall.rows else RecallStatistics()
            usage = Usage(len(question.tokens), len(ids), did.recalls, did.references, did.bytes_read)
        elif question.passages is not None:
            read = sum(len(citation.text.encode()) for citation in citations)
            usage = Usage(len(question.tokens), len(ids), 1, len(citations), read)
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        answers.append(Answer(text, list(citations), usage, timings, list(ids), question.note))
    return answers


def cite(reference: Reference, share: float, score: float) -> Citation:
    """The citation of a reference: its share of the attention that was paid to references, and the cosine it was found by."""
    return Citation(
        reference_id=reference.id,
        document_id=reference.document_id,
        source=reference.source,
        start=reference.start,
        end=reference.end,
        text=reference.text,
        share=share,
        score=score,
        metadata=dict(reference.metadata),
    )
