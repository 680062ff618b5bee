"""Where memories stand in a prompt: behind a prefix, in front of the rest.

    plain model   <bos>Reference: | memories | <bos>question
    chat model    <system turn><user turn opened>Use these passages: | memories | question<end of turn><assistant opened>

The prefix is what references were encoded behind. A prompt may hold all of it, part of it (a chat prompt without the cue) or
none (plain text); `Frame.place` says where memories go and how many tokens of the prefix the prompt lacks: those are then read
as memory too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory3.config import MemoryConfig
from memory3.errors import ConfigError, InputError, ModelError, setting
from memory3.models.dates import DATE_STRING, on_one_day

__all__ = ["Frame", "Place", "find", "render"]

PLAIN = "<bos>Reference:"
CUE = "Use these passages:\n\n"
#: Between a passage and what follows it in the user's turn.
SEPARATOR = "\n\n"
#: Remedy for a template that cannot be used.
_WITHOUT = f"Give {setting('memory_prefix', 'TEXT', python='MemoryConfig(prefix=...)')}"
REPEAT = "Repeat the passages word for word."


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Messages as the model's chat template writes them, on the same day always (`memory3.models.dates`).

    Args:
        tokenizer: whose chat template is used.
        messages: each with ``role`` and ``content``.
        options: passed to ``apply_chat_template``.
    """
    template = on_one_day(tokenizer.get_chat_template())
    return str(
        tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, date_string=DATE_STRING, **options
        )
    )


@dataclass(frozen=True)
class Place:
    """Where memories stand in one prompt.

    Attributes:
        split: tokens in front of the memories.
        missing: how many of the last tokens of the prefix the prompt lacks.
    """

    split: int
    missing: int

    def moved(self, prefix: int, origin: int = 0) -> int:
        """Positions by which memories move from where they were written, which is behind a whole prefix at position 0.

        Args:
            prefix: tokens of the whole prefix.
            origin: position of the prompt's first token.
        """
        return origin + self.split - (prefix - self.missing)

    def room(self, reference_length: int) -> int:
        """Positions by which what stands behind the memories moves: the prompt's missing ones, and those of the memories.

        Args:
            reference_length: positions that memories take.
        """
        return self.missing + reference_length


@dataclass(frozen=True)
class Frame:
    """The pieces of a prompt around memories, as token ids of one model.

    Attributes:
        opening: what a prompt of this model starts with by itself (chat: system turn and opened user turn; plain: nothing).
        cue: the rest of the prefix (chat: "Use these passages:"; plain: all of it).
        marker: what opens a user's turn, to find the place in a caller's own chat prompt; empty for plain models.
        separator: between a passage and what follows it.
        head: in front of a question (plain models: their BOS).
        tail: behind a question (chat: end of turn, assistant opened).
        repeat: asks the model to repeat what it read, for the reconstruction selector.
        scaffold: runs of tokens that belong to the template and not to the text.
        special: ids that are never text.
    """

    opening: tuple[int, ...]
    cue: tuple[int, ...]
    marker: tuple[int, ...]
    separator: tuple[int, ...]
    head: tuple[int, ...]
    tail: tuple[int, ...]
    repeat: tuple[int, ...]
    scaffold: tuple[tuple[int, ...], ...]
    special: frozenset[int]

    @property
    def prefix(self) -> tuple[int, ...]:
        """What every reference is encoded behind."""
        return self.opening + self.cue

    @classmethod
    def of(cls, tokenizer: Any, config: MemoryConfig) -> Frame:
        """Cut the frame for a tokenizer: from its chat template where it has one and the config does not say otherwise."""

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        special = frozenset(tokenizer.all_special_ids)
        if config.prefix == "auto" and tokenizer.chat_template:
            return cls._of_chat(tokenizer, ids, special)
        text = PLAIN if config.prefix == "auto" else config.prefix
        bos = (tokenizer.bos_token_id,) if tokenizer.bos_token_id is not None else ()
        pieces = [ids(part) if part else () for part in text.split("<bos>")]
        cue = pieces[0] + tuple(t for piece in pieces[1:] for t in (*bos, *piece))
        if not cue:
            raise ConfigError(f"prefix {text!r} has no tokens: references must stand behind something, if only <bos>")
        # Only a prompt that opens with the model's BOS when transformers tokenises it gets one as separator.
        head = bos if bos and tokenizer("a")["input_ids"][:1] == list(bos) else ()
        repeat = (*ids(SEPARATOR + REPEAT + SEPARATOR),)
        return cls((), cue, (), ids(SEPARATOR), head, (), repeat, (), special)

    @classmethod
    def _of_chat(cls, tokenizer: Any, ids: Any, special: frozenset[int]) -> Frame:
        first, answer, second = "memory3 first", "memory3 answer", "memory3 second"
        user = {"role": "user", "content": first}

        def written(messages: list[dict[str, str]], **kwargs: Any) -> str:
            try:
                once, *others = (render(tokenizer, messages, **kwargs) for _ in range(3))
            except Exception as error:  # a template is a program of the model's author; whatever it raises, say whose it is
                raise ModelError(f"the model's chat template fails ({error}). {_WITHOUT} to do without it") from error
            if any(other != once for other in others):
                raise ModelError(f"the model's chat template writes another text each time. {_WITHOUT} to do without it")
            return once

        opening, found, tail = written([user], add_generation_prompt=True).partition(first)
        closed = written([user, {"role": "assistant", "content": answer}, {"role": "user", "content": second}])
        between = closed.partition(answer)[2].partition(second)[0]
        if not found or not between:
            raise ModelError(f"the model's chat template does not show the user's text. {_WITHOUT} to do without it")
        length = 0
        while length < min(len(opening), len(between)) and opening[-length - 1] == between[-length - 1]:
            length += 1
        marker = ids(between[len(between) - length :])
        scaffold = {ids(between), ids(tail), marker, *cls._headers(between, tail, ids)}
        repeat = ids(SEPARATOR + REPEAT) + ids(tail)
        runs = tuple(sorted((s for s in scaffold if s), key=len, reverse=True))
        return cls(ids(opening), ids(CUE), marker, ids(SEPARATOR), (), ids(tail), repeat, runs, special)

    @staticmethod
    def _headers(between: str, tail: str, ids: Any) -> list[tuple[int, ...]]:
        """What opens the user's and the assistant's turn, without the end of the turn before."""
        shared = 0
        while shared < min(len(between), len(tail)) and between[shared] == tail[shared]:
            shared += 1
        cut = between.rfind("<", 0, shared)
        return [ids(between[cut:]), ids(tail[cut:])] if cut > 0 else []

    def place(self, prompt: Sequence[int]) -> Place:
        """Where memories stand in a prompt, by its tokens without padding."""
        prefix, cue = self.prefix, self.cue
        if tuple(prompt[: len(prefix)]) == prefix:
            return Place(len(prefix), 0)
        at = find(prompt, self.marker) if self.marker else -1
        if at < 0:
            return Place(0, len(prefix))
        split = at + len(self.marker)
        if tuple(prompt[split : split + len(cue)]) == cue:
            return Place(split + len(cue), 0)
        return Place(split, len(cue))

    def content(self, tokens: Sequence[int]) -> list[bool]:
        """Which tokens are text, and not the template's."""
        text = [t not in self.special for t in tokens]
        for run in self.scaffold:
            at = find(tokens, run)
            while at >= 0:
                text[at : at + len(run)] = [False] * len(run)
                at = find(tokens, run, at + len(run))
        return text

    def after(self, question: Sequence[int]) -> list[int]:
        """What follows the memories: the question and the rest of the turn."""
        if not question:
            raise InputError("the question is empty: give at least one word")
        separator = self.separator if self.tail else ()
        return [*separator, *self.head, *question, *self.tail]

    def closed_book(self, question: Sequence[int]) -> list[int]:
        """The prompt without memories."""
        if not question:
            raise InputError("the question is empty: give at least one word")
        head = self.head or (self.cue[:1] if not self.tail and self.cue and self.cue[0] in self.special else ())
        return [*self.opening, *head, *question, *self.tail]

    def with_text(self, passages: Sequence[Sequence[int]], question: Sequence[int]) -> list[int]:
        """The prompt with the passages as text, where memories would stand.

        Args:
            passages: token ids of each.
            question: token ids.
        """
        prompt = list(self.prefix)
        for n, passage in enumerate(passages):
            prompt += [*(self.separator if n else ()), *passage]
        return prompt + self.after(question)

    def insert_text(self, prompt: Sequence[int], passages: Sequence[Sequence[int]]) -> list[int]:
        """A caller's own chat prompt with the passages as text, where memories would stand in it."""
        place = self.place(prompt)
        missing = self.prefix[len(self.prefix) - place.missing :]
        inside = list(missing)
        for passage in passages:
            inside += [*passage, *self.separator]
        return [*prompt[: place.split], *inside, *prompt[place.split :]]


def find(tokens: Sequence[int], run: Sequence[int], start: int = 0) -> int:
    """First place of ``run`` in ``tokens`` from ``start``, or -1."""
    wanted, size = list(run), len(run)
    if not size:
        return -1
    for at in range(start, len(tokens) - size + 1):
        if tokens[at] == wanted[0] and list(tokens[at : at + size]) == wanted:
            return at
    return -1
