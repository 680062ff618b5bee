"""Codebooks: what a codec learned from memories, as one safetensors file with a fingerprint. Knows no bank and no model.

The header's only entry, ``memory3``, is a line of JSON; the tensors are those of the codec, named ``keys.*`` and ``values.*``.
Equal codebooks are equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError

from memory3.codec.registry import find, shown
from memory3.errors import CodecError
from memory3.files import parse_json
from memory3.types import MemoryShape, whole

__all__ = ["Codebook"]

VERSION = 1


@dataclass(frozen=True, eq=False)
class Codebook:
    """What decodes the records of one codec.

    Attributes:
        codec: its name in the spelling of files, `memory3.codec.base.MemoryCodec.text`.
        memories: fingerprint of the model and settings that wrote the memories it was fitted on.
        shape: of those memories.
        positions: tokens a reference may have.
        tensors: by name; what they are says the codec.
        about: how it was fitted: versions, counts, errors. Decides nothing.
    """

    codec: str
    memories: str
    shape: MemoryShape
    positions: int
    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def data(self) -> bytes:
        """The file."""
        header = {
            "version": VERSION,
            "codec": self.codec,
            "memories": self.memories,
            "shape": self.shape.to_dict(),
            "positions": self.positions,
            "about": dict(self.about),
        }
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(self.tensors.items())}
        return safetensors.torch.save(tensors, {"memory3": json.dumps(header, sort_keys=True)})

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over the file's bytes."""
        return xxhash.xxh3_128_hexdigest(self.data)

    @classmethod
    def of(cls, data: bytes, name: str) -> Codebook:
        """The codebook in a file.

        Args:
            data: the file's bytes.
            name: what errors call it.

        Raises:
            CodecError: it cannot be read, or is of another version.
        """
        try:
            tensors = safetensors.torch.load(data)
            size = int.from_bytes(data[:8], "little")
            header = parse_json(parse_json(data[8 : 8 + size])["__metadata__"]["memory3"])
            version = header.pop("version")
            if version != VERSION:
                raise CodecError(f"{name} has version {version}, this memory3 reads version {VERSION}")
            header["shape"] = MemoryShape.from_dict(header["shape"])
            header["positions"] = whole("positions", header["positions"], 1, 1 << 16)
            if not isinstance(header["codec"], str) or not isinstance(header["memories"], str):
                raise ValueError("codec and memories are text")
            if not find(header["codec"]).is_fitted:
                raise ValueError(f"codec {header['codec']!r} has no codebook")
            codebook = cls(**header, tensors=tensors)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CodecError(f"{name} cannot be read ({error!r})") from error
        wrong = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
        if wrong:
            raise CodecError(f"{name}: {wrong[0]} has numbers that are not finite")
        codebook.__dict__.update(data=data)  # not written anew: another safetensors may lay the same tensors out otherwise
        return codebook

    def side(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of ``"keys"`` or ``"values"``, without that prefix."""
        return {key.removeprefix(f"{name}."): tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}

    def require(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        """Raise CodecError unless the tensors of these names are of ``dtype`` and these ``shapes``; -1 is any size."""
        for name, wanted in shapes.items():
            tensor = self.tensors.get(name)
            found = None if tensor is None else tuple(tensor.shape)
            fits = (
                found is not None
                and len(found) == len(wanted)
                and all(w in (-1, f) for w, f in zip(wanted, found, strict=True))
            )
            if not fits or tensor is None or tensor.dtype != dtype:
                raise CodecError(
                    f"the codebook {self.fingerprint} of codec {shown(self.codec)!r} has the tensor {name} as {found}, not as "
                    f"{str(dtype).removeprefix('torch.')} {wanted}"
                )
