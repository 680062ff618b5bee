"""`create_app`: the server as an ASGI application, put together from its routes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from memory3.errors import Memory3Error, MissingDependency
from memory3.serving.errors import Refused, as_refusal, error_body, invalid, of_validation
from memory3.serving.guard import Guard
from memory3.serving.state import ServerState

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
except ImportError as error:
    raise MissingDependency(str(error.name or "fastapi"), "serve", "memory3 serve") from None

from memory3.serving.routes import (
    bank,
    chat,
    completions,
    embeddings,
    files,
    health,
    models,
    page,
    passages,
    responses,
    vector_stores,
)

__all__ = ["create_app"]

#: Every file of routes. What comes first answers first.
ROUTERS = (
    health.router,
    files.router,
    vector_stores.router,
    models.router,
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    passages.router,
    bank.router,
    page.router,
)
#: Seconds between two looks at what others wrote to the banks.
REFRESH = 2.0


def create_app(state: ServerState, *, drain: float = 20.0, log: Callable[[str], None] | None = None) -> FastAPI:
    """The server. When it shuts down it lets requests end that have begun, and closes the engine and the banks.

    Args:
        state: what it serves, and how.
        drain: seconds that requests are given to end.
        log: is given a line of JSON for each request; None: they go to stderr.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        state.banks.watch(REFRESH, _bank_failed)
        yield
        state.draining = True
        if state.storage is not None:
            await asyncio.to_thread(state.storage.close)
        # Whoever serves this has waited for requests already: they have what is left of their time.
        left = drain if state.end_by is None else max(state.end_by - time.monotonic(), 0.0)
        await asyncio.to_thread(state.engine.drain, left)
        await asyncio.to_thread(state.engine.close)
        await asyncio.to_thread(state.banks.close)

    middleware = [Middleware(Guard, state=state, log=log)]
    if state.cors:
        middleware.insert(
            0,  # outside of all, so that errors of the guard reach a page, too
            Middleware(
                CORSMiddleware,
                allow_origins=list(state.cors),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After"],
            ),
        )
    app = FastAPI(
        title="memory3",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=middleware,
        redirect_slashes=False,
        # In place of FastAPI's 422, which this server never answers with.
        responses={"4XX": {"description": "Refused: {error: {message, type, param, code}}."}},
    )
    app.state.server = state
    app.add_exception_handler(Memory3Error, _failed)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http)
    for make in ROUTERS:
        app.include_router(make(state))
    return app


def _answer(error: Refused) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    refusal = as_refusal(error)
    if refusal.status >= 500:
        print(f"{request.state.request_id}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return _answer(refusal)


async def _not_valid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(of_validation(error.errors()))


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and isinstance(error.__cause__, ValueError | RecursionError):  # of Python's reader of JSON
        message = "The body is no JSON that can be read: it is not UTF-8, nested too deep, or has a number of too many digits."
        return _answer(invalid(None, message, "invalid_json"))
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    body: dict[str, Any] = error_body(str(error.detail), kind, None, None)
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


def _bank_failed(name: str, error: Exception) -> None:
    print(f"bank {name}: {error}", file=sys.stderr, flush=True)
