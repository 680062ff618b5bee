"""Memories as the tensors that a forward pass reads: ragged in a bank, padded here.

    `gather_memories`   what N chunks read, of their references' memories and of the prefix
    `select_chunks`     some of the chunks again, in another order

Chunks do not see one another: what chunk n of N reads is what it would read alone, up to padding. So requests may be laid
out one by one or together.
"""

from memory3.attention.layout.chunks import select_chunks
from memory3.attention.layout.gather import gather_memories
from memory3.attention.layout.prefix import Prefix

__all__ = ["Prefix", "gather_memories", "select_chunks"]
