"""``/v1/passages``: the passage that a citation leads to."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from memory3.errors import BankError, InputError
from memory3.serving.errors import not_found
from memory3.serving.state import ServerState

__all__ = ["router"]


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["passages"])

    @routes.get("/v1/passages", responses={404: {"description": "There is none."}})
    def passage(
        request: Request,
        bank: Annotated[str, Query(max_length=200)],
        id: Annotated[str, Query(max_length=2000)],
    ) -> dict[str, Any]:
        """The text of a reference, and which characters of its document it is."""
        served = state.banks.get(bank, state.tenant(request), "bank")
        try:
            (found,) = served.bank.references([id])
        except (InputError, KeyError, BankError):
            raise not_found("passage", id, "id") from None
        return {
            "object": "passage",
            "id": found.id,
            "bank": served.name,
            "document_id": found.document_id,
            "source": found.source,
            "start": found.start,
            "end": found.end,
            "text": found.text,
            "metadata": dict(found.metadata),
        }

    return routes
