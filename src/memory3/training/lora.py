"""Low-rank adaptation by peft: which weights are trained, and the adapter as it leaves a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from memory3.errors import ConfigError, MissingDependency, ModelError
from memory3.models.adapter import adapter_folder, adapter_of, read_adapter
from memory3.training.settings import Settings

__all__ = ["export_adapter", "with_lora"]


def with_lora(model: Any, settings: Settings) -> Any:
    """The model with LoRA weights beside its own, which are frozen.

    With ``settings.rank`` 0 it is the model itself, every weight trained.

    LoRA's weights are float32 whatever the model's are. They start at nothing, or, where ``settings.model`` names an adapter,
    at that adapter. The model is changed in place: layers are wrapped.

    Raises:
        ConfigError: no module of the model has one of the names in ``settings.targets``; the adapter has another rank or
            alpha.
        ModelError: the adapter cannot be read, is no plain LoRA, or is another model's.
        MissingDependency: peft is not installed.
    """
    if settings.rank == 0:
        return model.requires_grad_(True)
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise MissingDependency("peft", "train", "training an adapter") from error
    if adapter := adapter_of(settings.model)[1]:
        rank, alpha, *_ = read_adapter(adapter)
        if (rank, alpha) != (settings.rank, settings.alpha):
            raise ConfigError(
                f"adapter {adapter!r} has rank {rank} and alpha {alpha:g}, the settings {settings.rank} and {settings.alpha}: "
                f"go on with --rank {rank} --alpha {alpha:g}, or train all weights with --rank 0"
            )
        try:
            further = PeftModel.from_pretrained(model, str(adapter_folder(adapter)), is_trainable=True)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"adapter {adapter!r} was made for another model: {str(error).splitlines()[0]}") from error
        return _without_casts(further)
    targets: Any = settings.targets
    targets = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    # bias and dropout stay out: the adapter is merged into the weights when it is used.
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)  # of LoRA's start
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"targets {settings.targets!r} cannot be adapted: {str(error).splitlines()[0]}") from error
    return _without_casts(adapted)


def _without_casts(adapted: Any) -> Any:
    module: Any
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # the step runs under autocast, which multiplies in its own dtype
    return adapted


def export_adapter(model: Any, folder: Path, strength: float = 1.0) -> None:
    """The adapter, times ``strength``, as `memory3.models.adapter` reads it: peft's two files.

    Args:
        model: peft's.
        folder: where it is written.
        strength: what the change of the weights is multiplied with.
    """
    state = {name: tensor * strength if ".lora_B" in name else tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(str(folder), state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
