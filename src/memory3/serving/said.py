"""`Said`: one answer as it comes together from the events of the engine, and what OpenAI's answers tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from memory3.choosing import Choice
from memory3.llm import Memory3
from memory3.serving.job import Cited, Event, Finished, Text
from memory3.serving.running import Run

__all__ = ["Logprobs", "Said", "collect", "finish_reason", "usage_of"]


@dataclass
class Said:
    """One answer.

    Attributes:
        text: so far.
        tokens: that were chosen, those that end the answer left out.
        cited: stretches, with what they were read from.
        finished: how it ended; None: not yet.
    """

    text: str = ""
    tokens: list[Choice] = field(default_factory=list)
    cited: list[Cited] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Take an event of the engine."""
        if isinstance(event, Text):
            self.text += event.text
            if event.choice is not None:
                self.tokens.append(event.choice)
        elif isinstance(event, Cited):
            self.cited.append(event)
        elif isinstance(event, Finished):
            self.finished = event
            self.text = event.text
            self.tokens = self.tokens[: len(event.token_ids)]

    @property
    def end(self) -> Finished:
        """How it ended."""
        assert self.finished is not None
        return self.finished


async def collect(run: Run, answers: int) -> list[Said]:
    """All answers of a run, once they are complete.

    Args:
        run: of so many jobs.
        answers: how many.

    Raises:
        Memory3Error: one cannot be answered.
    """
    said = [Said() for _ in range(answers)]
    async for n, event in run.events():
        said[n].add(event)
    return said


def finish_reason(finished: Finished) -> str:
    """OpenAI's word for how an answer ended. One whose time was over is cut off, as one that is as long as it may be."""
    return "stop" if finished.reason == "stop" else "length"


def usage_of(finished: Sequence[Finished], choices: int = 1) -> dict[str, Any]:
    """Tokens of a request: a prompt counts once, however many answers were ``finished`` for it (``choices``)."""
    prompt = sum(one.usage.prompt_tokens for one in finished[::choices])
    answer = sum(one.usage.answer_tokens for one in finished)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Logprobs:
    """Log-probabilities as OpenAI's answers tell them."""

    def __init__(self, m3: Memory3) -> None:
        """
        Args:
            m3: whose tokens they are of.
        """
        self._tokenizer = m3.tokenizer

    def chat(self, tokens: Sequence[Choice]) -> dict[str, Any]:
        """Of a chat's ``tokens``."""
        content = [
            {**self._token(one.token, one.logprob), "top_logprobs": [self._token(*likely) for likely in one.likeliest]}
            for one in tokens
        ]
        return {"content": content, "refusal": None}

    def completion(self, tokens: Sequence[Choice], before: int = 0) -> dict[str, Any]:
        """Of a completion's tokens.

        Args:
            tokens: in order.
            before: characters of the answer in front of the first.
        """
        texts = [self._text(one.token) for one in tokens]
        offsets = []
        for text in texts:
            offsets.append(before)
            before += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in tokens],
            # Several tokens may have one text, such as parts of characters: the likeliest stands for them.
            "top_logprobs": [{self._text(token): value for token, value in reversed(one.likeliest)} for one in tokens],
            "text_offset": offsets,
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        # A token that is part of a character has no text of its own.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
