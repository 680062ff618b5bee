"""Codecs that were fitted to memories: a coder of vectors for the keys, another for the values. Knows no bank and no model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch

from memory3.codec.base import Codec, Record, VectorPair
from memory3.codec.codebook import Codebook
from memory3.codec.joined import Joined
from memory3.codec.layout import Layout
from memory3.codec.prediction import Prediction, prediction_shapes
from memory3.codec.registry import find, shown
from memory3.codec.transform import TransformCoder
from memory3.codec.vectors import VectorCoder
from memory3.errors import CodecError, ConfigError
from memory3.types import Memory

__all__ = ["PREDICTION", "CodedCodec", "vector_pair"]

#: What stands in front of the names of a prediction's tensors in a codebook.
PREDICTION = "foretelling"

#: Head and position of each pair, int64 ``[n]`` both.
Places = tuple[torch.Tensor, torch.Tensor]


def vector_pair(codec: str) -> VectorPair:
    """The codec of that name, which codes vector by vector.

    Raises:
        ConfigError: there is none, or it is no such codec.
    """
    found = find(codec)
    if not isinstance(found, VectorPair):
        raise ConfigError(f"codec {codec!r} keeps numbers as they are, and has nothing to fit: name another")
    return found


class CodedCodec(Codec):
    """A codec with a codebook.

    Attributes:
        codebook: what it was made of.
    """

    def __init__(self, codebook: Codebook) -> None:
        """A codec that predicts can only `check` until it has token vectors (`with_vectors`).

        Args:
            codebook: what was fitted.

        Raises:
            CodecError: the codebook lacks something, or cannot be decoded with.
        """
        try:
            self._build(codebook)
            self._try()
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise _misfit(codebook, error) from error

    def _build(self, codebook: Codebook) -> None:
        codec = vector_pair(codebook.codec)
        self.name = codec.text
        self.shape = codebook.shape
        self.codebook = codebook
        heads, width = codebook.shape.heads, codebook.shape.head_dim
        self._coders: list[VectorCoder] = []
        for side, vectors in codec.sides.items():
            codebook.require({f"{side}.{key}": shape for key, shape in vectors.shapes(heads, width).items()})
            self._coders.append(vectors.coder(width, codebook.side(side)))
        self._prediction: Prediction | None = None
        vocabulary = 0
        self.needs_vectors = codec.predicts
        if codec.predicts:
            wanted = prediction_shapes(heads, width).items()
            codebook.require({f"{PREDICTION}.{key}": shape for key, shape in wanted}, torch.float16)
            codebook.require({f"{PREDICTION}.vocabulary": (1,)}, torch.int32)
            parts = codebook.side(PREDICTION)
            vocabulary = int(parts["vocabulary"])
            rank = parts["project"].shape[2]
            if parts["out"].shape[1] != rank or not 1 <= vocabulary < 2**31:
                raise ValueError(
                    f"project {tuple(parts['project'].shape)} and out {tuple(parts['out'].shape)} do not go together"
                )
            keys, values = self._coders
            assert isinstance(keys, TransformCoder)
            assert isinstance(values, TransformCoder)
            # Once: every snapshot of a bank makes a prediction of them.
            self._joined = Joined(parts["out"], keys, values)
            self._maps = parts["project"].float(), parts["out"], keys.angles
        a, b = (each.width for each in self._coders)
        self._layout = Layout(self.shape, codebook.positions, a, b, vocabulary)
        self.record_size = self._layout.size

    def _try(self) -> None:
        """Decode what a record may hold at the extremes, so that a codebook which cannot be decoded with is refused here and
        not in the middle of an answer.
        """
        heads, positions = self.shape.heads, self.codebook.positions
        places = torch.arange(heads).repeat(2), torch.tensor([0, positions - 1]).repeat_interleave(heads)
        for side, each in zip(("keys", "values"), self._coders, strict=True):
            angles = self.codebook.tensors.get(f"{side}.angles")
            if angles is not None and 2 * len(angles) > self.shape.head_dim:
                raise ValueError(f"{side}.angles turns more numbers than a vector has")
            codes = (
                torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(heads)[:, None].expand(-1, each.width).contiguous()
            )
            (vectors,) = each.decode(codes, *places, [2 * heads], torch.float32)
            if tuple(vectors.shape) != (2 * heads, self.shape.head_dim) or not bool(vectors.isfinite().all()):
                raise ValueError(f"{side} decode to numbers that are not finite, or not to vectors")

    def with_vectors(self, vectors: torch.Tensor | None) -> CodedCodec:
        """This codec with the model's token vectors ``[V, e]``, if it predicts from them; all else is shared.

        Raises:
            CodecError: it was fitted to token vectors of another width.
        """
        if vectors is None or not self.needs_vectors:
            return self
        wanted = self._maps[0].shape[1]
        if vectors.shape[1] != wanted:
            raise _misfit(self.codebook, f"it predicts from vectors of {wanted} numbers, the model's have {vectors.shape[1]}")
        other = copy(self)
        other._prediction, other.needs_vectors = Prediction(*self._maps, vectors), False
        return other

    def check(self, record: Record) -> None:
        """See `Codec.check`. Any code stands for a vector, so there is no more to see."""
        self._layout.unpack([record])

    def encode_many(self, memories: Sequence[Memory], *, device: torch.device | str | None = None) -> list[bytes]:
        """Memories as `record_size` bytes each: counts, places, and a code for each key and value.

        Args:
            memories: several, which take less time together than one by one.
            device: where codes are computed; None: where the first memory lies.

        Raises:
            InputError: a memory does not fit the shape.
            ConfigError: the codec predicts from token vectors, and was given none.
        """
        self._need_vectors()
        if not memories:
            return []
        sizes = [len(memory.positions) for memory in memories]
        each = [self._layout.places(memory) for memory in memories]
        heads, positions = (torch.cat(parts) for parts in zip(*each, strict=True))
        device = memories[0].keys.device if device is None else torch.device(device)
        vectors = (
            torch.cat([memory.keys.to(device) for memory in memories]),
            torch.cat([memory.values.to(device) for memory in memories]),
        )
        if self._prediction is not None:
            vectors = self._prediction.rest(*vectors, memories, heads.numpy(), positions.numpy())
        keys, values = (
            np.split(_encoded(coder, x, (heads, positions)), np.cumsum(sizes)[:-1])
            for coder, x in zip(self._coders, vectors, strict=True)
        )
        return [self._layout.pack(*parts) for parts in zip(memories, keys, values, strict=True)]

    def _need_vectors(self) -> None:
        if self.needs_vectors:
            raise ConfigError(f"codec {shown(self.name)!r} predicts from the model's token vectors, and was not given any")

    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """The memories in ``records``, in order.

        Codes go to the device, and nothing comes back: what heads and positions decide, they decide on the CPU.

        Args:
            records: of `record_size` bytes each.
            device: where keys and values are made.

        Raises:
            CodecError: a record has a wrong length, counts more than it can hold, or has a token that the model does
                not know.
            ConfigError: the codec predicts from token vectors, and was given none.
        """
        self._need_vectors()
        if not records:
            return []
        coded = self._layout.unpack(records)
        sizes, dtype, device = coded.sizes, self.shape.torch_dtype, torch.device(device)
        if self._prediction is not None:
            if int(coded.tokens.max()) >= self._prediction.vocabulary:
                raise CodecError(f"a record has a token beyond the {self._prediction.vocabulary:,} that the model knows")
            return coded.memories(*self._joined.decode(self._prediction, coded, sizes, dtype, device))
        places = coded.places("cpu")
        codes = (torch.from_numpy(each).to(device) for each in (coded.keys, coded.values))
        return coded.memories(
            *(self._decoded(each, x, places, sizes, dtype) for each, x in zip(self._coders, codes, strict=True))
        )

    def _decoded(
        self, coder: VectorCoder, codes: torch.Tensor, places: Places, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """As `VectorCoder.decode`, which is never given nothing."""
        if not len(codes):
            return [torch.zeros(0, self.shape.head_dim, dtype=dtype, device=codes.device) for _ in sizes]
        return coder.decode(codes, *places, sizes, dtype)


def _encoded(coder: VectorCoder, vectors: torch.Tensor, places: Places) -> np.ndarray:
    """As `VectorCoder.encode`, which is never given nothing."""
    vectors = vectors if coder.packs_anywhere else vectors.cpu()
    return coder.encode(vectors, *places) if len(vectors) else np.zeros((0, coder.width), np.uint8)


def _misfit(codebook: Codebook, why: object) -> CodecError:
    said = str(why).splitlines()[0] if str(why) else "no memory"
    return CodecError(
        f"the codebook {codebook.fingerprint} of codec {shown(codebook.codec)!r:.60} cannot be decoded with ({said})"
    )
