"""Codebooks for the memories that a model writes with its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memory3.bank.codebooks import keep_codebook
from memory3.calibration.formats import serve_formats
from memory3.calibration.metrics import REFERENCES, error_metrics
from memory3.calibration.sample import default_documents, memories_of, sample
from memory3.codec import Codebook, fit
from memory3.codec.fitting import wanted_vectors
from memory3.codec.registry import codecs, default_codec, find
from memory3.errors import ConfigError
from memory3.llm import Memory3
from memory3.types import Document, MemoryShape

__all__ = ["calibrate", "wanted_references"]

#: Presets that keep many pairs of each reference still see so many references, and those that keep few not more than the
#: other.
_FEWEST, _MOST = 48, 1024

#: Called with what is being done, how many of it are done, and how many there are (0: it cannot be said).
Progress = Callable[[str, int, int], None]


def wanted_references(codec: str, shape: MemoryShape) -> int:
    """How many references make a good codebook.

    Args:
        codec: name of a fitted codec.
        shape: of the memories.
    """
    return max(_FEWEST, min(-(-wanted_vectors(codec, shape.head_dim) // shape.pairs), _MOST))


def calibrate(
    m3: Memory3, documents: Iterable[Document], *, codec: str | None = None, progress: Progress | None = None, seed: int = 0
) -> Codebook:
    """Fit a codec to memories of references drawn uniformly from the documents, and keep its codebook in the cache folder.

    Banks that are made with the same model and settings from then on find it there.

    Args:
        m3: the model, with the settings that memories will be written with.
        documents: like those that will be written. Where they have too few references, the default text makes up the number.
        codec: by default the one in ``m3.config``.
        progress: see `Progress`.
        seed: of the draw.

    Raises:
        ConfigError: the codec is unknown, needs no codebook, or does not fit the model's head dimension.
    """
    codec = codec or m3.config.codec
    codec = default_codec(m3.shape.head_dim) if codec == "auto" else codec
    found = find(codec)
    if not found.is_fitted:
        fitted = [name for name, kind in codecs().items() if kind is not type(found)]
        raise ConfigError(f"codec {codec!r} keeps numbers as they are, and has nothing to fit: name {' or '.join(fitted)}")
    number = wanted_references(codec, m3.shape)
    references = sample(m3, documents, number, seed=seed)
    if len(references) < number:
        references += sample(m3, default_documents(), number - len(references), seed=seed)
    tell = progress or (lambda what, done, total: None)
    metrics = None
    if found.uses_metric:
        tell("what errors cost", 0, 0)
        metrics = error_metrics(m3, references[:REFERENCES])
    memories = memories_of(m3, references, lambda done, total: tell("encoding references", done, total))
    tell("encoding references", 0, len(references))
    codebook = fit(
        codec,
        memories,
        m3.shape,
        fingerprint=m3.fingerprint,
        positions=m3.config.reference_length,
        angles=m3.angles,
        metrics=metrics,
        token_vectors=m3.token_vectors if found.predicts else None,
        progress=lambda what: tell(what, 0, 0),
        seed=seed,
    )
    keep_codebook(codebook)
    serve_formats(m3)
    return codebook
