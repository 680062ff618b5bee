"""``/v1/files``: files that clients leave here, to be put into vector stores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from memory3.errors import InputError
from memory3.serving.errors import Refused, invalid, no_range
from memory3.serving.places import Places
from memory3.serving.routes.listing import check_query, page
from memory3.serving.running import ClientGone
from memory3.serving.state import ServerState
from memory3.serving.storage import Storage
from memory3.serving.stored_files import PURPOSES, StoredFile
from memory3.serving.uploads import receive

__all__ = ["router", "storage_of"]

#: Uploads that come in at once: of all tenants, and of one of several. Who is alone has all places.
_AT_ONCE = 32
_OF_ONE = 8
#: Seconds between two chunks of an upload.
_CHUNK_SECONDS = 30.0
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                    },
                }
            }
        },
    }
}


class _Content(FileResponse):
    """The bytes of a file. A range that cannot be is refused in the shape of all errors, not in Starlette's plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 416:
                raise no_range(Path(self.path).stat().st_size)
            if message["type"] == "http.response.start" and message["status"] == 400:
                raise invalid("Range", "Range: write it as bytes=FIRST-LAST, or leave it out.", "invalid_range")
            await send(message)

        await super().__call__(scope, receive, sending)


def storage_of(state: ServerState) -> Storage:
    """Where a server keeps files.

    Raises:
        Refused: 404: it keeps none.
    """
    if state.storage is None:
        message = "This server keeps no files. Whoever runs it can start it with --files DIR."
        raise Refused(404, message, code="files_not_kept")
    return state.storage


def shown(file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI's clients know it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created // 10**9,
        "expires_at": None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(prefix="/v1/files", tags=["files"])
    places = Places("uploads are coming in", _AT_ONCE, _OF_ONE if len(state.keys.tenants) > 1 else _AT_ONCE)

    @routes.post("", openapi_extra=_UPLOAD)
    async def create(request: Request) -> JSONResponse:
        """Upload a file: the parts ``file`` and ``purpose`` of multipart/form-data. It is on the disk when this answers."""
        check_query(request, ())
        storage, tenant = storage_of(state), state.tenant(request).name
        try:
            with places.taken(tenant), await asyncio.to_thread(storage.files.arriving, tenant) as file:
                upload = await receive(request.headers.get("content-type", ""), request.stream(), file, _CHUNK_SECONDS)
                purpose = upload.fields.pop("purpose", None)
                if upload.fields:
                    name = next(iter(upload.fields))[:200]
                    message = f"{name} is not supported by this server: leave it out."
                    raise invalid(name.partition("[")[0], message, "unsupported_parameter")
                if purpose not in PURPOSES:
                    raise invalid("purpose", f"purpose: give one of {', '.join(PURPOSES)}.")
                kept = await asyncio.to_thread(file.keep, upload.filename or "", purpose)
        except TimeoutError:
            raise Refused(408, f"Nothing came for {_CHUNK_SECONDS:g} seconds: nothing was kept.", code="timeout") from None
        except ClientDisconnect:
            raise ClientGone from None
        except InputError as error:
            raise invalid("file", f"{error}.") from None
        return JSONResponse(shown(kept))

    @routes.get("")
    def every(request: Request) -> dict[str, Any]:
        """The files of this client."""
        check_query(request, ("after", "limit", "order", "purpose"))
        files = storage_of(state).files.all(state.tenant(request).name)
        purpose = request.query_params.get("purpose")
        return page(request, [shown(file) for file in files if purpose in (None, file.purpose)], most=10_000, usual=10_000)

    @routes.get("/{file_id}")
    def one(request: Request, file_id: str) -> dict[str, Any]:
        """One file."""
        return shown(storage_of(state).files.get(state.tenant(request).name, file_id))

    @routes.get("/{file_id}/content", response_class=FileResponse)
    def content(request: Request, file_id: str) -> _Content:
        """The bytes of a file, to be saved and never shown as a page of this server."""
        storage, tenant = storage_of(state), state.tenant(request).name
        file = storage.files.get(tenant, file_id)
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "X-Content-Type-Options": "nosniff",
        }
        return _Content(storage.files.path(tenant, file), media_type="application/octet-stream", headers=headers)

    @routes.delete("/{file_id}")
    async def delete(request: Request, file_id: str) -> dict[str, Any]:
        """Delete a file, and remove it from all vector stores. When this answers nobody finds it any more."""
        storage, tenant = storage_of(state), state.tenant(request).name

        def begin() -> list[Any]:
            storage.files.begin_deletion(tenant, file_id)
            waiting = []
            for key in storage.stores.holding(tenant, file_id):
                storage.stores.begin_removal(key, file_id)
                waiting.append(storage.ingest.remove(key, file_id))
            return waiting

        for done in await asyncio.to_thread(begin):
            await asyncio.wrap_future(done)
        await asyncio.to_thread(storage.ingest.finish_deletions)
        return {"id": file_id, "object": "file", "deleted": True}

    return routes
