"""Transform coding: each head's vectors on axes that matter to what reads them, more bits for the axes that matter more. Knows
no memory and no file.

    z = (R(-position) x - mean) W / width        bits = trellis(z)        x = R(position) (mean + (width z) W^-1)

An error in a key shows as an error in logits, so its size is d^T M d with M the second moment of the queries that read it,
seen from the key's place; an error in a value shows in the attention's output, M = W_o^T W_o. With M = A A^T and S the
covariance of the vectors, W = A U, U the axes of A^T S A: in these coordinates the error is Euclidean and the channels do not
correlate (the Karhunen-Loeve transform in the reader's metric). Bits are handed out one by one to the axis where the next one
saves most; all heads share the allotment, so a record needs no table of it. Axes without bits are dropped.

What the bits of an axis mean depends on the bits before them, too (`memory3.codec.trellis`), which leaves a quarter less error
than rounding each number by itself.

Measured on SmolLM2-135M (1440 pairs a reference), mean squared error of the logits, variance 9.4, when numbers were still
rounded: equal steps in each channel at 256 bits a key 0.155, RQ14x8 at 112 bits 0.12, this at 112 bits 0.11, at 128 bits
0.080; with an allotment for each head 0.063, which would make a record's decoding a table look-up for every number.

Symbols: n vectors, L*H heads, d head dimension, D <= d axes that have bits.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memory3.codec.centring import turned
from memory3.codec.trellis import ERROR, Trellis
from memory3.codec.vectors import Sample, VectorCoder

__all__ = ["TransformCoder", "allotted", "axes"]

#: A head that kept few vectors borrows its covariance: as many vectors of the average head are counted in.
_BORROWED = 64
_MOST_BITS = len(ERROR) - 1
#: Vectors that the trellis's table is fitted to.
_TRELLIS_VECTORS = 4096
#: Rows that are multiplied by one matrix at a time.
_TILE = 32


class TransformCoder(VectorCoder):
    """``transform`` or ``transform:BITS``: so many bits a vector, 128 by default."""

    def __init__(self, bits: int, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.width = bits // 8
        self._mean, self._angles = tensors["mean"], tensors["angles"]
        sizes = [int(size) for size in tensors["bits"].tolist() if size > 0]
        if not sizes or max(sizes) > _MOST_BITS or sum(sizes) > 8 * self.width:
            raise ValueError(
                f"bits say {sum(sizes)} for {self.width} bytes a vector, and at most {max(sizes, default=0)} for an axis"
            )
        # The stream begins with the axes that matter least, since its first bits have none before them.
        self._trellis = Trellis(sizes[::-1], tensors["variance"][: len(sizes)].flip(0), tensors["table"])
        self._analysis = tensors["analysis"][:, :, : len(sizes)].flip(2).contiguous()
        self._synthesis = torch.linalg.inv(tensors["analysis"])[:, : len(sizes)].flip(1).contiguous()
        self._on: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    @classmethod
    def shapes(cls, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that the coder is made of; -1 is any size.

        Args:
            heads: L*H.
            head_dim: d.
        """
        return {
            "mean": (heads, head_dim),
            "angles": (-1,),
            "bits": (head_dim,),
            "variance": (head_dim,),
            "table": Trellis.table_shape,
            "analysis": (heads, head_dim, head_dim),
        }

    @classmethod
    def fit(cls, total: int, sample: Sample) -> dict[str, torch.Tensor]:
        """Tensors of the coder, fitted: each head's mean and axes, the bits of each axis, and the trellis's table.

        Args:
            total: bits of a vector.
            sample: vectors to fit to, and what their errors cost.
        """
        dim = sample.vectors.shape[1]
        angles = torch.zeros(0) if sample.angles is None else sample.angles.detach().to("cpu", torch.float32)
        x = turned(sample.vectors.float(), -sample.positions, angles)
        count = torch.bincount(sample.heads, minlength=sample.number)[:, None].float()
        mean = x.new_zeros(sample.number, dim).index_add_(0, sample.heads, x) / count.clamp(min=1)
        metric = torch.eye(dim).expand(sample.number, dim, dim) if sample.metric is None else sample.metric.float().cpu()
        analysis, variance = axes(x - mean[sample.heads], sample.heads, metric)
        weight = count[:, 0] / count.sum()
        variance = (weight[:, None] * variance).sum(0)
        bits = [size for size in allotted(variance, total) if size]
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:_TRELLIS_VECTORS]
        z = torch.einsum("nd,nde->ne", (x - mean[sample.heads])[some], analysis[sample.heads[some], :, : len(bits)])
        return {
            "mean": mean,
            "angles": angles,
            "bits": torch.tensor(bits + [0] * (dim - len(bits)), dtype=torch.float32),
            "variance": variance,
            "table": Trellis.fit(bits[::-1], variance[: len(bits)].flip(0), z.flip(1)),
            "analysis": analysis,
        }

    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """Codes of vectors: turned into their head's axes, each number by the trellis.

        Args:
            vectors: ``[p, d]``, keys after RoPE.
            heads: int64 ``[p]``: the memory layer and KV head of each, l*H + h.
            positions: int64 ``[p]``: in the reference.

        Returns:
            uint8 ``[p, bytes of a vector]``.
        """
        x = turned(vectors.float(), -positions, self._angles) - self._mean[heads]
        return self._trellis.encode(_by_head(x, heads, self._analysis))

    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The vectors that codes stand for, as one tensor ``[p, d]`` per memory.

        Args:
            codes: uint8 ``[p, bytes of a vector]``, on the device where vectors are wanted.
            heads: int64 ``[p]`` on the CPU: the memory layer and KV head of each, l*H + h.
            positions: int64 ``[p]`` on the CPU: in the reference.
            sizes: vectors of each memory.
            dtype: of the vectors.
        """
        device = codes.device
        if device not in self._on:
            self._on[device] = tuple(x.to(device) for x in (self._synthesis, self._mean, self._angles))
        synthesis, mean, angles = self._on[device]
        if not len(heads):
            return [mean.new_zeros(0, mean.shape[1], dtype=dtype) for _ in sizes]
        # The codes are put in order of heads, being the smallest there is to move, and the vectors back again as soon as they
        # are small, too.
        tiles = _tiles(heads.numpy(), len(mean))
        positions = positions.index_select(0, tiles[0])
        rows, of_tile, places = (part.to(device) for part in tiles)
        z = self._trellis.decode(codes.index_select(0, rows)).view(len(of_tile), _TILE, -1)
        x = torch.baddbmm(mean.index_select(0, of_tile)[:, None], z, synthesis.index_select(0, of_tile)).flatten(0, 1)
        x = turned(x, positions, angles).to(dtype)
        return [x.index_select(0, mine) for mine in places.split(list(sizes))]


def axes(x: torch.Tensor, heads: torch.Tensor, metric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W over width, and each axis's variance in the metric, largest first, of centred vectors ``[n, d]``.

    Args:
        x: centred vectors, float32 ``[n, d]``.
        heads: int64 ``[n]``: the head of each.
        metric: what errors cost, float32 ``[L*H, d, d]``, positive semidefinite.

    Returns:
        analysis ``[L*H, d, d]`` (z = x analysis has variance 1), variances ``[L*H, d]``.
    """
    number, dim = len(metric), x.shape[1]
    eye = torch.eye(dim)
    # The metric of a head that nothing reads would have no inverse.
    metric = metric + 1e-4 * metric.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6)[:, None, None] * eye
    spread = torch.stack([(mine := x[heads == h]).T @ mine for h in range(number)])
    count = torch.bincount(heads, minlength=number).float()[:, None, None]
    typical = spread.sum(0).diagonal().mean() / max(1, len(x))
    covariance = (spread + _BORROWED * typical.clamp(min=1e-8) * eye) / (count + _BORROWED)
    root = torch.linalg.cholesky(metric)
    variance, turn = torch.linalg.eigh(root.transpose(1, 2) @ covariance @ root)
    variance, turn = variance.flip(1).clamp(min=1e-12), turn.flip(2)
    width = variance.sqrt()
    analysis = root @ turn / width[:, None, :]
    return analysis, variance


def allotted(variance: torch.Tensor, total: int) -> list[int]:
    """Bits of each axis, ``total`` in all, handed out one by one where the next saves most. ``variance`` ``[d]``,
    descending.
    """
    saved = [(-float(v) * (ERROR[0] - ERROR[1]), axis) for axis, v in enumerate(variance)]
    heapq.heapify(saved)
    bits = [0] * len(variance)
    for _ in range(total):
        _, axis = heapq.heappop(saved)
        bits[axis] += 1
        if bits[axis] < _MOST_BITS:
            heapq.heappush(saved, (-float(variance[axis]) * (ERROR[bits[axis]] - ERROR[bits[axis] + 1]), axis))
    return sorted(bits, reverse=True)


def _by_head(x: torch.Tensor, heads: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Row i times the matrix of head ``heads[i]``: ``[n, a]`` and ``[L*H, a, b]`` to ``[n, b]``.

    Rows of a head are cut into tiles of equal size, the last one filled up, so that all products are one batched call: a
    product for each head took five times as long on two busy cores (7,200 rows of 90 heads).
    """
    if not len(x):
        return x.new_empty(0, matrices.shape[2])
    rows, of_tile, places = (part.to(x.device) for part in _tiles(heads.cpu().numpy(), len(matrices)))
    tiles = x.index_select(0, rows).view(len(of_tile), -1, x.shape[1])
    return torch.bmm(tiles, matrices.index_select(0, of_tile)).flatten(0, 1).index_select(0, places)


def _tiles(heads: np.ndarray, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows in tiles of one head each.

    Returns:
        the row at each place of each tile, ``[tiles * _TILE]``; the head of each tile; the place of each row, int64 all.
    """
    order, counts = np.argsort(heads.astype(np.uint16), kind="stable"), np.bincount(heads, minlength=number)
    tiles = -(-counts // _TILE)
    of_tile = np.repeat(np.arange(number), tiles)
    ends = np.cumsum(counts)
    first = np.arange(len(of_tile)) - np.repeat(np.cumsum(tiles) - tiles, tiles)  # which tile of its head
    at = ((ends - counts)[of_tile] + first * _TILE)[:, None] + np.arange(_TILE)
    real = at < ends[of_tile][:, None]
    rows = order[np.minimum(at, len(heads) - 1)]
    places = np.empty(len(heads), np.int64)
    places[rows[real]] = np.flatnonzero(real.reshape(-1))
    return torch.from_numpy(rows.reshape(-1)), torch.from_numpy(of_tile), torch.from_numpy(places)
