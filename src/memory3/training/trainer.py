"""`GroupTrainer`: transformers' Trainer on groups, one loss for every kind of pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainingArguments

from memory3.errors import MissingDependency
from memory3.generate import Memory3
from memory3.model.attach import attached
from memory3.training.checkpoints import Checkpointing
from memory3.training.collate import GroupBatch, MemoryCollator
from memory3.training.groups import Group
from memory3.training.live import group_loss
from memory3.training.settings import Settings

__all__ = ["GroupTrainer", "arguments"]


def arguments(settings: Settings, run: Path, **changes: Any) -> TrainingArguments:
    """What transformers must know of a run.

    Raises:
        MissingDependency: accelerate or tensorboard is not installed.
    """
    decay = round(settings.decay * settings.steps)
    given: dict[str, Any] = {
        "output_dir": str(run),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.groups,
        "gradient_accumulation_steps": settings.passes,
        "learning_rate": settings.rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": settings.warmup,
        "lr_scheduler_kwargs": {"num_decay_steps": decay, "decay_type": "linear", "warmup_type": "linear"},
        "activation_checkpointing": settings.checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "seed": settings.seed,
        "save_steps": settings.save_every,
        "save_total_limit": settings.keep,
        "eval_strategy": "steps" if settings.eval_every else "no",
        "eval_steps": settings.eval_every or None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": ["tensorboard"],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }
    try:
        import tensorboard  # noqa: F401

        return TrainingArguments(**(given | changes))
    except ImportError as error:
        missing = "tensorboard" if "tensorboard" in str(error) else "accelerate"
        raise MissingDependency(missing, "train", "training") from error


class GroupTrainer(Checkpointing):
    """Trains on groups in the order they are given in."""

    def __init__(
        self,
        m3: Memory3,
        model: Any,
        args: TrainingArguments,
        groups: Sequence[Group],
        held_back: Mapping[str, Sequence[Group]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """``model``: m3's, or LoRA around it. ``dtype``: see `group_loss`."""
        self._m3, self._held_back, self._dtype = m3, held_back, dtype
        self._collator = MemoryCollator(m3._pad_id)
        self._by_kind: dict[str, list[float]] = defaultdict(list)
        super().__init__(
            model=model,
            args=args,
            train_dataset=groups,
            eval_dataset=[],
            data_collator=lambda some: {"batch": self._collator(some)},
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over a pass, and passes count alike

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # their order was drawn with them

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the Trainer's, attached from the forward pass to the end of the backward pass."""
        with attached(self._m3.model):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Mean loss of a pass."""
        batch: GroupBatch = inputs["batch"]
        loss = group_loss(self._m3, model, batch, self._dtype)
        self._by_kind[batch.kinds[0]].append(float(loss.detach()))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the loss of each kind of pass since the last time."""
        if "loss" in logs:
            logs |= {f"loss_{kind}": sum(losses) / len(losses) for kind, losses in self._by_kind.items()}
            self._by_kind.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss of the groups held back, by kind."""
        self.model.eval()  # type: ignore[union-attr]
        losses: dict[str, float] = {}
        with torch.no_grad():
            for kind, groups in self._held_back.items():
                batches = [self._collator([group]).to(self.args.device) for group in groups]
                each = [float(group_loss(self._m3, self.model_wrapped, batch, self._dtype)) for batch in batches]
                losses[f"eval_{kind}"] = sum(each) / len(each)
        self.log(losses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses
