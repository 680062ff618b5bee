"""`GroupTrainer`: transformers' Trainer on groups, one loss for every kind of pass."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainingArguments

from memory3.attention.attach import attached
from memory3.errors import MissingDependency
from memory3.llm import Memory3
from memory3.training.checkpoints import Checkpointing
from memory3.training.collate import GroupBatch, MemoryCollator
from memory3.training.groups import Group
from memory3.training.live import batch_log_likelihoods, distilled_loss, group_loss
from memory3.training.preference import preference_loss
from memory3.training.settings import Settings

__all__ = ["GroupTrainer", "arguments"]


def arguments(settings: Settings, run: Path, **changes: Any) -> TrainingArguments:
    """What transformers must know of a run.

    Args:
        settings: of the run.
        run: its folder.
        changes: arguments of transformers that take the place of others.

    Raises:
        MissingDependency: accelerate or tensorboard is not installed.
    """
    decay = {"num_decay_steps": round(settings.decay * settings.steps), "decay_type": "linear", "warmup_type": "linear"}
    stable = settings.schedule == "stable"
    # What transformers renamed on the way from 5.4, the oldest we take.
    recompute = (
        "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
    )
    given: dict[str, Any] = {
        "output_dir": str(run),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.groups,
        "gradient_accumulation_steps": settings.passes,
        "learning_rate": settings.rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "lr_scheduler_type": "warmup_stable_decay" if stable else "cosine",
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_kwargs": decay if stable else {},
        recompute: settings.checkpointing,
        f"{recompute}_kwargs": {"use_reentrant": False},
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
        *,
        beta: float = 0.0,
        distil: float = 0.0,
    ) -> None:
        """Train a model on groups.

        Args:
            m3: whose prompts and memories they are.
            model: m3's, or LoRA around it.
            args: what transformers must know of the run.
            groups: in the order they are trained in.
            held_back: groups that it is looked at with, by kind.
            dtype: in which matrices are multiplied, whatever the weights are; None: in the weights' own.
            beta: of preferences: how much a nat counts.
            distil: weight of what `distilled_loss` adds.
        """
        self._m3, self._held_back, self._dtype, self._beta, self._distil = m3, held_back, dtype, beta, distil
        self._collator = MemoryCollator(m3.prompts.pad_id)
        self._figures: dict[str, list[float]] = defaultdict(list)
        super().__init__(
            model=model,
            args=args,
            train_dataset=groups,
            eval_dataset=[],
            data_collator=lambda some: {"batch": self._collator(some)},
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over a pass, and passes count alike

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # their order was sampled with them

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One pass forward and back, during which the model reads memories: attached from the beginning to the end."""
        with attached(self._m3.model):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Mean loss of a pass.

        Args:
            model: as the Trainer wraps it.
            inputs: ``batch``: a `GroupBatch`.
        """
        loss, figures = self._loss(model, inputs["batch"])
        for name, figure in figures.items():
            self._figures[f"loss_{name}"].append(figure)
        return loss

    def _loss(self, model: Any, batch: GroupBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """And what of it is logged."""
        kind = batch.kinds[0]
        if self._distil and batch.references and kind != "preference" and torch.is_grad_enabled():
            mean, away = distilled_loss(self._m3, model, batch, self._dtype)
            return mean + self._distil * away, {kind: float(mean.detach()), f"{kind}_distil": float(away.detach())}
        if kind != "preference":
            mean = group_loss(self._m3, model, batch, self._dtype)
            return mean, {kind: float(mean.detach())}
        answers: torch.Tensor = batch_log_likelihoods(self._m3, model, batch, self._dtype).sum(dim=-1)
        loss, right = preference_loss(answers, batch.before.to(answers.dtype), self._beta)
        return loss, {kind: float(loss.detach()), f"{kind}_right": right}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the loss of each kind of pass since the last time."""
        if "loss" in logs:
            logs |= _means(_together(self._figures))
            self._figures.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss of the groups held back, by kind."""
        self.model.eval()  # type: ignore[union-attr]
        figures: dict[str, list[float]] = defaultdict(list)
        with torch.no_grad():
            for group in itertools.chain.from_iterable(self._held_back.values()):
                batch = self._collator([group]).to(self.args.device)
                for name, figure in self._loss(self.model_wrapped, batch)[1].items():
                    figures[f"eval_{name}"].append(figure)
        losses = _means(figures)
        self.log(losses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses


def _together(figures: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Those of all processes: each read other kinds of passes."""
    from accelerate.utils import gather_object

    together: dict[str, list[float]] = defaultdict(list)
    for theirs in gather_object([dict(figures)]):
        for name, some in theirs.items():
            together[name] += some
    return together


def _means(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(some) / len(some) for name, some in figures.items()}
