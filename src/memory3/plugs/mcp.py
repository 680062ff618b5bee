"""An MCP server over one bank: the tools ``search`` and ``ask``, and where changes are allowed ``write`` and ``forget``.

    with Engine(m3) as engine:
        serve_http(make_server(BankTools(m3, bank, engine), write=True), listen("127.0.0.1", 8765))

Answers come from the engine, so that many can ask at once, and none for longer than it may. Stateless: every request stands
for itself. What a client gives is bounded before it reaches a bank or a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal

from memory3.errors import MissingDependency

try:
    import uvicorn
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp_types import ToolAnnotations
except ImportError as error:
    raise MissingDependency(str(error.name or "mcp"), "mcp", "memory3 mcp") from None

from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from memory3.bank import Bank
from memory3.decoding import decoding
from memory3.errors import ConfigError, InputError, Memory3Error, SourceConflict
from memory3.llm import Memory3
from memory3.plugs.passages import PASSAGES, find_passages
from memory3.recall.retrieval import EVERYTHING, Retrieval
from memory3.serving.engine import Engine, Event, Failed, Finished, Job
from memory3.serving.keys import Keys
from memory3.types import Citation, Document

__all__ = ["BankTools", "listen", "make_server", "serve_http", "serve_stdio"]

#: Bytes of a request at most: a text of the longest size, every character of it written as an escape.
BODY_BYTES = 4 << 20
#: Seconds that a change waits for another process that writes the bank.
WAIT_SECONDS = 20.0
#: Hosts that other machines cannot reach.
LOCAL = ("127.0.0.1", "localhost", "::1")
#: Where MCP is asked.
PATH = "/mcp"

Name = Annotated[str, Field(min_length=1, max_length=1_000)]
Scalar = Annotated[str, Field(max_length=1_000)] | bool | int | float
Metadata = Annotated[dict[Name, Scalar], Field(max_length=32)]
Values = Scalar | Annotated[list[Scalar], Field(min_length=1, max_length=32)]
Filter = Annotated[
    dict[Name, Values],
    Field(max_length=8, description="Only passages of documents with this metadata; of several values any."),
]
Query = Annotated[str, Field(min_length=1, max_length=8_000)]


class Found(BaseModel):
    """A passage."""

    document_id: str = Field(description="The document it is part of.")
    source: str = Field(description="Where the document came from.")
    start: int = Field(description="Where it begins in the document, in characters.")
    end: int
    score: float = Field(description="Cosine of passage and query, -1 to 1.")
    text: str
    metadata: dict[str, Any] = Field(description="Of the document.")


class SearchResult(BaseModel):
    """What a search found, most similar first."""

    passages: list[Found]


class Cited(Found):
    """A passage that an answer was read from."""

    share: float = Field(description="Part of the attention to passages that this one got, 0 to 1.")


class AskResult(BaseModel):
    """An answer and what it was read from."""

    answer: str
    citations: list[Cited] = Field(description="Passages it was read from, most attended first.")
    ended: Literal["stop", "length", "time"] = Field(description="stop: complete. length, time: cut off there.")
    note: str = Field(description="Why nothing of the bank was read; else empty.")


class WriteResult(BaseModel):
    """What was written."""

    id: str = Field(description="Of the document; forget it by this.")
    state: Literal["added", "changed", "unchanged"]
    references: int = Field(description="Passages that were encoded.")


class ForgetResult(BaseModel):
    """What was removed."""

    forgotten: list[str] = Field(description="Ids of documents that are gone.")
    missing: list[str] = Field(description="Ids and sources that the bank has not.")


class BankTools:
    """The tools, as methods whose parameters are what a client may give."""

    def __init__(
        self, m3: Memory3, bank: Bank, engine: Engine, *, seconds: float = 60.0, text_characters: int = 200_000
    ) -> None:
        """
        Args:
            m3: the model.
            bank: opened with it.
            engine: of it.
            seconds: that an answer takes at most.
            text_characters: of a document that is written at most.
        """
        self._m3 = m3
        self._bank = bank
        self._engine = engine
        self._seconds = seconds
        self._text_characters = text_characters

    def search(
        self, query: Query, k: Annotated[int, Field(ge=1, le=20)] = PASSAGES, where: Filter | None = None
    ) -> SearchResult:
        """Find the passages of the bank that are most similar to a query. Returns their text; reads nothing into a model.

        Args:
            query: what to look for, in words.
            k: passages at most.
            where: metadata that their documents must have.
        """
        with _told():
            self._bank.refresh()  # what another process wrote
            found = find_passages(self._bank, query, Retrieval(k, EVERYTHING, where))
        return SearchResult(passages=[Found(**_about(each.reference, each.score)) for each in found])

    async def ask(
        self,
        question: Query,
        mode: Literal["memory", "text", "none"] = "memory",
        max_tokens: Annotated[int, Field(ge=1, le=512)] = 128,
        where: Filter | None = None,
    ) -> AskResult:
        """Have the bank's own language model answer a question from its memories. Returns the answer and what it was read
        from.

        Args:
            question: to be answered.
            mode: ``"memory"``: it reads memories of passages. ``"text"``: it reads their text. ``"none"``: it reads nothing.
            max_tokens: length of the answer at most.
            where: metadata that passages must have.
        """
        with _told():
            await asyncio.to_thread(self._bank.refresh)
            settings, _ = decoding(self._m3.model, max_tokens, {})
            retrieval = self._m3.retrieval(None, None, where)
            bank = None if mode == "none" else self._bank
            answer = await self._answer(Job(question, settings, mode, bank, retrieval, seconds=self._seconds))
        cited = [Cited(share=each.share, **_about(each, each.score)) for each in answer.citations]
        ended: Any = answer.reason
        return AskResult(answer=answer.text.strip(), citations=cited, ended=ended, note=answer.note)

    async def _answer(self, job: Job) -> Finished:
        """Of the engine. A client that goes cancels this, and with it the engine's work."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(events.put_nowait, event)

        handle = self._engine.submit(job, tell)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    return event
        finally:
            handle.cancel()

    def write(
        self,
        text: Annotated[str, Field(min_length=1)],
        id: Annotated[str, Field(max_length=1_000)] = "",
        source: Annotated[str, Field(max_length=1_000)] = "",
        metadata: Metadata | None = None,
        replace: bool = False,
    ) -> WriteResult:
        """Remember a text: it is encoded into memories and kept in the bank. The same text again costs nothing.

        Args:
            text: the whole document.
            id: its name in the bank; by default the source, or where there is none a name made of the text. Another text
                under the same id and source takes its place.
            source: where it came from, shown in citations: a title, a path or a URL. Nothing is fetched from there.
            metadata: to filter by.
            replace: take the place of a document that has this id and came from another source.
        """
        with _told():
            if len(text) > self._text_characters:
                raise InputError(
                    f"the text has {len(text):,} characters, and {self._text_characters:,} are allowed: write it in parts"
                )
            if not text.strip():
                raise InputError("the text is empty: there is nothing to remember")
            name = id or source or f"note-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            document = Document(name, text, source, metadata or {})
            try:
                report = self._bank.write([document], replace=replace, wait_seconds=WAIT_SECONDS)
            except SourceConflict:
                raise InputError(
                    f"nothing was written: the bank has a document {name!r} from another source. Give another id, or replace"
                    " it with replace=true"
                ) from None
        state: Any = "added" if report.added else "changed" if report.written else "unchanged"
        return WriteResult(id=name, state=state, references=report.references)

    def forget(
        self,
        ids: Annotated[list[Name], Field(max_length=100)] = [],  # noqa: B006 (a default of a schema, which nobody changes)
        sources: Annotated[list[Name], Field(max_length=100)] = [],  # noqa: B006
        purge: bool = False,
    ) -> ForgetResult:
        """Remove documents from the bank, by their ids or by where they came from. There is no way back.

        Args:
            ids: of documents, as search and write give them.
            sources: all documents that came from one of these.
            purge: leave no byte of them on disk, now; otherwise their text stays in old files for some minutes or longer.
        """
        with _told():
            if not ids and not sources:
                raise InputError("name documents by ids or sources: nothing was forgotten")
            self._bank.refresh()
            by_source = {source: [] for source in sources}  # type: dict[str, list[str]]
            there = set()
            for entry in self._bank.documents():
                there.add(entry.id)
                if entry.source in by_source:
                    by_source[entry.source].append(entry.id)
            wanted = sorted({*ids, *(name for names in by_source.values() for name in names)} & there)
            if wanted:
                self._bank.delete(wanted, purge=purge, wait_seconds=WAIT_SECONDS)
        missing = [name for name in ids if name not in there] + [name for name, found in by_source.items() if not found]
        return ForgetResult(forgotten=wanted, missing=missing)


def make_server(tools: BankTools, *, write: bool = False, name: str = "memory3") -> MCPServer[Any]:
    """An MCP server of these tools.

    Args:
        tools: over one bank.
        write: whether clients may change the bank.
        name: that clients see.
    """
    from importlib.metadata import version

    server: MCPServer[Any] = MCPServer(
        name,
        version=version("memory3"),
        instructions="A bank of documents. search gives passages as text, ask has a small language model answer from them.",
        log_level="WARNING",
        subscriptions=False,
    )
    read = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.add_tool(tools.search, title="Search the bank", annotations=read)
    server.add_tool(tools.ask, title="Ask the bank", annotations=read)
    if write:
        adds = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
        server.add_tool(tools.write, title="Remember a text", annotations=adds)
        server.add_tool(tools.forget, title="Forget documents", annotations=adds)
    return server


def listen(host: str, port: int, *, keys: Keys | None = None) -> socket.socket:
    """A socket that a server can be given, so that an address in use is known before a model is loaded.

    Args:
        host: an address of this machine.
        port: 0: one that is free.
        keys: that clients must have; without, only this machine is served.

    Raises:
        ConfigError: other machines could ask without a key.
        OSError: the address cannot be had.
    """
    if host not in LOCAL and not (keys and keys.tenants):
        raise ConfigError(
            f"host {host} lets other machines read the bank: give a file of keys (--api-key-file FILE), or leave --host out"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def serve_http(server: MCPServer[Any], sock: socket.socket, *, keys: Keys | None = None, bank: str = "") -> None:
    """Serve streamable HTTP at ``/mcp`` until the process is told to end.

    Args:
        server: of `make_server`.
        sock: of `listen`.
        keys: that clients must have; None: none.
        bank: its name, for keys that are bound to banks.
    """
    uvicorn.Server(http_config(server, sock, keys=keys, bank=bank)).run(sockets=[sock])


def http_config(server: MCPServer[Any], sock: socket.socket, *, keys: Keys | None = None, bank: str = "") -> uvicorn.Config:
    """How `serve_http` runs uvicorn; parameters as there.

    Args:
        server, sock, keys, bank: as there.
    """
    host = sock.getsockname()[0]
    # Pages of a browser that were led here by a false name are refused where no key would stop them.
    security = None if host in LOCAL else TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app: Any = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,
        stateless_http=True,
        max_request_body_size=BODY_BYTES,
        transport_security=security,
        host=host,
    )
    if keys is not None and keys.tenants:
        app = _Guarded(app, keys, bank)
    return uvicorn.Config(
        app, log_level="warning", access_log=False, limit_concurrency=64, timeout_keep_alive=10, timeout_graceful_shutdown=10
    )


def serve_stdio(server: MCPServer[Any]) -> None:
    """Serve the program that started this one, over standard input and output.

    Args:
        server: of `make_server`.
    """
    server.run("stdio")


class _Guarded:
    """Lets those in who have a key. ASGI."""

    def __init__(self, app: Callable[..., Awaitable[None]], keys: Keys, bank: str) -> None:
        self._app = app
        self._keys = keys
        self._bank = bank

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            tenant = self._keys.tenant(key.strip() if scheme.lower() == "bearer" else None)
            if tenant is None or not tenant.sees(self._bank):
                refusal = JSONResponse(
                    {"error": "give a key of this server, as in Authorization: Bearer KEY"},
                    status_code=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


@contextmanager
def _told() -> Iterator[None]:
    """Errors that say what to do are told to the client; of others it learns only that there was one."""
    try:
        yield
    except Memory3Error as error:
        raise ToolError(str(error)) from error


def _about(passage: Any, score: float) -> dict[str, Any]:
    """The fields of `Found`, of a reference or a citation."""
    assert isinstance(passage, Citation) or hasattr(passage, "token_ids")
    names = ("document_id", "source", "start", "end", "text")
    return {name: getattr(passage, name) for name in names} | {"score": score, "metadata": dict(passage.metadata)}
