"""`Objects`: the few things a bank asks of an object store beside its tables: whole objects, listings, conditional writes.

By obstore, which is the library that Lance itself uses (Rust's ``object_store``), so that both take the same options and
environment variables.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple
from uuid import uuid4

from memory3.bank.store_faults import store_fault
from memory3.errors import BankError, BankNotFound, Memory3Error, MissingDependency
from memory3.files import SMALL_BYTES, UnsafeFile

__all__ = ["Entry", "Objects", "Tag", "boot_clock"]

#: Of object_store's client and not of a store; all else in the options is the store's.
_CLIENT = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_url",
    "timeout",
    "user_agent",
)
#: Of Lance alone.
_LANCE = ("client_max_retries", "client_retry_timeout", "download_retry_count", "new_table_data_storage_version")
_DELETED_AT_ONCE = 1000


def boot_clock() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Tag(NamedTuple):
    """What a conditional write compares: an object's ETag, and its generation where the store has one."""

    e_tag: str | None
    version: str | None


class Entry(NamedTuple):
    """An object: its name, bytes, when it was written by the store's clock (seconds since 1970), and its tag."""

    name: str
    size: int
    modified: float
    tag: Tag


class Objects:
    """Objects below one URL. Safe to share between threads.

    Raises FileNotFoundError for what is not there, and BankError (`memory3.bank.store_faults`) for all that the store refuses.
    """

    def __init__(self, url: str, options: Mapping[str, str], *, retries: int, seconds: float) -> None:
        """
        Args:
            url: ``s3://bucket/prefix`` and the like.
            options: of object_store: keys, endpoint, region; what is not there comes from the environment.
            retries: so often a request is tried again at most.
            seconds: and so long.

        Raises:
            MissingDependency: obstore is not installed.
        """
        try:
            import obstore  # noqa: F401
        except ImportError:
            raise MissingDependency("obstore", "s3", "a bank on object storage") from None
        self.url = url
        self._options = {name.lower(): value for name, value in options.items()}
        self._retries = retries
        self._seconds = seconds
        self._offset: float | None = None

    @cached_property
    def _store(self) -> Any:
        from obstore.store import from_url

        client = {name: value for name, value in self._options.items() if name in _CLIENT}
        if client and (allowed := os.environ.get("AWS_ALLOW_HTTP")):
            client.setdefault("allow_http", allowed)  # which is not looked at beside options
        config = {name: value for name, value in self._options.items() if name not in (*_CLIENT, *_LANCE)}
        options: Any = {
            "config": config or None,
            "client_options": client or None,
            "retry_config": {"max_retries": self._retries, "retry_timeout": timedelta(seconds=self._seconds)},
            "credential_provider": _profile(self.url, self._options),
        }
        return from_url(self.url, **options)

    def below(self, prefix: str) -> list[Entry]:
        """Every object whose name begins with ``prefix`` and a slash; all for ""."""
        import obstore

        with self._asked(prefix):
            found = [entry for part in obstore.list(self._store, prefix or None) for entry in part]
        return [_entry(about) for about in found]

    def top(self) -> tuple[list[Entry], list[str]]:
        """The objects right here, and the names of the folders."""
        import obstore

        with self._asked(""):
            found = obstore.list_with_delimiter(self._store)
        return [_entry(about) for about in found["objects"]], [name.rstrip("/") for name in found["common_prefixes"]]

    def find(self, name: str) -> Entry | None:
        """What an object is; None where there is none."""
        import obstore

        try:
            with self._asked(name):
                return _entry(obstore.head(self._store, name))
        except FileNotFoundError:
            return None
        except BankError:
            with suppress(FileNotFoundError, UnsafeFile):
                self.read(name)  # a refusal of HEAD does not say why
            raise

    def read(self, name: str, limit: int = SMALL_BYTES) -> tuple[bytes, Entry]:
        """The content of an object, and what it is. FileNotFoundError; UnsafeFile: it has more than ``limit`` bytes."""
        import obstore

        with self._asked(name):
            answer = obstore.get(self._store, name)
            entry = _entry(answer.meta)
            if entry.size > limit:
                raise UnsafeFile(errno.EINVAL, f"has more than {limit:,} bytes", f"{self.url}/{name}")
            return bytes(answer.bytes()), entry

    def write(self, name: str, content: bytes) -> Tag:
        """Put an object, in place of what is there."""
        import obstore

        with self._asked(name):
            return _tag(obstore.put(self._store, name, content))

    def create(self, name: str, content: bytes) -> Tag | None:
        """Put an object where none is (If-None-Match: *); None where there is one, be it by a try whose answer was lost."""
        import obstore

        try:
            with self._asked(name):
                return _tag(obstore.put(self._store, name, content, mode="create", use_multipart=False))
        except _Refused:
            return None

    def replace(self, name: str, content: bytes, tag: Tag) -> Tag | None:
        """Put an object in place of the very one that has ``tag`` (If-Match); None where another is there, or none.

        None, too, where this request was answered twice and its first answer was lost: who must know reads the object.

        Args:
            name: of the object.
            content: new; where it must be told from the old, it must differ from it (an S3 tag is a hash of the content).
            tag: of the old.
        """
        import obstore

        try:
            with self._asked(name):
                mode: Any = {name: value for name, value in tag._asdict().items() if value is not None}
                return _tag(obstore.put(self._store, name, content, mode=mode, use_multipart=False))
        except (_Refused, FileNotFoundError):
            return None

    def remove(self, names: Sequence[str], allowed: Callable[[], None] = lambda: None) -> None:
        """Delete objects, in this order, many at a time. Those that are not there are passed over.

        Args:
            names: of the objects.
            allowed: called before each request; raises where nothing more may be deleted.
        """
        import obstore

        for start in range(0, len(names), _DELETED_AT_ONCE):
            allowed()
            try:
                with self._asked(names[start]):
                    obstore.delete(self._store, list(names[start : start + _DELETED_AT_ONCE]))
            except FileNotFoundError:
                continue

    def now(self) -> float:
        """The store's clock, seconds since 1970: ages are told by it alone, whatever this machine's clock says.

        Learnt once, from an object that is written for it.
        """
        if self._offset is None:
            name = f".CURRENT.clock-{uuid4().hex}"
            before = boot_clock()
            self.write(name, b"")
            entry = self.find(name)
            self.remove([name])
            if entry is None:
                raise BankError(f"{self.url}: an object that was written is not there: the store cannot hold a bank")
            self._offset = entry.modified - before
        return boot_clock() + self._offset

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except Memory3Error:
            raise
        except (AlreadyExistsError, PreconditionError) as error:
            raise _Refused(str(error)) from error
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, UnsafeFile):
                raise
            fault = store_fault(self.url, error)
            if isinstance(error, FileNotFoundError) and not isinstance(fault, BankNotFound):
                raise FileNotFoundError(errno.ENOENT, "is not there", f"{self.url}/{name}") from error
            text = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise fault or BankError(f"{self.url}: the store refuses this ({text})") from error


class _Refused(Exception):
    """A condition was not met."""


def _entry(about: Any) -> Entry:
    tag = Tag(about.get("e_tag"), about.get("version"))
    return Entry(str(about["path"]), int(about["size"]), about["last_modified"].timestamp(), tag)


def _tag(result: Any) -> Tag:
    return Tag(result.get("e_tag"), result.get("version"))


def _profile(url: str, options: Mapping[str, str]) -> Any:
    """Keys of ``~/.aws``, which Lance reads and object_store does not, where boto3 is there to read them."""
    named = {"aws_access_key_id", "access_key_id", "aws_skip_signature", "skip_signature"}
    if not url.startswith("s3://") or named & set(options) or {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"} & set(os.environ):
        return None
    try:
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = Session()
    return Boto3CredentialProvider(session) if session.get_credentials() is not None else None
