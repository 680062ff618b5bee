"""``/v1/completions``: a text, or tokens, and how it goes on. No turns are put around it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from memory3.serving.citations import Citer
from memory3.serving.errors import as_refusal, invalid
from memory3.serving.fields import (
    Choices,
    MemoryOptions,
    MemoryQuery,
    Name,
    Seed,
    Stop,
    StreamOptions,
    Strict,
    Temperature,
    Tokens,
    TopP,
    User,
    only,
)
from memory3.serving.job import Finished, Text
from memory3.serving.jobs import Sampling, jobs_of, reading_of
from memory3.serving.routes.chat import RESPONSES
from memory3.serving.running import Run, unless_gone
from memory3.serving.said import Logprobs, Said, collect, finish_reason, usage_of
from memory3.serving.state import ServerState
from memory3.serving.streaming import EventStream, event
from memory3.tokenizing import tokenize

__all__ = ["CompletionBody", "router"]

_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Prompt = Annotated[str, Field(min_length=1)]


class CompletionBody(Strict):
    """What is asked."""

    model: Name
    prompt: _Prompt | _Ids | Annotated[list[_Prompt], Field(min_length=1)] | Annotated[list[_Ids], Field(min_length=1)]
    memory3: MemoryOptions | None = None
    max_tokens: Tokens = None
    temperature: Temperature = None
    top_p: TopP = None
    n: Choices = None
    seed: Seed = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    user: User = None
    best_of: Annotated[Any, only(1)] = None
    echo: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None
    presence_penalty: Annotated[Any, only(0)] = None
    frequency_penalty: Annotated[Any, only(0)] = None
    logit_bias: Annotated[Any, only({})] = None


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["completions"])
    logprobs = Logprobs(state.m3)

    @routes.post("/v1/completions", responses=RESPONSES)
    async def complete(request: Request, body: CompletionBody, query: Annotated[MemoryQuery, Query()]) -> Response:
        """Go on with a text, reading the bank of the model."""
        if body.stream_options is not None and not body.stream:
            raise invalid("stream_options", "stream_options is for streams: leave it out, or set stream to true")
        reading = reading_of(state, state.tenant(request), body.model, body.memory3, query)
        prompts = await anyio.to_thread.run_sync(_tokens, state, body.prompt)
        choices = body.n or 1
        sampling = Sampling(
            tokens=("max_tokens", body.max_tokens),
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stop,
            logprobs=body.logprobs,
            ignore_eos=bool(body.ignore_eos),
        )
        jobs = jobs_of(state, prompts, reading, sampling, choices)
        answer = _Answer(body, Citer(reading, str(request.base_url)), logprobs, len(jobs), choices)
        if not body.stream:
            async with Run(state.engine, jobs, "prompt") as run:
                said = await unless_gone(request.receive, collect(run, len(jobs)))
            return JSONResponse(answer.whole(said))
        run = Run(state.engine, jobs, "prompt")
        try:
            await unless_gone(request.receive, run.begin())
        except BaseException:
            run.close()
            raise
        failed = lambda error: event(as_refusal(error).body)  # noqa: E731
        return EventStream(run, answer.chunks(run), failed, seconds=state.limits.seconds + 30)

    return routes


def _tokens(state: ServerState, prompt: Any) -> list[list[int]]:
    """Tokens of the prompts."""
    several: list[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)
    most = state.limits.prompt_characters
    if sum(len(one) for one in several) > most:
        raise invalid(
            "prompt", f"prompt has more than {most:,} characters or tokens, which is the most that this server takes"
        )
    rows = [_row(state, one) if isinstance(one, str) else list(one) for one in several]
    words = len(state.m3.token_vectors)
    if any(token >= words for row in rows for token in row):
        raise invalid("prompt", f"prompt has a token beyond the {words:,} of the model")
    return rows


def _row(state: ServerState, text: str) -> list[int]:
    """What looks like a control token in a text is text."""
    return list(tokenize(state.m3.tokenizer, text, split_special_tokens=True)["input_ids"])


class _Answer:
    """The answer to one request, whole or in chunks."""

    def __init__(self, body: CompletionBody, citer: Citer, logprobs: Logprobs, answers: int, choices: int) -> None:
        self._body = body
        self._citer = citer
        self._logprobs = logprobs
        self._answers = answers
        self._choices = choices
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, said: list[Said]) -> dict[str, Any]:
        choices = [
            {
                "index": n,
                "text": one.text,
                "logprobs": self._told(one.tokens, 0),
                "finish_reason": finish_reason(one.end),
                "memory3": self._citer.about(one.end),
            }
            for n, one in enumerate(said)
        ]
        return {**self._head, "choices": choices, "usage": usage_of([one.end for one in said], self._choices)}

    async def chunks(self, run: Run) -> AsyncIterator[str]:
        said = [Said() for _ in range(self._answers)]
        told = [0] * self._answers
        async for n, happened in run.events():
            one = said[n]
            before = len(one.text)
            one.add(happened)
            if isinstance(happened, Text) and happened.text:
                tokens = one.tokens[told[n] :]
                told[n] = len(one.tokens)
                yield self._chunk(n, happened.text, logprobs=self._told(tokens, before))
            elif isinstance(happened, Finished):
                about = self._citer.about(happened)
                yield self._chunk(n, "", finish_reason=finish_reason(happened), memory3=about)
        if self._has_usage:
            yield event({**self._head, "choices": [], "usage": usage_of([one.end for one in said], self._choices)})
        yield event("[DONE]")

    @property
    def _has_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and bool(options.include_usage)

    def _told(self, tokens: list[Any], before: int) -> dict[str, Any] | None:
        return None if self._body.logprobs is None else self._logprobs.completion(tokens, before)

    def _chunk(self, index: int, text: str, **more: Any) -> str:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}
        return event({**self._head, "choices": [choice], **({"usage": None} if self._has_usage else {})})
