"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from memory3.codec import registry
from memory3.config import Budget as MemoryBudget
from memory3.config import MemoryConfig
from memory3.encode import selectors
from memory3.errors import ConfigError, InputError

__all__ = [
    "Adapter",
    "AnyModel",
    "Bank",
    "BatchSize",
    "Budget",
    "CacheDevice",
    "CacheDisk",
    "CacheRam",
    "Codec",
    "Data",
    "Device",
    "Dtype",
    "Json",
    "Layers",
    "MemoryPrefix",
    "Model",
    "Preset",
    "ReferenceLength",
    "Selector",
    "Wait",
    "byte_count",
    "cache_bytes",
    "folder",
    "named",
    "not_empty",
    "place",
    "settings",
]

_ADDRESSES = ("http:", "https:", "s3:", "gs:", "az:")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

SETTINGS = "How memories are written (a bank remembers it)"
READING = "How memories are read"
MACHINE = "Machine"
MODEL = "Model"
CACHE = "Cache of memories"


def folder(value: Path | None) -> Path | None:
    """A bank's folder. An address would become the folder ``http:`` here, and be written to."""
    if value is not None and value.parts[:1] and value.parts[0].lower() in _ADDRESSES:
        raise typer.BadParameter("is an address, and this takes a folder: run it where the bank lies. `ask` reads addresses")
    return value


def place(value: str | None) -> str | None:
    """A bank's folder, or its URL on object storage."""
    if value is None or not (scheme := _SCHEME.match(value)) or scheme[1].lower() in ("http", "https"):
        return None if value is None else str(folder(Path(value)))
    from memory3.bank.address import checked_store_url  # and all that a bank needs

    try:
        return checked_store_url(value)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


Bank = Annotated[
    str,
    typer.Option(
        "--bank",
        "-b",
        callback=place,
        help="Folder of the bank, or its URL on object storage: s3://bucket/bank, gs://, az://.",
        envvar="MEMORY3_BANK",
        metavar="DIR|URL",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]


def not_empty(value: str | None) -> str | None:
    """A name. An empty one, as an unset variable gives it, is wrong usage."""
    if value is not None and not value.strip():
        raise typer.BadParameter("the name is empty: is the variable set that you gave here?")
    return value


Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", callback=not_empty, help="Catalogue name, hub id or folder. Default: the bank's own.", metavar="MODEL"
    ),
]
AnyModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        callback=not_empty,
        help="Catalogue name, hub id or folder, or one of these+ADAPTER. Default: smollm2-135m-instruct with its adapter.",
        metavar="MODEL",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Files or folders like those that will be written; may be repeated. Default: Python's language reference.",
        metavar="PATH",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        help=(
            "Adapter to merge into the model: a folder, smollm2-135m-instruct-1440 or smollm2-135m-instruct-360 "
            "(shipped), or none. Default: the bank's own; smollm2-135m-instruct-1440 where no model is named."
        ),
        metavar="DIR|NAME|none",
        rich_help_panel=MODEL,
    ),
]
CacheDevice = Annotated[
    str | None,
    typer.Option(
        help="Of each bank, on the device that reads; 0: none. Default: 1 GiB on a GPU, 0 on a CPU, which reads from RAM.",
        metavar="SIZE",
        rich_help_panel=CACHE,
    ),
]
CacheRam = Annotated[
    str | None, typer.Option(help="Of each bank, in RAM; 0: none. Default: 1 GiB.", metavar="SIZE", rich_help_panel=CACHE)
]
CacheDisk = Annotated[
    str | None,
    typer.Option(
        help="On this disk, of all banks that do not lie on it; 0: none. Default: 4 GiB.",
        metavar="SIZE",
        rich_help_panel=CACHE,
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        help="How long to wait while another process writes this bank.",
        metavar="SECONDS",
        min=0,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU where there is one.", metavar="NAME", rich_help_panel=MACHINE),
]
ModelDtype = Annotated[
    str | None,
    typer.Option(
        "--model-dtype",
        help="Number format of the weights: float32, bfloat16, float16. Default: float32 on a CPU, as saved elsewhere.",
        metavar="NAME",
        rich_help_panel=MACHINE,
    ),
]
MemoryTemperature = Annotated[
    float | None,
    typer.Option(
        help=(
            "Divides the logits of memories where they are read. Default: what the bank says, which is what the adapter "
            "was trained with (1, as in the paper), or 0.9 for a model without."
        ),
        min=0.1,
        max=10,
        metavar="X",
        rich_help_panel=READING,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(help="References per forward pass. Less needs less RAM.", metavar="N", min=1, rich_help_panel=MACHINE),
]

Preset = Annotated[
    str | None,
    typer.Option(
        help="default: 1/8 of all key-value pairs. paper: first half of the layers, 8 tokens per head. full: everything. "
        "The options below change single settings of it.",
        metavar="default|paper|full",
        rich_help_panel=SETTINGS,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Memory layers: all, first_half, middle_half, last_half, a slice such as 4:20, or indices such as 3,5,7.",
        metavar="LAYERS",
        rich_help_panel=SETTINGS,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        help=f"Key-value pairs kept per reference: {MemoryBudget.help()}.",
        metavar="BUDGET",
        rich_help_panel=SETTINGS,
    ),
]
Selector = Annotated[
    str | None,
    typer.Option(
        help=f"What decides which pairs are kept: {selectors.help()}. `memory3 calibrate` fits.",
        metavar="NAME",
        rich_help_panel=SETTINGS,
    ),
]
ReferenceLength = Annotated[
    int | None, typer.Option(help="Tokens per reference at most.", metavar="N", rich_help_panel=SETTINGS)
]
MemoryPrefix = Annotated[
    str | None,
    typer.Option(
        "--memory-prefix",
        "--beginning",
        help='Text that references are encoded behind. auto: cut from the chat template, else "<bos>Reference:".',
        metavar="TEXT",
        rich_help_panel=SETTINGS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="How numbers are stored: float16, bfloat16, float32.", metavar="NAME", rich_help_panel=SETTINGS),
]
Codec = Annotated[
    str | None,
    typer.Option(
        help=f"How memories are kept: {registry.help()}. Or two for keys and values, int8+int4. All but raw are fitted first, "
        "which takes some minutes once.",
        metavar="NAME",
        rich_help_panel=SETTINGS,
    ),
]


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}


def byte_count(text: str | None) -> int | None:
    """``"10GB"`` as 10,000,000,000; None as None. What is no size is wrong usage."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGTP]?B)?\s*", text, re.IGNORECASE)
    try:
        size = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    except ValueError:
        size = 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is no size: write 500MB, 10GB or 2TB")
    return size


def cache_bytes(device: str | None, ram: str | None, disk: str | None) -> dict[str, int]:
    """Bounds of the cache's tiers as `Bank.open` takes them, those that were given; a size as of `byte_count`, or 0."""
    given = {"device_bytes": device, "cache_bytes": ram, "disk_bytes": disk}
    return {name: 0 if text.strip() == "0" else byte_count(text) or 0 for name, text in given.items() if text is not None}


def named(given: Mapping[str, Any]) -> list[str]:
    """Which of a command's parameters are settings that were given, the preset among them; ``given`` as of `settings`."""
    # `prefix` is the setting, and --prefix of `memory3 write` something else: the option of the setting has a longer name.
    names = {"memory_prefix" if field.name == "prefix" else field.name for field in dataclasses.fields(MemoryConfig)}
    return [name for name, value in given.items() if name in names | {"preset"} and value is not None]


def settings(base: MemoryConfig, given: Mapping[str, Any]) -> MemoryConfig:
    """``base``, or the preset where one is named, with the settings among a command's parameters. Wrong ones are wrong usage.

    ``given`` is a typer context's ``params``: what is None there was not given, what is no setting is passed over.
    """
    changes = {name: given[name] for name in named(given) if name != "preset"}
    if "memory_prefix" in changes:
        changes["prefix"] = changes.pop("memory_prefix")
    layers = changes.get("layers")
    try:
        if isinstance(layers, str) and layers.replace(",", "").replace(" ", "").isdigit():
            changes["layers"] = tuple(int(index) for index in layers.split(",") if index.strip())
        preset = given.get("preset")
        found = (MemoryConfig.preset(preset) if preset else base).replace(**changes)
        selectors.find(found.selector)
        return found.replace(codec=registry.check(found.codec))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
