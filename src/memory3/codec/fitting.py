"""Fitting a codebook to memories. Knows no model and no bank: it is given memories, and the angles of RoPE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

import numpy as np
import torch

from memory3.codec.codebook import Codebook
from memory3.codec.coded import PREDICTION, vector_pair
from memory3.codec.prediction import Moments, Prediction, spread
from memory3.codec.vectors import Sample
from memory3.errors import ConfigError, InputError
from memory3.types import Memory, MemoryShape

__all__ = ["fit", "needed_keys", "wanted_vectors"]

#: One vector in so many is not trained on, and tells the error.
_HELD_OUT = 20
#: A prediction has a thousand numbers for every token of a pair to learn, and is better the more it sees.
_WANTED_BY_PREDICTION = 1_200_000


def wanted_vectors(codec: str, head_dim: int) -> int:
    """Keys, and as many values, that make a good codebook.

    Args:
        codec: name of a fitted codec, with its options.
        head_dim: numbers of a vector.
    """
    pair = vector_pair(codec)
    wanted = max(side.appetite(head_dim)[1] for side in pair.sides.values())
    return max(wanted, _WANTED_BY_PREDICTION) if pair.predicts else wanted


def needed_keys(codec: str, head_dim: int) -> int:
    """How many keys, and as many values, are needed at least to fit a codebook.

    Args:
        codec: name of a fitted codec, with its options.
        head_dim: numbers of a vector.
    """
    trained = max(side.appetite(head_dim)[0] for side in vector_pair(codec).sides.values())
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
    token_vectors: torch.Tensor | None = None,
    progress: Callable[[str], None] | None = None,
    seed: int = 0,
) -> Codebook:
    """A codebook for memories like these.

    Args:
        codec: as `MemoryConfig.codec` says it; not ``"raw"``, which needs none.
        memories: of references drawn uniformly from what the codec will be used on.
        shape: of the memories.
        fingerprint: of the model and settings that wrote them.
        positions: tokens a reference may have.
        angles: ``[r/2]``, RoPE's angle per position. None: keys are taken as they come.
        metrics: what errors in ``keys`` and in ``values`` cost, see `memory3.codec.vectors.Sample`. None: their squared
            length.
        token_vectors: ``[V, e]``, the model's embeddings: what a codec that predicts does so from.
        progress: called with what is being done.
        seed: of the choice of vectors, where there are more than are wanted.

    Returns:
        The codebook; its ``about`` has ``keys_error`` and ``values_error``, squared error over squared length of vectors that
        were not fitted on, and where the codec predicts ``keys_foretold`` and ``values_foretold``, the share of their variance
        about their head's mean that is predicted.

    Raises:
        InputError: too few memories.
        ConfigError: the codec is unknown, or is not fitted, or does not fit the head dimension.
    """
    if shape.biases:
        raise ConfigError(f"codec {codec!r} keeps no biases yet: use raw, or leave biases out")
    pair = vector_pair(codec)
    memories = list(memories)
    keys, values, heads, places = _gathered(memories, shape)
    number = len(heads)
    needed = needed_keys(codec, shape.head_dim)
    if number < needed:
        raise InputError(
            f"{number:,} key-value pairs are too few to fit the codec {codec!r}, which needs {needed:,}: "
            "give more text, or a smaller codec such as int8 or product:RQ14x8"
        )
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[
        : wanted_vectors(codec, shape.head_dim) * _HELD_OUT // (_HELD_OUT - 1)
    ]
    tested, trained = order[: len(order) // _HELD_OUT + 1], order[len(order) // _HELD_OUT + 1 :]
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, object] = {"vectors": len(trained), "torch": torch.__version__, "faiss": version("faiss-cpu")}
    whole = {"keys": keys, "values": values}
    if pair.predicts:
        if token_vectors is None:
            raise InputError(f"codec {codec!r} predicts from the model's token vectors: give token_vectors")
        if progress is not None:
            progress("fitting what tokens predict")
        tensors, (keys, values) = _predicted(memories, shape, angles, metrics, token_vectors)
        for name, rest, turn in (("keys", keys, angles), ("values", values, None)):
            left, there = (spread(x, heads, places, shape.heads, turn) for x in (rest, whole[name]))
            about[f"{name}_foretold"] = 1.0 - left / max(there, 1e-12)
    for name, side, vectors, turned in (("keys", pair.keys, keys, angles), ("values", pair.values, values, None)):
        if progress is not None:
            progress(f"fitting {name}")
        sample = Sample(vectors[trained], heads[trained], places[trained], shape.heads, turned, (metrics or {}).get(name))
        of_side = side.fit(sample)
        tensors |= {f"{name}.{key}": tensor for key, tensor in of_side.items()}
        original, place = vectors[tested], (heads[tested], places[tested])
        fitted = side.coder(shape.head_dim, of_side)
        codes = torch.from_numpy(fitted.encode(original, *place))
        (restored,) = fitted.decode(codes, *place, [len(original)], torch.float32)
        length = whole[name][tested].float().square().sum().clamp(min=1e-12)
        about[f"{name}_error"] = float((restored - original).square().sum() / length)
    return Codebook(pair.text, fingerprint, shape, positions, tensors, about)


def _predicted(
    memories: list[Memory],
    shape: MemoryShape,
    angles: torch.Tensor | None,
    metrics: Mapping[str, torch.Tensor] | None,
    token_vectors: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Tensors of the prediction, and what each half of the memories leaves when predicted by what was fitted to the other
    half: keys and values ``[n, d]``."""
    angles = torch.zeros(0) if angles is None else angles.detach().to("cpu", torch.float32)
    halves = [Moments(shape, token_vectors, angles) for _ in range(2)]
    for number, memory in enumerate(memories):
        halves[number % 2].add(memory)

    def prediction(moments: Moments) -> Prediction:
        made = moments.solved(metrics)
        return Prediction(made["project"], made["out"], angles, token_vectors)

    other = [prediction(halves[1]), prediction(halves[0])]
    rests = []
    for number, memory in enumerate(memories):
        heads = np.repeat(np.arange(shape.heads), memory.counts.reshape(-1))
        places = memory.positions.astype(np.int64)
        rests.append(other[number % 2].rest(memory.keys, memory.values, [memory], heads, places))
    halves[0] += halves[1]
    tensors = {f"{PREDICTION}.{key}": tensor for key, tensor in halves[0].solved(metrics).items()}
    tensors[f"{PREDICTION}.vocabulary"] = torch.tensor([len(token_vectors)], dtype=torch.int32)
    keys, values = (torch.cat(side) for side in zip(*rests, strict=True))
    return tensors, (keys, values)


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
