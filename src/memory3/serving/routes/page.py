"""``/``: the web page, which is a client of the server like any other. Its files are these few, and no others are sent."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from memory3.serving.errors import not_found
from memory3.serving.state import ServerState

__all__ = ["router"]

INDEX = "index.html"
#: Files of the page and what they are.
FILES = {
    INDEX: "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "page.js": "text/javascript; charset=utf-8",
    "answer.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "cited.js": "text/javascript; charset=utf-8",
    "documents.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "passage.js": "text/javascript; charset=utf-8",
}
#: Scripts and styles of this server alone, none inside the page, and no script makes HTML of text.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


def router(state: ServerState) -> APIRouter:
    """Routes of the page. It asks the server for all else, with a key where that wants one.

    Args:
        state: of the server; the page needs nothing of it.
    """
    folder = files("memory3.serving") / "page"
    sent = {name: (folder / name).read_bytes() for name in FILES}
    marks = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in sent.items()}
    routes = APIRouter(include_in_schema=False)

    def answer(name: str, request: Request) -> Response:
        headers = {**HEADERS, "ETag": marks[name]}
        if request.headers.get("if-none-match") == marks[name]:
            return Response(status_code=304, headers=headers)
        return Response(sent[name], headers=headers, media_type=FILES[name])

    @routes.get("/")
    async def index(request: Request) -> Response:
        return answer(INDEX, request)

    @routes.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in sent:
            raise not_found("file", name)
        return answer(name, request)

    return routes
