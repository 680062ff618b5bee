"""Packages that run when a name of them is asked for, so that a command does not wait for what it never uses.

Some libraries import a package for the sake of one module in it, and the package's own ``__init__`` then takes half a
second or more to gather names that nothing here needs. `defer` lets such an ``__init__`` wait: modules in the package
are imported as ever, and the first look at any other name of the package runs it. What is found is the same, later.

Only the command line does this, in a process that is its own. ``import memory3`` changes nothing.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["PACKAGES", "UNUSED", "collecting_later", "defer", "without"]

#: What waits, and for what sake it is imported.
PACKAGES = (
    "lance_namespace_urllib3_client",  # clients of a remote catalogue; lancedb needs the classes in its `models`
    "transformers.models",  # reads every file of every model for their names; AutoModel imports the one it needs by itself
)
#: Transformers imports it, where it is installed, for losses of models that see. Answering a question does not use it.
UNUSED = ("scipy",)
_LOCK = threading.RLock()


def defer(packages: Sequence[str] = PACKAGES) -> None:
    """From now on these packages wait for the first look at a name of theirs.

    Those that are imported already stay as they are.
    """
    sys.meta_path.insert(0, _Finder(frozenset(packages)))


@contextmanager
def without(packages: Sequence[str] = UNUSED) -> Iterator[None]:
    """Packages that are installed count as not installed while the block runs: None in `sys.modules` says so to Python.

    For a block that only imports. What finds them missing there remembers it, so this is for a command that never needs them.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def collecting_later() -> Iterator[None]:
    """No garbage collection while the block runs.

    Imports make many objects that stay, and going through them again and again costs a tenth of the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Package(ModuleType):
    """A package whose ``__init__`` has not run yet."""

    def __getattr__(self, name: str) -> Any:
        """A name that is no module of the package imported so far: the package is run."""
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _LOCK:
            loader = self.__dict__.pop("_memory3_loader", None)
            if loader is not None:
                loader.exec_module(self)
        found = sys.modules[self.__name__]  # it may have put another object in its place, as transformers does
        if found is self and name not in self.__dict__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(found, name)


class _Waiting(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty package."""
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Not yet."""
        module.__dict__["_memory3_loader"] = self._loader


class _Finder(MetaPathFinder):
    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The usual spec of a package, with a loader that waits; of anything else nothing."""
        if fullname not in self._packages:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
            spec.loader = _Waiting(spec.loader)
        return spec
