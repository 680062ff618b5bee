"""`PromptBuilder`: every prompt of one model, from a question or a chat to the tensors that the model is called with.

A prompt is built in one of three modes (`memory3.models.frame` draws them):

    memory   what follows the memories; the prefix in front of them is read like a memory and not encoded again
    text     the passages stand in the prompt, where memories would
    none     closed book

It knows a tokenizer, its chat template and the number of positions. It knows no bank: what is read is handed to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import torch
from transformers import PreTrainedModel

from memory3.errors import ConfigError, InputError, setting
from memory3.models.frame import Frame, render
from memory3.tokenizing import tokenize

__all__ = ["MODES", "STYLES", "Prompt", "PromptBuilder", "PromptRow", "check_mode", "left_padded", "token_positions"]

#: A question, the messages of a chat, or the token ids of a whole prompt.
Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]

#: How a bank is read.
MODES = ("memory", "text", "none")

#: ``chat``: tokens are a question, which the model's turns are put around. ``plain``: tokens are a whole prompt and stand as
#: they are, with the passages in front or in their place in a chat.
STYLES = ("chat", "plain")


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and what it reads as memories.

    Attributes:
        tokens: ids of what the model encodes, without padding.
        references: ids of the references that it reads; empty in the modes text and none.
    """

    tokens: list[int]
    references: list[str] = field(default_factory=list)


class _Passage(Protocol):
    @property
    def token_ids(self) -> Sequence[int]: ...


class Passages(Protocol):
    """What mode text needs of a bank."""

    def references(self, reference_ids: Sequence[str]) -> Sequence[_Passage]:
        """The references of these ids, in order."""


class PromptBuilder:
    """Builds, cuts and pads the prompts of one model, and trims what it answers.

    Attributes:
        frame: the pieces of a prompt around memories.
        name: of the model, for messages.
        positions: that the model has.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        frame: Frame,
        *,
        name: str,
        positions: int,
        reference_length: int,
        chunk_length: int,
    ) -> None:
        """Build prompts for a model.

        Args:
            model: says on which device tensors are wanted, and which tokens end an answer.
            tokenizer: its fast tokenizer.
            frame: cut for that tokenizer.
            name: of the model, for messages.
            positions: that the model has.
            reference_length: positions that memories take.
            chunk_length: tokens between two recalls.
        """
        self.frame = frame
        self.name = name
        self.positions = positions
        self._model = model
        self._tokenizer = tokenizer
        self._reference_length = reference_length
        self._chunk_length = chunk_length

    # ---- text to tokens ----------------------------------------------------------------------------------------------

    def ids(self, text: str) -> list[int]:
        """Token ids of a user's text. What looks like a control token in it is text, so it cannot open a turn."""
        return list(tokenize(self._tokenizer, text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer to be learned, with the end of text behind it where the tokenizer has one."""
        end = self._tokenizer.eos_token_id
        return [*self.ids(answer), *([] if end is None else [end])]

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation with the assistant's turn opened.

        Args:
            messages: each with a role and a content, which is text or a list of text parts.

        Raises:
            InputError: the model has no chat template, or its template refuses these messages or leaves one out; a
                message is not text; the last one is the assistant's.
        """
        if not self._tokenizer.chat_template:
            raise InputError(f"{self.name} has no chat template: give a question as text instead of messages")
        plain = [_plain(message, n) for n, message in enumerate(messages, 1)]
        if plain[-1]["role"] == "assistant":
            raise InputError("the last message is the assistant's: end with one of the user, which can be answered")
        try:
            text = render(self._tokenizer, plain, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the model's author, and raises what it likes
            raise InputError(self._refusal(plain, error)) from error
        for message in plain:
            content = message.get("content")
            if message["role"] in ("system", "user") and content and content.strip() not in text:
                raise InputError(
                    f"the chat template of {self.name} leaves out the message of the role {message['role']}"
                    f"{': leave ' + _SYSTEM + ' out' if message['role'] == 'system' else ''}"
                )
        return list(tokenize(self._tokenizer, text, add_special_tokens=False)["input_ids"])

    # ---- what to look for --------------------------------------------------------------------------------------------

    def query(self, prompt: Prompt) -> str:
        """The text by which references are looked up: the question, or the last words of a prompt that is tokens.

        Of a conversation it is what the last chunk of the prompt is looked up by in mode memory: its last tokens, whoever
        wrote them, so that "and its author?" is found by what it refers to. It has at least all of the user's last message.

        Raises:
            InputError: it is empty.
        """
        if isinstance(prompt, str):
            question = prompt
        elif _is_tokens(prompt):
            question = self.last_words(prompt, self._reference_length)
        else:
            messages = [_plain(message, n) for n, message in enumerate(prompt, 1)]
            question = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
            if question.strip() and sum(m["role"] != "system" for m in messages) > 1:
                question = max(question, self._last_chunk(self.chat(prompt)), key=len)  # type: ignore[arg-type]
        if not question.strip():
            raise InputError("the question is empty: give at least one word")
        return question

    def _last_chunk(self, tokens: Sequence[int]) -> str:
        """The text of a prompt's last chunk, as `memory3.recall.chunks` cuts it: nothing in front of the memories."""
        start = max(self.frame.place(tokens).split, len(tokens) - self._chunk_length)
        is_text = self.frame.content(tokens)[start:]
        return str(self._tokenizer.decode([t for t, keep in zip(tokens[start:], is_text, strict=True) if keep])).strip()

    def last_words(self, tokens: Sequence[int], most: int) -> str:
        """The text of the last tokens of a prompt, without those of the template.

        Args:
            tokens: of the prompt.
            most: tokens of text at most.
        """
        text = [t for t, keep in zip(tokens, self.frame.content(tokens), strict=True) if keep][-most:]
        return str(self._tokenizer.decode(text)).strip()

    # ---- the prompt of a mode ----------------------------------------------------------------------------------------

    def build(self, prompt: Prompt, mode: str = "none", passages: Iterable[Sequence[int]] = ()) -> list[int]:
        """Token ids of the prompt of a question or a chat; one that is tokens already stands as it is, behind its passages.

        Args:
            prompt: see `Prompt`.
            mode: one of `MODES`.
            passages: in mode text, the token ids of each passage. Without any, the prompt is closed-book.

        Raises:
            InputError: the question is empty; or as `chat`.
        """
        if _is_tokens(prompt):
            return self.around(prompt, mode, passages, style="plain")
        question = self.query(prompt)
        if isinstance(prompt, str):
            return self.around(self.ids(question), mode, passages)
        messages: Any = prompt
        return self.around(self.chat(messages), mode, passages, style="plain")

    def around(
        self, tokens: Sequence[int], mode: str, passages: Iterable[Sequence[int]] = (), *, style: str = "chat"
    ) -> list[int]:
        """Token ids of the prompt of a context that is tokens already.

        Args:
            tokens: of a question (style chat), or of a whole prompt (style plain).
            mode: one of `MODES`.
            passages: in mode text, the token ids of each passage. Without any, the prompt is closed-book.
            style: one of `STYLES`.

        Raises:
            ConfigError: an unknown style.
            InputError: a question without tokens.
        """
        if style not in STYLES:
            raise ConfigError(f"prompt style {style!r} is unknown: use one of {', '.join(STYLES)}")
        inside = list(passages) if mode == "text" else []
        if style == "plain":
            return self.frame.insert_text(tokens, inside) if inside else list(tokens)
        if inside:
            return self.frame.with_text(inside, tokens)
        return self.frame.after(tokens) if mode == "memory" else self.frame.closed_book(tokens)

    def row(
        self,
        tokens: Sequence[int],
        mode: str,
        references: Sequence[str] = (),
        bank: Passages | None = None,
        *,
        style: str = "chat",
        after: int = 0,
    ) -> PromptRow:
        """The prompt of a context that reads given references. A context too long for the model loses its beginning.

        Args:
            tokens: of a question (style chat), or of a whole prompt (style plain).
            mode: one of `MODES`. Without references, the prompt is closed-book in every mode.
            references: ids.
            bank: of the passages, in mode text.
            style: one of `STYLES`.
            after: tokens that will follow the prompt.

        Raises:
            ConfigError: mode text without a bank; an unknown style; references that leave no room for a question.
        """
        mode = mode if references else "none"
        passages: list[Sequence[int]] = []
        if mode == "text":
            if bank is None:
                raise ConfigError("mode text needs a bank")
            passages = [reference.token_ids for reference in bank.references(list(references))]
        frame, separator = self.frame, len(self.frame.separator)
        taken = len(frame.closed_book([0])) + separator if style == "chat" else 1
        taken += sum(len(passage) + separator for passage in passages) + (len(frame.prefix) if passages else 0)
        left = self.positions - (self.reserved(mode) if mode == "memory" else 0) - taken - after
        if left < 1:
            raise ConfigError(
                f"{len(references)} references leave no room for a question in the {self.positions} positions of {self.name}"
            )
        built = self.around(tokens[-left:], mode, passages, style=style)
        return PromptRow(built, list(references) if mode == "memory" else [])

    # ---- positions ---------------------------------------------------------------------------------------------------

    def reserved(self, mode: str, k: int = 1) -> int:
        """Positions that what is read takes at most, in front of a prompt.

        Args:
            mode: one of `MODES`.
            k: references read at once. Memories share their positions, so that mode memory does not look at it.
        """
        if mode == "none":
            return 0
        text = k * (self._reference_length + len(self.frame.separator))
        return len(self.frame.prefix) + (self._reference_length if mode == "memory" else text)

    def check_length(self, rows: Iterable[Sequence[int]], new: int, mode: str) -> None:
        """Raise InputError where a prompt and what follows it have more positions than the model.

        Args:
            rows: token ids of each prompt.
            new: tokens that will follow.
            mode: one of `MODES`; passages of mode text are part of the prompt.
        """
        extra = self.reserved(mode) if mode == "memory" else 0
        longest = max(map(len, rows))
        if longest + extra + new > self.positions:
            raise InputError(
                f"the prompt has {longest} tokens, {extra} positions for memories and {new} new tokens: more than the "
                f"{self.positions} positions of {self.name}. Shorten the question or lower {setting('max_new_tokens')}."
            )

    # ---- tensors -----------------------------------------------------------------------------------------------------

    @property
    def pad_id(self) -> int:
        """The token of padding; it is masked. The tokenizer's own, or else its end of text, or else 0."""
        for candidate in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and mask, int64 ``[B, T]`` on the model's device, padded on the left; the mask is 0 for padding."""
        tokens, mask = left_padded(rows, self.pad_id), left_padded([[1] * len(row) for row in rows], 0)
        return tokens.to(self._model.device), mask.to(self._model.device)

    def trim(self, ids: Sequence[int], ends: int | Sequence[int] | None = None) -> list[int]:
        """Generated tokens up to the first that ends an answer, which is left out.

        Args:
            ids: of one row.
            ends: ids that end it, beside the tokenizer's end of text; None: those of the model's generation config.
        """
        ends = self._model.generation_config.eos_token_id if ends is None else ends
        last = {*(ends if isinstance(ends, Sequence) else [ends]), self._tokenizer.eos_token_id}
        return next((list(ids[:n]) for n, token in enumerate(ids) if token in last), list(ids))

    # ---- templates ---------------------------------------------------------------------------------------------------

    def _refusal(self, messages: Sequence[Mapping[str, Any]], error: Exception) -> str:
        """Why a template fails on messages."""
        rest = [message for message in messages if message["role"] != "system"]
        if len(rest) < len(messages) and self._is_taken(rest):
            return f"the chat template of {self.name} refuses the system role: leave {_SYSTEM} out"
        roles = ", ".join(message["role"] for message in messages)
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the chat template of {self.name} refuses messages of the roles {roles} ({said})"

    def _is_taken(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template writes these messages."""
        try:
            render(self._tokenizer, messages, add_generation_prompt=True)
        except Exception:  # a template is a program of the model's author, and raises what it likes
            return False
        return True


def _is_tokens(prompt: Prompt) -> TypeGuard[Sequence[int]]:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], int)


def left_padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows of different lengths as one tensor, int64 ``[B, T]``, each with ``value`` in front of it.

    Args:
        rows: token ids; at least one row.
        value: what stands in front.
    """
    width = max(map(len, rows))
    padded = [[value] * (width - len(row)) + list(row) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)


def token_positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of padded rows, int64 ``[B, T]``: each row counts its own tokens from 0, and padding stands at 0.

    Args:
        mask: int64 ``[B, T]``, 0 for padding.
    """
    return (mask.cumsum(-1) - 1).clamp_min(0)


def check_mode(mode: str, bank: object) -> None:
    """Raise ConfigError where an answer cannot be asked for in this way.

    Args:
        mode: one of `MODES`.
        bank: that is read; None: none.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown: use one of {', '.join(MODES)}")
    if mode != "none" and bank is None:
        raise ConfigError(f"mode {mode!r} needs a bank: pass bank=Bank.open(path, m3), or mode='none' to answer without")
    if bank is not None and not hasattr(bank, "search"):
        raise ConfigError(f"{bank!r:.80} is no bank: open it with Bank.open(path, m3)")


_SYSTEM = setting("system", python="the system message")


def _plain(message: Any, number: int) -> dict[str, Any]:
    """A message whose content is text: the text parts of a list are joined."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f"message {number} is {message!r}: a message has a role and a content")
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = "".join(_part(part, number) for part in content)
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise InputError(f"message {number} (role {message['role']}) has the content {content!r}: give text")
    return {**message, "content": content}


def _part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(f"message {number} has a part of type {kind!r}: only text can be read")
