"""`Banks`: the banks that a server serves, by name, and who sees which. Each is one model id: ``smollm2-135m-instruct@docs``.

Safe to use from several threads. Banks may come and go while others are read.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.errors import ConfigError, FingerprintMismatch, ServingError
from memory3.llm import Memory3
from memory3.serving.errors import not_found
from memory3.serving.keys import Tenant

__all__ = ["Banks", "Served", "model_name"]

#: Names of banks and models in ids.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Served:
    """A bank that is served.

    Attributes:
        name: of the bank.
        bank: an open `Bank`, or whatever is read like one.
        owner: name of the tenant that made it; None: it was there from the start.
        about: what else is to be known of it, by whoever added it.
    """

    name: str
    bank: Any
    owner: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


class Banks:
    """The banks of a server, which are all read by one model.

    Attributes:
        model: how the model is called; the id of the model without a bank.
    """

    def __init__(self, m3: Memory3, model: str | None = None) -> None:
        """
        Args:
            m3: reads them.
            model: how it is called; None: by the name it was loaded by.

        Raises:
            ConfigError: a name that no id can have.
        """
        self.model = check_name("model", model_name(m3.name) if model is None else model)
        self._m3 = m3
        self._embedders: dict[str, Any] = {}
        self._served: dict[str, Served] = {}
        self._foreign: dict[str, tuple[Any, FingerprintMismatch]] = {}  # banks that became another model's while served
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def open(self, name: str, path: str | Path, **cache: int) -> Bank:
        """Open a bank that exists and serve it. Its embedder is loaded now, and shared with other banks of the same one.

        Args:
            name: it is served by.
            path: its folder.
            cache: bounds of its tiers, as `Bank.open` takes them: ``device_bytes``, ``cache_bytes``, ``disk_bytes``.

        Raises:
            ConfigError: a name that no id can have, or that is taken.
            BankNotFound: there is none.
            ServingError: it is of another model than the others.
        """
        check_name("bank", name)
        manifest = Bank.describe(path)
        try:
            given = self._embedders.get(manifest.embedder)
            bank = Bank.open(path, self._m3, create=False, embedder=given, **cache)  # type: ignore[arg-type]
        except FingerprintMismatch as error:
            raise ServingError(
                f"the bank {name!r} ({path}) cannot be served by {self.model}: {error} Or give it a server of its own."
            ) from error
        self._embedders[manifest.embedder] = bank.embedder
        self.add(Served(name, bank))
        return bank

    def add(self, served: Served) -> None:
        """Serve one more.

        Raises:
            ConfigError: its name is taken, or no id can have it.
        """
        check_name("bank", served.name)
        with self._lock:
            if served.name in self._served:
                raise ConfigError(f"two banks are called {served.name!r}: give one another name with NAME=DIR")
            self._served[served.name] = served

    def remove(self, name: str) -> Served | None:
        """Serve one no longer. Whoever reads it goes on; it is not closed. Returns what was served."""
        with self._lock:
            self._foreign.pop(name, None)
            return self._served.pop(name, None)

    def __iter__(self) -> Iterator[Served]:
        with self._lock:
            return iter(list(self._served.values()))

    def __len__(self) -> int:
        return len(self._served)

    @property
    def names(self) -> list[str]:
        """Of all banks."""
        return [one.name for one in self]

    def seen_by(self, tenant: Tenant) -> list[Served]:
        """The banks that a tenant sees."""
        return [one for one in self if tenant.sees(one.name, one.owner)]

    def get(self, name: str, tenant: Tenant, param: str | None = None) -> Served:
        """A bank by name.

        Args:
            name: as a client says it.
            tenant: who asks.
            param: the field that named it, for the error.

        Raises:
            Refused: 404: there is none, or this tenant does not see it, which is the same.
            FingerprintMismatch: somebody rebuilt it for another model. What is open of it is old: of what was deleted since
                it knows nothing.
        """
        with self._lock:
            found = self._served.get(name)
            foreign = self._foreign.get(name)
        # Both questions are always asked, so that neither answer comes sooner.
        seen = tenant.sees(name, found.owner if found else None)
        if found is None or not seen:
            raise not_found("bank", name, param, "bank_not_found")
        if foreign is not None and foreign[0] is found.bank:
            raise FingerprintMismatch(
                foreign[1].bank, foreign[1].model
            )  # one error of many threads would grow by each of them
        return found

    # ---- model ids ---------------------------------------------------------------------------------------------------

    def id_of(self, name: str) -> str:
        """The model id of a bank."""
        return f"{self.model}@{name}"

    def of_model(self, model: str, tenant: Tenant) -> Served | None:
        """The bank of a model id; None: the model without a bank.

        Args:
            model: as a client says it: the model, or the model, ``@`` and a bank.
            tenant: who asks.

        Raises:
            Refused: 404: there is none, or this tenant does not see its bank.
        """
        base, at, name = model.partition("@")
        try:
            if base != self.model:
                raise not_found("bank", name)
            return self.get(name, tenant) if at else None
        except ServingError:
            raise not_found("model", model, "model", "model_not_found") from None

    # ---- upkeep ------------------------------------------------------------------------------------------------------

    def watch(self, seconds: float, failed: Callable[[str, Exception], None]) -> threading.Thread:
        """See what others write to the banks, now and then, until `close`.

        Args:
            seconds: between two looks.
            failed: is told of a bank that cannot be read, by name; it is tried again at the next look.
        """

        def look() -> None:
            while not self._closed.wait(seconds):
                for one in self:
                    try:
                        one.bank.refresh()
                    except Exception as error:  # whatever it is: the other banks, and this one later, are looked at again
                        if isinstance(error, FingerprintMismatch):
                            with self._lock:
                                self._foreign[one.name] = one.bank, error
                        failed(one.name, error)
                    else:
                        with self._lock:
                            self._foreign.pop(one.name, None)

        thread = threading.Thread(target=look, name="memory3-banks", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Close all banks."""
        self._closed.set()
        for one in self:
            self.remove(one.name)
            one.bank.close()


def model_name(name: str) -> str:
    """A short name for a model: of a folder or a hub id its last part, without its adapter.

    Args:
        name: what it was loaded by.
    """
    last = Path(name.partition("+")[0]).name
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")
    return short[:128] or "model"


def check_name(what: str, name: str) -> str:
    """A name as it is, if an id can have it.

    Args:
        what: is called so.
        name: as somebody gave it.

    Raises:
        ConfigError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r:.80} is no name for a {what}: use letters, digits, '.', '_' and '-' (at most 128)")
    return name
