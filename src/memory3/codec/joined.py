"""What tokens predict of keys and values, and what is coded beside, as one product for each head. Knows no file.

    key   = R(p) (latent K_h + z_k S_kh + mean_kh)         latent: what the tokens say (memory3.codec.prediction)
    value =       latent V_h + z_v S_vh + mean_vh           z: the coded numbers, S: back from a head's axes (.transform)

With ``[latent, z_k, z_v, 1]`` as a row this is a product with one matrix for each head and one turn of the keys, where the
parts one by one move every vector through memory twice as often. The zeros in the matrix cost a seventh more arithmetic.

Symbols: n pairs, L*H heads, d head dimension, r rank of the prediction, D_k and D_v axes that have bits, m memories, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memory3.attention.rotary import rotate_vectors
from memory3.codec.by_head import arrange
from memory3.codec.layout import Coded
from memory3.codec.prediction import Prediction
from memory3.codec.transform import TransformCoder

__all__ = ["Joined"]


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
        heads, self._rank, both = out.shape
        self._coders, half = (keys, values), both // 2
        matrices = torch.zeros(heads, self._rank + keys.axes + values.axes + 1, both)
        matrices[:, : self._rank] = out
        at = self._rank
        for coder, columns in zip(self._coders, (slice(half), slice(half, both)), strict=True):
            matrices[:, at : at + coder.axes, columns] = coder.synthesis
            matrices[:, -1, columns] = coder.mean
            at += coder.axes
        self._on: dict[torch.device, tuple[torch.Tensor, ...]] = {matrices.device: (matrices, keys.angles)}

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
        if device not in self._on:
            self._on[device] = tuple(x.to(device) for x in self._on[torch.device("cpu")])
        matrices, angles = self._on[device]
        half = matrices.shape[2] // 2
        if not len(coded.heads):
            keys, values = ([matrices.new_zeros(0, half, dtype=dtype) for _ in sizes] for _ in range(2))
            return keys, values
        arranged = arrange(coded.heads, len(matrices), device, large=True)
        positions = coded.positions.astype(np.int64)
        tokens = np.repeat(np.arange(len(sizes)) * coded.tokens.shape[1], sizes) + positions
        latents = prediction.latents(coded.tokens, device, room=matrices.shape[1] - self._rank).flatten(0, 1)
        x = latents.index_select(0, torch.from_numpy(tokens[arranged.rows]).to(device))
        at = self._rank
        for coder, codes in zip(self._coders, (coded.keys, coded.values), strict=True):
            # Codes are put in order of heads, being the smallest there is to move.
            x[:, at : at + coder.axes] = coder.numbers(torch.from_numpy(codes.take(arranged.rows, 0)).to(device))
            at += coder.axes
        x[:, at] = 1
        both = arranged.products(x, matrices)
        turned = rotate_vectors(both[:, :half], torch.from_numpy(positions[arranged.rows]), angles, dtype)
        straight = both[:, half:].to(dtype)
        # Put back as soon as they are small, too.
        places = torch.from_numpy(arranged.places).to(device).split(list(sizes))
        return [turned.index_select(0, mine) for mine in places], [straight.index_select(0, mine) for mine in places]
