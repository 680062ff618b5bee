"""``/v1/passage``: what a citation points at, in the text of its document."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from memory3.serving.errors import not_found
from memory3.serving.passages import passage_of
from memory3.serving.state import ServerState

__all__ = ["router"]

#: References before and behind the one that is meant. One has at most a few kilobytes.
MOST_AROUND = 64


class PassageObject(BaseModel):
    """A part of a document; ``start`` and ``end`` are the reference's place in the document, in characters."""

    object: str = "passage"
    model: str
    reference_id: str
    document_id: str
    source: str
    text: str
    offset: int
    start: int
    end: int
    is_start: bool
    is_end: bool


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["passages"])

    @routes.get("/v1/passage")
    def passage(
        request: Request,
        model: Annotated[str, Query(max_length=300)],
        reference: Annotated[str, Query(min_length=1, max_length=4096)],
        around: Annotated[int, Query(ge=0, le=MOST_AROUND)] = 4,
    ) -> PassageObject:
        """A cited reference, among the text before and behind it."""
        served = state.banks.of_model(model, state.tenant(request))
        found = passage_of(served.bank.pin(), reference, around) if served is not None else None
        if found is None:
            raise not_found("reference", reference, "reference", "reference_not_found")
        cited = found.reference
        return PassageObject(
            model=model,
            reference_id=cited.id,
            document_id=cited.document_id,
            source=cited.source,
            text=found.text,
            offset=found.offset,
            start=cited.start,
            end=cited.end,
            is_start=found.is_start,
            is_end=found.is_end,
        )

    return routes
