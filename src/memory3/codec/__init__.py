"""Codecs: a memory as bytes and back. Knows no bank and no model.

``raw`` keeps numbers as they are. The others were fitted to memories and need their codebook. `memory3.codec.registry` knows
them all by name; each is a file of `memory3.codec.kinds`. Names are imported when first used, so that a codec's costs are
asked for without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory3.codec.base import Codec
    from memory3.codec.codebook import Codebook
    from memory3.codec.coded import CodedCodec
    from memory3.codec.fitting import fit
    from memory3.codec.raw import RawCodec

__all__ = ["Codebook", "Codec", "CodedCodec", "RawCodec", "fit"]

_HOMES = {"Codebook": "codebook", "Codec": "base", "CodedCodec": "coded", "RawCodec": "raw", "fit": "fitting"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
