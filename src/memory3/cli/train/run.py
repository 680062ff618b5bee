"""What the commands of ``memory3 train`` share: the settings that their options make, and the report of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from memory3.cli import options
from memory3.cli.command import CONFIG_READ, Command
from memory3.cli.loading import full_name, silence
from memory3.cli.output import duration, out, print_json
from memory3.cli.progress import StepMeter
from memory3.cli.train.options import MEMORY
from memory3.errors import ConfigError

if TYPE_CHECKING:
    from memory3.training.run import Result
    from memory3.training.settings import Settings

__all__ = ["TrainCommand", "settings_of", "start"]

#: In a context's ``meta``: the settings that stand in the file of --config.
_SETTINGS = "memory3.training_settings"


class TrainCommand(Command):
    """A command whose --config may be the settings.json of a run, whole or in part, as well as hold options."""

    def file_values(self, ctx: Any, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Settings are laid aside for `settings_of`. They come first: ``dtype`` is that of training, as in settings.json."""
        from memory3.training.settings import STORED_NAMES, Settings

        names = {field.name for field in fields(Settings)} | set(STORED_NAMES.values())
        written = {name.replace("-", "_"): value for name, value in values.items()}
        if isinstance(written.get("mixture"), str):
            written["mixture"] = _shares(written["mixture"])
        ctx.meta[_SETTINGS] = {name: value for name, value in written.items() if name in names}
        return super().file_values(ctx, {name: value for name, value in written.items() if name not in names}, path)


def settings_of(folder: Path, context: typer.Context, defaults: Settings) -> Settings:
    """Of a run that is resumed: its own. Else ``defaults``, changed by the settings of --config, and these by the options."""
    from memory3.training.settings import Settings

    given = {name: value for name, value in context.params.items() if value not in (None, [], ())}
    # `dtype` is how a bank stores numbers; what is computed in has a name of its own here.
    changes = {f.name: given[f.name] for f in fields(Settings) if f.name != "dtype" and f.name in given}
    stored = folder / "settings.json"
    if given.get("resume") and stored.exists():
        told = [*changes, *(name for name in (*MEMORY, "tokenizer", "train_dtype") if name in given)]
        told += ["config"] if CONFIG_READ in context.meta else []
        if told:
            raise ConfigError(f"{folder} is resumed with its own settings ({stored}): leave {', '.join(told)} out")
        return Settings.read(stored)
    name = given.get("model") or given.get("tokenizer")
    changes |= {"model": full_name(name)} if name else {}
    changes |= {key: [str(Path(path).resolve()) for path in given[key]] for key in ("data", "held_out") if given.get(key)}
    changes |= {"mixture": _shares(changes["mixture"])} if "mixture" in changes else {}
    changes |= {"dtype": given["train_dtype"]} if given.get("train_dtype") else {}
    base = defaults.replace(**context.meta.get(_SETTINGS, {}))
    if given.get("model"):
        from memory3.models.adapter import trained_config

        base = base.replace(memory=trained_config(changes["model"]) or base.memory)
    if given.get("bank"):
        from memory3.bank import Bank

        manifest = Bank.describe(given["bank"])
        base = base.replace(memory=manifest.config.replace(codec="auto"), model=manifest.model)
        changes["bank"] = str(Path(given["bank"]).resolve())
    try:
        return base.replace(**{**changes, "memory": options.settings(base.memory, given)})
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def start(folder: Path, context: typer.Context, defaults: Settings) -> None:
    """Run a command of ``memory3 train``, and say how it went."""
    from memory3.training.run import train

    settings, given = settings_of(folder, context, defaults), context.params
    silence()
    started = time.monotonic()
    with StepMeter() as meter:
        result = train(settings, folder, resume=given["resume"], device=given["device"], progress=meter)
    if result.main:
        _report(result, time.monotonic() - started, given["as_json"])


def _shares(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        return {name.strip(): float(share) for name, _, share in (part.partition("=") for part in text.split(","))}
    except ValueError:
        raise typer.BadParameter(
            f"mixture {text!r} is not understood: write memory=6,text=2,none=1,continue=1,plain=1"
        ) from None


def _report(result: Result, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "run": str(result.run),
                "trained": str(result.trained) if result.trained else None,
                "step": result.step,
                "steps": result.steps,
                "seconds_per_step": round(result.seconds_per_step, 3),
                "seconds": round(seconds, 3),
                "losses": {name: round(loss, 4) for name, loss in result.losses.items()},
            }
        )
        return
    out.print(f"step {result.step:,} of {result.steps:,}, {result.seconds_per_step:.2f} s a step, in {duration(seconds)}")
    for name, loss in sorted(result.losses.items()):
        out.print(f"  {name:<24} {loss:.3f}")
    if result.trained:
        out.print(f"trained: {result.trained}", soft_wrap=True)
    else:
        out.print("stopped before its end: go on with the same command and --resume", soft_wrap=True)
