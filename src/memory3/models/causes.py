"""Why a model cannot be loaded, in one sentence: what transformers raised, and what the files in the folder tell about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from memory3.errors import Memory3Error, ModelError
from memory3.models.catalogue import suggest

__all__ = ["check_size", "is_layer_beyond", "loading", "missing_weights"]

#: A Git LFS pointer is a text of some 130 bytes that begins so.
_POINTER = b"version https://git-lfs"
#: Weights that are read by running a pickle.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

#: How configs call the number of layers, and what no model has more of.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MOST_LAYERS = 10_000
_CONFIG_BYTES = 16 << 20


@contextmanager
def loading(what: str, name: str, where: str) -> Iterator[None]:
    """Around calls of libraries that read a model's files: whatever they raise becomes a ModelError that says why.

    Args:
        what: is loaded, such as ``"model"``.
        name: as the caller named it.
        where: folder or hub id.
    """
    try:
        yield
    except (Memory3Error, MemoryError):
        raise
    except Exception as error:  # their parsers raise whatever they run into on files that are not what they should be
        raise ModelError(f"{what} {name!r} cannot be loaded: {_cause(name, where, error)}") from error


def check_size(config: Path) -> None:
    """Refuse a config that transformers would spend all memory on: it lists the kind of every layer. No file there:
    nothing to check.

    Raises:
        ModelError: with the count.
    """
    if not config.is_file():
        return
    if config.stat().st_size > _CONFIG_BYTES:
        raise ModelError(f"{config} has {config.stat().st_size:,} bytes: no config of a model has more than {_CONFIG_BYTES:,}")
    said = _read(config)
    parts = [said, *said.values()] if isinstance(said, dict) else []
    for part in parts:
        for name in _LAYERS if isinstance(part, dict) else ():
            if isinstance(part.get(name), int) and not 1 <= part[name] <= _MOST_LAYERS:
                raise ModelError(f"{config} says {name} = {part[name]}: a model has 1 to {_MOST_LAYERS} layers")


def missing_weights(keys: Iterable[str]) -> str:
    """``layers 6 and 7``, ``lm_head.weight``: the weights that a checkpoint lacks, in short."""
    layers, others = set(), []
    for key in sorted(keys):
        found = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", key)
        if found:
            layers.add(int(found[1]))
        else:
            others.append(key)
    parts = [f"{'layers' if len(layers) > 1 else 'layer'} {_listed([str(n) for n in sorted(layers)])}"] if layers else []
    return _listed(parts + others)


def is_layer_beyond(key: str, layers: int) -> bool:
    """Whether a weight is of a block behind the last one that the config has.

    Args:
        key: name of a weight.
        layers: how many the config has.
    """
    found = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", key)
    return found is not None and int(found[1]) >= layers


def _listed(names: list[str], most: int = 6) -> str:
    """``a, b and c``; what is beyond ``most`` is counted."""
    shown = names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _cause(name: str, where: str, error: Exception) -> str:
    """The folder's own fault where it shows, else what the library said first."""
    folder = Path(where)
    found = _fault(folder) if folder.is_dir() else None
    if found:
        return found
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    if "trust_remote_code" in str(error):
        return "it needs code of its repository, which memory3 never runs. Use a model whose type transformers knows"
    method = _quantised(folder)
    if method:
        return f"its weights are quantised ({method}). {said.rstrip('.')}; or use the model's unquantised checkpoint"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if "ignore_mismatched_sizes" in said:
        return "its weights have other sizes than config.json says. Is config.json of this checkpoint?"
    if folder.is_dir() and "tokenizer" in said:
        return f"{folder} has no fast tokenizer (tokenizer.json), which memory3 needs to cut texts into references"
    if not folder.exists():
        near = suggest(name)
        hint = f" Did you mean {near!r}?" if near else ""
        return f"{said.rstrip('.')}.{hint} It is neither a folder here nor could it be fetched from the model hub"
    return said.rstrip(".")


def _fault(folder: Path) -> str | None:
    """What is wrong with the files of a model's folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                return f"{path} is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull` in that folder"
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                return f"{path} cannot be read ({str(error).rstrip('.')}). Is the download complete?"
        if path.suffix == ".json":
            try:
                _read(path)
            except RecursionError:
                return f"{path} is nested too deeply"
            except ValueError as error:
                return f"{path} is no JSON ({error})"
    lacking = sorted({name for path in files if path.name.endswith(".safetensors.index.json") for name in _shards(path)})
    lacking = [name for name in lacking if not (folder / name).is_file()]
    if lacking:
        return f"{folder} lacks {_listed(lacking)}, which its index names. Is the download complete?"
    if not (folder / "config.json").exists():
        return f"{folder} has no config.json: it is no folder of a transformers model"
    if not list(folder.glob("*.safetensors")):
        pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
        if pickles:
            return (
                f"{_listed(pickles)} is a pickle, which can run code and which memory3 never reads. Load the model "
                "once with transformers where you trust it, "
                "and save it with save_pretrained, which writes safetensors"
            )
        return f"{folder} has no weights (model.safetensors). Is the download complete?"
    return None


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _shards(index: Path) -> list[str]:
    read = _read(index)
    found = read.get("weight_map") if isinstance(read, dict) else None
    return [str(name) for name in found.values()] if isinstance(found, dict) else []


def _quantised(folder: Path) -> str:
    """The method a checkpoint is quantised by; empty for one that is not."""
    try:
        config = _read(folder / "config.json")
        found = config.get("quantization_config") or {}
        return str(found.get("quant_method", "by an unnamed method")) if found else ""
    except (OSError, ValueError, AttributeError):
        return ""
