"""Research lies beside the package in a checkout of the repository and is in no wheel: the one way from a command to it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from memory3.errors import NeedsCheckout

__all__ = ["ROOT", "research"]

#: Of the checkout, where this is one: ``ROOT/src/memory3/checkout.py`` is this file.
ROOT = Path(__file__).resolve().parents[2]


def research(module: str, command: str) -> ModuleType:
    """Import ``research.<module>`` of the checkout that this package is part of.

    Called where it is needed and never while the package is imported.

    Args:
        module: its name below ``research``, such as ``"benchmarks.front"``.
        command: what asks for it, such as ``"memory3 bench front"``, for the message.

    Raises:
        NeedsCheckout: the package was installed without the repository, as from a wheel.
    """
    if not (ROOT / "research" / "__init__.py").is_file():
        raise NeedsCheckout(command, ROOT)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return import_module(f"research.{module}")
