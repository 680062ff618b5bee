"""What tokens say, as the numbers that keys and values are predicted from (`memory3.codec.prediction`). Knows no head and no
record.

    z = e(t) A + e(t') B                t: the token of a place, t': the one in front of it (none: zero)

The products are kept for some thousands of tokens: of the words of a text most were met before.

Symbols: V tokens in the vocabulary, e numbers of a token vector, r rank, m references, S tokens of each.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch

from memory3.codec.products import product

__all__ = ["Latents", "token_features"]

#: Tokens whose products are kept, 2 KB each at the rank 256.
_KEPT = 8192


def token_features(vectors: torch.Tensor) -> torch.Tensor:
    """Token vectors ``[..., e]`` with a root mean square of 1 each, float32."""
    vectors = vectors.detach().float()
    return vectors * vectors.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()


class Latents:
    """z of tokens. Safe to use from several threads."""

    def __init__(self, project: torch.Tensor, vectors: torch.Tensor, device: torch.device) -> None:
        """
        Args:
            project: ``[2, e, r]``, A and B.
            vectors: ``[V, e]``, the model's token vectors, on any device.
            device: where z is wanted.
        """
        self._project = torch.cat(list(project), 1).to(device).float()
        self._vectors, self._device = vectors, device
        self._lock = Lock()
        self._seen, self._taken = -1, 0
        self._slots = np.zeros(0, np.int64)
        self._table = self._project[:0]

    def of(self, tokens: np.ndarray) -> torch.Tensor:
        """z of every token, float32 ``[m, S, r]``.

        Args:
            tokens: whole numbers ``[m, S]``, below V, those of m references.
        """
        with self._lock:
            slots, table = self._looked_up(tokens)
            at, rank = torch.from_numpy(slots).to(self._device), table.shape[1] // 2
            latents = table[:, :rank].index_select(0, at.flatten()).view(*at.shape, rank)
            before = table[:, rank:].index_select(0, at[:, :-1].flatten()).view(len(at), -1, rank)
            latents[:, 1:].add_(before)
        return latents

    def _looked_up(self, tokens: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """Rows of a table for each token, int64 ``[m, S]``, and that table ``[.., 2r]``: e A and e B."""
        if _version(self._vectors) != self._seen:
            self._forget()
        slots = self._slots[tokens]
        new = np.unique(tokens[slots < 0])
        if self._taken + len(new) > _KEPT:
            self._forget()
            new, slots = np.unique(tokens, return_inverse=True)
            if len(new) > _KEPT:
                return slots.reshape(tokens.shape), self._products(new)
        if len(new):
            end = self._taken + len(new)
            self._table[self._taken : end] = self._products(new)
            self._slots[new] = np.arange(self._taken, end)
            self._taken = end
            slots = self._slots[tokens]
        return slots, self._table

    def _products(self, tokens: np.ndarray) -> torch.Tensor:
        """e A and e B side by side, ``[n, 2r]``."""
        vectors = self._vectors.index_select(0, torch.from_numpy(tokens.astype(np.int64)).to(self._vectors.device))
        return product(token_features(vectors.to(self._device)), self._project)

    def _forget(self) -> None:
        """Keep nothing of what the vectors were."""
        self._seen, self._taken = _version(self._vectors), 0
        self._slots = np.full(len(self._vectors), -1, np.int64)
        self._table = self._project.new_empty(_KEPT, self._project.shape[1])


def _version(vectors: torch.Tensor) -> int:
    """How often torch has written to them."""
    return 0 if vectors.is_inference() else vectors._version
