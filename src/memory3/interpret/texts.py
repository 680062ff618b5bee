"""Texts whose answers are looked into: their tokens, which of them are the answer, and what part each token plays.

    role     front | subject.first subject.middle .. subject.last | relation -2 relation -1 | last | answer 1 ..
    token    <s>   | Char         les            Dickens         | was         born        | in   | Ports mouth

Roles are what align texts: an edge between tokens of two roles is the same edge in each text (arXiv 2407.01178, section 2:
homomorphic subgraphs). Words in front of the subject are counted from the subject, words behind it from the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memory3.errors import InputError

__all__ = ["MOST_TOKENS", "Asked", "Repeated", "Text", "asked_text", "repeated_texts"]

#: Edges are counted by pairs of tokens, so a text is short.
MOST_TOKENS = 256


@dataclass(frozen=True)
class Asked:
    """A text that is to be continued, and how.

    Attributes:
        prompt: what stands in front of the answer, without a space at its end.
        answer: what follows, with the space in front of it where there is one.
        subject: the part of the prompt that the answer is about; empty: none, and roles are places.
        name: what to call it in messages.
    """

    prompt: str
    answer: str
    subject: str = ""
    name: str = ""


@dataclass(frozen=True)
class Text:
    """One text as it is fed to the model, T tokens.

    Attributes:
        tokens: all but the last token of the answer.
        targets: ``(place, token)``: behind the token at that place the answer has this token.
        roles: of each token.
    """

    tokens: tuple[int, ...]
    targets: tuple[tuple[int, int], ...]
    roles: tuple[str, ...]

    def edge(self, source: int, to: int) -> tuple[str, str]:
        """The names of an attention edge's ends, by which it is the same edge in other texts.

        Args:
            source: place of the key.
            to: place of the query.
        """
        return self.roles[source], self.roles[to]


class Repeated(Text):
    """Random tokens, twice: ``front r1 .. rn r1 .. rn``. Its edges are named by how far they reach.

    ``matched`` is the edge of induction: from the token that stood behind the earlier copy of this one.
    """

    def edge(self, source: int, to: int) -> tuple[str, str]:
        """See `Text.edge`.

        Args:
            source: place of the key.
            to: place of the query.
        """
        front = self.roles.count("front")
        if source < front:
            return "front", self.roles[to]
        reached = {to: "itself", to - 1: "previous"}
        if self.roles[to] == "again":
            period = (len(self.tokens) + 1 - front) // 2
            reached |= {to - period + 1: "matched", to - period: "earlier copy"}
        return reached.get(source, "others"), self.roles[to]


def asked_text(tokenizer: Any, asked: Asked) -> Text:
    """A text with the roles of its tokens.

    Args:
        tokenizer: a fast tokenizer.
        asked: the text.

    Raises:
        InputError: the subject is not in the prompt, a part is empty, the answer's first token is also the prompt's last, or
            the text is too long.
    """
    where = f"{asked.name}: " if asked.name else ""
    if not asked.prompt.strip() or not asked.answer.strip():
        raise InputError(f"{where}the {'answer' if asked.prompt.strip() else 'prompt'} is empty: give at least one word")
    start = asked.prompt.find(asked.subject)
    if start < 0:
        raise InputError(f"{where}the subject {asked.subject!r:.80} is not in the prompt {asked.prompt!r:.200}")
    if len(asked.prompt) + len(asked.answer) > 64 * MOST_TOKENS:
        raise InputError(f"{where}the text has more than {64 * MOST_TOKENS:,} characters: edges are counted for short texts")
    options = {"add_special_tokens": False, "split_special_tokens": True}
    prompt = tokenizer(asked.prompt, return_offsets_mapping=True, **options)
    first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids, whole = list(prompt["input_ids"]), list(tokenizer(asked.prompt + asked.answer, **options)["input_ids"])
    answer = whole[len(ids) :]
    if whole[: len(ids)] != ids or not answer:
        raise InputError(
            f"{where}the tokenizer merges the answer {asked.answer!r:.80} with what stands before it, so that no token is "
            "the answer's first: put a space or a word between them"
        )
    fed = [*first, *ids, *answer[:-1]]
    if len(fed) > MOST_TOKENS:
        raise InputError(f"{where}the text has {len(fed)} tokens, at most {MOST_TOKENS} are looked into: shorten it")
    end = start + len(asked.subject)
    inside = [place for place, (a, b) in enumerate(prompt["offset_mapping"]) if a < end and b > start and a < b]
    roles = ["front"] * len(first) + _roles(len(ids), inside if asked.subject else [])
    roles += [f"answer {n + 1}" for n in range(len(answer) - 1)]
    targets = [(len(first) + len(ids) - 1 + n, token) for n, token in enumerate(answer)]
    return Text(tuple(fed), tuple(targets), tuple(roles))


def _roles(length: int, subject: Sequence[int]) -> list[str]:
    """Of the prompt's tokens; ``subject``: places of the subject's."""
    if not subject:
        return [*(f"token {place + 1}" for place in range(length - 1)), "last"]
    before, last = subject[0], subject[-1]
    roles = [f"before -{before - place}" for place in range(before)]
    roles += ["subject.first"] + ["subject.middle"] * (len(subject) - 2) if len(subject) > 1 else []
    roles += ["subject.last"]
    roles += [f"relation -{length - 1 - place}" for place in range(last + 1, length - 1)]
    return [*roles, "last"] if last < length - 1 else roles


def repeated_texts(vocabulary: Sequence[int], front: Sequence[int], count: int, period: int, seed: int = 0) -> list[Text]:
    """Texts of random tokens that are repeated; their answer is every token of the repetition but its first.

    Args:
        vocabulary: tokens to draw from, at least ``period``.
        front: tokens in front of each text.
        count: how many texts.
        period: n, tokens before they are repeated.
        seed: of the drawing.

    Raises:
        InputError: too few tokens to draw from, or too long texts.
    """
    if len(front) + 2 * period - 1 > MOST_TOKENS or period < 3:
        raise InputError(f"a period of {period} tokens: give 3 to {(MOST_TOKENS - len(front)) // 2}")
    if len(vocabulary) < period:
        raise InputError(f"{len(vocabulary)} tokens to draw from are fewer than the {period} of a period: give a smaller one")
    generator = torch.Generator().manual_seed(seed)
    made: list[Text] = []
    for _ in range(count):
        drawn = [int(vocabulary[n]) for n in torch.randperm(len(vocabulary), generator=generator)[:period]]
        tokens = [*front, *drawn, *drawn[:-1]]
        behind = len(front) + period
        targets = [(behind + n, drawn[n + 1]) for n in range(period - 1)]
        roles = ["front"] * len(front) + ["once"] * period + ["again"] * (period - 1)
        made.append(Repeated(tuple(tokens), tuple(targets), tuple(roles)))
    return made
