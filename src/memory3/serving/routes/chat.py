"""``/v1/chat/completions``: a conversation, and the assistant's next turn, with citations as annotations."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from memory3.serving.citations import Citer
from memory3.serving.errors import as_refusal, invalid
from memory3.serving.fields import (
    Characters,
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
from memory3.serving.job import Cited, Finished, Text
from memory3.serving.jobs import Sampling, jobs_of, reading_of
from memory3.serving.running import Run, unless_gone
from memory3.serving.said import Logprobs, Said, collect, finish_reason, usage_of
from memory3.serving.state import ServerState
from memory3.serving.streaming import EventStream, event

__all__ = ["ChatBody", "router"]


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Characters


class Message(Strict):
    """A turn. What an answer of ours has may stand in it, so that it can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Characters | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]
    name: Annotated[Any, only()] = None
    refusal: Annotated[Any, only()] = None
    audio: Annotated[Any, only()] = None
    tool_calls: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only()] = None
    annotations: list[Any] | None = None

    @property
    def plain(self) -> dict[str, str]:
        """Its role and its text, which is what chat templates know of a turn."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(Strict):
    """What is asked."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1)]
    memory3: MemoryOptions | None = None
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    temperature: Temperature = None
    top_p: TopP = None
    n: Choices = None
    seed: Seed = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    user: User = None
    safety_identifier: User = None
    prompt_cache_key: User = None
    metadata: dict[str, Any] | None = None
    store: Annotated[Any, only(False)] = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    presence_penalty: Annotated[Any, only(0)] = None
    frequency_penalty: Annotated[Any, only(0)] = None
    logit_bias: Annotated[Any, only({})] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    modalities: Annotated[Any, only(["text"])] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, only(True, False)] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    audio: Annotated[Any, only()] = None
    prediction: Annotated[Any, only()] = None
    reasoning_effort: Annotated[Any, only("none")] = None
    verbosity: Annotated[Any, only("medium")] = None
    web_search_options: Annotated[Any, only()] = None
    prompt_cache_retention: Annotated[Any, only()] = None
    moderation: Annotated[Any, only()] = None


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["chat"])
    logprobs = Logprobs(state.m3)

    @routes.post("/v1/chat/completions", responses=RESPONSES)
    async def chat(request: Request, body: ChatBody, query: Annotated[MemoryQuery, Query()]) -> Response:
        """Answer the last message of a conversation, from the bank of the model."""
        _check(state, body)
        reading = reading_of(state, state.tenant(request), body.model, body.memory3, query)
        messages = [message.plain for message in body.messages]
        choices = body.n or 1
        jobs = jobs_of(state, [messages], reading, _sampling(body), choices)
        answer = _Answer(body, Citer(reading, str(request.base_url)), logprobs, choices)
        if not body.stream:
            async with Run(state.engine, jobs, "messages") as run:
                said = await unless_gone(request.receive, collect(run, choices))
            return JSONResponse(answer.whole(said))
        run = Run(state.engine, jobs, "messages")
        try:
            await unless_gone(request.receive, run.begin())
        except BaseException:
            run.close()
            raise
        failed = lambda error: event(as_refusal(error).body)  # noqa: E731
        return EventStream(run, answer.chunks(run), failed, seconds=state.limits.seconds + 30)

    return routes


#: What else than an answer may come.
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field cannot be used as given; the error names it."},
    401: {"description": "A key is needed."},
    404: {"description": "There is no such model."},
    408: {"description": "The body came too slowly."},
    413: {"description": "The body is too large."},
    429: {"description": "The queue is full: see Retry-After."},
    503: {"description": "The server is shutting down, or cannot read the bank."},
}


def _check(state: ServerState, body: ChatBody) -> None:
    limits = state.limits
    if len(body.messages) > limits.messages:
        raise invalid("messages", f"messages has {len(body.messages)}: this server takes {limits.messages} at most")
    size = sum(len(message.plain["content"]) for message in body.messages)
    if size > limits.prompt_characters:
        raise invalid("messages", f"messages have {size:,} characters: this server takes {limits.prompt_characters:,} at most")
    if body.messages[-1].role == "assistant":
        raise invalid("messages", "messages end with one of the assistant: end with one of the user, which can be answered")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options is for streams: leave it out, or set stream to true")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise invalid("max_tokens", "max_tokens and max_completion_tokens say different things: give one of them")


def _sampling(body: ChatBody) -> Sampling:
    by = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return Sampling(
        tokens=(by, body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens),
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=body.stop,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ignore_eos=bool(body.ignore_eos),
    )


class _Answer:
    """The answer to one request, whole or in chunks."""

    def __init__(self, body: ChatBody, citer: Citer, logprobs: Logprobs, choices: int) -> None:
        self._body = body
        self._citer = citer
        self._logprobs = logprobs
        self._choices = choices
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, said: list[Said]) -> dict[str, Any]:
        choices = [
            {
                "index": n,
                "message": {
                    "role": "assistant",
                    "content": one.text,
                    "refusal": None,
                    "annotations": [
                        *(each for cited in one.cited for each in self._citer.url_citations(cited)),
                        *self._citer.url_citations_of_all(one.end),
                    ],
                },
                "logprobs": self._logprobs.chat(one.tokens) if self._body.logprobs else None,
                "finish_reason": finish_reason(one.end),
                "memory3": self._citer.about(one.end),
            }
            for n, one in enumerate(said)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_of([one.end for one in said], len(said))}

    async def chunks(self, run: Run) -> AsyncIterator[str]:
        for n in range(self._choices):
            yield self._chunk(n, {"role": "assistant", "content": "", "refusal": None})
        said = [Said() for _ in range(self._choices)]
        told = [0] * self._choices  # tokens whose log-probabilities were sent
        async for n, happened in run.events():
            one = said[n]
            one.add(happened)
            if isinstance(happened, Text) and happened.text:
                tokens = one.tokens[told[n] :]
                told[n] = len(one.tokens)
                yield self._chunk(n, {"content": happened.text}, logprobs=self._told(tokens))
            elif isinstance(happened, Cited):
                annotations = self._citer.url_citations(happened)
                if annotations:
                    yield self._chunk(n, {"annotations": annotations})
            elif isinstance(happened, Finished):
                annotations = self._citer.url_citations_of_all(happened)
                if annotations:
                    yield self._chunk(n, {"annotations": annotations})
                rest = self._told(one.tokens[told[n] :]) if one.tokens[told[n] :] else None
                about = self._citer.about(happened)
                yield self._chunk(n, {}, logprobs=rest, finish_reason=finish_reason(happened), memory3=about)
        if self._has_usage:
            usage = usage_of([one.end for one in said], len(said))
            yield event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})
        yield event("[DONE]")

    @property
    def _has_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and bool(options.include_usage)

    def _told(self, tokens: list[Any]) -> dict[str, Any] | None:
        return self._logprobs.chat(tokens) if self._body.logprobs else None

    def _chunk(self, index: int, delta: dict[str, Any], **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        usage = {"usage": None} if self._has_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._body.model, "service_tier": "default"}
