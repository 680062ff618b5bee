"""How much one request to a bank's server may ask for, and how much it may answer. Both sides keep to it."""

from __future__ import annotations

__all__ = ["MOST_BODY", "MOST_HITS", "MOST_IDS", "MOST_QUERIES", "MOST_QUERY", "MOST_SENT", "MOST_SMALL"]

#: Queries of one search, and characters of one.
MOST_QUERIES = 32
MOST_QUERY = 16_384
#: Hits for one query.
MOST_HITS = 1024
#: References of one request.
MOST_IDS = 128
#: Bytes of a request's body.
MOST_BODY = 1 << 20
#: Bytes of packed memories in one answer. Hits beyond it are told without their memories.
MOST_SENT = 16 << 20
#: Bytes of an answer in plain JSON.
MOST_SMALL = 16 << 20
