"""Token selectors: how important is each token of a reference to each KV head?

A selector gives a score per (reference, KV head, token) in one layer; `memory3.encode.budget` turns scores into kept pairs. A new selector
is one small file with one overridden function, and a line in `SELECTORS`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from memory3.encode.selectors.attention import AttentionMass
from memory3.encode.selectors.base import LayerView, Selector
from memory3.encode.selectors.blended import Blended
from memory3.encode.selectors.controls import First, Random
from memory3.encode.selectors.learned import Learned
from memory3.encode.selectors.reconstruction import Reconstruction
from memory3.errors import ConfigError

__all__ = ["SELECTORS", "LayerView", "Selector", "is_fitted", "selector"]

SELECTORS: dict[str, type[Selector]] = {s.name: s for s in (AttentionMass, Reconstruction, Learned, Blended, Random, First)}


def is_fitted(name: str) -> bool:
    """Does the selector of that name need weights that were fitted to the model?"""
    return issubclass(SELECTORS.get(name, Selector), Learned)


def selector(name: str, weights: Mapping[int, torch.Tensor] | None = None) -> Selector:
    """The selector of that name; ``weights``: what `Learned` was fitted to be.

    Raises:
        ConfigError: there is none of that name, or it is not fitted.
    """
    if name not in SELECTORS:
        raise ConfigError(f"selector {name!r} is unknown: use one of {', '.join(SELECTORS)}")
    kind = SELECTORS[name]
    if not issubclass(kind, Learned):
        return kind()
    if weights is None:
        raise ConfigError(
            f"selector {name!r} was not fitted to this model yet: `memory3 calibrate --selector {name}` does it, or use reconstruction"
        )
    return kind(weights)
