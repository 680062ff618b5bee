"""``/v1/models``: the model, and one id for each bank."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from memory3.serving.errors import not_found
from memory3.serving.state import ServerState

__all__ = ["router"]


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["models"])

    def described(name: str, bank: str | None) -> dict[str, Any]:
        about = {
            "bank": bank,
            "modes": ["none"] if bank is None else ["memory", "text", "none"],
            "context": state.m3.prompts.positions,
            "default_temperature": 0,
            "default_max_tokens": min(state.limits.answer_tokens, state.m3.prompts.positions // 4),
        }
        return {"id": name, "object": "model", "created": int(state.started), "owned_by": "memory3", "memory3": about}

    def seen(request: Request) -> list[dict[str, Any]]:
        banks = sorted(one.name for one in state.banks.seen_by(state.tenant(request)))
        return [described(state.banks.model, None), *(described(state.banks.id_of(name), name) for name in banks)]

    @routes.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The model, and one id for each bank that this client sees."""
        return {"object": "list", "data": seen(request)}

    @routes.get("/v1/models/{model}", responses={404: {"description": "There is none."}})
    async def model(request: Request, model: str) -> dict[str, Any]:
        """One of them."""
        found = next((one for one in seen(request) if one["id"] == model), None)
        if found is None:
            raise not_found("model", model, "model", "model_not_found")
        return found

    return routes
