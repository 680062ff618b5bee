"""Token selectors: how important is each token of a reference to each KV head?

A selector gives a score per (reference, KV head, token) in one layer; `memory3.encode.budget` turns scores into kept pairs. A
new selector is one file put into this folder, with a class that `register` decorates and one overridden function; no list
names it. It imports torch where it computes and not at its top, so that plans are made without torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from memory3.encode.selectors.base import SELECTORS, LayerView, Selector, register
from memory3.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["SELECTORS", "LayerView", "Selector", "find", "help", "is_fitted", "register", "selector"]

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")


def find(name: str) -> type[Selector]:
    """The selector of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SELECTORS:
        raise ConfigError(f"selector {name!r} is unknown: use one of {', '.join(sorted(SELECTORS))}")
    return SELECTORS[name]


def help() -> str:
    """What the option ``--selector`` says: every selector in half a sentence."""
    return "; ".join(f"{name} ({kind.help})" for name, kind in sorted(SELECTORS.items()))


def is_fitted(name: str) -> bool:
    """Does the selector of that name need weights that were fitted to the model? False where there is none."""
    return bool(SELECTORS.get(name, Selector).fitted_as)


def selector(name: str, weights: Mapping[int, torch.Tensor] | None = None) -> Selector:
    """A selector to score with.

    Args:
        name: of the selector.
        weights: what was fitted, by layer, for those that are fitted.

    Raises:
        ConfigError: there is none of that name, or it is not fitted.
    """
    kind = find(name)
    if kind.fitted_as and weights is None:
        raise ConfigError(f"selector {name!r} was not fitted to this model yet: fit it, or use reconstruction")
    return kind(weights) if kind.fitted_as else kind()
