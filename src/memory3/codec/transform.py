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
from typing import ClassVar

import numpy as np
import torch

from memory3.codec.by_head import arrange
from memory3.codec.centring import turned
from memory3.codec.trellis import ERROR, Trellis
from memory3.codec.vectors import Sample, VectorCoder

__all__ = ["TransformCoder", "allotted", "axes"]

#: A head that kept few vectors borrows its covariance: as many vectors of the average head are counted in.
_BORROWED = 64
_MOST_BITS = len(ERROR) - 1
#: Vectors that the trellis's table is fitted to.
_TRELLIS_VECTORS = 4096


class TransformCoder(VectorCoder):
    """``transform`` or ``transform:BITS``: so many bits a vector, 128 by default.

    Attributes:
        axes: D.
        synthesis: float32 ``[L*H, D, d]``: from a head's axes to its vectors.
        mean: float32 ``[L*H, d]``.
        angles: float32 ``[r/2]``, RoPE's angle per position; empty where vectors are not turned.
    """

    packs_anywhere: ClassVar[bool] = True

    def __init__(self, bits: int, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.width = bits // 8
        self.mean, self.angles = tensors["mean"], tensors["angles"]
        sizes = [int(size) for size in tensors["bits"].tolist() if size > 0]
        if not sizes or max(sizes) > _MOST_BITS or sum(sizes) > 8 * self.width:
            raise ValueError(
                f"bits say {sum(sizes)} for {self.width} bytes a vector, and at most {max(sizes, default=0)} for an axis"
            )
        # The stream begins with the axes that matter least, since its first bits have none before them.
        self._trellis = Trellis(sizes[::-1], tensors["variance"][: len(sizes)].flip(0), tensors["table"])
        self._analysis = tensors["analysis"][:, :, : len(sizes)].flip(2).contiguous()
        self.axes = len(sizes)
        self.synthesis = torch.linalg.inv(tensors["analysis"])[:, : len(sizes)].flip(1).contiguous()
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
        """Codes of vectors: turned into their head's axes, each number by the trellis. Computed where the vectors lie.

        Args:
            vectors: ``[p, d]``, keys after RoPE.
            heads: int64 ``[p]`` on the CPU: the memory layer and KV head of each, l*H + h.
            positions: int64 ``[p]`` on the CPU: in the reference.

        Returns:
            uint8 ``[p, bytes of a vector]``.
        """
        device = vectors.device
        mean, angles, analysis, _ = self._tensors_on(device)
        x = turned(vectors.float(), -positions, angles) - mean.index_select(0, heads.to(device))
        arranged = arrange(heads.numpy(), len(mean), device)
        z = arranged.products(x.index_select(0, torch.from_numpy(arranged.rows).to(device)), analysis)
        return self._trellis.encode(z.index_select(0, torch.from_numpy(arranged.places).to(device)))

    def _tensors_on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        if device not in self._on:
            parts = self.mean, self.angles, self._analysis, self.synthesis
            self._on[device] = tuple(part.to(device) for part in parts)
        return self._on[device]

    def numbers(self, codes: torch.Tensor) -> torch.Tensor:
        """What vectors are on their head's axes.

        Args:
            codes: uint8 ``[n, bytes of a vector]``.

        Returns:
            float32 ``[n, D]`` on the device of ``codes``.
        """
        return self._trellis.decode(codes)

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
        mean, angles, _, synthesis = self._tensors_on(device)
        # The codes are put in order of heads, being the smallest there is to move, and the vectors back again as soon as they
        # are small, too.
        arranged = arrange(heads.numpy(), len(mean), device)
        rows = torch.from_numpy(arranged.rows)
        x = arranged.products(self.numbers(codes.index_select(0, rows.to(device))), synthesis)
        x += mean.index_select(0, heads.index_select(0, rows).to(device))
        x = turned(x, positions.index_select(0, rows), angles).to(dtype)
        places = torch.from_numpy(arranged.places).to(device)
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
