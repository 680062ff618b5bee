"""What a model makes of a question and the memories found for it: how likely it finds the question and its own answer with
memories, without them and with the best reference as text; what each head pays to memories; and what it says when it is
asked whether they hold the answer.

Symbols: B rows, T tokens, N chunks, C tokens of a chunk, A query heads, H KV heads, M memory pairs per head, d head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from memory3.attention.attend import attend
from memory3.attention.reading import Reading
from memory3.evaluation.generation import generate_rows
from memory3.llm import Memory3
from memory3.models.frame import find
from memory3.prompt import PromptRow
from memory3.recall.held import Held
from memory3.scoring import last_logits
from memory3.types import LayerMemory, Memory, Reference
from research.quality.absent_asks import KnowledgeBase
from research.quality.absent_words import copied

__all__ = ["NEW", "Reader"]

#: Tokens of an answer.
NEW = 16
#: Memories that are kept in RAM.
_KEPT = 400
_HOLDS = "{}\n\nDo the passages contain the answer to this question? Answer yes or no."
_SAYS = '{}\n\nIf the passages do not say it, answer "not mentioned".'
_NOT = "Not mentioned"


class _Heads:
    """Share of its attention that each head paid to references at each token, and to the pair it looked at most."""

    def __init__(self) -> None:
        self.share: dict[int, torch.Tensor] = {}  # by layer, [B, T, A]
        self.peak: dict[int, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every pass inside is watched."""
        heads, original = self, Reading.attend

        def watched(
            reading: Reading, layer: int, query: torch.Tensor, key: Any, value: Any, bias: Any, *, causal: bool, scale: float
        ) -> torch.Tensor | None:
            memory = reading.batch.layers.get(layer)
            if memory is None or reading.tokens is None:
                return original(reading, layer, query, key, value, bias, causal=causal, scale=scale)
            out, lse = attend(query, key, value, bias, memory, reading.tokens, causal=causal, scale=scale)
            heads._see(layer, query, lse, memory, reading.tokens, scale)
            return out

        Reading.attend = watched  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Reading.attend = original  # type: ignore[method-assign]

    def _see(
        self, layer: int, query: torch.Tensor, lse: torch.Tensor, memory: LayerMemory, tokens: torch.Tensor, scale: float
    ) -> None:
        rows, heads, length, dim = query.shape
        chunks, width = tokens.shape
        kv = memory.keys.shape[1]
        at = tokens.clamp_min(0)
        asked = query.transpose(1, 2).reshape(-1, heads, dim)[at].transpose(1, 2).reshape(chunks, kv, -1, dim)
        whole = lse.transpose(1, 2).reshape(-1, heads)[at].transpose(1, 2).reshape(chunks, kv, -1, 1)
        logits = (asked @ memory.keys.transpose(-1, -2)).float() * scale
        if memory.bias is not None:
            logits = logits + memory.bias
        paid = (logits - whole).exp().masked_fill(memory.owner[:, :, None] < 0, 0)
        where = tokens.where(tokens >= 0, rows * length).flatten()
        for kept, values in ((self.share, paid.sum(-1)), (self.peak, paid.amax(-1))):
            flat = values.new_zeros(rows * length + 1, heads)
            flat[where] = values.reshape(chunks, heads, width).transpose(1, 2).flatten(0, 1)
            kept[layer] = flat[:-1].view(rows, length, heads)


class Reader:
    """One model and one knowledge base."""

    def __init__(self, m3: Memory3, base: KnowledgeBase, gap: float) -> None:
        self.m3, self.base, self.gap = m3, base, gap
        self._memories: dict[str, Memory] = {}
        self._yes, self._no = (self._first(word) for word in ("yes", "no"))

    def _first(self, word: str) -> list[int]:
        forms = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
        return sorted({self.m3.prompts.ids(form)[0] for form in forms})

    def reference(self, name: str) -> Reference:
        """A reference in this model's tokens."""
        found = self.base.references[self.base.by_id[name]]
        ids = self.m3.prompts.ids(found.read_text)[: self.m3.config.reference_length]
        return replace(found, token_ids=tuple(ids))

    def _encode(self, names: Sequence[str], references: dict[str, Reference]) -> dict[str, Memory]:
        new = sorted((n for n in names if n not in self._memories), key=lambda n: len(references[n].token_ids))
        for start in range(0, len(new), 8):
            some = new[start : start + 8]
            self._memories.update(zip(some, self.m3.encode([references[n] for n in some]), strict=True))
        found = {n: self._memories[n] for n in names}
        while len(self._memories) > _KEPT:
            del self._memories[next(iter(self._memories))]
        return found

    @torch.inference_mode()
    def read(self, asks: Sequence[dict[str, Any]], text: bool) -> list[dict[str, Any]]:
        """Of each ask, figures as JSON values: token by token, so that scores may be made of them later.

        ``words`` tokens of the question but the first and ``answer`` those of the answer (greedy, from memories); and of each
        the log-likelihoods ``.memory``, ``.none`` and ``.text``. ``heads`` has for each layer and head the share paid to
        references, as a mean over the question, at the prompt's last token and over the answer, and there the largest weight.

        Args:
            asks: rows of ``words.jsonl``.
            text: read the best reference as text too, and ask whether the references hold the answer.
        """
        m3 = self.m3
        reads = [[name for name, score in row["hits"][:5] if score >= row["hits"][0][1] - self.gap] for row in asks]
        names = list(dict.fromkeys(name for some in reads for name in some))
        references = {name: self.reference(name) for name in names}
        source = Held(self._encode(names, references), references)
        questions = [m3.prompts.ids(row["question"]) for row in asks]
        rows = [self._row(q, "memory", some, source) for q, some in zip(questions, reads, strict=True)]
        said = generate_rows(m3, source, rows, max_new_tokens=NEW)  # type: ignore[arg-type]
        answers = [one.token_ids or [m3.prompts.pad_id] for one in said]
        heads = _Heads()
        found: list[dict[str, Any]] = []
        for one, ask, some in zip(said, asks, reads, strict=True):
            used = copied(one.text, ask["question"], [references[n] for n in some])
            found.append({"said": one.text, "attention": one.attention, "copied": used})
        first: dict[str, list[torch.Tensor]] = {}
        for mode in ("memory", "none", "text") if text else ("memory", "none"):
            mine = [
                self._row(q, mode, some if mode == "memory" else some[:1], source)
                for q, some in zip(questions, reads, strict=True)
            ]
            full = [[*row.tokens, *answer[:-1]] for row, answer in zip(mine, answers, strict=True)]
            with heads.watching():
                logits = self._logits(mine, full, answers, source)
            first[mode] = []
            for n, (row, tokens, answer) in enumerate(zip(mine, full, answers, strict=True)):
                logs = torch.log_softmax(logits[n, logits.shape[1] - len(tokens) :].float(), dim=-1)
                at, end = find(row.tokens, questions[n]), len(row.tokens)
                words = questions[n][1:] or questions[n]
                start = at + len(questions[n]) - len(words)
                found[n][f"words.{mode}"] = _chosen(logs[start - 1 :], words)
                found[n][f"answer.{mode}"] = _chosen(logs[end - 1 :], answer)
                found[n][f"entropy.{mode}"] = [round(float(-(p.exp() * p).sum()), 4) for p in logs[end - 1 : end + 2]]
                first[mode].append(logs[end - 1])
                if mode == "memory":
                    found[n] |= {"words": words, "answer": answer}
                    pad = logits.shape[1] - len(tokens)
                    found[n]["heads"] = _shares(heads, n, pad + at, pad + at + len(questions[n]), pad + end - 1)
            del logits
        for n, told in enumerate(found):
            for other in (mode for mode in ("none", "text") if mode in first):
                mine_, theirs = first["memory"][n], first[other][n]
                told[f"KL.{other}"] = round(float((mine_.exp() * (mine_ - theirs)).sum()), 4)
        for mode in ("memory", "text") if text else ():
            self._ask(asks, reads, source, mode, found)
        return found

    def _row(self, question: Sequence[int], mode: str, names: Sequence[str], source: Held) -> PromptRow:
        return self.m3.prompts.row(question, mode, names, source, after=NEW)

    def _logits(
        self, rows: Sequence[PromptRow], full: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], source: Held
    ) -> torch.Tensor:
        tokens, mask = self.m3.prompts.pad(full)
        if not rows[0].references:
            return last_logits(self.m3.model, tokens, mask, tokens.shape[1])
        named = [row.references for row in rows]
        counts = [len(answer) - 1 for answer in answers]
        with self.m3.recall(source, references=named, prompt=full, answer_tokens=counts):
            return last_logits(self.m3.model, tokens, mask, tokens.shape[1])

    def _ask(
        self, asks: Sequence[dict[str, Any]], reads: Sequence[list[str]], source: Held, mode: str, found: list[dict[str, Any]]
    ) -> None:
        """What it says when it is asked whether the references hold the answer."""
        names = reads if mode == "memory" else [some[:1] for some in reads]
        some = [
            self._row(self.m3.prompts.ids(_HOLDS.format(row["question"])), mode, mine, source)
            for row, mine in zip(asks, names, strict=True)
        ]
        logits = self._logits(some, [row.tokens for row in some], [[0]] * len(some), source)[:, -1].float()
        odds = logits[:, self._yes].logsumexp(-1) - logits[:, self._no].logsumexp(-1)
        wanted = self.m3.prompts.ids(_NOT)
        some = [
            self._row(self.m3.prompts.ids(_SAYS.format(row["question"])), mode, mine, source)
            for row, mine in zip(asks, names, strict=True)
        ]
        scores = self.m3.scorer.score(some, [[wanted]] * len(some), source)
        for n, one in enumerate(found):
            one[f"yes.{mode}"] = round(float(odds[n]), 4)
            one[f"not mentioned.{mode}"] = round(scores[n][0].total, 4)


def _chosen(logs: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """Log-likelihood of each token by the row of ``logs`` before it."""
    return [round(float(logs[n, token]), 4) for n, token in enumerate(tokens)]


def _shares(heads: _Heads, row: int, start: int, end: int, last: int) -> dict[str, list[list[float]]]:
    """By layer and head; see `Reader.read`."""
    found: dict[str, list[list[float]]] = {"question": [], "last": [], "answer": [], "peak": []}
    for layer in sorted(heads.share):
        share, peak = heads.share[layer][row], heads.peak[layer][row]
        for name, values in (
            ("question", share[start:end].mean(0)),
            ("last", share[last]),
            ("answer", share[last:].mean(0)),
            ("peak", peak[last]),
        ):
            found[name].append([round(float(x), 4) for x in values])
    return found
