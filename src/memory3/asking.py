"""From questions to prompts, and from generated tokens to answers with their citations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from memory3.answer import Answer, Timings, Usage
from memory3.presence import Presence, PresenceWeights, find_presence_weights
from memory3.prompt import Prompt, PromptBuilder
from memory3.recall.generate import Recall
from memory3.recall.nothing import why_nothing
from memory3.recall.request import RecallStatistics, RequestMemory
from memory3.recall.retrieval import Retrieval, SearchHit, within
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
        question: its text, where it is one question by itself; else empty.
        judge: tells whether the bank holds the answer; None: nobody can.
        presence: what it told, in mode text.
    """

    tokens: list[int]
    note: str = ""
    passages: list[Citation] | None = None
    question: str = ""
    judge: PresenceWeights | None = None
    presence: Presence | None = None

    def present(self, memory: RequestMemory | None, citations: Sequence[Citation]) -> Presence | None:
        """Whether the bank is thought to hold the answer; None: nobody can tell.

        Args:
            memory: what was read, in mode memory.
            citations: of the whole answer; every reference that was read is among them.
        """
        if memory is None or self.judge is None:
            return self.presence
        texts = {citation.reference_id: citation.text for citation in citations}
        read = [hit.reference_id for hit in within(memory.hits, memory.retrieval.gap)]
        if not all(name in texts for name in read):
            return None
        return self.judge.judge(self.question, [hit.score for hit in memory.hits], [texts[name] for name in read])


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
    judges = [None if note else _judge(bank, retrieval) for note, retrieval in zip(notes, each, strict=True)]
    if mode == "memory":
        return [
            Asked(builder.build(prompt, "none" if note else mode), note, question=_question(prompt), judge=judge)
            for prompt, note, judge in zip(prompts, notes, judges, strict=True)
        ]
    asked = []
    for prompt, note, judge, hits in zip(prompts, notes, judges, _found(prompts, each, builder, bank), strict=True):
        found = within(hits, each[0].gap)
        references = bank.references([hit.reference_id for hit in found])
        tokens = builder.build(prompt, mode, [reference.token_ids for reference in references])
        weight = sum(max(hit.score, 0.0) for hit in found) or 1.0
        cited = [cite(r, max(hit.score, 0.0) / weight, hit.score) for r, hit in zip(references, found, strict=True)]
        question, presence = _question(prompt), None
        if judge is not None and question:
            presence = judge.judge(question, [hit.score for hit in hits], [r.text for r in references])
        asked.append(Asked(tokens, note, cited, question, judge, presence))
    return asked


def _question(prompt: Prompt) -> str:
    """The text of a prompt that is one question by itself; of a conversation none: what it is about stands further up."""
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if isinstance(message, Mapping) and message.get("role") != "system"]
    content = said[0].get("content") if len(said) == 1 else None
    return content if isinstance(content, str) else ""


def _judge(bank: Bank, retrieval: Retrieval) -> PresenceWeights | None:
    """Who tells whether a bank that is searched so holds an answer; None: nobody was fitted to that."""
    manifest = getattr(bank, "manifest", None)
    if manifest is None or retrieval.references is not None or retrieval.chunk_references is not None:
        return None
    weights = find_presence_weights(manifest.embedder)
    length = manifest.config.reference_length
    fits = weights is not None and weights.fits(manifest.embedder, manifest.dimension, length, retrieval.k, retrieval.gap)
    return weights if fits else None


class _Pinned(NamedTuple):
    """A reference that was named and not searched for."""

    reference_id: str
    score: float = 0.0


def _found(
    prompts: Sequence[Prompt], each: Sequence[Retrieval], builder: PromptBuilder, bank: Bank
) -> Sequence[Sequence[SearchHit]]:
    """What is found for every prompt in mode text; what it reads of that, says the gap."""
    if any(retrieval.references is not None for retrieval in each):
        return [[_Pinned(name) for name in retrieval.references or ()] for retrieval in each]
    return bank.search([builder.query(prompt) for prompt in prompts], each[0].k, where=each[0].where)


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
        memory = None
        if recall is not None and bank is not None:
            row = n // per_question * beams + n % per_question
            shares = recall.shares(row)
            references = bank.references([name for name, _, _ in shares])
            citations = [cite(r, share, score) for r, (_, share, score) in zip(references, shares, strict=True)]
            memory = recall.requests[row] if row < recall.rows else None
            did = memory.statistics if memory is not None else RecallStatistics()
            usage = Usage(len(question.tokens), len(ids), did.recalls, did.references, did.bytes_read)
        elif question.passages is not None:
            read = sum(len(citation.text.encode()) for citation in citations)
            usage = Usage(len(question.tokens), len(ids), 1, len(citations), read)
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        presence = question.present(memory, citations)
        answers.append(
            Answer(
                text,
                list(citations),
                usage,
                timings,
                list(ids),
                question.note,
                None if presence is None else presence.found,
                None if presence is None else presence.score,
            )
        )
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
