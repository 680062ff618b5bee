"""Fitting a code book to memories. Knows no model and no bank: it is given memories, and the angles of RoPE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

import numpy as np
import torch

from memory3.codec.books import CodeBook, side_name
from memory3.codec.coded import coder
from memory3.codec.tiers import split, tier_sizes
from memory3.codec.vectors import Sample
from memory3.config import codec_sides, codec_tiers
from memory3.errors import InputError
from memory3.values import Memory, MemoryShape

__all__ = ["fit", "needed_vectors", "wanted_vectors"]

#: One vector in so many is not trained on, and tells the error.
_HELD_OUT = 20


def wanted_vectors(codec: str, head_dim: int) -> int:
    """Keys, and as many values, that make a good code book; of each tier."""
    return max(coder(kind).appetite(kind, head_dim)[1] for kind in _kinds(codec))


def needed_vectors(codec: str, head_dim: int) -> int:
    """Keys without which none can be made; of each tier."""
    trained = max(coder(kind).appetite(kind, head_dim)[0] for kind in _kinds(codec))
    return trained + -(-trained // (_HELD_OUT - 1)) + 1


def _kinds(codec: str) -> list[str]:
    return [kind for _, name in codec_tiers(codec) for kind in codec_sides(name).values()]


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
        The book; its ``about`` has ``keys_error`` and ``values_error`` (``1.keys_error`` and so on for further tiers), squared error over squared length of vectors that were not fitted on.

    Raises:
        InputError: too few memories.
    """
    sizes = tier_sizes(codec, shape.pairs)
    tiers: list[list[Memory]] = [[] for _ in sizes]
    for memory in memories:
        for tier, part in zip(tiers, split(memory, sizes), strict=True):
            tier.append(part)
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, object] = {"torch": torch.__version__, "faiss": version("faiss-cpu")}
    for number, ((_, name), parts) in enumerate(zip(codec_tiers(codec), tiers, strict=True)):
        said = f", tier {number + 1} of {len(sizes)}" if len(sizes) > 1 else ""
        keys, values, heads, places = _gathered(parts, shape)
        needed = needed_vectors(name, shape.head_dim)
        if len(heads) < needed:
            raise InputError(
                f"{len(heads):,} key-value pairs are too few to fit the codec {name!r}{said}, which needs {needed:,}: "
                "give more text, or a smaller codec such as int8 or product:RQ14x8"
            )
        order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed))[
            : wanted_vectors(name, shape.head_dim) * _HELD_OUT // (_HELD_OUT - 1)
        ]
        tested, trained = order[: len(order) // _HELD_OUT + 1], order[len(order) // _HELD_OUT + 1 :]
        about["vectors"] = about.get("vectors", 0) + len(trained)  # type: ignore[operator]
        for (side, kind), vectors, turned in zip(codec_sides(name).items(), (keys, values), (angles, None), strict=True):
            if progress is not None:
                progress(f"fitting {side}{said}")
            sample = Sample(vectors[trained], heads[trained], places[trained], shape.heads, turned, (metrics or {}).get(side))
            of_side = coder(kind).fit(kind, sample)
            tensors |= {f"{side_name(side, number)}.{key}": tensor for key, tensor in of_side.items()}
            original, place = vectors[tested], (heads[tested], places[tested])
            fitted = coder(kind)(kind, shape.head_dim, of_side)
            codes = torch.from_numpy(fitted.encode(original, *place))
            (restored,) = fitted.decode(codes, *place, [len(original)], torch.float32)
            error = float((restored - original).square().sum() / original.square().sum().clamp(min=1e-12))
            about[f"{side_name(side, number)}_error"] = error
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
