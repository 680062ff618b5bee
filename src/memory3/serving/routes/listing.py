"""Lists as OpenAI's clients page through them: a limit, an order, and the id behind which, or in front of which, to go on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastapi import Request

from memory3.serving.errors import invalid

__all__ = ["check_query", "page"]


def check_query(request: Request, known: Collection[str]) -> None:
    """Refuse what a query asks for that is not known: never silently ignored.

    Args:
        request: of the client.
        known: names of parameters.
    """
    for name in request.query_params:
        if name not in known:
            raise invalid(name[:200], f"{name[:200]} is not supported by this server: leave it out.", "unsupported_parameter")


def page(request: Request, items: Sequence[dict[str, Any]], most: int = 100, usual: int = 20) -> dict[str, Any]:
    """One page of a list, as the query of the request asks.

    Args:
        request: its query may have ``limit``, ``order``, ``after`` and ``before``.
        items: all of them, oldest first, each with an ``id``.
        most: that one page may have.
        usual: that it has where nobody says.
    """
    query = request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order", "order: give asc or desc.")
    text = query.get("limit", str(usual))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise invalid("limit", f"limit: give a whole number from 1 to {most:,}.")
    limit = int(text)
    found = list(items) if order == "asc" else list(reversed(items))
    places = {item["id"]: place for place, item in enumerate(found)}
    for name in ("after", "before"):
        if name in query and query[name] not in places:
            raise invalid(name, f"{name}: nothing in this list has the id {query[name]!r:.80}.")
    start = places[query["after"]] + 1 if "after" in query else 0
    end = places[query["before"]] if "before" in query else len(found)
    if "before" in query and "after" not in query:
        start = max(0, end - limit)
    shown = found[start:end][:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start > 0 if "before" in query and "after" not in query else start + len(shown) < end,
    }
