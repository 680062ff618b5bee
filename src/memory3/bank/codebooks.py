"""Code books on disk: the one that travels with a bank, in its folder, and those that `memory3 calibrate` keeps in the cache folder.

    <bank>/codec-<fingerprint>.safetensors                       the manifest names the fingerprint
    <cache folder>/codecs/<fingerprint of the memories>/<codec>.safetensors

For the default model with its default settings one comes with memory3 (`memory3.models.calibrated`). Both are written beside their place and renamed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from memory3.bank.faults import reading, writing
from memory3.bank.protocol import MemoryWriter
from memory3.codec import CodeBook, Codec, CodedCodec, RawCodec
from memory3.config import default_codec
from memory3.errors import BankCorrupt, ConfigError, FingerprintMismatch
from memory3.files import UnsafeFile, read_bounded, write_atomically
from memory3.models.calibrated import calibrated, own_calibrated

if TYPE_CHECKING:
    import torch

    from memory3.bank.manifest import BankManifest

__all__ = ["book_name", "cached_book", "cached_path", "codec_of", "keep_book", "new_codec", "read_codec", "write_book"]

#: The largest code books (product codecs of large models) have some ten megabytes.
_MOST_BYTES = 1 << 30


def book_name(fingerprint: str) -> str:
    """File name of a code book in a bank's folder."""
    return f"codec-{fingerprint}.safetensors"


def write_book(path: Path, book: CodeBook) -> None:
    """Put a code book where it belongs, whole or not at all."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, book.data)


def codec_of(folder: Path, manifest: BankManifest, vectors: torch.Tensor | None) -> Codec:
    """The codec of a bank. Its code book, if it needs one, is read once per process.

    Args:
        folder, manifest: of the bank.
        vectors: ``[V, e]``, the model's token vectors, if a model is at hand.

    Raises:
        BankCorrupt: the code book is missing, or is not the one the memories were written with.
    """
    return RawCodec(manifest.shape) if manifest.codec == "raw" else _kept(folder, manifest).with_vectors(vectors)


@lru_cache(maxsize=8)
def _kept(folder: Path, manifest: BankManifest) -> CodedCodec:
    codec = read_codec(folder, manifest)
    assert isinstance(codec, CodedCodec)
    return codec


def read_codec(folder: Path, manifest: BankManifest) -> Codec:
    """As `codec_of`, from the file as it is now, without token vectors."""
    if manifest.codec == "raw":
        return RawCodec(manifest.shape)
    codec = CodedCodec(_read(folder / book_name(manifest.code_book), manifest.code_book))
    if (codec.name, codec.shape, codec.record_size) != (manifest.codec, manifest.shape, manifest.record_bytes):
        raise BankCorrupt(
            f"{folder}: the code book {manifest.code_book} is of codec {codec.name!r} and {codec.record_size} bytes a memory, the bank of "
            f"{manifest.codec!r} and {manifest.record_bytes}: restore the bank from a copy"
        )
    return codec


def _read(path: Path, fingerprint: str) -> CodeBook:
    remedy = f"restore it from a copy, or encode the bank's texts anew with `memory3 rebuild --bank {path.parent}`"
    with reading(path.parent):
        try:
            data = read_bounded(path, _MOST_BYTES)
        except FileNotFoundError:
            raise BankCorrupt(f"{path}, the code book of this bank, is missing: {remedy}") from None
        except UnsafeFile as error:
            raise BankCorrupt(f"{path}, the code book of this bank, {error.strerror}: {remedy}") from None
    book = CodeBook.of(data, str(path))
    if book.fingerprint != fingerprint:
        raise BankCorrupt(
            f"{path} is another code book than the one this bank was written with: its fingerprint is {book.fingerprint}, not "
            f"{fingerprint}: {remedy}"
        )
    return book


def cached_path(codec: str, fingerprint: str) -> Path:
    """Where `memory3 calibrate` keeps a code book of this codec for memories of this fingerprint."""
    return own_calibrated(*_parts(codec, fingerprint))


def _parts(codec: str, fingerprint: str) -> tuple[str, ...]:
    return "codecs", fingerprint, f"{codec.replace(':', '-')}.safetensors"


def keep_book(book: CodeBook) -> Path:
    """Put a code book into the cache folder."""
    path = cached_path(book.codec, book.memories)
    write_book(path, book)
    return path


def cached_book(codec: str, fingerprint: str) -> CodeBook | None:
    """What `keep_book` kept, or what comes with memory3, if anything."""
    path = calibrated(*_parts(codec, fingerprint))
    return None if path is None else CodeBook.of(path.read_bytes(), str(path))


def new_codec(m3: MemoryWriter, book: CodeBook | None) -> tuple[Codec, CodeBook | None]:
    """What a new bank of this model's memories is written with: the codec of its settings, the book given or the one in the cache.

    Raises:
        ConfigError: the codec needs a code book, and there is none.
        FingerprintMismatch: the book was fitted on memories of another model or other settings.
    """
    name = m3.config.codec
    if name == "auto" and book is None:
        book = cached_book(default_codec(m3.shape.head_dim), m3.fingerprint)
    if name == "auto":
        name = "raw" if book is None else book.codec
    if name == "raw":
        return RawCodec(m3.shape), None
    book = book or cached_book(name, m3.fingerprint)
    if book is None:
        raise ConfigError(
            f"codec {name!r} needs a code book for {m3.name} with these settings: make one with `memory3 calibrate --model {m3.name} "
            f"--codec {name}`, or memory3.calibration.codec.calibrate"
        )
    if book.codec != name:
        raise ConfigError(
            f"the code book given is of codec {book.codec!r}, the settings say {name!r}: give the one, or change the other"
        )
    if (book.memories, book.shape) != (m3.fingerprint, m3.shape):
        raise FingerprintMismatch(book.memories, m3.fingerprint, "the code book was fitted on memories of the first")
    return CodedCodec(book), book
