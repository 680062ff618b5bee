"""Rows in order of their heads, and their products with a matrix of each head's own. Knows no codec.

Whoever has rows of many heads arranges them, makes the numbers in that arrangement, multiplies, and puts the results back:

    arranged = arrange(heads, number, device, large=...)
    results = arranged.products(x[arranged.rows], matrices)[arranged.places]

Symbols: n rows, L*H heads, m >= n places of an arrangement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from memory3.codec.products import ROUND, product

__all__ = ["FEWEST", "Arranged", "Runs", "arrange"]

#: Rows that are multiplied by one copy of a matrix.
_TILE = 32
#: Fewer rows than these MKL multiplies in another way, which gives other bits.
FEWEST = 4


class Arranged(ABC):
    """Rows in an order in which those of a head are together.

    Attributes:
        rows: int64 ``[m]``: the row at each place; some stand at several, to fill up.
        places: int64 ``[n]``: where each row stands.
    """

    rows: np.ndarray
    places: np.ndarray

    @abstractmethod
    def products(self, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Each row times its head's matrix.

        Args:
            x: ``[m, a]``, as arranged.
            matrices: ``[L*H, a, b]``.

        Returns:
            ``[m, b]``, as arranged.
        """


def arrange(heads: np.ndarray, number: int, device: torch.device, *, large: bool = False) -> Arranged:
    """Arrange rows for products on a device.

    Args:
        heads: int64 ``[n]``: the head of each.
        number: of heads, L*H.
        device: where products are made.
        large: are the matrices large, so that a CPU should not copy them?
    """
    return Runs(heads, number) if large and device.type == "cpu" else _Tiles(heads, number)


def _sorted(heads: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in order of heads, and how many each head has. Numbers of 16 bits are sorted by their digits, in no time."""
    small = heads.astype(np.uint16) if number <= 1 << 16 else heads
    return np.argsort(small, kind="stable"), np.bincount(heads, minlength=number)


class Runs(Arranged):
    """One head after the other, a product each, so that no matrix is copied. Where a few heads keep most of the pairs, as they
    do, tiles would be no less work.
    """

    def __init__(self, heads: np.ndarray, number: int) -> None:
        self.rows, counts = _sorted(heads, number)
        self.places = np.empty(len(heads), np.int64)
        self.places[self.rows] = np.arange(len(heads))
        self._counts = counts.tolist()

    @property
    def filled(self) -> np.ndarray:
        """The rows, and some of them again behind the last, as many as a product of `FEWEST` may go beyond it."""
        return np.concatenate([self.rows, self.rows[np.zeros(FEWEST - 1, np.int64)]])

    @property
    def counts(self) -> list[int]:
        """Rows of each head; they add up to n."""
        return self._counts

    def products(self, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Each row times its head's matrix.

        Args:
            x: ``[m, a]``, as arranged.
            matrices: ``[L*H, a, b]``.
        """
        out = x.new_empty(len(x), matrices.shape[2])
        start = 0
        for count, matrix in zip(self._counts, matrices.unbind(), strict=True):
            if count:  # rounded up with rows of the next head, whose products are dropped
                out[start : start + count] = product(x[start : start + count + -count % ROUND], matrix)[:count]
            start += count
        return out


class _Tiles(Arranged):
    """Rows of a head in tiles of equal size, the last one filled up, so that all products are one batched call. The matrix is
    copied for every tile.

    Of small matrices a product for each head took five times as long on two busy cores (7,200 rows of 90 heads).
    """

    def __init__(self, heads: np.ndarray, number: int) -> None:
        order, counts = _sorted(heads, number)
        tiles = -(-counts // _TILE)
        self._of_tile = np.repeat(np.arange(number), tiles)
        ends = np.cumsum(counts)
        first = np.arange(len(self._of_tile)) - np.repeat(np.cumsum(tiles) - tiles, tiles)  # which tile of its head
        at = ((ends - counts)[self._of_tile] + first * _TILE)[:, None] + np.arange(_TILE)
        real = at < ends[self._of_tile][:, None]
        self.rows = order[np.minimum(at, len(heads) - 1)].reshape(-1)
        self.places = np.empty(len(heads), np.int64)
        self.places[self.rows[real.reshape(-1)]] = np.flatnonzero(real.reshape(-1))

    def products(self, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        mine = matrices.index_select(0, torch.from_numpy(self._of_tile).to(x.device))
        return torch.bmm(x.reshape(len(mine), _TILE, x.shape[1]), mine).flatten(0, 1)
