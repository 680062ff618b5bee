"""An MCP server over one bank: the tools ``search`` and ``ask``, and where changes are allowed ``write`` and ``forget``.

    state = ServerState(m3, engine, banks)
    server = make_server(BankTools(state, "docs"), write=True)
    http_server(server, state, "docs", "127.0.0.1", 8765).run()
    server.run("stdio")  # or so

Answers come from the engine, so that many can ask at once, and none for longer than it may. Stateless: every request stands
for itself. What a client gives is bounded before it reaches a bank or a model; keys, the log and the size of bodies are
those of `memory3 serve`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal

from memory3.errors import MissingDependency

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp_types import ToolAnnotations
    from starlette.responses import JSONResponse
except ImportError as error:
    raise MissingDependency(str(error.name or "mcp"), "mcp", "memory3 mcp") from None

from pydantic import BaseModel, Field

from memory3.decoding import decoding
from memory3.errors import ConfigError, InputError, Memory3Error, SourceConflict, setting
from memory3.plugs.passages import PASSAGES, find_passages
from memory3.recall.retrieval import EVERYTHING, Retrieval
from memory3.serving.errors import as_refusal, error_body
from memory3.serving.guard import Guard
from memory3.serving.job import Event, Failed, Finished, Job
from memory3.serving.keys import Tenant
from memory3.serving.server import Server
from memory3.serving.state import ServerState
from memory3.types import Citation, Document, Reference

__all__ = ["BankTools", "http_server", "make_server"]

#: Characters of a document that is written at most.
TEXT_CHARACTERS = 200_000
#: Seconds that an answer takes at most.
ANSWER_SECONDS = 60.0
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


class CitedPassage(Found):
    """A passage that an answer was read from."""

    share: float = Field(description="Part of the attention to passages that this one got, 0 to 1.")


class AskResult(BaseModel):
    """An answer and what it was read from."""

    answer: str
    citations: list[CitedPassage] = Field(description="Passages it was read from, most attended first.")
    ended: Literal["stop", "length", "time"] = Field(description="stop: complete. length, time: cut off there.")
    note: str = Field(description="Why nothing of the bank was read; else empty.")
    found: bool | None = Field(description="Whether the bank probably holds the answer. null: nobody can tell.")


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

    def __init__(self, state: ServerState, bank: str) -> None:
        """
        Args:
            state: of the server: its model, engine, banks and limits.
            bank: name of the one that is served.

        Raises:
            ServingError: there is none of that name.
        """
        self._m3 = state.m3
        self._engine = state.engine
        self._bank = state.banks.get(bank, Tenant()).bank

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
            settings, _ = decoding(self._m3.model, max_tokens, {})
            retrieval = self._m3.retrieval(None, None, where)
            bank = None if mode == "none" else self._bank
            answer = await self._answer(Job(question, settings, mode, bank, retrieval, seconds=ANSWER_SECONDS))
        cited = [CitedPassage(share=each.share, **_about(each, each.score)) for each in answer.citations]
        ended: Any = answer.reason
        found = None if answer.presence is None else answer.presence.found
        return AskResult(answer=answer.text.strip(), citations=cited, ended=ended, note=answer.note, found=found)

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
        text: Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS)],
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
        ids: Annotated[list[Name], Field(max_length=100)] | None = None,
        sources: Annotated[list[Name], Field(max_length=100)] | None = None,
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
            self._bank.refresh()  # what another process wrote
            came_from = {entry.id: entry.source for entry in self._bank.documents()}
            wanted = [name for name, source in came_from.items() if name in (ids or ()) or source in (sources or ())]
            if wanted:
                self._bank.delete(wanted, purge=purge, wait_seconds=WAIT_SECONDS)
        there, places = set(came_from), set(came_from.values())
        missing = [name for name in ids or () if name not in there] + [name for name in sources or () if name not in places]
        return ForgetResult(forgotten=sorted(wanted), missing=missing)


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


def http_server(server: MCPServer[Any], state: ServerState, bank: str, host: str, port: int) -> Server:
    """A server of streamable HTTP at ``/mcp``: ``run()`` serves until the process is told to end.

    Args:
        server: of `make_server`.
        state: its keys and limits are kept to.
        bank: name of the one that is served, for keys that are bound to banks.
        host: address to listen at.
        port: 0: any that is free.

    Raises:
        ConfigError: other machines could ask without a key.
    """
    if host not in LOCAL and not state.keys.tenants:
        raise ConfigError(
            f"{setting('host', host)} lets other machines use the bank: give keys ({setting('api_key_file', 'FILE')}), or "
            "listen at 127.0.0.1"
        )
    # By default the SDK refuses names that are not of this machine, which pages of a browser may have been led here by.
    # Where other machines may ask, a key is what they must have.
    security = None if host in LOCAL else TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=False,  # with it, the SDK would not notice that a client is gone
        stateless_http=True,
        max_request_body_size=state.limits.body_bytes,
        transport_security=security,
        host=host,
    )
    return Server(Guard(_OfBank(app, bank), state), state, host, port)


class _OfBank:
    """Lets those through who see the bank and ask something. ASGI, behind `Guard`."""

    def __init__(self, app: Callable[..., Awaitable[None]], bank: str) -> None:
        self._app = app
        self._bank = bank

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        tenant = scope.get("state", {}).get("tenant") if scope["type"] == "http" else None
        if tenant is not None and not tenant.sees(self._bank):
            await JSONResponse({"error": "this key is of another bank"}, 403)(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] in ("GET", "DELETE"):
            # A stream of what the server says by itself, and the end of a session. Without sessions there is neither, and the
            # SDK would keep the stream open until the server stops.
            said = error_body("This server keeps no sessions: POST every request.", "invalid_request_error")
            await JSONResponse(said, 405, {"Allow": "POST"})(scope, receive, send)
            return
        await self._app(scope, receive, send)


@contextmanager
def _told() -> Iterator[None]:
    """Errors that say what to do are told to the client; of others it learns only that there was one."""
    try:
        yield
    except Memory3Error as error:
        refusal = as_refusal(error)
        if refusal.status >= 500:  # what the client is not told, such as folders of this machine
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise ToolError(str(refusal)) from error


def _about(passage: Reference | Citation, score: float) -> dict[str, Any]:
    """The fields of `Found`."""
    names = ("document_id", "source", "start", "end", "text")
    return {name: getattr(passage, name) for name in names} | {"score": score, "metadata": dict(passage.metadata)}
