"""``/v1/passages``: the passage that a citation leads to, and the text of the document around it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from memory3.serving.errors import not_found
from memory3.serving.passages import passage_of
from memory3.serving.state import ServerState

__all__ = ["router"]

#: References before and behind a passage at most. One has a few kilobytes at most.
MOST_AROUND = 64


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["passages"])

    @routes.get("/v1/passages", responses={404: {"description": "There is none."}})
    def passage(
        request: Request,
        bank: Annotated[str, Query(max_length=200)],
        id: Annotated[str, Query(max_length=2000)],
        around: Annotated[int, Query(ge=0, le=MOST_AROUND)] = 0,
    ) -> dict[str, Any]:
        """The text of a reference, which characters of its document it is, and the text of so many references around it."""
        served = state.banks.get(bank, state.tenant(request), "bank")
        found = passage_of(served.bank.pin(), id, around)
        if found is None:
            raise not_found("passage", id, "id")
        cited = found.reference
        return {
            "object": "passage",
            "id": cited.id,
            "bank": served.name,
            "document_id": cited.document_id,
            "source": cited.source,
            "start": cited.start,
            "end": cited.end,
            "text": cited.text,
            "metadata": dict(cited.metadata),
            "around": {
                "text": found.around,
                "start": found.start,
                "is_start": found.is_start,
                "is_end": found.is_end,
            },
        }

    return routes
