"""``/v1/responses``: OpenAI's newer way to ask, with citations as ``file_citation``. Nothing is kept between two requests."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from memory3.serving.citations import Citer
from memory3.serving.errors import Refused, as_refusal, invalid
from memory3.serving.fields import (
    Characters,
    MemoryOptions,
    MemoryQuery,
    Name,
    Plain,
    StreamOptions,
    Strict,
    Temperature,
    Tokens,
    TopP,
    User,
    only,
)
from memory3.serving.filters import where_of
from memory3.serving.job import Cited, Finished, Text
from memory3.serving.jobs import Sampling, jobs_of, reading_of
from memory3.serving.keys import Tenant
from memory3.serving.routes.chat import RESPONSES
from memory3.serving.running import Run, unless_gone
from memory3.serving.said import Said, collect, finish_reason
from memory3.serving.state import ServerState
from memory3.serving.streaming import EventStream, event

__all__ = ["ResponseBody", "router"]


class InputPart(Strict):
    """A part of a turn: text of the user, or of an answer that is sent back as it came."""

    type: Literal["input_text", "output_text"]
    text: Characters
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputItem(Strict):
    """A turn."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Characters | Annotated[list[InputPart], Field(min_length=1, max_length=1000)]
    id: Annotated[str | None, Field(max_length=200)] = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    phase: Annotated[Any, only()] = None

    @property
    def plain(self) -> dict[str, str]:
        """Its role and its text, which is what chat templates know of a turn."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class FileSearch(Strict):
    """A vector store to read: its memories, beside the question, and not by a call of a tool."""

    type: Literal["file_search"]
    vector_store_ids: Annotated[list[Name], Field(min_length=1, max_length=1)]
    max_num_results: Annotated[int | None, Field(ge=1, le=50)] = None
    filters: Plain | None = None
    ranking_options: Annotated[Any, only({}, {"ranker": "auto"}, {"ranker": "none"})] = None


class ResponseBody(Strict):
    """What is asked."""

    model: Name
    input: Annotated[str, Field(min_length=1)] | Annotated[list[InputItem], Field(min_length=1)]
    instructions: Characters | None = None
    memory3: MemoryOptions | None = None
    max_output_tokens: Tokens = None
    temperature: Temperature = None
    top_p: TopP = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: User = None
    safety_identifier: User = None
    prompt_cache_key: User = None
    metadata: Plain | None = None
    store: Annotated[Any, only(False)] = None
    background: Annotated[Any, only(False)] = None
    conversation: Annotated[Any, only()] = None
    context_management: Annotated[Any, only()] = None
    include: Annotated[Any, only([])] = None
    max_tool_calls: Annotated[Any, only()] = None
    parallel_tool_calls: Annotated[Any, only(True, False)] = None
    previous_response_id: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    prompt_cache_retention: Annotated[Any, only()] = None
    reasoning: Annotated[Any, only({}, {"effort": None}, {"effort": "none"})] = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    text: Annotated[Any, only({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"})] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    tools: Annotated[list[FileSearch], Field(max_length=1)] | None = None
    top_logprobs: Annotated[Any, only(0)] = None
    truncation: Annotated[Any, only("disabled")] = None


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["responses"])

    @routes.post("/v1/responses", responses=RESPONSES)
    async def respond(request: Request, body: ResponseBody, query: Annotated[MemoryQuery, Query()]) -> Response:
        """Answer, from the bank of the model."""
        messages = _messages(state, body)
        model, options = _with_tools(state, state.tenant(request), body)
        reading = reading_of(state, state.tenant(request), model, options, query)
        sampling = Sampling(("max_output_tokens", body.max_output_tokens), body.temperature, body.top_p)
        jobs = jobs_of(state, [messages], reading, sampling)
        answer = _Answer(body, Citer(reading, str(request.base_url)))
        if not body.stream:
            async with Run(state.engine, jobs, "input") as run:
                (said,) = await unless_gone(request.receive, collect(run, 1))
            return JSONResponse(answer.whole(said))
        run = Run(state.engine, jobs, "input")
        try:
            await unless_gone(request.receive, run.begin())
        except BaseException:
            run.close()
            raise
        return EventStream(run, answer.events(run), answer.failed, seconds=state.limits.seconds + 30)

    return routes


def _with_tools(state: ServerState, tenant: Tenant, body: ResponseBody) -> tuple[str, MemoryOptions | None]:
    """The model id and the options that a file search means: the model with the bank of that store."""
    if not body.tools:
        return body.model, body.memory3
    if state.banks.of_model(body.model, tenant) is not None:
        raise invalid("tools", f"tools: {body.model} reads a bank already: name the model without it, {state.banks.model}")
    (tool,), options = body.tools, body.memory3 or MemoryOptions()
    served = state.banks.get(tool.vector_store_ids[0], tenant, "tools.0.vector_store_ids.0")
    given: dict[str, Any] = {}
    if tool.max_num_results is not None and options.k is None:
        given["k"] = tool.max_num_results
    if tool.filters is not None:
        if options.where is not None:
            raise invalid("tools.0.filters", "tools.0.filters: memory3.where says it already: give one of them")
        given["where"] = where_of(tool.filters, "tools.0.filters")
    return state.banks.id_of(served.name), options.model_copy(update=given)


def _messages(state: ServerState, body: ResponseBody) -> list[dict[str, str]]:
    limits = state.limits
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options is for streams: leave it out, or set stream to true")
    if body.stream_options is not None and body.stream_options.include_usage is not None:
        raise invalid("stream_options.include_usage", "a response always tells its usage: leave include_usage out")
    said = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else [item.plain for item in body.input]
    if len(said) > limits.messages:
        raise invalid("input", f"input has {len(said)} messages: this server takes {limits.messages} at most")
    if said[-1]["role"] == "assistant":
        raise invalid("input", "input ends with a message of the assistant: end with one of the user, which can be answered")
    if body.instructions:
        said = [{"role": "system", "content": body.instructions}, *said]
    size = sum(len(message["content"]) for message in said)
    if size > limits.prompt_characters:
        raise invalid("input", f"input has {size:,} characters: this server takes {limits.prompt_characters:,} at most")
    return said


class _Answer:
    """The answer to one request, whole or as events."""

    def __init__(self, body: ResponseBody, citer: Citer) -> None:
        self._body = body
        self._citer = citer
        self._id = f"resp_{uuid.uuid4().hex}"
        self._item = f"msg_{uuid.uuid4().hex}"
        self._created = time.time()
        self._events = 0

    def whole(self, said: Said) -> dict[str, Any]:
        annotations = [
            *(each for cited in said.cited for each in self._citer.file_citations(cited)),
            *self._citer.file_citations_of_all(said.end),
        ]
        return self._response(said, annotations)

    async def events(self, run: Run) -> AsyncIterator[str]:
        said, annotations = Said(), list[dict[str, Any]]()
        begun = {**self._empty(), "status": "in_progress"}
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
        yield self._event("response.content_part.added", **place, part=_part("", []))
        async for _, happened in run.events():
            said.add(happened)
            new: list[dict[str, Any]] = []
            if isinstance(happened, Text) and happened.text:
                yield self._event("response.output_text.delta", **place, delta=happened.text, logprobs=[])
            elif isinstance(happened, Cited):
                new = self._citer.file_citations(happened)
            elif isinstance(happened, Finished):
                new = self._citer.file_citations_of_all(happened)
            for annotation in new:
                number = len(annotations)
                annotations.append(annotation)
                told = {**place, "annotation_index": number, "annotation": annotation}
                yield self._event("response.output_text.annotation.added", **told)
        part = _part(said.text, annotations)
        whole = self._response(said, annotations)
        yield self._event("response.output_text.done", **place, text=said.text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: Exception) -> str:
        refusal: Refused = as_refusal(error)
        told = {"code": refusal.code or refusal.kind, "message": str(refusal)}
        return self._event("response.failed", response={**self._empty(), "status": "failed", "error": told})

    def _response(self, said: Said, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        end = said.end
        status = "completed" if finish_reason(end) == "stop" else "incomplete"
        usage = end.usage
        return {
            **self._empty(),
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
            "output": [self._message(status, [_part(said.text, annotations)])],
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage.answer_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.answer_tokens,
            },
            "memory3": self._citer.about(end),
        }

    def _empty(self) -> dict[str, Any]:
        """A response of which nothing is known yet."""
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": int(self._created),
            "status": "queued",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 0.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": content}

    def _event(self, kind: str, **data: Any) -> str:
        number, self._events = self._events, self._events + 1
        return event({"type": kind, "sequence_number": number, **data}, kind)


def _part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}
