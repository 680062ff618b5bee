"""Usefulness: which references deserve a memory, usage x gain (arXiv 2407.01178, Remark 7).

A reference is worth its memory if the model answers better with it than without, and will be asked. The gain is measured on
cloze questions of the reference (`memory3.training.cloze`), which need nobody to write them:

    usefulness = usage * mean over its questions of ( NLL(answer | question) - NLL(answer | reference, question) )

NLL is of a whole answer, in nats. The reference is read as text: that needs no codec and no search, and memories keep most of
what text gains. One that nothing can be asked about has gain 0. Usage is 1 and the recalls of a log, so that what was never
recalled is not worthless; without a log it is 1.

A cloze question is about what a sentence says, not about what people ask. A page number or a name in a footer is hard to
guess without the text as well, so its gain is high: only usage tells that nobody asks for it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from memory3.errors import InputError
from memory3.files import append, remove, write_atomically
from memory3.llm import Memory3
from memory3.planner.usage import DocumentUsage
from memory3.recall.held import Held
from memory3.training.cloze import cloze_questions
from memory3.types import Reference

__all__ = ["QUESTIONS", "Gain", "Gains", "most_useful", "usage_of"]

#: Questions of a reference.
QUESTIONS = 2
#: References whose gains are kept at once; an interruption loses no more.
_PORTION = 32
#: No log counts more recalls than whole numbers that a float holds exactly.
_MOST_RECALLS = 2**53


@dataclass(frozen=True)
class Gain:
    """What reading a reference is worth to its questions.

    Attributes:
        nats: mean of NLL without - NLL with, of whole answers; 0 without a question.
        questions: how many were asked.
    """

    nats: float
    questions: int


class Gains:
    """Measures gains with one model, and keeps them in a file, so that interrupted work goes on.

    The file is JSON lines: what they are of, then a text's hash with its gain. A last line that was cut off is measured again.
    """

    def __init__(self, m3: Memory3, path: Path | None, *, questions: int = QUESTIONS, seed: int = 0) -> None:
        """
        Args:
            m3: answers.
            path: of the file; None keeps nothing.
            questions: of a reference, at most.
            seed: of what its questions leave out. The same text and seed give the same questions, whatever stands around it.

        Raises:
            InputError: the number of questions is below 1, or the file is of other questions, another model, or no such file.
        """
        if questions < 1:
            raise InputError(f"{questions} questions a reference measure nothing: give 1 or more")
        self._m3, self._path, self._questions, self._seed = m3, path, questions, seed
        self._of = {"gains of": m3.fingerprint, "questions": questions, "seed": seed}
        self._known = self._read()

    def of(self, references: Sequence[Reference], tell: Callable[[int, int], None] | None = None) -> dict[str, Gain]:
        """The gain of every reference, by its id. References of one text have one gain.

        Args:
            references: in an order that is the same when interrupted work goes on.
            tell: told how many are done, of how many.
        """
        keys = {reference.id: xxh3_128_hexdigest(reference.text.encode("utf-8", "surrogatepass")) for reference in references}
        distinct = list({keys[reference.id]: reference for reference in references}.items())
        for start in range(0, len(distinct), _PORTION):
            portion = distinct[start : start + _PORTION]
            # A portion is kept whole, so that batches, and so the last digits, are those of a run without interruption.
            if any(key not in self._known for key, _ in portion):
                measured = self._measured([reference for _, reference in portion])
                found = {key: gain for (key, _), gain in zip(portion, measured, strict=True)}
                self._known |= found
                self._keep(found)
            if tell is not None:
                tell(min(start + _PORTION, len(distinct)), len(distinct))
        return {id_: self._known[key] for id_, key in keys.items()}

    def forget(self) -> None:
        """Remove the file: the work is done."""
        if self._path is not None:
            remove(self._path)

    @torch.inference_mode()
    def _measured(self, references: Sequence[Reference]) -> list[Gain]:
        prompts = self._m3.prompts
        asked = [
            (n, question)
            for n, reference in enumerate(references)
            for question in cloze_questions([reference.text], self._questions, seed=_seed_of(reference.text, self._seed))
        ]
        asked.sort(key=lambda each: len(references[each[0]].token_ids))
        source = Held({}, {reference.id: reference for reference in references})
        gains: list[list[float]] = [[] for _ in references]
        for start in range(0, len(asked), self._m3.batch_size):
            some = asked[start : start + self._m3.batch_size]
            answers = [prompts.ids(question.answer) for _, question in some]
            after = max(map(len, answers))
            totals = []
            for mode in ("none", "text"):
                rows = [
                    prompts.row(
                        prompts.ids(question.question),
                        mode,
                        [references[n].id] if mode == "text" else [],
                        source,
                        after=after,
                    )
                    for n, question in some
                ]
                scores = self._m3.scorer.score(rows, [[answer] for answer in answers])
                totals.append([score.total for (score,) in scores])
            for (n, _), without, beside in zip(some, *totals, strict=True):
                gains[n].append(beside - without)  # of log-likelihoods, so the other way round
        return [Gain(math.fsum(mine) / len(mine) if mine else 0.0, len(mine)) for mine in gains]

    def _read(self) -> dict[str, Gain]:
        if self._path is None or not self._path.exists():
            return {}
        remedy = f"remove {self._path} to measure anew"
        whole, _, _ = self._path.read_bytes().rpartition(b"\n")
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()] or [self._of]
            found = {line["text"]: Gain(float(line["nats"]), int(line["questions"])) for line in lines}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{self._path} holds no gains ({error!r}): {remedy}") from None
        if head != self._of:
            raise InputError(f"{self._path} holds gains of another model or of other questions: {remedy}")
        if not all(math.isfinite(gain.nats) for gain in found.values()):
            raise InputError(f"{self._path} holds a gain that is no number: {remedy}")
        write_atomically(self._path, whole + b"\n" if whole else b"")  # what comes next begins a line
        return found

    def _keep(self, gains: Mapping[str, Gain]) -> None:
        if self._path is None:
            return
        lines = [{"text": key, "nats": gain.nats, "questions": gain.questions} for key, gain in gains.items()]
        first = [] if self._path.exists() and self._path.stat().st_size else [self._of]
        append(self._path, "".join(json.dumps(line) + "\n" for line in [*first, *lines]))


def usage_of(log: Sequence[DocumentUsage], references: Sequence[Reference]) -> tuple[dict[str, float], list[str]]:
    """1 and the recalls of every reference, and which ids of the log are neither a document nor a reference of these.

    Recalls of a document are shared out evenly among its references: a log of documents does not say which was recalled.

    Args:
        log: ids of documents, or of references (``document#3``); where an id is both, it is the document.
        references: whose usage is asked for.

    Raises:
        InputError: no id of the log is known, or more recalls are counted than there can be.
    """
    if huge := [entry for entry in log if entry.count > _MOST_RECALLS]:
        raise InputError(
            f"the usage log counts {huge[0].count} recalls of {huge[0].document_id!r}: nothing is recalled so often"
        )
    members: dict[str, list[str]] = {}
    for reference in references:
        members.setdefault(reference.document_id, []).append(reference.id)
    usage = {reference.id: 1.0 for reference in references}
    unknown = []
    for entry in log:
        ids = members.get(entry.document_id) or ([entry.document_id] if entry.document_id in usage else [])
        for id_ in ids:
            usage[id_] += entry.count / len(ids)
        if not ids:
            unknown.append(entry.document_id)
    if log and len(unknown) == len(log):
        raise InputError(
            f"no id of the usage log is among these documents, neither {unknown[0]!r} nor another: give a log of their ids, "
            "which `memory3 info` and answers' citations show"
        )
    return usage, unknown


def most_useful(gains: Mapping[str, Gain], usage: Mapping[str, float], number: int) -> list[str]:
    """The ids of the ``number`` most useful references, most useful first; of equal ones the first by id.

    Args:
        gains: by id.
        usage: by id; of one that is missing 1.
        number: how many.
    """
    return sorted(gains, key=lambda id_: (-usage.get(id_, 1.0) * gains[id_].nats, id_))[:number]


def _seed_of(text: str, seed: int) -> int:
    return random.Random(xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=seed)).getrandbits(32)
