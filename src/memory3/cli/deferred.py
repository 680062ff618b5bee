"""Packages that run when a name of them is asked for, so that a command does not wait for what it never uses.

Some libraries import a package for the sake of one module in it, and the package's own ``__init__`` then takes half a
second or more to gather names that nothing here needs. `defer` lets such an ``__init__`` wait: modules in the package
are imported as ever, and the first look at any other name of the package runs it. What is found is the same, later.

Only the command line does this, in a process that is its own. ``import memory3`` changes nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["PACKAGES", "UNUSED", "alone", "defer", "without"]

#: What waits, and for what sake it is imported.
PACKAGES = (
    "torch._dynamo",  # the compiler; the masks of transformers need one module in it
    "lance_namespace_urllib3_client",  # clients of a remote catalogue; lancedb needs the classes in its `models`
    "transformers.models",  # reads every file of every model for their names; AutoModel imports the one it needs by itself
)
#: Decorators of torch's compiler that modules use while they are imported. A function is the same without its compiler: of the
#: first two it is told once it runs, and what the last gives asks for it at each call.
_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")
#: Where they are installed, transformers imports scipy for losses of models that see, and accelerate for models that are
#: spread over devices. Answering a question uses neither.
UNUSED = ("scipy", "accelerate")
#: The module of the compiler that can be had before it. The others import one another in the order in which it begins.
_MASKS = "torch._dynamo._trace_wrapped_higher_order_op"
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


def alone() -> None:
    """From now on libraries find neither other processes nor pandas, where they ask as they are imported.

    Transformers takes torch to be built without its distributed part, which is 200 modules. Pyarrow, which looks for
    pandas at its first value and remembers what it found, finds none. A process that has imported them already stays as it is.
    """
    if "transformers.modeling_utils" not in sys.modules:
        from transformers import utils
        from transformers.utils import import_utils

        for module in (utils, import_utils):
            if hasattr(module, "is_torch_distributed_available"):
                vars(module)["is_torch_distributed_available"] = lambda: False
    if "pandas" not in sys.modules:
        finder = _Absent()
        sys.meta_path.insert(0, finder)
        try:
            import pyarrow.dataset  # noqa: F401
        finally:
            sys.meta_path.remove(finder)


class _Package(ModuleType):
    """A package whose ``__init__`` has not run yet."""

    def __getattr__(self, name: str) -> Any:
        """A name that is no module of the package imported so far: the package is run."""
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _LOCK:
            if "_memory3_loader" in self.__dict__ and self.__name__ == "torch._dynamo" and name in _DECORATORS:
                return partial(self._decorate, name)
            self.run()
        found = sys.modules[self.__name__]  # it may have put another object in its place, as transformers does
        if found is self and name not in self.__dict__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(found, name)

    def _decorate(self, name: str, function: Any = None, *arguments: Any, **options: Any) -> Any:
        """What a decorator of the waiting compiler gives."""
        if function is None:
            return lambda found: self._decorate(name, found, *arguments, **options)
        with _LOCK:
            if "_memory3_loader" in self.__dict__ and isinstance(function, FunctionType):
                if name == "disable":
                    return self._disabled(function, *arguments, **options)
                self.__dict__.setdefault("_memory3_untold", []).append((name, function))
                return function
        self.run()
        return getattr(self, name)(function, *arguments, **options)

    def _disabled(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """A function that the compiler, should it ever run, leaves alone."""
        real: list[Any] = []

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            if "_memory3_loader" in self.__dict__:
                return function(*given, **named)
            if not real:
                real.append(self.__dict__["disable"](function, *arguments, **options))
            return real[0](*given, **named)

        return call

    def run(self) -> None:
        """The package's ``__init__``, if it has not run."""
        with _LOCK:
            loader = self.__dict__.pop("_memory3_loader", None)
            if loader is not None:
                loader.exec_module(self)
                for name, function in self.__dict__.pop("_memory3_untold", ()):
                    self.__dict__[name](function)


class _Absent(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Pandas is not there. None in `sys.modules` would not do: pyarrow is compiled, and takes it for a module."""
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not used here", name=fullname)


class _There(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that was imported meanwhile."""
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has run."""


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
        if fullname.startswith("torch._dynamo.") and fullname != _MASKS:
            waiting = sys.modules["torch._dynamo"]
            if isinstance(waiting, _Package):
                waiting.run()
                if fullname in sys.modules:  # in its place and its order
                    return ModuleSpec(fullname, _There())
            return None
        if fullname not in self._packages:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
            spec.loader = _Waiting(spec.loader)
        return spec
