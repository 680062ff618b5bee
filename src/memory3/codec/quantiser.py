"""FAISS quantisers by factory string: trained, taken apart into plain tensors, and put together again. Knows no memory and no
file.

What the strings mean says `memory3.codec.factory`. In all of them a vector is a sum of rows, one row of a table per number in
its code. FAISS's own file format is never read: it is C++ objects, and a bank may come from anywhere.

Symbols: n vectors, d head dimension, D dimensions after the rotation, S numbers in a code, c bytes of a code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from memory3.codec.factory import table_shapes

__all__ = ["Quantiser"]

#: FAISS's own are 25 for the large tables and 50 for the rotation; these keep fitting within minutes. Rotations of 10 and 50
#: steps were compared: the same error.
_STEPS = 8
_ROTATION_STEPS = 5


class Quantiser:
    """One FAISS quantiser as tensors.

    Attributes:
        factory: its factory string.
        dimension: d.
        rotation: float32 ``[D, d]``, orthonormal rows; D = d without one, the identity.
        tables: float32 ``[K, 2^bits, width]`` by name: ``coarse`` (K parts of the vector), ``fine`` (K parts of what is left)
            and ``sums`` (K whole vectors); those that the family has.
    """

    def __init__(
        self, factory: str, dimension: int, rotation: torch.Tensor | None, tables: Mapping[str, torch.Tensor]
    ) -> None:
        self.factory = factory
        self.dimension = dimension
        self.rotation = rotation
        self.tables = dict(tables)

    @classmethod
    def train(cls, factory: str, z: np.ndarray) -> Quantiser:
        """Fit to vectors ``[n, d]``, n at least `memory3.codec.factory.needed_vectors`.

        Args:
            factory: FAISS's string.
            z: float32 ``[n, d]``.
        """
        dimension = z.shape[1]
        shapes = table_shapes(factory, dimension)
        index, parts = _index(factory, dimension)
        kept = _patient(parts)
        index.train(np.ascontiguousarray(z, np.float32))
        del kept
        tensors = {name: _get(vector, shapes[name]) for name, vector in _vectors(parts).items()}
        return cls(factory, dimension, tensors.pop("rotation", None), tensors)

    @classmethod
    def of(cls, factory: str, dimension: int, tensors: Mapping[str, torch.Tensor]) -> Quantiser:
        """The quantiser with given tables.

        Args:
            factory: FAISS's string.
            dimension: d.
            tensors: what `tensors` gave.
        """
        tables = {name: tensors[name] for name in table_shapes(factory, dimension) if name != "rotation"}
        return cls(factory, dimension, tensors.get("rotation"), tables)

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, for a codebook."""
        return self.tables if self.rotation is None else {"rotation": self.rotation, **self.tables}

    @property
    def bits(self) -> list[int]:
        """Bits of the S numbers of a code."""
        return [int(table.shape[1]).bit_length() - 1 for table in self.tables.values() for _ in range(table.shape[0])]

    @property
    def starts(self) -> list[int]:
        """The bit at which each number begins: they follow one another, and ``fine`` begins at a whole byte."""
        starts, at = [], 0
        for table in self.tables.values():
            at = -(-at // 8) * 8
            for _ in range(table.shape[0]):
                starts.append(at)
                at += int(table.shape[1]).bit_length() - 1
        return starts

    @property
    def code_size(self) -> int:
        """Bytes of a code, c."""
        return -(-(self.starts[-1] + self.bits[-1]) // 8)

    def rows(self) -> list[torch.Tensor]:
        """One table ``[2^bits, d]`` per number of a code: the rows whose sum is the decoded vector, the rotation undone."""
        rows = []
        for name, table in self.tables.items():
            for place, short in enumerate(table):
                at = 0 if name == "sums" else place * short.shape[1]
                rotation = torch.eye(self.dimension) if self.rotation is None else self.rotation
                rows.append(short @ rotation[at : at + short.shape[1]])
        return rows

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Codes uint8 ``[n, c]`` of float32 vectors ``[n, d]``, by FAISS."""
        codes: np.ndarray = self._faiss().sa_encode(np.ascontiguousarray(z, np.float32))
        assert codes.shape == (len(z), self.code_size), (codes.shape, self.code_size)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors float32 ``[n, d]``, by FAISS. What `memory3.codec.rows` must equal."""
        decoded: np.ndarray = self._faiss().sa_decode(np.ascontiguousarray(codes))
        return decoded

    def _faiss(self) -> Any:
        """The index, put together at first use."""
        if not hasattr(self, "_made"):
            import faiss

            index, parts = _index(self.factory, self.dimension)
            for name, vector in _vectors(parts).items():
                faiss.copy_array_to_vector(self.tensors()[name].numpy().astype(np.float32).reshape(-1), vector)
            for part in (*parts.values(), *(part.rq for part in parts.values() if hasattr(part, "rq"))):
                part.is_trained = True
            if "rotation" in parts:
                parts["rotation"].is_orthonormal = True
            self._made, self._parts = index, parts
        return self._made


def _index(factory: str, dimension: int) -> tuple[Any, dict[str, Any]]:
    """An untrained index and the objects in it that are trained."""
    import faiss

    index = faiss.index_factory(dimension, factory)
    parts: dict[str, Any] = {"index": index}
    inner: Any = index
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # the stubs take it for a list
        parts["rotation"] = faiss.downcast_VectorTransform(chain.at(0))
        inner = faiss.downcast_index(index.index)
    parts["inner"] = inner
    if isinstance(inner, faiss.Index2Layer):
        first: Any = inner.q1
        parts["coarse"] = faiss.downcast_index(first.quantizer)
    return index, parts


def _vectors(parts: Mapping[str, Any]) -> dict[str, Any]:
    """FAISS's arrays of numbers by our names."""
    vectors: dict[str, Any] = {}
    if "rotation" in parts:
        vectors["rotation"] = parts["rotation"].A
    if "coarse" in parts:
        vectors["coarse"] = parts["coarse"].pq.centroids
    inner = parts["inner"]
    if hasattr(inner, "rq"):
        vectors["sums"] = inner.rq.codebooks
    else:
        vectors["fine"] = inner.pq.centroids
    return vectors


def _patient(parts: Mapping[str, Any]) -> Sequence[Any]:
    """Set how long is trained, and that few vectors are no reason to print a warning. Returns what must live until then."""
    import faiss

    quantisers = [part.pq for name, part in parts.items() if name in ("inner", "coarse") and hasattr(part, "pq")]
    if "coarse" in parts:
        parts["coarse"].pq.cp.niter = _STEPS
    if "rotation" in parts:
        rotation = parts["rotation"]
        rotation.niter = _ROTATION_STEPS
        quantisers.append(faiss.ProductQuantizer(rotation.d_out, rotation.M, 8))
        rotation.pq = quantisers[-1]
    for quantiser in quantisers:
        quantiser.cp.min_points_per_centroid = 1
    if hasattr(parts["inner"], "rq"):
        parts["inner"].rq.cp.min_points_per_centroid = 1
    return quantisers


def _get(vector: Any, shape: tuple[int, ...]) -> torch.Tensor:
    import faiss

    return torch.from_numpy(faiss.vector_to_array(vector).reshape(shape).copy())
