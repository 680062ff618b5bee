"""A message of JSON and bytes: what a bank's server sends, and what a device keeps of it on disk.

    8 bytes   b"memory3" and the format's number, 1
    8 bytes   xxh3-64 of all that follows
    4 bytes   length of the head
    head      a JSON object, in UTF-8; "sizes" in it are the lengths of the parts
    parts     one behind the other

Numbers are little-endian. Nothing is compressed: packed memories do not get smaller. Knows no network and no disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from memory3.files import parse_json
from memory3.types import whole

__all__ = ["FRAMES", "MOST_HEAD", "pack", "unpack"]

#: The media type of such messages.
FRAMES = "application/vnd.memory3.frames"
#: Bytes of a head at most.
MOST_HEAD = 16 << 20

_MAGIC = b"memory3\x01"
_FIXED = len(_MAGIC) + 8 + 4
_MOST_PARTS = 1 << 16


def pack(head: Mapping[str, Any], parts: Sequence[bytes] = ()) -> bytes:
    """A message.

    Args:
        head: of JSON's kinds, without ``"sizes"``.
        parts: bytes that come with it.
    """
    text = json.dumps({**head, "sizes": [len(part) for part in parts]}, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
    rest = b"".join([len(text).to_bytes(4, "little"), text, *parts])
    return b"".join([_MAGIC, xxh3_64_intdigest(rest).to_bytes(8, "little"), rest])


def unpack(message: bytes, most_part: int) -> tuple[dict[str, Any], list[bytes]]:
    """A message's head, without ``"sizes"``, and its parts.

    Args:
        message: from anywhere.
        most_part: bytes that a part has at most.

    Raises:
        ValueError: it is no such message, or not what was sent.
    """
    if len(message) < _FIXED or message[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is no message of a bank")
    if xxh3_64_intdigest(message[len(_MAGIC) + 8 :]).to_bytes(8, "little") != message[len(_MAGIC) : len(_MAGIC) + 8]:
        raise ValueError("its checksum is wrong")
    length = int.from_bytes(message[_FIXED - 4 : _FIXED], "little")
    if length > min(MOST_HEAD, len(message) - _FIXED):
        raise ValueError("its head is longer than may be")
    head = parse_json(message[_FIXED : _FIXED + length].decode("utf-8", "surrogatepass"))
    if not isinstance(head, dict):
        raise ValueError("its head is no JSON object")
    sizes = head.pop("sizes", None)
    if not isinstance(sizes, list) or len(sizes) > _MOST_PARTS:
        raise ValueError("it does not say the sizes of its parts")
    sizes = [whole("the size of a part", size, 0, most_part) for size in sizes]
    if _FIXED + length + sum(sizes) != len(message):
        raise ValueError("its parts have other sizes than it says")
    parts, at = [], _FIXED + length
    for size in sizes:
        parts.append(message[at : at + size])
        at += size
    return head, parts
