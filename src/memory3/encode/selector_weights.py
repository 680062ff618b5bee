"""What was fitted of a selector, as a safetensors file by the model's fingerprint. Knows no fitting.

    <cache folder>/selectors/<fingerprint of the whole model>.safetensors
    <folder of the adapter or model>/selector.safetensors      as training leaves it

Other kinds than ``learned`` have ``-<kind>`` in front of the ending. Tensor ``weights``: float32 ``[L, width, H]``, L layers
of full attention, the width as the selector says; its metadata has one key, ``memory3``: JSON with ``version``, ``kind``
(absent: ``learned``), ``model`` (that fingerprint; beside an adapter `adapter_mark`, so that the number format of the weights
does not matter), ``layers`` and ``about``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError

from memory3.errors import ModelError
from memory3.files import parse_json, write_atomically
from memory3.models.calibrated import calibrated, kept_under, own_calibrated

__all__ = ["SelectorWeights", "adapter_mark", "find_weights", "keep_weights"]

VERSION = 1
#: The kind whose files have no kind in their names.
_FIRST = "learned"
_REMEDY = "delete it, or fit it anew"


@dataclass(frozen=True, eq=False)
class SelectorWeights:
    """A fitted selector.

    Attributes:
        model: fingerprint of the whole model with its prefix; `adapter_mark` beside an adapter.
        layers: L indices of layers of the model, ascending.
        weights: float32 ``[L, width, H]``.
        about: how it was fitted. Decides nothing.
        kind: `memory3.encode.selectors.Selector.fitted_as`, and of those that are for one budget that budget.
    """

    model: str
    layers: tuple[int, ...]
    weights: torch.Tensor
    about: Mapping[str, Any] = field(default_factory=dict)
    kind: str = _FIRST

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over the weights."""
        return xxhash.xxh3_128_hexdigest(self.weights.contiguous().numpy().tobytes())

    @property
    def by_layer(self) -> dict[int, torch.Tensor]:
        """The weights of each layer by its number in the model, as selectors are made of them."""
        return dict(zip(self.layers, self.weights, strict=True))


def keep_weights(found: SelectorWeights, folder: Path | None = None) -> Path:
    """Put them into the cache folder, or into the folder of the adapter or model.

    Args:
        found: what calibration fitted.
        folder: of an adapter or model; None: the cache folder.
    """
    path = folder / _file("selector", found.kind) if folder else own_calibrated("selectors", _file(found.model, found.kind))
    said = {"version": VERSION, "kind": found.kind, "model": found.model, "layers": found.layers, "about": dict(found.about)}
    header = json.dumps(said, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.torch.save({"weights": found.weights.contiguous()}, {"memory3": header}))
    return path


def find_weights(
    model: str, layers: tuple[int, ...], width: int, heads: int, folder: Path | None = None, kind: str = _FIRST
) -> SelectorWeights | None:
    """What was fitted to the model of this fingerprint, or to the same weights in another number format, if anything:
    L ``layers``, ``width`` rows, H ``heads``.

    Args:
        kind: of selector.
        folder: of the adapter or model, where training may have left it.

    Raises:
        ModelError: the file there cannot be used.
    """
    names = {each: ("selectors", _file(each, kind)) for each in kept_under(model)}
    left = folder / _file("selector", kind) if folder else None
    if folder and left and left.is_file() and not any(own_calibrated(*name).is_file() for name in names.values()):
        found = _read(left, kind, layers, width, heads)
        if found.model in (*names, adapter_mark(folder)):  # else weights have changed since
            return found
    for each, name in names.items():
        path = calibrated(*name)
        if path is None:
            continue
        found = _read(path, kind, layers, width, heads)
        if found.model != each:
            raise ModelError(f"{path} is for the model {found.model}, not {each}: {_REMEDY}")
        return found
    return None


def adapter_mark(folder: Path) -> str:
    """Of an adapter's weights as they are stored: 32 hex digits; empty where the folder has none."""
    path = folder / "adapter_model.safetensors"
    return xxhash.xxh3_128_hexdigest(path.read_bytes()) if path.is_file() else ""


def _file(name: str, kind: str) -> str:
    return f"{name}.safetensors" if kind == _FIRST else f"{name}-{kind}.safetensors"


def _read(path: Path, kind: str, layers: tuple[int, ...], width: int, heads: int) -> SelectorWeights:
    try:
        data = path.read_bytes()
        weights = safetensors.torch.load(data)["weights"]
        header = parse_json(parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["memory3"])
        found = SelectorWeights(header["model"], tuple(header["layers"]), weights, header["about"], header.get("kind", _FIRST))
        version = header["version"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error!r}): {_REMEDY}") from error
    shape = (len(layers), width, heads)
    fits = (
        tuple(weights.shape) == shape
        and found.layers == layers
        and found.kind == kind
        and weights.dtype == torch.float32
        and bool(weights.isfinite().all())
    )
    if version != VERSION or not fits:
        raise ModelError(
            f"{path} is {found.kind}, version {version}, with weights {tuple(weights.shape)}, wanted are {kind}, version "
            f"{VERSION} and finite float32 {shape}: {_REMEDY}"
        )
    return found
