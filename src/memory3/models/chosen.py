"""Settings that `memory3 calibrate --choose` chose for a model, kept by the model's name: they are wanted before it is loaded.

    settings/<hash of the name>.json      in the cache folder

They are settings like any others. Whether memories made with them can be trusted says the verdict, which is kept by the
model's weights (`memory3.models.verdicts`): where a folder holds other weights by now, there is none for them.
"""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

from memory3.config import MemoryConfig
from memory3.errors import ModelError
from memory3.files import read_json, write_atomically
from memory3.models.adapter import adapter_of, shipped, trained_config
from memory3.models.calibrated import own_calibrated
from memory3.models.catalogue import MODELS

__all__ = ["keep_settings", "settings_of"]

VERSION = 1


def settings_of(name: str) -> MemoryConfig | None:
    """The settings chosen for a model on this machine, or else those that it was trained for; None: neither.

    Args:
        name: of the model, with its adapter behind a ``+``.

    Raises:
        ModelError: what is kept cannot be read.
    """
    path = _path(name)
    if not path.is_file():
        return trained_config(name)
    try:
        data = read_json(path)
        if (data["kept"], data["name"]) != (VERSION, _known_as(name)):
            raise ValueError(f"version {data['kept']!r:.20} of {data['name']!r:.80}")
        return MemoryConfig.from_dict(data["memory"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): delete it, or choose anew with `memory3 calibrate`") from error


def keep_settings(name: str, config: MemoryConfig) -> Path:
    """Keep settings for a model, in place of those that were chosen before. Raises OSError.

    Args:
        name: of the model, with its adapter behind a ``+``.
        config: what was chosen.
    """
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"kept": VERSION, "name": _known_as(name), "memory": config.to_dict()}
    write_atomically(path, json.dumps(said, indent=2) + "\n")
    return path


def _path(name: str) -> Path:
    return own_calibrated("settings", f"{xxhash.xxh3_128_hexdigest(_known_as(name).encode())}.json")


def _known_as(name: str) -> str:
    """The name, a folder by its absolute path."""
    model, adapter = adapter_of(name)
    model, adapter = (
        str(Path(each).resolve()) if each and each not in (*MODELS, *shipped()) and Path(each).is_dir() else each
        for each in (model, adapter)
    )
    return f"{model}+{adapter}" if adapter else model
