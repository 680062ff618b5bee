"""Load a causal language model and its tokenizer: by catalogue name, hub id or path.

A model is data from elsewhere. Code of its folder is never run, weights are read from safetensors alone, and a checkpoint
that fills only a part of the model is refused: transformers would draw the rest at random.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from memory3.config import DTYPES
from memory3.errors import ModelError, setting
from memory3.models.adapter import adapter_of, merge_adapter
from memory3.models.catalogue import resolve_model
from memory3.models.causes import check_size, is_layer_beyond, loading, missing_weights
from memory3.models.prepacked import prepack

__all__ = ["check_device", "load_config", "load_model", "load_tokenizer"]


def load_model(
    name: str | os.PathLike[str], *, device: str | None = None, dtype: str | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, Any]:
    """Model in evaluation mode, and its fast tokenizer.

    Args:
        name: a name of the catalogue, a hub id, or a folder; ``+FOLDER`` behind it merges an adapter into the weights.
        device: ``"cpu"``, ``"cuda"``, ...; default: a GPU where there is one.
        dtype: ``"float32"``, ``"bfloat16"``, ...; default: float32 on the CPU, what the model was saved in elsewhere.
        kwargs: passed to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ModelError: an unknown ``dtype`` or ``device``; not found, damaged or incomplete, not a causal language model,
            quantised by a package that is not installed, in need of its own code or of pickled weights, or without a fast
            tokenizer.
    """
    kwargs = _safe(kwargs)
    device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    if dtype not in (*DTYPES, "float64", "auto"):
        raise ModelError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}, or auto, as the model was saved")
    name, adapter = adapter_of(os.fspath(name))
    where = resolve_model(name)
    config = load_config(name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"model {name!r} is of type {config.model_type}, which is no causal language model of transformers")
    quantised = getattr(config, "quantization_config", None)
    if quantised and quantised.get("quant_method") and not AutoHfQuantizer.supports_quant_method(quantised):
        raise ModelError(
            f"model {name!r} is quantised by {quantised['quant_method']!r}, which transformers does not know and "
            "would read as plain numbers"
        )
    tokenizer = load_tokenizer(name)
    with loading("model", name, where):
        model, report = _weights(where, dtype, kwargs)
    if report["missing_keys"]:
        raise ModelError(
            f"model {name!r} is incomplete: the checkpoint has no weights for {missing_weights(report['missing_keys'])}. "
            "Is config.json of this checkpoint, and the download complete?"
        )
    surplus = [
        key for key in report["unexpected_keys"] if is_layer_beyond(key, model.config.get_text_config().num_hidden_layers)
    ]
    if surplus:
        raise ModelError(
            f"model {name!r} has weights for {missing_weights(surplus)}, which config.json (num_hidden_layers) knows "
            "nothing of: mend config.json"
        )
    _check_vocabulary(name, model, tokenizer)
    if adapter and model.dtype in (torch.float32, config.dtype):
        merge_adapter(model, adapter)
    elif adapter:
        with loading("model", name, where):
            exact, _ = _weights(where, "float32", kwargs)
        _merge_rounded(model, exact, adapter)
        del exact
    model = model.to(device).eval()
    prepack(model)
    return model, tokenizer


def _weights(where: str, dtype: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Model, and what transformers says of its loading."""
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained  # its types know nothing of `output_loading_info`
    found: tuple[Any, Any] = from_pretrained(
        where, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **options
    )
    return found


@torch.no_grad()
def _merge_rounded(model: PreTrainedModel, exact: PreTrainedModel, adapter: str) -> None:
    """Give a model the weights of ``exact`` with the adapter merged. They are rounded once, after the sum, so that they are
    the rounded weights of the adapted model in float32, and what was fitted to that one serves this one.
    """
    before = {name: weight._version for name, weight in exact.named_parameters()}
    merge_adapter(exact, adapter)
    weights = dict(model.named_parameters())
    for name, weight in exact.named_parameters():
        if weight._version != before[name]:
            weights[name].copy_(weight)


def load_config(name: str) -> Any:
    """The transformers config of a model: catalogue name, hub id or folder.

    Raises:
        ModelError: there is none that can be read.
    """
    where = resolve_model(name)
    with loading("config of model", name, where):
        check_size(Path(where) / "config.json")
        return AutoConfig.from_pretrained(where, trust_remote_code=False)


def load_tokenizer(name: str) -> Any:
    """The fast tokenizer of a model: catalogue name, hub id or folder.

    Raises:
        ModelError: there is none, or only a slow one.
    """
    where = resolve_model(name)
    with loading("tokenizer of model", name, where):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"model {name!r} has no fast tokenizer (tokenizer.json); memory3 needs one to cut texts into references"
        )
    return tokenizer


def check_device(name: str) -> str:
    """The device of this name, if tensors can be put there.

    Raises:
        ModelError: no device of torch, or none that this machine has.
    """
    usable = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    remedy = f"use {' or '.join(usable)}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"device {name!r} is unknown: {remedy}") from error
    if device.type == "meta":
        raise ModelError(f"device {name!r} holds no numbers: {remedy}")
    if device.type == "cuda" and not torch.backends.cuda.is_built():
        raise ModelError(f"device {name!r}: this torch has no CUDA; {remedy}")
    try:
        torch.zeros(1, device=device).add(1).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # each backend refuses in its own way
        reason = str(error).split(". ")[0].split("\n")[0].rstrip(".") or "it is not there"
        raise ModelError(f"device {name!r} cannot be used ({reason}): {remedy}") from error
    return name


def _safe(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller passes on to transformers, without what would let a model's folder run code."""
    for name, safe in (("trust_remote_code", False), ("use_safetensors", True)):
        if kwargs.get(name, safe) not in (safe, None):
            raise ModelError(
                f"{setting(name, kwargs[name])} is refused: memory3 runs no code of a model's folder and reads no pickle"
            )
    return {name: value for name, value in kwargs.items() if name not in ("trust_remote_code", "use_safetensors")}


def _check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Every token that a text can have needs an embedding."""
    special = set(tokenizer.all_special_ids)
    highest = max((number for number in tokenizer.get_vocab().values() if number not in special), default=0)
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise ModelError(
            f"the tokenizer of model {name!r} has tokens up to {highest}, the model {rows} embeddings: is it another "
            "model's tokenizer?"
        )
