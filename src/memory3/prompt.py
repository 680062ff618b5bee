"""Questions and chats as token ids of one model: the prompt of each mode, without what a bank finds for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from memory3.errors import InputError, setting
from memory3.models.frame import Frame, render

__all__ = ["Prompt", "Prompts"]

#: A question, or the messages of a chat.
Prompt = str | Sequence[Mapping[str, Any]]


class Prompts:
    """What `Memory3` knows of prompts."""

    model: PreTrainedModel
    tokenizer: Any
    frame: Frame
    name: str

    def _ids(self, text: str) -> list[int]:
        # Text of a user is text: what looks like a control token in it must not open a turn.
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def question_tokens(self, question: str) -> list[int]:
        """What follows the memories in a prompt: a question and the rest of its turn."""
        return self.frame.after(self._ids(question))

    def _chat(self, prompt: Sequence[Mapping[str, Any]]) -> list[int]:
        if not self.tokenizer.chat_template:
            raise InputError(f"{self.name} has no chat template: give a question as text instead of messages")
        messages = [_plain(message, n) for n, message in enumerate(prompt, 1)]
        if messages[-1]["role"] == "assistant":
            raise InputError("the last message is the assistant's: end with one of the user, which can be answered")
        try:
            text = render(self.tokenizer, messages, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the model's author, and raises what it likes
            raise InputError(self._refusal(messages, error)) from error
        for message in messages:
            content = message.get("content")
            if message["role"] in ("system", "user") and content and content.strip() not in text:
                raise InputError(
                    f"the chat template of {self.name} leaves out the message of the role {message['role']}"
                    f"{': leave ' + _SYSTEM + ' out' if message['role'] == 'system' else ''}"
                )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

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
            render(self.tokenizer, messages, add_generation_prompt=True)
        except Exception:  # a template is a program of the model's author, and raises what it likes
            return False
        return True

    def _question(self, prompt: Prompt) -> str:
        """What to look for."""
        if isinstance(prompt, str):
            question = prompt
        else:
            messages = [_plain(message, n) for n, message in enumerate(prompt, 1)]
            question = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        if not question.strip():
            raise InputError("the question is empty: give at least one word")
        return question

    def _row(self, prompt: Prompt, *, memory: bool) -> list[int]:
        question = self._question(prompt)
        if not isinstance(prompt, str):
            return self._chat(prompt)
        ids = self._ids(question)
        # Memory: the prefix's key-values are known already and are read like a memory, so it need not be encoded again.
        return self.frame.after(ids) if memory else self.frame.closed_book(ids)

    @property
    def _pad_id(self) -> int:
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0):
            if candidate is not None:
                return int(candidate)
        raise AssertionError("unreachable")

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        tokens = [[self._pad_id] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(tokens, device=self.model.device), torch.tensor(mask, device=self.model.device)


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
