"""Fitting a code book to memories. Knows no model and no bank: it is given memories, and the angles of RoPE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

import numpy as np
import torch

from memory3.codec.books import CodeBook
from memory3.codec.coded import coder
from memory3.codec.vectors import Sample
from memory3.config import codec_sides
from memory3.errors import InputError
from memory3.values import Memory, MemoryShape

__all__ = ["fit", "needed_vectors", "wanted_vectors"]

#: One vector in so many is not trained on, and tells the error.
_HELD_OUT = 20


def wanted_vectors(codec: str, head_dim: int) -> int:
    """Keys, and as many values, that make a good code book."""
    return max(coder(name).appetite(name, head_dim)[1] for name in codec_sides(codec).values())


def needed_vectors(codec: str, head_dim: int) -> int:
    """Keys without which none can be made."""
    trained = max(coder(name).appetite(name, head_dim)[0] for name in codec_sides(codec).values())
    return trained + -(-trained // (_HELD_OUT - 1)) + 1


def fit(
    codec: str,
    memories: Iterable[Memory],
    shape: MemoryShape,
    *,
    fingerprint: str,
    positions: int,
    angles: torch.Tensor | None = None,
    metrics: Mapping[str, torch.Tensor] | None = None,
    progress: Callable[[str], None] | None = None,
    seed: int = 0,
) -> CodeBook:
    """A code book for memories like these.

    Args:
        codec: as `MemoryConfig.codec` says it; not ``"raw"``, which needs none.
        memories: of references drawn uniformly from what the codec will be used on.
        shape: of the memories.
        fingerprint: of the model and settings that wrote them.
        positions: tokens a reference may have.
        angles: ``[r/2]``, RoPE's angle per position. None: keys are taken as they come.
        metrics: what errors in ``keys`` and in ``values`` cost, see `memory3.codec.vectors.Sample`. None: their squared length.
        progress: called with what is being done.
        seed: of the choice of vectors, where there are more than are wanted.

    Returns:
        The book; its ``about`` has ``keys_error`` and ``values_error``, squared error over squared length of vectors that were not fitted on.

    Raises:
        InputError: too few memories.
    """
    keys, values, heads, places = _gathered(memories, shape)
    number = len(heads)
    if number < needed_vectors(codec, shape.head_dim):
        raise InputError(
            f"{number:,} key-value pairs are too few to fit the codec {codec!r}, which needs {needed_vectors(codec, shape.head_dim):,}: "
            "give more text, or a smaller codec such as int8 or product:RQ14x8"
        )
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[
        : wanted_vectors(codec, shape.head_dim) * _HELD_OUT // (_HELD_OUT - 1)
    ]
    tested, trained = order[: len(order) // _HELD_OUT + 1], order[len(order) // _HELD_OUT + 1 :]
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, object] = {"vectors": len(trained), "torch": torch.__version__, "faiss": version("faiss-cpu")}
    of = codec_sides(codec)
    for name, kind, vectors, turned in (("keys", of["keys"], keys, angles), ("values", of["values"], values, None)):
        if progress is not None:
            progress(f"fitting {name}")
        sample = Sample(vectors[trained], heads[trained], places[trained], shape.heads, turned, (metrics or {}).get(name))
        of_side = coder(kind).fit(kind, sample)
        tensors |= {f"{name}.{key}": tensor for key, tensor in of_side.items()}
        original, place = vectors[tested], (heads[tested], places[tested])
        fitted = coder(kind)(kind, shape.head_dim, of_side)
        codes = torch.from_numpy(fitted.encode(original, *place))
        (restored,) = fitted.decode(codes, *place, [len(original)], torch.float32)
        about[f"{name}_error"] = float((restored - original).square().sum() / original.square().sum().clamp(min=1e-12))
    return CodeBook(codec, fingerprint, shape, positions, tensors, about)


def _gathered(memories: Iterable[Memory], shape: MemoryShape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values ``[n, d]``, heads and positions ``[n]`` of all pairs."""
    keys, values = [torch.zeros(0, shape.head_dim)], [torch.zeros(0, shape.head_dim)]
    heads, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for memory in memories:
        keys.append(memory.keys.float())
        values.append(memory.values.float())
        heads.append(np.repeat(np.arange(shape.heads), memory.counts.reshape(-1)))
        places.append(memory.positions.astype(np.int64))
    return (
        torch.cat(keys),
        torch.cat(values),
        torch.from_numpy(np.concatenate(heads)),
        torch.from_numpy(np.concatenate(places)),
    )
