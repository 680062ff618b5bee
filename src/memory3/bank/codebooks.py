"""Codebooks on disk: the one that travels with a bank, in its folder, and those that `memory3 calibrate` keeps in the
cache folder.

    <bank>/codec-<fingerprint>.safetensors                       the manifest names the fingerprint
    <cache folder>/codecs/<fingerprint of the memories>/<codec>.safetensors

For the default model with its default settings one comes with memory3 (`memory3.models.calibrated`). Both are written
beside their place and renamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from memory3.bank.backends.base import Backend
from memory3.bank.faults import reading, writing
from memory3.bank.format.names import codebook_name
from memory3.bank.protocol import MemoryWriter
from memory3.codec import Codebook, Codec, CodedCodec, RawCodec
from memory3.codec.registry import default_codec, find, shown
from memory3.errors import BankCorrupt, CodecError, ConfigError, FingerprintMismatch
from memory3.files import UnsafeFile, write_atomically
from memory3.models.calibrated import calibrated, kept_under, own_calibrated

if TYPE_CHECKING:
    import torch

    from memory3.bank.format.manifest import BankManifest

__all__ = [
    "cached_codebook",
    "cached_path",
    "codebook_name",
    "codec_of",
    "coding",
    "keep_codebook",
    "new_codec",
    "read_codec",
    "received_codec",
    "write_codebook",
]

#: The largest codebooks (product codecs of large models) have some ten megabytes.
_MOST_BYTES = 1 << 30
_MAKE_ANEW = "make it anew with `memory3 calibrate` or `memory3 rebuild`"


@contextmanager
def coding(remedy: str) -> Iterator[None]:
    """What a codec cannot read is damage of the bank: BankCorrupt with the codec's words and the remedy."""
    try:
        yield
    except CodecError as error:
        raise BankCorrupt(f"{error}: {remedy}", error.reference_ids) from error


def write_codebook(backend: Backend, book: Codebook) -> None:
    """Put a codebook beside a bank's tables, whole or not at all.

    Args:
        backend: where the bank lies.
        book: the codebook; the file is named by its fingerprint.
    """
    with writing(backend.location):
        backend.write(codebook_name(book.fingerprint), book.data)


def codec_of(backend: Backend, manifest: BankManifest, vectors: torch.Tensor | None) -> Codec:
    """The codec of a bank. Its codebook, if it needs one, is read once per process.

    Args:
        backend: where the bank lies.
        manifest: the bank's.
        vectors: ``[V, e]``, the model's token vectors, if a model is at hand.

    Raises:
        BankCorrupt: the codebook is missing, or is not the one the memories were written with.
        ConfigError: the codec predicts from token vectors, and no model is at hand.
    """
    if manifest.codec == "raw":
        return RawCodec(manifest.shape)
    with coding("open the bank with the model that wrote it"):
        codec = _kept(backend, manifest).with_vectors(vectors)
    if codec.needs_vectors:
        raise ConfigError(
            f"codec {shown(codec.name)!r} predicts from the model's token vectors: open the bank with its model, "
            "Bank.open(path, m3)"
        )
    return codec


@lru_cache(maxsize=8)
def _kept(backend: Backend, manifest: BankManifest) -> CodedCodec:
    codec = read_codec(backend, manifest)
    assert isinstance(codec, CodedCodec)
    return codec


def read_codec(backend: Backend, manifest: BankManifest) -> Codec:
    """The codec of a bank, from the codebook file as it is now; without the token vectors that predicted codecs decode with.

    Args:
        backend: where the bank lies.
        manifest: says the codec, the shape and the bytes of a record.

    Raises:
        BankCorrupt: the file is missing or damaged, or is of another codec, shape or size of record.
    """
    if manifest.codec == "raw":
        return RawCodec(manifest.shape)
    with coding(f"restore it from a copy, or {_MAKE_ANEW}"):
        return _fitting(_read(backend, manifest.code_book), manifest, backend.location)


def received_codec(data: bytes, manifest: BankManifest, name: str, vectors: torch.Tensor) -> Codec:
    """The codec of a bank whose codebook came from elsewhere.

    Args:
        data: the codebook's file.
        manifest: says the codec, the shape and the bytes of a record.
        name: of the bank, for messages.
        vectors: ``[V, e]``, the model's token vectors.

    Raises:
        BankCorrupt: it cannot be read, or is another than the manifest's.
    """
    remedy = "the bank's server has another one than its memories were written with"
    with coding(remedy):
        book = Codebook.of(data, f"the codebook of {name}")
        _require(book, manifest.code_book, f"the codebook of {name}", remedy)
        return _fitting(book, manifest, name).with_vectors(vectors)


def _fitting(book: Codebook, manifest: BankManifest, place: object) -> CodedCodec:
    codec = CodedCodec(book)
    if (codec.name, codec.shape, codec.record_size) != (manifest.codec, manifest.shape, manifest.record_bytes):
        raise BankCorrupt(
            f"{place}: the codebook {manifest.code_book} is of codec {codec.name!r} and "
            f"{codec.record_size} bytes a memory, the bank of "
            f"{manifest.codec!r} and {manifest.record_bytes}: restore the bank from a copy"
        )
    return codec


def _read(backend: Backend, fingerprint: str) -> Codebook:
    remedy = f"restore it from a copy, or encode the bank's texts anew with `memory3 rebuild --bank {backend.location}`"
    name = codebook_name(fingerprint)
    path = backend.address(name)
    with reading(backend.location):
        try:
            data = backend.read(name, _MOST_BYTES)
        except FileNotFoundError:
            raise BankCorrupt(f"{path}, the codebook of this bank, is missing: {remedy}") from None
        except UnsafeFile as error:
            raise BankCorrupt(f"{path}, the codebook of this bank, {error.strerror}: {remedy}") from None
    with coding(remedy):
        book = Codebook.of(data, str(path))
    _require(book, fingerprint, path, remedy)
    return book


def _require(book: Codebook, fingerprint: str, name: object, remedy: str) -> None:
    if book.fingerprint != fingerprint:
        raise BankCorrupt(
            f"{name} is another codebook than the one this bank was written with: its fingerprint is {book.fingerprint}, not "
            f"{fingerprint}: {remedy}"
        )


def cached_path(codec: str, fingerprint: str) -> Path:
    """Where `memory3 calibrate` keeps a codebook of this codec for memories of this fingerprint."""
    return own_calibrated(*_parts(codec, fingerprint))


def _parts(codec: str, fingerprint: str) -> tuple[str, ...]:
    return "codecs", fingerprint, f"{find(codec).text.replace(':', '-')}.safetensors"


def keep_codebook(book: Codebook) -> Path:
    """Put a codebook into the cache folder."""
    path = cached_path(book.codec, book.memories)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, book.data)
    return path


def cached_codebook(codec: str, fingerprint: str) -> Codebook | None:
    """What `keep_codebook` kept, or what comes with memory3, if anything.

    Args:
        codec: name of the codec, as in the settings.
        fingerprint: of the model with its settings; a book for the same weights in another number format serves as well.
    """
    paths = (calibrated(*_parts(codec, each)) for each in kept_under(fingerprint))
    path = next(filter(None, paths), None)
    if path is None:
        return None
    with coding(f"restore it from a copy, or {_MAKE_ANEW}"):
        return Codebook.of(path.read_bytes(), str(path))


def new_codec(m3: MemoryWriter, book: Codebook | None) -> tuple[Codec, Codebook | None]:
    """What a new bank of this model's memories is written with: the codec of its settings, the book given or the one in
    the cache.

    Args:
        m3: whose settings name the codec.
        book: the codebook to use; None looks in the cache and in what comes with memory3.

    Returns:
        the codec, and its codebook; None for raw records.

    Raises:
        ConfigError: the codec is unknown, or needs a codebook, and there is none.
        FingerprintMismatch: the book was fitted on memories of another model or other settings.
    """
    name = m3.config.codec
    if name == "auto" and book is None:
        book = cached_codebook(default_codec(m3.shape.head_dim), m3.fingerprint)
    if name == "auto":
        name = "raw" if book is None else book.codec
    if name == "raw":
        return RawCodec(m3.shape), None
    name = find(name).text
    book = book or cached_codebook(name, m3.fingerprint)
    if book is None:
        raise ConfigError(
            f"codec {shown(name)!r} needs a codebook for {m3.name} with these settings: make one with `memory3 "
            f"calibrate --model {m3.name} "
            f"--codec {shown(name)}`, or memory3.calibration.codec.calibrate"
        )
    if find(book.codec).text != name:
        raise ConfigError(
            f"the codebook given is of codec {shown(book.codec)!r}, the settings say {shown(name)!r}: give the one, "
            "or change the other"
        )
    if book.memories not in kept_under(m3.fingerprint) or book.shape != m3.shape:
        raise FingerprintMismatch(book.memories, m3.fingerprint, "the codebook was fitted on memories of the first")
    with coding(_MAKE_ANEW):
        return CodedCodec(book), book
