"""``/v1/vector_stores``: stores of files as memories. Each is a bank, served as the model ``<model>@<store>``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints

from memory3.serving.data_folder import NotStored
from memory3.serving.errors import invalid
from memory3.serving.fields import Characters, Plain, Strict
from memory3.serving.filters import plain_attributes, where_of
from memory3.serving.routes.files import storage_of
from memory3.serving.routes.listing import check_query, page
from memory3.serving.state import ServerState
from memory3.serving.storage import Storage
from memory3.serving.store_state import Batch, Key, Member, Store

__all__ = ["router"]

#: Milliseconds after which a client that waits for a file is to ask again.
_POLL = {"openai-poll-after-ms": "300"}
_STATES = ("in_progress", "completed", "failed", "cancelled")
_FILES_AT_ONCE = 500
_QUERIES, _QUERY_CHARACTERS = 16, 4096

Name = Annotated[str, StringConstraints(max_length=256)]
FieldName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Text = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[FieldName, Text], Field(max_length=16)]
Attributes = Annotated[dict[FieldName, bool | float | Text], Field(max_length=16)]


class Chunking(Strict):
    """How files are cut: as the model's settings say, and no other way."""

    type: Literal["auto"]


class NewStore(Strict):
    """A store to make."""

    name: Name = ""
    metadata: Metadata | None = None
    file_ids: Annotated[list[str], Field(max_length=_FILES_AT_ONCE)] | None = None
    chunking_strategy: Chunking | None = None


class ChangedStore(Strict):
    """What a store is to be called."""

    name: Name | None = None
    metadata: Metadata | None = None


class NewMember(Strict):
    """A file to put into a store."""

    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class ChangedMember(Strict):
    """What a file of a store is to be found by."""

    attributes: Attributes | None


class NewBatch(Strict):
    """Files to put into a store."""

    file_ids: Annotated[list[str], Field(max_length=_FILES_AT_ONCE)] | None = None
    files: Annotated[list[NewMember], Field(max_length=_FILES_AT_ONCE)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class Ranking(Strict):
    """Results are ranked by cosine, and by nothing else."""

    ranker: Literal["none", "auto"] = "auto"
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0


class Search(Strict):
    """What to search for."""

    query: Characters | Annotated[list[Characters], Field(min_length=1, max_length=_QUERIES)]
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    filters: Plain | None = None
    ranking_options: Ranking | None = None
    rewrite_query: bool = False


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])

    def found(request: Request, store_id: str) -> tuple[Storage, Key]:
        storage = storage_of(state)
        return storage, storage.stores.key(state.tenant(request).name, store_id)

    def add(
        request: Request, storage: Storage, key: Key, wanted: Sequence[tuple[str, Any]], param: str, *, together: bool = False
    ) -> Batch | None:
        """Put files with their attributes into a store. All of them are looked up before any is put there."""
        tenant, files = state.tenant(request).name, []
        for file_id, attributes in wanted:
            try:
                files.append((storage.files.get(tenant, file_id), plain_attributes(attributes or {})))
            except NotStored:
                raise NotStored("file", file_id, param) from None
        batch = storage.stores.add(key, files, together=together)
        storage.ingest.encode(key, [file.id for file, _ in files])
        return batch

    # ---- stores ------------------------------------------------------------------------------------------------------

    @routes.post("")
    def create(request: Request, body: NewStore) -> dict[str, Any]:
        """Make a store."""
        storage = storage_of(state)
        key = storage.create_store(state.tenant(request).name, body.name, body.metadata or {})
        try:
            add(request, storage, key, [(file_id, None) for file_id in body.file_ids or ()], "file_ids")
        except Exception:
            storage.delete_store(key)
            raise
        return _store(storage, key, storage.stores.get(key))

    @routes.get("")
    def every(request: Request) -> dict[str, Any]:
        """The stores of this client."""
        check_query(request, ("after", "before", "limit", "order"))
        storage, tenant = storage_of(state), state.tenant(request).name
        stores = [(storage.stores.key(tenant, store.id), store) for store in storage.stores.all(tenant)]
        return page(request, [_store(storage, key, store) for key, store in stores])

    @routes.get("/{store_id}")
    def one(request: Request, store_id: str) -> dict[str, Any]:
        """One store."""
        storage, key = found(request, store_id)
        return _store(storage, key, storage.stores.get(key))

    @routes.post("/{store_id}")
    def modify(request: Request, store_id: str, body: ChangedStore) -> dict[str, Any]:
        """Give a store another name or other metadata."""
        storage, key = found(request, store_id)
        storage.stores.modify(key, body.name, body.metadata)
        return _store(storage, key, storage.stores.get(key))

    @routes.delete("/{store_id}")
    def delete(request: Request, store_id: str) -> dict[str, Any]:
        """Delete a store. Its files stay. Who reads it now may finish."""
        storage, key = found(request, store_id)
        storage.delete_store(key)
        return {"id": store_id, "object": "vector_store.deleted", "deleted": True}

    @routes.post("/{store_id}/search")
    def search(request: Request, store_id: str, body: Search) -> dict[str, Any]:
        """Search a store: the references nearest to a query, or to any of several."""
        storage, key = found(request, store_id)
        queries = [body.query] if isinstance(body.query, str) else body.query
        for query in queries:
            if not query.strip() or len(query) > _QUERY_CHARACTERS:
                raise invalid("query", f"query: give text of 1 to {_QUERY_CHARACTERS:,} characters.")
        if body.rewrite_query:
            raise invalid("rewrite_query", "rewrite_query: queries are searched as they are: leave it out, or give false.")
        ranking = body.ranking_options or Ranking()
        where = None if body.filters is None else where_of(body.filters)
        view = storage.stores.bank(key).pin()
        storage.stores.touch(key)
        best: dict[str, float] = {}
        for hits in view.search(queries, body.max_num_results, where):
            for hit in hits:
                best[hit.reference_id] = max(hit.score, best.get(hit.reference_id, -1.0))
        least = ranking.score_threshold or -1.0
        ids = sorted((name for name in best if best[name] >= least), key=lambda name: -best[name])[: body.max_num_results]
        members = storage.stores.get(key).members
        data = []
        for reference in view.references(ids):
            file_id = reference.document_id.partition("#")[0]
            member = members.get(file_id)
            if member is None or member.status == "going":
                continue
            data.append(
                {
                    "file_id": file_id,
                    "filename": member.filename,
                    "score": min(1.0, max(0.0, best[reference.id])),
                    "attributes": dict(member.attributes),
                    "content": [{"type": "text", "text": reference.text}],
                }
            )
        return {
            "object": "vector_store.search_results.page",
            "search_query": queries,
            "data": data,
            "has_more": False,
            "next_page": None,
        }

    # ---- files of a store --------------------------------------------------------------------------------------------

    @routes.post("/{store_id}/files")
    def add_file(request: Request, response: Response, store_id: str, body: NewMember) -> dict[str, Any]:
        """Put a file into a store. It is in the queue of the encoder when this answers, whatever happens then."""
        storage, key = found(request, store_id)
        add(request, storage, key, [(body.file_id, body.attributes)], "file_id")
        response.headers.update(_POLL)
        return _member(storage, key, storage.stores.member(key, body.file_id))

    @routes.get("/{store_id}/files")
    def files(request: Request, store_id: str) -> dict[str, Any]:
        """The files of a store."""
        check_query(request, ("after", "before", "limit", "order", "filter"))
        storage, key = found(request, store_id)
        return page(request, _members(request, storage, key, storage.stores.get(key).members))

    @routes.get("/{store_id}/files/{file_id}")
    def file(request: Request, response: Response, store_id: str, file_id: str) -> dict[str, Any]:
        """How far a file is."""
        storage, key = found(request, store_id)
        response.headers.update(_POLL)
        return _member(storage, key, storage.stores.member(key, file_id))

    @routes.post("/{store_id}/files/{file_id}")
    def modify_file(request: Request, store_id: str, file_id: str, body: ChangedMember) -> dict[str, Any]:
        """Give a file other attributes. It is written once more; its memories are kept."""
        storage, key = found(request, store_id)
        storage.stores.member(key, file_id)
        add(request, storage, key, [(file_id, body.attributes)], "file_id")
        return _member(storage, key, storage.stores.member(key, file_id))

    @routes.delete("/{store_id}/files/{file_id}")
    async def remove_file(request: Request, store_id: str, file_id: str) -> dict[str, Any]:
        """Remove a file from a store. When this answers nobody finds it there any more."""
        storage, key = found(request, store_id)
        await asyncio.to_thread(storage.stores.begin_removal, key, file_id)
        await asyncio.wrap_future(storage.ingest.remove(key, file_id))
        return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}

    # ---- files that were added together ------------------------------------------------------------------------------

    @routes.post("/{store_id}/file_batches")
    def add_batch(request: Request, response: Response, store_id: str, body: NewBatch) -> dict[str, Any]:
        """Put files into a store."""
        storage, key = found(request, store_id)
        if (body.file_ids is None) == (body.files is None):
            raise invalid("file_ids", "file_ids: give either file_ids or files.")
        if body.files is not None and (body.attributes or body.chunking_strategy):
            raise invalid("attributes", "attributes: give them with each of the files.")
        if body.files is not None:
            wanted = [(each.file_id, each.attributes) for each in body.files]
        else:
            wanted = [(file_id, body.attributes) for file_id in body.file_ids or ()]
        if not wanted:
            raise invalid("file_ids", "file_ids: give at least one.")
        batch = add(request, storage, key, wanted, "file_ids" if body.files is None else "files", together=True)
        assert batch is not None
        response.headers.update(_POLL)
        return _batch(key, storage.stores.get(key), batch)

    @routes.get("/{store_id}/file_batches/{batch_id}")
    def batch(request: Request, response: Response, store_id: str, batch_id: str) -> dict[str, Any]:
        """How far the files of a batch are."""
        storage, key = found(request, store_id)
        store = storage.stores.get(key)
        response.headers.update(_POLL)
        return _batch(key, store, _known(store, batch_id))

    @routes.get("/{store_id}/file_batches/{batch_id}/files")
    def batch_files(request: Request, store_id: str, batch_id: str) -> dict[str, Any]:
        """The files of a batch that the store still has."""
        check_query(request, ("after", "before", "limit", "order", "filter"))
        storage, key = found(request, store_id)
        store = storage.stores.get(key)
        wanted = _known(store, batch_id).file_ids
        return page(
            request, _members(request, storage, key, {id_: store.members[id_] for id_ in wanted if id_ in store.members})
        )

    return routes


def _known(store: Store, batch_id: str) -> Batch:
    if batch_id not in store.batches:
        raise NotStored("file batch", batch_id)
    return store.batches[batch_id]


# ---- as OpenAI's clients know them ---------------------------------------------------------------------------------------


def _counts(states: Sequence[str]) -> dict[str, int]:
    return {**{state: states.count(state) for state in _STATES}, "total": len(states)}


def _store(storage: Storage, key: Key, store: Store) -> dict[str, Any]:
    members = [each for each in store.members.values() if each.status != "going"]
    counts = _counts([each.status for each in members])
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": store.created // 10**9,
        "name": store.name,
        "metadata": dict(store.metadata),
        "usage_bytes": sum(storage.ingest.usage(key, each) for each in members),
        "file_counts": counts,
        "status": "in_progress" if counts["in_progress"] else "completed",
        "expires_after": None,
        "expires_at": None,
        "last_active_at": store.used,
    }


def _member(storage: Storage, key: Key, member: Member) -> dict[str, Any]:
    return {
        "id": member.file_id,
        "object": "vector_store.file",
        "created_at": member.created // 10**9,
        "vector_store_id": key.store,
        "status": member.status,
        "usage_bytes": storage.ingest.usage(key, member),
        "last_error": {"code": member.error[0], "message": member.error[1]} if member.error else None,
        "attributes": dict(member.attributes),
        "chunking_strategy": {"type": "other"},
    }


def _members(request: Request, storage: Storage, key: Key, members: Mapping[str, Member]) -> list[dict[str, Any]]:
    """Oldest first; of the status that the query wants."""
    wanted = request.query_params.get("filter")
    if wanted is not None and wanted not in _STATES:
        raise invalid("filter", f"filter: give one of {', '.join(_STATES)}.")
    there = sorted(members.values(), key=lambda each: (each.created, each.file_id))
    return [_member(storage, key, each) for each in there if each.status != "going" and wanted in (None, each.status)]


def _batch(key: Key, store: Store, batch: Batch) -> dict[str, Any]:
    """A file that was removed meanwhile counts as cancelled."""
    members = [store.members.get(file_id) for file_id in batch.file_ids]
    states = ["cancelled" if each is None or each.status == "going" else each.status for each in members]
    counts = _counts(states)
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": batch.created // 10**9,
        "vector_store_id": key.store,
        "status": "in_progress" if counts["in_progress"] else "completed",
        "file_counts": counts,
    }
