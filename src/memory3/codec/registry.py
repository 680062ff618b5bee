"""Codecs by name: every file of `memory3.codec.kinds` registers what it holds. Imports no torch.

raw                       a codec of whole memories, by its name
transform:96              a codec of vectors, for keys and values, with its options
int8+int4                 two of them, for keys and for values
transform:96+160          the same codec for both, with options for each
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TypeVar

from memory3.codec.base import MemoryCodec, VectorCodec, VectorPair
from memory3.config import CODEC_FORM
from memory3.errors import ConfigError

__all__ = ["check", "codecs", "default_codec", "find", "forget", "help", "register", "shown"]

Kind = type[MemoryCodec] | type[VectorCodec]
_K = TypeVar("_K", bound=Kind)

_registered: dict[str, Kind] = {}


def register(kind: _K) -> _K:
    """Make a codec known by its ``name``. A decorator of the class.

    Raises:
        ConfigError: another has that name.
    """
    if _registered.get(kind.name, kind) is not kind:
        raise ConfigError(f"there is a codec {kind.name!r} already: choose another name")
    _registered[kind.name] = kind
    return kind


def forget(name: str) -> None:
    """Undo `register`, for codecs that were tried out."""
    _registered.pop(name, None)


@cache
def _load() -> None:
    """Import every file of `memory3.codec.kinds`."""
    folder = import_module("memory3.codec.kinds")
    for file in pkgutil.iter_modules(folder.__path__):
        import_module(f"{folder.__name__}.{file.name}")


def codecs() -> Mapping[str, Kind]:
    """All codecs by name, in the order of their names."""
    _load()
    return MappingProxyType(dict(sorted(_registered.items())))


def find(text: str) -> MemoryCodec:
    """The codec that settings name.

    Args:
        text: as `memory3.config.MemoryConfig.codec` says it, but not ``"auto"``: see `default_codec`.

    Raises:
        ConfigError: there is none of that name, or not with these options.
    """
    if not isinstance(text, str) or not CODEC_FORM.fullmatch(text):
        raise _unknown(text)
    name = text.partition("+")[0].partition(":")[0]
    kind = _kind(name)
    if kind is None:
        raise _unknown(text)
    if issubclass(kind, MemoryCodec):
        colon, options = text[len(name) : len(name) + 1], text[len(name) + 1 :]
        if colon not in ("", ":"):
            raise ConfigError(f"codec {text!r} is unknown: {kind.name} is for keys and values together, write {kind.form}")
        return kind.parse(options)
    first, plus, second = text.partition("+")
    keys = _side(text, first)
    if not plus:
        return VectorPair(text, keys, keys)
    named = _kind(second.partition(":")[0]) is not None
    return VectorPair(text, keys, _side(text, second if named else f"{name}:{second}"))


def _kind(name: str) -> Kind | None:
    kinds = codecs()
    stored = {kind.stored_name: kind for kind in kinds.values() if issubclass(kind, MemoryCodec) and kind.stored_name}
    return kinds.get(name) or stored.get(name)


def _side(text: str, side: str) -> VectorCodec:
    name, _, options = side.partition(":")
    kind = _kind(name)
    if kind is None:
        raise _unknown(text)
    if issubclass(kind, MemoryCodec):
        raise ConfigError(f"codec {text!r} is unknown: {kind.name} is for keys and values together, write {kind.form}")
    return kind.parse(options)


def check(text: str) -> str:
    """The codec of settings in the spelling of files; ``"auto"`` stays.

    Raises:
        ConfigError: it is unknown, see `find`.
    """
    return text if text == "auto" else find(text).text


def shown(text: str) -> str:
    """The codec of a file as people are shown it; what is unknown stays as it is."""
    try:
        return str(find(text))
    except ConfigError:
        return text


def default_codec(head_dim: int) -> str:
    """What ``"auto"`` stands for where it was fitted: 1 1/2 bits a number of a key, 2 1/2 of a value, in whole bytes
    (research/log.md has the front).

    Args:
        head_dim: numbers of a key or value.
    """
    keys, values = (8 * round(head_dim * bits / 8) for bits in (1.5, 2.5))
    return find(f"predicted:{keys}+{values}").text


def help() -> str:
    """What the option ``--codec`` says: every codec in half a sentence."""
    return "; ".join(f"{kind.form} ({kind.help})" for kind in codecs().values())


def _unknown(text: object) -> ConfigError:
    forms = dict.fromkeys(form for kind in codecs().values() for form in (kind.name, kind.form))
    return ConfigError(
        f"codec {text!r:.80} is unknown: use one of {', '.join(forms)}, or two for keys and values, such as int8+int4"
    )
