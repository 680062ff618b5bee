"""Checkpoints that are whole or absent, without pickle.

A checkpoint is written into a staging folder, brought to the disk and renamed; one that was killed half-way is never seen, and
swept away by the next. transformers' own format keeps optimiser and random numbers by ``torch.save``; here they are
safetensors and JSON.

    checkpoint-50/    the model or adapter_model.safetensors    what is trained
                      optimizer.safetensors, optimizer.json     its moments; everything else of optimiser and schedule
                      random-0.safetensors, random-0.json       random number generators of each process
                      trainer_state.json                        where the run is, and its losses
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from memory3.bank.faults import is_full
from memory3.errors import CheckpointFull, LossNotFinite, TrainingError
from memory3.files import flush_folder

__all__ = ["Checkpointing", "last_checkpoint"]

_STAGING = ".staging"


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = get_last_checkpoint(str(run)) if run.is_dir() else None
    return Path(found) if found else None


class Checkpointing(Trainer):
    """A Trainer whose checkpoints are atomic, and which stops before a step that would spoil the weights."""

    _where: str | None = None

    # ---- writing -----------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return self._where or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self.args.output_dir or ".")
        name = f"checkpoint-{self.state.global_step}"
        staging = run / _STAGING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._where = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                flush_folder(staging / name)
                shutil.rmtree(run / name, ignore_errors=True)
                (staging / name).rename(run / name)
                flush_folder(run, files=False)
                self._forget_old(run)
        except Exception as error:
            if not (is_full(error) or _short_of_space(error, run)):
                raise
            raise CheckpointFull(
                f"{run}: no space left on the device for the checkpoint of step {self.state.global_step}. "
                f"{self._last_said(run)} Free some space and run the same command with --resume"
            ) from error
        finally:
            self._where = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _forget_old(self, run: Path) -> None:
        found = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for path in found[: -(self.args.save_total_limit or len(found))]:
            shutil.rmtree(path, ignore_errors=True)

    def _last_said(self, run: Path) -> str:
        last = last_checkpoint(run)
        return f"The last checkpoint, {last.name}, is intact." if last else "There is no checkpoint yet."

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            assert self.optimizer is not None
            assert self.lr_scheduler is not None
            state = self.optimizer.state_dict()
            tensors, rest = {}, {}
            for number, values in state["state"].items():
                for name, value in values.items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"{number}.{name}"] = value.contiguous()
                    else:
                        rest[f"{number}.{name}"] = value
            _write(Path(output_dir) / "optimizer", tensors, [rest, state["param_groups"], self.lr_scheduler.state_dict()])

    def _save_rng_state(self, output_dir: str) -> None:
        os.makedirs(output_dir, exist_ok=True)
        tensors = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 (libraries below draw from it)
        states = [random.getstate(), [str(name), np.asarray(keys).tolist(), *map(float, rest)]]
        _write(Path(output_dir) / f"random-{self.args.process_index}", tensors, states)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        tensors, (rest, groups, schedule) = _read(Path(checkpoint) / "optimizer")
        state: dict[int, dict[str, Any]] = {}
        for key, value in (*tensors.items(), *rest.items()):
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.lr_scheduler.load_state_dict(schedule)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        tensors, (python, generator) = _read(Path(checkpoint) / f"random-{self.args.process_index}")
        random.setstate((python[0], tuple(python[1]), python[2]))
        name, keys, position, has_gauss, gauss = generator
        np.random.set_state((name, np.array(keys, np.uint32), int(position), int(has_gauss), gauss))  # noqa: NPY002
        torch.set_rng_state(tensors["cpu"])
        if "cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda"])

    # ---- steps that must not be taken --------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One pass forward and back. A loss that is not a number ends the run before the weights take any of it."""
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            raise self._not_finite("the loss is", loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not np.isfinite(float(norm)):
            raise self._not_finite("the norm of the gradient is", norm)
        return norm

    def _not_finite(self, what: str, value: Any) -> LossNotFinite:
        kept = self._last_said(Path(self.args.output_dir or "."))
        return LossNotFinite(
            f"{what} {float(value)} at step {self.state.global_step + 1}; the step was not taken. {kept} "
            "Try a lower learning rate, or float32"
        )


def _write(path: Path, tensors: dict[str, torch.Tensor], rest: Any) -> None:
    save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(rest), encoding="utf-8")


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    try:
        return load_file(path.with_suffix(".safetensors")), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"{path.parent}: the checkpoint cannot be resumed from ({path.name} cannot be read: {error}). "
            "Was it written with another number of processes? Else delete the folder to go on from the checkpoint before"
        ) from error


def _short_of_space(error: BaseException, run: Path) -> bool:
    """torch says no more than that a write failed."""
    failed = "failed writing" in str(error) or "file write failed" in str(error) or getattr(error, "errno", 0) == errno.EIO
    return failed and shutil.disk_usage(run).free < 1 << 20
