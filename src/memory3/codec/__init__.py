"""Codecs: a memory as bytes and back. Knows no bank and no model.

``raw`` keeps numbers as they are. The others were fitted to memories and need their code book: ``int8``, ``int4``, ``product``, and two of them for keys and
values, ``int8+int4``.
"""

from __future__ import annotations

from memory3.codec.base import Codec
from memory3.codec.codebook import CodeBook
from memory3.codec.coded import CodedCodec
from memory3.codec.fit import fit
from memory3.codec.raw import RawCodec

__all__ = ["CodeBook", "Codec", "CodedCodec", "RawCodec", "fit"]
