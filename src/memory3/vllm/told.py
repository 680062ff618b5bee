"""What is told of what a request reads: to vLLM's prefix cache as part of its key, to whoever asked with the answer."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from memory3.vllm.reader import Reader

__all__ = ["salt", "told"]

#: Of this process. A request may bring a salt of its own; without this one could be made that another request will have, and
#: blocks be left under it that read nothing.
_SECRET = secrets.token_hex(16)


def salt(reader: Reader) -> str:
    """Equal only for requests of which equal tokens read the same memories at the same places, renewals among them."""
    follower, wanted = reader.follower, reader.wanted
    assert follower is not None
    assert wanted is not None
    memory, how = follower.memory, wanted.retrieval
    parts = (
        _SECRET,
        reader.request.cache_salt,
        wanted.bank,
        reader.source.version,
        (how.k, how.gap, how.where, how.references),
        (memory.place.split, memory.place.missing, memory.shift),
        len(reader.request.prompt_token_ids or ()),
        follower.reads,
    )
    return f"memory3-{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def told(reader: Reader) -> dict[str, Any]:
    """What a request's answer read: references by the order of retrieval, each once."""
    follower = reader.follower
    if follower is None:
        return {"references": []}
    memory, prompt = follower.memory, reader.request.num_prompt_tokens
    # The prompt's last chunk is what the first decoded tokens read.
    names = dict.fromkeys(name for _, end, ids in follower.reads if end >= prompt for name in ids)
    statistics = memory.statistics
    return {
        "bank": reader.bank,
        "references": [{"id": name, "score": memory.scores.get(name, 0.0)} for name in names],
        "order": "retrieval",
        "recalls": statistics.recalls,
        "read": statistics.references,
        "bytes_read": statistics.bytes_read,
    }
