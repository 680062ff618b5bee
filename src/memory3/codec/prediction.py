"""What a reference's tokens predict of its keys and values, so that only the rest is coded. Knows no coder and no file.

    z = e(t) A + e(t') B                t: the token of a pair, t': the one in front of it (none: zero)
    k = R(p) (z K_h) + rest             v = z V_h + rest

e(t) is the model's own token vector, divided by its root mean square as the model's first norm does; so a codebook has the
maps alone, and reading takes the model. The maps are ridge regressions, one for each head, brought to one rank in the metric
of what reads keys and values. In a record the tokens take 2 bytes each. SmolLM2-135M, pairs not fitted on: with the head's
mean taken off, half of the variance of keys (turned back by their place) and of values is predicted, in the first layer nearly
all (research/log.md).

Symbols: V tokens in the vocabulary, e numbers of a token vector, r rank, L*H heads, d head dimension, n pairs, S tokens of a
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memory3.codec.by_head import arrange
from memory3.codec.centring import turned
from memory3.codec.latents import Latents, token_features
from memory3.errors import InputError
from memory3.types import Memory, MemoryShape

__all__ = ["Moments", "Prediction", "prediction_shapes", "spread"]

#: At 17 bytes a pair, the rank 64 loses two thirds of what this gains, full rank is a little better still.
RANK = 256
#: Added to the diagonal of the features' second moments, whose features have a mean square of 1: as many pairs that predict
#: nothing.
_RIDGE = 150.0
#: Second moments of all heads take at most so much: models with more heads or wider tokens see fewer directions of the token
#: vectors.
_MOST_BYTES = 2**29


def prediction_shapes(heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a fitted prediction, all float16; -1 is any size.

    Args:
        heads: L*H.
        head_dim: d.
    """
    return {"project": (2, -1, -1), "out": (heads, -1, 2 * head_dim)}


class Prediction:
    """Predicts keys and values from tokens.

    Attributes:
        vocabulary: V.
    """

    def __init__(self, project: torch.Tensor, out: torch.Tensor, angles: torch.Tensor, vectors: torch.Tensor) -> None:
        """``project`` ``[2, e, r]``: A and B; ``out`` ``[L*H, r, 2d]``: K and V; ``angles`` ``[r/2]``: RoPE's, as keys are
        turned; ``vectors`` ``[V, e]``, the model's token vectors.
        """
        self.vocabulary = len(vectors)
        self._vectors = vectors
        self._project, self._out, self._angles = project, out, angles.float()
        self._on: dict[tuple[str, torch.device], torch.Tensor] = {}
        self._latents: dict[torch.device, Latents] = {}

    def latents(self, tokens: np.ndarray, device: torch.device) -> torch.Tensor:
        """z of every token, float32 ``[m, S, r]``.

        Args:
            tokens: whole numbers ``[m, S]``, those of m references.
            device: where z is wanted.
        """
        if device not in self._latents:
            self._latents[device] = Latents(self._project, self._vectors, device)
        return self._latents[device].of(tokens)

    def predicted(
        self, tokens: np.ndarray, rows: np.ndarray, heads: np.ndarray, positions: np.ndarray, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys, turned to their places, and values, float32 ``[n, d]`` on ``device``.

        Args:
            tokens: whole numbers ``[m, S]``, those of m references.
            rows, heads, positions: int64 ``[n]``: reference, layer * H + head and place of each pair.
            device: where they are computed.
        """
        out, angles = self._moved("out", self._out, device), self._moved("angles", self._angles, device)
        arranged = arrange(heads, len(out), device, large=True)
        place = torch.from_numpy((rows * tokens.shape[1] + positions)[arranged.rows]).to(device)
        latents = self.latents(tokens, device).flatten(0, 1).index_select(0, place)
        both = arranged.products(latents, out).index_select(0, torch.from_numpy(arranged.places).to(device))
        keys, values = both.chunk(2, dim=1)
        return turned(keys, torch.from_numpy(positions), angles), values

    def _moved(self, name: str, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """On a device, in float32, when it is first needed there: who only reads never needs ``out``, the largest."""
        if (name, device) not in self._on:
            self._on[name, device] = tensor.to(device).float()
        return self._on[name, device]

    def checked(self, memory: Memory) -> np.ndarray:
        """The memory's tokens up to the last that it keeps, unsigned ``[S]``.

        Raises:
            InputError: it has none, too few, or some that the vocabulary has not.
        """
        needed = int(memory.positions.max()) + 1 if len(memory.positions) else 0
        if memory.tokens is None or len(memory.tokens) < needed:
            raise InputError("codec predicted needs the tokens that a memory was made of, and this one has none, or too few")
        tokens = memory.tokens[:needed]
        if needed and int(tokens.max()) >= self.vocabulary:
            raise InputError(f"a memory has the token {int(tokens.max())}, the model knows {self.vocabulary:,}")
        return tokens

    def rest(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        memories: Sequence[Memory],
        heads: np.ndarray,
        positions: np.ndarray,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of m memories less what their tokens predict, float32 ``[n, d]``.

        Args:
            keys, values: ``[n, d]``, of one memory after the other, on the device where it is computed.
            memories: with their tokens.
            heads: int64 ``[n]``: the memory layer and KV head of each pair, l*H + h.
            positions: int64 ``[n]``: in its reference.
        """
        each = [self.checked(memory) for memory in memories]
        tokens = np.zeros((len(each), max(map(len, each))), np.int64)
        for row, mine in zip(tokens, each, strict=True):
            row[: len(mine)] = mine
        rows = np.repeat(np.arange(len(memories)), [len(memory.positions) for memory in memories])
        known = self.predicted(tokens, rows, heads, positions, keys.device)
        return keys.float() - known[0], values.float() - known[1]


class Moments:
    """Sums over pairs that the regressions need, head by head. They add up."""

    def __init__(self, shape: MemoryShape, vectors: torch.Tensor, angles: torch.Tensor) -> None:
        """``vectors`` ``[V, e]``: the model's token vectors."""
        self._features = token_features(vectors).cpu()
        width = min(self._features.shape[1], int((_MOST_BYTES / 4 / shape.heads) ** 0.5) // 2)
        self._basis = torch.eye(self._features.shape[1])
        if width < len(self._basis):
            _, turn = torch.linalg.eigh(self._features.T @ self._features)
            self._basis = turn[:, -width:].contiguous()
            self._features = self._features @ self._basis
        self._angles, heads, both = angles, shape.heads, 2 * width
        self.gram = torch.zeros(heads, both, both)
        self.cross = torch.zeros(heads, both, 2 * shape.head_dim)
        self.sums = torch.zeros(heads, both), torch.zeros(heads, 2 * shape.head_dim)
        self.count = torch.zeros(heads)

    def add(self, memory: Memory) -> None:
        """The pairs of one memory."""
        if memory.tokens is None:
            raise InputError("codec predicted is fitted to memories with their tokens, and one has none")
        counts = memory.counts.reshape(-1).astype("int64")
        positions = torch.from_numpy(memory.positions.astype("int64"))
        of_token = self._features[torch.as_tensor(memory.tokens.astype("int64"))]
        behind = torch.cat([torch.zeros_like(of_token[:1]), of_token[:-1]])
        x = torch.cat([of_token, behind], 1)[positions]
        y = torch.cat([turned(memory.keys.float(), -positions, self._angles), memory.values.float()], 1)
        for head, (a, b) in enumerate(zip(x.split(counts.tolist()), y.split(counts.tolist()), strict=True)):
            if len(a):
                self.gram[head].addmm_(a.T, a)
                self.cross[head].addmm_(a.T, b)
                self.sums[0][head] += a.sum(0)
                self.sums[1][head] += b.sum(0)
        self.count += torch.from_numpy(counts)

    def __iadd__(self, other: Moments) -> Moments:
        self.gram += other.gram
        self.cross += other.cross
        self.count += other.count
        for mine, its in zip(self.sums, other.sums, strict=True):
            mine += its
        return self

    def solved(self, metrics: Mapping[str, torch.Tensor] | None, rank: int = RANK) -> dict[str, torch.Tensor]:
        """``project`` float16 ``[2, e, r]`` and ``out`` float16 ``[L*H, r, 2d]``.

        Args:
            metrics: what errors in ``keys`` and ``values`` cost, ``[L*H, d, d]``, where ranks compete; None: their squared
                length.
            rank: r at most.
        """
        width = self.gram.shape[1]
        eye, maps = torch.eye(width), torch.empty_like(self.cross)
        pooled = torch.zeros(width, width)
        for head, count in enumerate(self.count.clamp(min=1).tolist()):
            x, y = (sums[head] for sums in self.sums)
            gram = self.gram[head] - torch.outer(x, x / count)
            pooled += gram
            maps[head] = torch.linalg.solve(gram + _RIDGE * eye, self.cross[head] - torch.outer(x, y / count))
        # The best approximation of one rank: principal axes of what is predicted, over all heads, in the readers' metric.
        root = torch.linalg.cholesky(pooled / self.count.sum().clamp(min=1) + 1e-3 * eye)
        spread = torch.zeros(width, width)
        for head, count in enumerate(self.count.tolist()):
            weighted = torch.cat(
                [half @ m for half, m in zip(maps[head].chunk(2, dim=1), self._roots(metrics, head), strict=True)], 1
            )
            weighted = root.T @ weighted * count**0.5
            spread.addmm_(weighted, weighted.T)
        _, turn = torch.linalg.eigh(spread)
        kept = turn[:, -min(rank, width) :].flip(1)
        project = torch.linalg.solve_triangular(root.T, kept, upper=True)
        out = (root @ kept).T @ maps
        now, before = (self._basis @ half for half in project.chunk(2))
        return {"project": torch.stack([now, before]).half(), "out": out.half()}

    def _roots(self, metrics: Mapping[str, torch.Tensor] | None, head: int) -> list[torch.Tensor]:
        dim = self.cross.shape[2] // 2
        if metrics is None:
            return [torch.eye(dim)] * 2
        roots = []
        for side in ("keys", "values"):
            metric = metrics[side][head].float()
            roots.append(torch.linalg.cholesky(metric + 1e-4 * metric.diagonal().mean().clamp(min=1e-6) * torch.eye(dim)))
        return roots


def spread(x: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, number: int, angles: torch.Tensor | None) -> float:
    """Sum of squares about the mean of each head, of vectors turned back by their places.

    Args:
        x: ``[n, d]``.
        heads: int64 ``[n]``: the head of each.
        positions: int64 ``[n]``: in the reference.
        number: of heads.
        angles: radians by which one position turns each pair of numbers; None: not rotated.
    """
    x = x.float() if angles is None else turned(x.float(), -positions, angles.float().cpu())
    count = torch.bincount(heads, minlength=number)[:, None].clamp(min=1)
    mean = x.new_zeros(number, x.shape[1]).index_add_(0, heads, x) / count
    return float((x - mean[heads]).square().sum())
