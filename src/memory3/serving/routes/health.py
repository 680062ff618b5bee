"""``/health``, ``/ready`` and ``/metrics``: for those who run the server."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from memory3.serving.metrics import CONTENT_TYPE
from memory3.serving.state import ServerState

__all__ = ["router"]


def router(state: ServerState) -> APIRouter:
    """Routes on the ``state`` of a server."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/ready", responses={503: {"description": "It takes no requests."}})
    async def ready() -> Response:
        """Whether it takes requests."""
        if state.draining or not state.engine.is_alive:
            return JSONResponse({"status": "draining" if state.draining else "stopped"}, 503)
        return JSONResponse({"status": "ready", "model": state.banks.model})

    @routes.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counts and times, for Prometheus. Needs a key where the server asks for keys."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)

    return routes
