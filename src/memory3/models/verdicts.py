"""Verdicts of `memory3 check` as they are kept: one JSON file for each model and what its memories were checked with. Knows no
measurement.

    verdicts/<fingerprint of the whole model>/<name>.json      in the cache folder, or as it comes with memory3

A name is a hash of what a verdict is for: the fingerprint of the memories (weights, layers, budget, selector, number format of
keys and values), codec and codebook, and how they are read: temperature and arrangement. Questions of a check read one
reference, so that a discount of ranks changes nothing. A verdict serves the same weights in other number formats
(`memory3.models.calibrated`), and says in which it was found.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import xxhash

from memory3.errors import ModelError
from memory3.files import parse_json, read_bounded, write_atomically
from memory3.models.calibrated import calibrated, kept_files, kept_under, own_calibrated

__all__ = ["KeptVerdict", "VerdictScope", "find_verdict", "has_verdicts", "keep_verdict"]

VERSION = 1
_FOLDER = "verdicts"
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class VerdictScope:
    """What a verdict is for.

    Attributes:
        model: fingerprint of the whole model.
        memories: fingerprint of its memories.
        codec: name of the codec that packed them.
        code_book: fingerprint of its codebook; empty: it has none.
        temperature: of memories.
        arrangement: where they lie (`memory3.attention.layout.arrangement`).
    """

    model: str
    memories: str
    codec: str
    code_book: str
    temperature: float
    arrangement: str

    @property
    def file(self) -> str:
        """Name of its file."""
        said = f"{self.memories} {self.codec} {self.code_book} {float(self.temperature)!r} {self.arrangement}"
        return f"{xxhash.xxh3_128_hexdigest(said.encode())}.json"

    def in_formats(self) -> list[VerdictScope]:
        """This, and the same of these weights in other number formats under which something may be kept."""
        return [
            dataclasses.replace(self, model=model, memories=memories)
            for model in kept_under(self.model)
            for memories in kept_under(self.memories)
        ]


@dataclass(frozen=True)
class KeptVerdict:
    """A verdict, and what it was found with.

    Attributes:
        scope: what it is for.
        name: of the model.
        dtype: number format of the weights it was found in.
        budget: of the memories.
        selector: of their pairs.
        choice: ``"use"``, ``"use with more bytes"`` or ``"don't use"``.
        ok: whether they may be used at all.
        sentence: the choice with its reason.
        settings: that it advises instead, by their names on the command line.
        questions: how many it rests on; 0: it was clear before any was asked.
        finished: when, ISO 8601.
        version: of memory3.
    """

    scope: VerdictScope
    name: str
    dtype: str
    budget: str
    selector: str
    choice: str
    ok: bool
    sentence: str
    settings: dict[str, str]
    questions: int
    finished: str
    version: str


#: What a field of a file must be.
_KINDS = {"ok": bool, "settings": dict, "questions": int, "temperature": float}


def keep_verdict(verdict: KeptVerdict) -> None:
    """Put a verdict into the cache folder, in place of an earlier one for the same. Raises OSError.

    Args:
        verdict: what `memory3 check` found.
    """
    path = own_calibrated(_FOLDER, verdict.scope.model, verdict.scope.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"kept": VERSION, **dataclasses.asdict(verdict)}, indent=2) + "\n")


def find_verdict(scope: VerdictScope) -> KeptVerdict | None:
    """What was found for exactly this, in this number format of the weights or another; None: it was never checked.

    Args:
        scope: what is asked about.

    Raises:
        ModelError: the file there cannot be used.
    """
    for asked in scope.in_formats():
        path = calibrated(_FOLDER, asked.model, asked.file)
        if path is None:
            continue
        try:
            found = _read(parse_json(read_bounded(path, _MOST_BYTES)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} cannot be read ({error!r}): delete it, or check the model anew") from error
        if found.scope != asked:
            raise ModelError(f"{path} is the verdict on something else: delete it, or check the model anew")
        return found
    return None


def has_verdicts(model: str) -> bool:
    """Whether a model was ever checked, with whatever settings.

    Args:
        model: fingerprint of the whole model.
    """
    return any(True for each in kept_under(model) for _ in kept_files(_FOLDER, each))


def _read(data: Any) -> KeptVerdict:
    if data["kept"] != VERSION:
        raise ValueError(f"version {data['kept']!r:.20}, not {VERSION}")
    scope = {field.name: data["scope"][field.name] for field in dataclasses.fields(VerdictScope)}
    rest = {field.name: data[field.name] for field in dataclasses.fields(KeptVerdict) if field.name != "scope"}
    for name, value in (*scope.items(), *rest.items()):
        if type(value) is not _KINDS.get(name, str):
            raise TypeError(f"{name} is {value!r:.40}")
    if not all(isinstance(value, str) for value in rest["settings"].values()):
        raise TypeError(f"settings are {rest['settings']!r:.40}")
    return KeptVerdict(VerdictScope(**scope), **rest)
