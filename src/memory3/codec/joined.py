"""What tokens predict of keys and values, and what is coded beside, added up head by head. Knows no file.

    key   = R(p) (latent K_h + z_k S_kh + mean_kh)         latent: what the tokens say (memory3.codec.latents)
    value =       latent V_h + z_v S_vh + mean_vh           z: the coded numbers, S: back from a head's axes (.transform)

On a CPU each head's rows are multiplied where they lie, and sums are made by the products themselves (`Sums`), so that every
vector is moved through memory but once. Elsewhere ``[latent, z_k, z_v, 1]`` is multiplied with one matrix for each head; the
zeros in it cost a seventh more arithmetic. So it is on a CPU, too, if those sums would come out otherwise beside other rows: a
memory has to be the same whichever others are decoded with it.

Symbols: n pairs, L*H heads, d head dimension, r rank of the prediction, D_k and D_v axes that have bits, m memories, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memory3.attention.rotary import rotate_vectors
from memory3.codec.by_head import FEWEST, Runs, arrange
from memory3.codec.layout import Coded
from memory3.codec.prediction import Prediction
from memory3.codec.transform import TransformCoder

__all__ = ["Joined", "Sums"]

#: Numbers of rows at which `Sums.are_steady` looks.
_TRIED = (*range(1, 34), *range(40, 128, 8), 255, 384, 516, 640)


#: Numbers of a wide register.
_ALIGNED = 16


class Sums:
    """Products of each head's rows, added up in place.

    By MKL, which takes a fraction of oneDNN's time where matrices are small and is as fast where they are large, but may
    compute few rows otherwise than many.
    """

    def __init__(self, out: torch.Tensor, mean: torch.Tensor, synthesis: Sequence[torch.Tensor]) -> None:
        """
        Args:
            out: float32 ``[L*H, r, 2d]``.
            mean: float32 ``[L*H, 2d]``.
            synthesis: of keys and of values, float32 ``[L*H, D, d]``.
        """
        self._width, self._both = out.shape[1], out.shape[2]
        self._axes = [each.shape[1] for each in synthesis]
        self._heads = list(zip(mean, out, *synthesis, strict=True))

    def add(self, counts: Sequence[int], latents: torch.Tensor, numbers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Keys, not turned, and values side by side, float32 ``[n, 2d]``.

        Args:
            counts: rows of each head, one head after the other; they add up to n.
            latents: ``[n + FEWEST - 1, r]``; what stands behind the last row does not matter.
            numbers: those coded of keys and of values, ``[n + FEWEST - 1, D]``.
        """
        half, count = self._both // 2, sum(counts)
        both = latents.new_empty(len(latents), self._both)
        whole = latents, both, both[:, :half], both[:, half:], *numbers
        of_heads = zip(*(each.split([*counts, len(latents) - count]) for each in whole), strict=True)
        start = 0
        for size, head, mine in zip(counts, self._heads, of_heads, strict=False):
            if size:
                # Few rows with some of the next head's, which are written after.
                rows = mine if size >= FEWEST else [each[start : start + FEWEST] for each in whole]
                mean, out, of_keys, of_values = head
                latent, sums, keys, values, z_keys, z_values = rows
                torch.addmm(mean, latent, out, out=sums)
                keys.addmm_(z_keys, of_keys)
                values.addmm_(z_values, of_values)
                start += size
        return both[:count]

    def are_steady(self) -> bool:
        """Whether rows come out to the same bits beside any number of others. Takes some milliseconds.

        Where a row does not begin where one of the CPU's wide registers does, that is known to depend on the place in memory.
        """
        if self._both % (2 * _ALIGNED):
            return False
        draw = torch.Generator().manual_seed(0)
        most = max(_TRIED) + FEWEST - 1
        latents = torch.randn(most, self._width, generator=draw)
        # As `TransformCoder.numbers` has them: the numbers of an axis lie side by side.
        numbers = [torch.randn(axes, most, generator=draw).t() for axes in self._axes]
        whole = self.add([most - FEWEST + 1], latents, numbers)
        return all(torch.equal(self.add([rows], latents, numbers), whole[:rows]) for rows in _TRIED)


class Joined:
    """Decodes records of codec ``predicted``."""

    def __init__(self, out: torch.Tensor, keys: TransformCoder, values: TransformCoder) -> None:
        """
        Args:
            out: ``[L*H, r, 2d]``, as `memory3.codec.prediction.Prediction` has it.
            keys, values: what codes the rest.

        Raises:
            ValueError: values are turned by their places, which nothing fits them to be.
        """
        if len(values.angles):
            raise ValueError("values are turned by their places")
        self._out, self._coders = out.float(), (keys, values)
        self._mean = torch.cat([keys.mean, values.mean], 1)
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        sums = Sums(self._out, self._mean, [keys.synthesis, values.synthesis])
        self._sums = sums if sums.are_steady() else None

    def decode(
        self, prediction: Prediction, coded: Coded, sizes: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of m memories, ``[p, d]`` each, in tensors of their own.

        Args:
            prediction: what tokens say.
            coded: the pairs of m records.
            sizes: pairs of each.
            dtype: of keys and values.
            device: where they are made.
        """
        half = self._out.shape[2] // 2
        if not len(coded.heads):
            keys, values = ([torch.zeros(0, half, dtype=dtype, device=device) for _ in sizes] for _ in range(2))
            return keys, values
        arranged = arrange(coded.heads, len(self._out), device, large=True)
        runs = arranged if self._sums is not None and isinstance(arranged, Runs) else None
        rows = arranged.rows if runs is None else runs.filled
        positions = coded.positions.astype(np.int64)
        tokens = np.repeat(np.arange(len(sizes)) * coded.tokens.shape[1], sizes) + positions
        latents = prediction.latents(coded.tokens, device).flatten(0, 1)
        latents = latents.index_select(0, torch.from_numpy(tokens[rows]).to(device))
        # Codes are put in order of heads, being the smallest there is to move.
        numbers = [
            coder.numbers(torch.from_numpy(codes.take(rows, 0)).to(device))
            for coder, codes in zip(self._coders, (coded.keys, coded.values), strict=True)
        ]
        angles = self._coders[0].angles
        if runs is not None and self._sums is not None:
            both = self._sums.add(runs.counts, latents, numbers)
        else:
            matrices, angles = self._matrices_on(device)
            both = arranged.products(torch.cat([latents, *numbers, latents.new_ones(len(latents), 1)], 1), matrices)
        turned = rotate_vectors(both[:, :half], torch.from_numpy(positions[arranged.rows]), angles, dtype)
        straight = both[:, half:].to(dtype)
        # Put back as soon as they are small, too.
        places = torch.from_numpy(arranged.places).to(device).split(list(sizes))
        return [turned.index_select(0, mine) for mine in places], [straight.index_select(0, mine) for mine in places]

    def _matrices_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """``[L*H, r + D_k + D_v + 1, 2d]``, and the angles by which keys are turned."""
        if device not in self._on:
            (heads, rank, both), half = self._out.shape, self._out.shape[2] // 2
            matrices = torch.zeros(heads, rank + sum(coder.axes for coder in self._coders) + 1, both)
            matrices[:, :rank], matrices[:, -1] = self._out, self._mean
            for coder, columns in zip(self._coders, (slice(half), slice(half, both)), strict=True):
                matrices[:, rank : rank + coder.axes, columns] = coder.synthesis
                rank += coder.axes
            self._on[device] = matrices.to(device), self._coders[0].angles.to(device)
        return self._on[device]
