"""Banks for other machines (`memory3.bank.remote`): search, texts and packed memories of one version.

    GET  /banks                              names
    GET  /banks/NAME                         manifest, version and counts
    GET  /banks/NAME/codec                   the codebook, as safetensors
    GET  /banks/NAME/records/ID              one packed memory; Range
    POST /banks/NAME/search                  hits, their texts, and those of their memories that the client lacks
    POST /banks/NAME/records, .../references memories or texts of references
    POST /banks/NAME/count, .../metadata     what can be filtered by

Nothing is compressed. What belongs to a version is immutable, and is tagged by fingerprint and version. A version that was
replaced answers until its files are gone, then with 410.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread

from memory3.bank.format.names import codebook_name
from memory3.bank.remote.about import About
from memory3.bank.remote.frames import FRAMES, pack
from memory3.bank.remote.items import hit_rows, mark
from memory3.bank.remote.kept import Item, ItemShape
from memory3.bank.remote.limits import MOST_HITS, MOST_IDS, MOST_QUERIES, MOST_QUERY, MOST_SENT
from memory3.bank.reports import Hit
from memory3.bank.view import BankView
from memory3.errors import BankChanged, InputError, MissingDependency
from memory3.serving.errors import invalid, no_range, not_found
from memory3.serving.state import ServerState
from memory3.serving.versions import Versions, version_gone

try:
    from fastapi import APIRouter, Header, Query, Request, Response
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field
except ImportError as error:
    raise MissingDependency(str(error.name or "fastapi"), "serve", "memory3 serve") from None

__all__ = ["router"]

T = TypeVar("T")
#: Requests that read at once: each may hold `MOST_SENT` bytes.
_AT_ONCE = 4
_MOST_MARKS = 4096
_CODEBOOK_BYTES = 1 << 30
_RANGE = re.compile(r"bytes=(\d{0,12})-(\d{0,12})")

Version = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Id = Annotated[str, Field(min_length=1, max_length=4096)]
Scalar = str | int | float | bool


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Version


class Filtered(_Body):
    """What is counted."""

    where: dict[str, Scalar | Annotated[list[Scalar], Field(max_length=1024)]] = Field(default_factory=dict, max_length=64)


class Search(Filtered):
    """What is looked for."""

    queries: list[Annotated[str, Field(max_length=MOST_QUERY)]] = Field(min_length=1, max_length=MOST_QUERIES)
    k: int = Field(ge=1, le=MOST_HITS)
    gap: float = Field(default=-1.0, ge=-1, le=2, description="Memories come along of hits this near to the best; -1: none.")
    have: str = Field(default="", max_length=_MOST_MARKS * 6, description="Marks of memories that the client has, in base64.")


class Named(_Body):
    """Which references."""

    ids: list[Id] = Field(min_length=1, max_length=MOST_IDS)


def router(state: ServerState) -> APIRouter:
    """The routes of banks.

    Args:
        state: of the server.
    """
    routes = APIRouter(prefix="/banks", tags=["banks"])
    versions = Versions()
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def read(
        request: Request, name: str, version: str | None, work: Callable[[BankView, About], T], param: str = "version"
    ) -> T:
        """``work`` with a version of a bank that this client may read, beside the server's other work.

        ``param`` is to blame for what cannot be done.
        """
        served = state.banks.get(name, state.tenant(request))

        def reading() -> T:
            try:
                view, about = versions.find(served, version)
                return work(view, about)
            except BankChanged:
                raise version_gone() from None
            except InputError as error:  # it begins with the bank's folder, which is not for clients
                raise invalid(param, f"{param}: {str(error).removeprefix(f'{view.snapshot.path}: ')}.") from None

        return await anyio.to_thread.run_sync(reading, limiter=limiter)

    @routes.get("")
    async def banks(request: Request) -> dict[str, list[str]]:
        """The banks that this client sees."""
        return {"banks": sorted(one.name for one in state.banks.seen_by(state.tenant(request)))}

    @routes.get("/{name}")
    async def about(
        request: Request,
        name: str,
        version: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
        if_none_match: Annotated[str | None, Header(max_length=1024)] = None,
    ) -> Response:
        """What a bank is: its manifest, which version is in force, and how much it holds."""
        found = await read(request, name, version, lambda _, about: about)
        headers = {"ETag": found.tag, "Cache-Control": "private, no-cache, no-transform"}
        if if_none_match is not None and found.tag in [one.strip() for one in if_none_match.split(",")]:
            return Response(status_code=304, headers=headers)
        return _json(found.fields(), headers)

    @routes.get("/{name}/codec")
    async def codec(
        request: Request, name: str, version: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None
    ) -> Response:
        """The codebook that decodes a bank's memories."""

        def work(view: BankView, about: About) -> tuple[About, bytes]:
            if not about.manifest.code_book:
                raise not_found("codebook of the bank", name)
            return about, view.snapshot.backend.read(codebook_name(about.manifest.code_book), _CODEBOOK_BYTES)

        found, data = await read(request, name, version, work)
        return Response(data, media_type="application/octet-stream", headers=_kept(found, version))

    @routes.get("/{name}/records/{reference_id:path}")
    async def record(
        request: Request,
        name: str,
        reference_id: str,
        version: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
        range_: Annotated[str | None, Header(alias="range", max_length=256)] = None,
        if_range: Annotated[str | None, Header(max_length=1024)] = None,
    ) -> Response:
        """One packed memory, or a range of its bytes."""
        found, data = await read(
            request, name, version, lambda view, about: (about, view.records([reference_id])[0].data), "reference_id"
        )
        headers = {**_kept(found, version), "Accept-Ranges": "bytes"}
        part = None if range_ is None or if_range not in (None, found.tag) else _RANGE.fullmatch(range_)
        if part is None or part[0] == "bytes=-":
            return Response(data, media_type="application/octet-stream", headers=headers)
        first, last = _ends(part, len(data))
        if first > last:
            raise no_range(len(data))
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Response(data[first : last + 1], 206, media_type="application/octet-stream", headers=headers)

    @routes.post("/{name}/search")
    async def search(request: Request, name: str, body: Search) -> Response:
        """Hits, the texts of those that are near, and their memories unless the client has them."""
        have = _marks(body.have)

        def work(view: BankView, about: About) -> bytes:
            hits = view.search(body.queries, body.k, body.where or None)
            near = dict.fromkeys(hit.reference_id for each in hits for hit in _near(each, body.gap))
            lacking = [id_ for id_ in near if mark(id_) not in have]
            fitting = lacking[: MOST_SENT // about.manifest.record_bytes]
            return _message(view, about, fitting, with_records=True, hits=hits)

        return _frames(await read(request, name, body.version, work, "where"))

    @routes.post("/{name}/records")
    async def records(request: Request, name: str, body: Named) -> Response:
        """Texts and packed memories of references."""

        def work(view: BankView, about: About) -> bytes:
            if len(body.ids) > 1 and len(body.ids) * about.manifest.record_bytes > MOST_SENT:
                raise invalid("ids", f"ids: their memories have more than {MOST_SENT:,} bytes: ask for fewer at once.")
            return _message(view, about, body.ids, with_records=True)

        return _frames(await read(request, name, body.version, work, "ids"))

    @routes.post("/{name}/references")
    async def references(request: Request, name: str, body: Named) -> Response:
        """Texts of references."""

        def work(view: BankView, about: About) -> bytes:
            return _message(view, about, body.ids, with_records=False)

        return _frames(await read(request, name, body.version, work, "ids"))

    @routes.post("/{name}/count")
    async def count(request: Request, name: str, body: Filtered) -> dict[str, int]:
        """How many references match."""
        return {"count": await read(request, name, body.version, lambda view, _: view.count(body.where or None), "where")}

    @routes.post("/{name}/metadata")
    async def metadata(request: Request, name: str, body: _Body) -> Response:
        """What documents can be filtered by."""
        return _json({"metadata": await read(request, name, body.version, lambda view, _: view.metadata())}, {})

    return routes


def _message(
    view: BankView, about: About, ids: Sequence[str], *, with_records: bool, hits: Sequence[Sequence[Hit]] | None = None
) -> bytes:
    """References by id, with their memories or without, as one message."""
    unique = list(dict.fromkeys(ids))
    references = view.references(unique) if unique else []
    records = view.records(unique) if with_records and unique else [None] * len(unique)
    manifest = about.manifest
    shape = ItemShape(manifest.codec, manifest.record_bytes, manifest.config.reference_length, 1 << 31)
    fields, parts = shape.head([Item(*pair) for pair in zip(references, records, strict=True)])
    head: dict[str, Any] = {"version": about.version, "items": fields}
    if hits is not None:
        head["hits"] = hit_rows(hits)
    return pack(head, parts)


def _near(hits: Sequence[Hit], gap: float) -> list[Hit]:
    return [hit for hit in hits if gap >= 0 and hit.score >= hits[0].score - gap]


def _marks(text: str) -> frozenset[int]:
    try:
        data = base64.b64decode(text, validate=True)
        return frozenset(struct.unpack(f"<{len(data) // 4}I", data))
    except (ValueError, struct.error):
        raise invalid("have", "have: write 32-bit numbers, little-endian, in base64.") from None


def _ends(part: re.Match[str], size: int) -> tuple[int, int]:
    """The first and the last byte of a range; the first behind the last where there are none."""
    if not part[1]:
        return (max(0, size - int(part[2])), size - 1) if int(part[2]) else (size, size - 1)
    return int(part[1]), min(int(part[2]) if part[2] else size - 1, size - 1)


def _kept(about: About, version: str | None) -> dict[str, str]:
    """How long what belongs to a version may be kept: for ever, where the version is in the address."""
    kept = "max-age=31536000, immutable" if version else "no-cache"
    return {"ETag": about.tag, "Cache-Control": f"private, {kept}, no-transform"}


def _frames(message: bytes) -> Response:
    return Response(message, media_type=FRAMES, headers={"Cache-Control": "no-store, no-transform"})


def _json(content: Any, headers: dict[str, str]) -> Response:
    return JSONResponse(content, headers=headers)
