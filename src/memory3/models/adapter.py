"""Adapters: a low-rank change of a model's weights (LoRA, E. Hu et al. 2021) that teaches it to write and read memories.

    W' = W + (alpha / rank) B A

The folder is peft's: ``adapter_config.json`` and ``adapter_model.safetensors``. It is merged into the weights when the
model is loaded, so an adapted model is as fast as any other and its fingerprint is its own; without an adapter, the model
is untouched. Reading needs no peft. A model's name may end in its adapter, ``NAME+FOLDER``; so a bank knows both.
Adapters that come with memory3 lie in ``adapters/`` beside this file and are named instead: ``NAME+ADAPTER``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from memory3.config import MemoryConfig
from memory3.errors import ConfigError, ModelError
from memory3.files import read_json, write_atomically
from memory3.types import whole

__all__ = [
    "adapter_folder",
    "adapter_of",
    "merge_adapter",
    "own_folder",
    "read_adapter",
    "shipped",
    "trained_config",
    "with_adapter",
    "write_about",
]

_SHIPPED = Path(__file__).parent / "adapters"

#: In the folder of an adapter or a model: the model it was made from, and the settings its memories want.
_ABOUT = "memory3.json"

#: What in a config of peft changes the formula above, and the value that leaves it as it is.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
}
#: Beyond these no adapter was ever trained; its numbers would be noise or overflow.
_MOST_RANK = 1 << 16
_MOST_ALPHA = 1 << 20
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.(?:default\.)?weight")


def shipped() -> list[str]:
    """The names of the adapters that come with memory3. How each was made: docs/training.md."""
    return sorted(path.name for path in _SHIPPED.iterdir() if path.is_dir())


def adapter_folder(adapter: str | Path) -> Path:
    """Where an adapter lies. A name that memory3 ships is that one everywhere; a folder of the same name is ``./NAME``."""
    return _SHIPPED / adapter if str(adapter) in shipped() else Path(adapter)


def write_about(folder: Path, model: str, config: MemoryConfig) -> None:
    """Say of an adapter or a model what it was made from, and the settings it was trained for.

    Args:
        folder: of the adapter or model.
        model: name of the model that was trained.
        config: what it was trained for.
    """
    write_atomically(folder / _ABOUT, json.dumps({"model": model, "memory": config.to_dict()}, indent=2) + "\n")


def own_folder(name: str) -> Path | None:
    """The folder of a model's adapter, or its own; None where it has neither."""
    model, adapter = adapter_of(name)
    folder = adapter_folder(adapter) if adapter else Path(model)
    return folder if folder.is_dir() else None


def trained_config(name: str) -> MemoryConfig | None:
    """The settings a model was trained for: its adapter says, or its own folder; None where neither does."""
    folder = own_folder(name)
    path = folder / _ABOUT if folder else None
    if path is None or not path.exists():
        return None
    try:
        return MemoryConfig.from_dict(read_json(path)["memory"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): name the settings yourself, or remove the file") from error


def read_adapter(folder: str | Path) -> tuple[int, float, bool, dict[str, dict[str, torch.Tensor]]]:
    """Rank, alpha, whether the scale is alpha over the root of the rank, and by module its halves ``A`` ``[rank, in]``
    and ``B`` ``[out, rank]``, float32.

    Raises:
        ModelError: no adapter there, or one of another kind than plain LoRA.
    """
    folder = adapter_folder(folder)
    try:
        config = read_json(folder / "adapter_config.json")
        tensors = load_file(folder / "adapter_model.safetensors")
        rank, alpha = whole("r", config["r"], 1, _MOST_RANK), _alpha(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"adapter {str(folder)!r} cannot be read ({error}): give a folder with adapter_config.json and "
            "adapter_model.safetensors"
        ) from error
    odd = [f"{name}={config[name]!r}" for name, plain in _PLAIN.items() if name in config and config[name] not in plain]
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        found = _NAME.fullmatch(name)
        if found is None:
            odd.append(name)
            continue
        _check_half(folder, name, tensor, rank if found[2] == "A" else None, rank if found[2] == "B" else None)
        pairs.setdefault(found[1], {})[found[2]] = tensor.float()
    if odd or not pairs or any(len(pair) < 2 for pair in pairs.values()):
        raise ModelError(
            f"adapter {str(folder)!r} is not plain LoRA ({', '.join(odd[:3]) or 'halves are missing'}): it cannot be merged"
        )
    return rank, alpha, bool(config.get("use_rslora")), pairs


def _alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_ALPHA:
        raise ValueError(f"lora_alpha: {value!r:.40} is no number above 0 and up to {_MOST_ALPHA:,}")
    return float(value)


def _check_half(folder: Path, name: str, tensor: torch.Tensor, rows: int | None, columns: int | None) -> None:
    """Raise ModelError unless a half is a matrix of finite numbers, of the rank that the config says."""
    sizes = tuple(tensor.shape)
    if len(sizes) != 2 or rows not in (None, sizes[0]) or columns not in (None, sizes[1]):
        wrong = f"has the sizes {sizes}, which do not fit the rank {rows or columns}"
    elif not tensor.is_floating_point():
        wrong = f"is made of {str(tensor.dtype).removeprefix('torch.')}, not of floating-point numbers"
    elif not bool(tensor.isfinite().all()):
        wrong = "has numbers that are not finite"
    else:
        return
    raise ModelError(f"adapter {str(folder)!r} is damaged: its tensor {name} {wrong}. Copy it again, or train it anew")


@torch.no_grad()
def merge_adapter(model: torch.nn.Module, folder: str | Path) -> None:
    """Add an adapter to the weights of a model, in place.

    Args:
        model: whose weights change.
        folder: of the adapter, or the name of one that is shipped.

    Raises:
        ModelError: as `read_adapter`; or its sizes are not this model's.
    """
    rank, alpha, root, pairs = read_adapter(folder)
    folder = adapter_folder(folder)
    scale = alpha / (rank**0.5 if root else rank)
    modules: dict[str, Any] = dict(model.named_modules())
    for name, pair in pairs.items():
        weight = getattr(modules.get(name), "weight", None)
        change = (scale * (pair["B"] @ pair["A"])) if pair["A"].shape[:1] == pair["B"].shape[1:] else None
        if weight is None or change is None or weight.shape != change.shape:
            raise ModelError(
                f"adapter {str(folder)!r} was made for another model: {name} is "
                f"{'absent' if weight is None else tuple(weight.shape)} here"
            )
        # A sum is finite only if all of its terms are, and takes one pass; it may overflow, and then they are looked at.
        if not bool(change.sum().isfinite()) and not bool(change.isfinite().all()):
            raise ModelError(
                f"adapter {str(folder)!r} is damaged: what its tensors add to {name} is not finite. Copy it again, "
                "or train it anew"
            )
        if weight.dtype == change.dtype == torch.float32:
            weight.add_(change.to(weight.device))
        else:
            weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def adapter_of(name: str) -> tuple[str, str]:
    """A model's name and its adapter's folder or name: ``"smollm2-135m-instruct+runs/a/adapter"``; no adapter: ``""``."""
    if "+" not in name or Path(name).is_dir():
        return name, ""
    places = [n for n, letter in enumerate(name) if letter == "+"]  # folders may have one in their names
    at = next((n for n in places if adapter_folder(name[n + 1 :]).is_dir()), places[0])
    return name[:at], name[at + 1 :]


def with_adapter(name: str, adapter: str | None) -> str:
    """The name of a model with another adapter: one that memory3 ships, or a folder, made absolute. ``"none"``: without.
    None: as it is.

    Raises:
        ConfigError: neither.
    """
    model, present = adapter_of(name)
    wanted = present if adapter is None else adapter
    if wanted in ("", "none"):
        return model
    if wanted in shipped():
        return f"{model}+{wanted}"
    if not Path(wanted).is_dir():
        raise ConfigError(
            f"adapter {wanted!r} is neither a folder nor shipped: give a folder with adapter_config.json, "
            f"{' or '.join(shipped())}, or none to do without"
        )
    return f"{model}+{Path(wanted).resolve()}"
