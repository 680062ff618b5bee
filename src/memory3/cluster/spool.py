"""`Spool`: encoded shards that are not committed yet, in a folder of this machine.

    <bank>.spool/<shard id>.arrow                   an encoded shard, `memory3.bank.EncodedShard`
    <bank>.spool/codec-<fingerprint>.safetensors    the bank's codebook, for the workers
    <bank>.spool/worker-<random>.log                what a worker wrote to standard error

A bank on object storage has its spool in the cache folder. What lies here is data from a stranger: its committer compares it
with what it should be. Losing it costs encoding it again.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_128_hexdigest

from memory3.bank import EncodedShard
from memory3.bank.address import is_store_url
from memory3.bank.faults import writing
from memory3.bank.format.names import codebook_name
from memory3.codec import Codebook
from memory3.errors import InputError
from memory3.files import read_bounded, write_atomically
from memory3.models.catalogue import cache_dir

__all__ = ["Spool"]

_ID = re.compile(r"[0-9a-f]{32}")
_OURS = re.compile(r"\.?([0-9a-f]{32}\.arrow|codec-[0-9a-f]{32}\.safetensors|worker-)")
_MOST_BYTES = 1 << 30


class Spool:
    """Files by shard id, each written whole or not at all. Several processes may write one; their contents are the same."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """``folder``: made when it is first written to."""
        self.folder = Path(folder)

    @classmethod
    def beside(cls, location: str | os.PathLike[str]) -> Spool:
        """The spool of the bank that lies there, a folder or a URL."""
        if is_store_url(location):
            return cls(cache_dir() / "spool" / xxh3_128_hexdigest(os.fspath(location).rstrip("/").encode()))
        path = Path(location).expanduser().absolute()
        return cls(path.with_name(f"{path.name}.spool"))

    def prepare(self) -> None:
        """Make the folder, for this user alone.

        Raises:
            InputError: a link or another user's folder lies there.
            BankError: it cannot be made.
        """
        with writing(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = self.folder.lstat()
        is_ours = not hasattr(os, "getuid") or about.st_uid == os.getuid()
        if not stat.S_ISDIR(about.st_mode) or not is_ours:
            raise InputError(f"{self.folder} is a link, or belongs to another user: remove it, then run the same again")

    def has(self, shard_id: str) -> bool:
        """Whether something lies there for a shard."""
        return os.path.lexists(self._path(shard_id))

    def keep(self, encoded: EncodedShard) -> None:
        """Put an encoded shard here, in place of what there is of it. BankFull: no space is left."""
        with writing(self.folder):
            encoded.save(self._path(encoded.plan))

    def load(self, shard_id: str) -> EncodedShard:
        """What `keep` kept. InputError: nothing, or what is no encoded shard."""
        try:
            return EncodedShard.load(self._path(shard_id))
        except OSError as error:
            raise InputError(f"{self._path(shard_id)} cannot be read ({error.strerror}): encode it again") from error

    def forget(self, shard_id: str) -> None:
        """Remove what lies there for a shard. Nothing is fine."""
        with writing(self.folder):
            self._path(shard_id).unlink(missing_ok=True)

    def keep_codebook(self, book: Codebook) -> None:
        """Put the bank's codebook here, unless it is here."""
        path = self.folder / codebook_name(book.fingerprint)
        if not path.is_file():
            with writing(self.folder):
                write_atomically(path, book.data)

    def load_codebook(self, fingerprint: str) -> Codebook:
        """What `keep_codebook` kept. OSError, CodecError."""
        return Codebook.of(read_bounded(self.folder / codebook_name(fingerprint), _MOST_BYTES), str(self.folder))

    def clear(self) -> None:
        """Remove all that is ours, and the folder if nothing else is in it."""
        with suppress(OSError):
            for name in os.listdir(self.folder):
                if _OURS.match(name):
                    (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def _path(self, shard_id: str) -> Path:
        if _ID.fullmatch(shard_id) is None:
            raise InputError(f"{shard_id!r:.80} is no id of a shard")
        return self.folder / f"{shard_id}.arrow"
