"""``/v1/embeddings``: texts as vectors, by the embedder that a bank is searched with."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from memory3.serving.errors import invalid
from memory3.serving.fields import Name, Strict, User, only
from memory3.serving.routes.chat import RESPONSES
from memory3.serving.running import unless_gone
from memory3.serving.state import ServerState

__all__ = ["EmbeddingBody", "router"]

#: Requests that embed at once: more would only wait for one another, and for the answers beside them.
AT_ONCE = 2
#: Texts of one go, between which a client may go away.
GO = 16

_Text = Annotated[str, Field(min_length=1)]


class EmbeddingBody(Strict):
    """What is asked."""

    model: Name
    input: _Text | Annotated[list[_Text], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, Field(ge=1)] = None
    user: User = None
    metadata: Annotated[Any, only()] = None


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["embeddings"])
    places = anyio.CapacityLimiter(AT_ONCE)

    @routes.post("/v1/embeddings", responses=RESPONSES)
    async def embed(request: Request, body: EmbeddingBody) -> Response:
        """Vectors of length 1, by the embedder of the bank."""
        served = state.banks.of_model(body.model, state.tenant(request))
        if served is None:
            raise invalid(
                "model", f"{body.model!r} has no embedder: ask a model of a bank, such as {state.banks.id_of('BANK')}"
            )
        texts = [body.input] if isinstance(body.input, str) else body.input
        limits = state.limits
        if len(texts) > limits.texts:
            raise invalid("input", f"input has {len(texts)} texts: this server takes {limits.texts} at most")
        if sum(map(len, texts)) > limits.prompt_characters:
            raise invalid("input", f"input has more than {limits.prompt_characters:,} characters")
        embedder = served.bank.embedder
        if body.dimensions not in (None, embedder.dimension):
            raise invalid(
                "dimensions", f"dimensions is {body.dimensions}: vectors of {embedder.name} have {embedder.dimension}"
            )

        async def work() -> list[Any]:
            rows: list[Any] = []
            for first in range(0, len(texts), GO):
                rows += list(await anyio.to_thread.run_sync(embedder.encode, texts[first : first + GO], limiter=places))
            return rows

        vectors = await unless_gone(request.receive, work())
        tokens = await anyio.to_thread.run_sync(lambda: sum(len(state.m3.prompts.ids(text)) for text in texts))
        data = [
            {"object": "embedding", "index": n, "embedding": _written(row, body.encoding_format)}
            for n, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})

    return routes


def _written(vector: np.ndarray, form: str | None) -> Any:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
