"""Sentence embeddings by sentence-transformers, or to the same bits without importing it. Loaded when the first text is
embedded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memory3.models.catalogue import resolve_embedder
from memory3.models.causes import loading

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from memory3.bank.format.manifest import BankManifest
    from memory3.bank.mean_pooling import MeanPooling

__all__ = ["Embedder", "Embedders", "TextEmbedder"]


class TextEmbedder(Protocol):
    """Turns texts into vectors of length 1, whose dot product is their cosine."""

    @property
    def name(self) -> str:
        """Recorded in the bank and enforced."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers per vector."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[len(texts), dimension]``, rows of length 1."""
        ...


class Embedder:
    """A sentence-transformers model. ``name`` is one of the catalogue, a Hugging Face id or a folder."""

    def __init__(self, name: str, model: SentenceTransformer | MeanPooling, batch_size: int = 32) -> None:
        self.name = name
        self.batch_size = batch_size
        self._model = model
        self.dimension = self.encode([""]).shape[1]

    @classmethod
    def load(cls, name: str, *, device: str | None = None, batch_size: int = 32) -> Embedder:
        """Load by name. Code from the model's repository is never run; HF_HUB_OFFLINE is respected.

        Args:
            name: of `memory3.models.catalogue.EMBEDDERS`, a folder, or a repository of the hub.
            device: as torch names it; None: a GPU where there is one.
            batch_size: texts per forward pass.
        """
        from memory3.bank.mean_pooling import MeanPooling

        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
        folder = resolve_embedder(name)
        with loading("embedder", name, folder):
            plain = MeanPooling.load(folder, device)
            if plain is not None:
                return cls(name, plain, batch_size)
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(
                folder,
                device=device,
                trust_remote_code=False,
                local_files_only=offline,
                model_kwargs={"use_safetensors": True},
            )
        return cls(name, model, batch_size)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[len(texts), dimension]``, rows of length 1."""
        vectors = self._model.encode(
            list(texts),
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)


class Embedders:
    """The embedders of the versions of one bank that are read: a rebuild may bring another. Loaded at first use, kept by name
    and dimension. Safe to use from several threads.
    """

    def __init__(self, embedder: TextEmbedder | None) -> None:
        """
        Args:
            embedder: one that is loaded already.
        """
        self._loaded = {} if embedder is None else {(embedder.name, embedder.dimension): embedder}
        self._lock = Lock()

    def of(self, manifest: BankManifest) -> TextEmbedder:
        """That of a version.

        Raises:
            ConfigError: what is loaded by its name has another dimension.
        """
        key = (manifest.embedder, manifest.dimension)
        with self._lock:
            if key not in self._loaded:
                embedder = Embedder.load(manifest.embedder)
                manifest.require_embedder(embedder.name, embedder.dimension)
                while len(self._loaded) > 1:  # that of the version before may be in use; older ones go
                    del self._loaded[next(iter(self._loaded))]
                self._loaded[key] = embedder
            return self._loaded[key]
