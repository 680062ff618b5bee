"""Load a causal language model and its tokenizer: by catalogue name, hub id or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from memory3.config import DTYPES
from memory3.errors import ModelError
from memory3.model.adapter import adapter_of, merge_adapter
from memory3.model.catalogue import resolve_model, suggest

__all__ = ["load_model"]


def load_model(
    name: str, *, device: str | None = None, dtype: str | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, Any]:
    """Model in evaluation mode, and its fast tokenizer.

    Args:
        name: a name of the catalogue, a hub id, or a folder; ``+FOLDER`` behind it merges an adapter into the weights.
        device: ``"cpu"``, ``"cuda"``, ...; default: a GPU where there is one.
        dtype: ``"float32"``, ``"bfloat16"``, ...; default: float32 on the CPU, what the model was saved in elsewhere.
        kwargs: passed to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ModelError: an unknown ``dtype``; not found, not a causal language model, or without a fast tokenizer.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    if dtype not in (*DTYPES, "float64", "auto"):
        raise ModelError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}, or auto, as the model was saved")
    name, adapter = adapter_of(name)
    where = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        near = suggest(name)
        hint = f" Did you mean {near!r}?" if near else ""
        if not Path(where).exists():
            hint += " It is neither a folder here nor could it be fetched from the model hub."
        raise ModelError(f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}{hint}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"model {name!r} has no fast tokenizer (tokenizer.json); memory3 needs one to cut texts into references"
        )
    if adapter:
        merge_adapter(model, adapter)
    moved: Any = model  # its `to` is decorated beyond what type checkers follow
    return moved.to(device).eval(), tokenizer
