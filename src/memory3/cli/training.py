"""What the commands of ``memory3 train`` share: their options, the settings these make, and the report of a run.

A command names the options it takes, by the names that `memory3.training.settings.Settings` and `MemoryConfig` have for them; their texts stand here, once.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory3.cli import options
from memory3.cli.loading import full_name, silence
from memory3.cli.output import duration, out, print_json
from memory3.cli.progress import StepMeter
from memory3.errors import ConfigError

if TYPE_CHECKING:
    from memory3.training.run import Result
    from memory3.training.settings import Settings

__all__ = ["LORA", "MEMORY", "OPTIMISER", "RUN", "Folder", "settings_of", "start", "takes"]

Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints, logs, result.", metavar="DIR")]

_RUN, _OPTIMISER = "The run", "Optimiser"


def _option(kind: Any, help_: str, metavar: str = "N", panel: str = _OPTIMISER, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=help_, metavar=metavar, rich_help_panel=panel)]


_KINDS: dict[str, Any] = {
    "data": _option(
        list[str] | None,
        "JSON lines (.gz too): passage, question, answer; prompt, answer; prompt, chosen, rejected; or text. May be repeated.",
        "FILE",
        _RUN,
    ),
    "bank": _option(
        Path | None,
        "Bank to retrieve references from, with its model and settings. Default: passages and texts of the data.",
        "DIR",
        _RUN,
    ),
    "records": _option(int | None, "Records of each file at most, drawn at random.", "N", _RUN),
    "held_out": _option(
        list[str] | None,
        "Files or folders that must not be trained on: a record that shares a text with them ends the run at its start.",
        "PATH",
        _RUN,
    ),
    "config": _option(Path | None, "Settings as JSON; options change single ones.", "FILE", _RUN),
    "resume": Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the last checkpoint of --out, with the settings of that run.", rich_help_panel=_RUN
        ),
    ],
    "seed": _option(int | None, "Of the data's order and everything random.", "N", _RUN),
    "save_every": _option(int | None, "Steps between checkpoints.", "N", _RUN),
    "keep": _option(int | None, "Checkpoints kept.", "N", _RUN),
    "eval_every": _option(int | None, "Steps between looks at what is held back; 0: none.", "N", _RUN),
    "eval_groups": _option(int | None, "Groups (of sequences: sequences) per kind held back for that.", "N", _RUN),
    "model": Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Catalogue name, hub id or folder; NAME+ADAPTER trains that adapter further.",
            metavar="MODEL",
        ),
    ],
    "tokenizer": Annotated[
        str | None, typer.Option(help="Model whose tokenizer it uses: catalogue name, hub id or folder.", metavar="MODEL")
    ],
    "shape": Annotated[
        str | None,
        typer.Option(
            help="Of a model from scratch: memory3-2.4b, memory3-0.92b, memory3-27m, memory3-4m, ...", metavar="NAME"
        ),
    ],
    "steps": _option(int | None, "Optimiser steps."),
    "epochs": _option(float | None, "Rounds over the data, in place of --steps; 0: as --steps says.", "X"),
    "passes": _option(int | None, "Forward and backward passes per step and process."),
    "groups": _option(int | None, "Groups per pass (a prompt, a sequence, or questions on the same references)."),
    "questions": _option(int | None, "Questions of a group at most."),
    "cloze": _option(
        int | None,
        "Cloze questions made of each text, by leaving out a name, number or date. Default: 0.",
        "N",
        _OPTIMISER,
        "--cloze",
        "--blanks",
    ),
    "text_length": _option(int | None, "Tokens of a text at most."),
    "sequence_length": _option(int | None, "Tokens of a sequence of chunks, or of a prompt with its answer."),
    "mixture": _option(str | None, "Shares of passes, such as memory=6,text=2,none=1,continue=1,plain=1.", "SHARES"),
    "rate": _option(float | None, "Largest learning rate.", "X"),
    "schedule": _option(str | None, "How it falls: stable (at the end) or cosine.", "NAME"),
    "warmup": _option(float | None, "Steps over which it rises; below 1 a share of them.", "X"),
    "decay": _option(float | None, "Last share of the steps, over which it falls.", "X"),
    "weight_decay": _option(float | None, "Of AdamW.", "X"),
    "clip": _option(float | None, "Largest norm of the gradient.", "X"),
    "distil": _option(float | None, "How much it counts how far the model is from itself reading all pairs. Default: 0.", "X"),
    "beta": _option(float | None, "How much a nat of preference counts.", "X"),
    "rank": _option(int | None, "Of LoRA; 0 trains all weights."),
    "alpha": _option(int | None, "Of LoRA; its product counts alpha / rank."),
    "targets": _option(str | None, "Modules that LoRA adapts: all-linear, or names such as q_proj,v_proj.", "NAMES"),
    "strength": _option(
        float | None,
        "The adapter is multiplied by it in the end; below 1 for texts unlike the training data. Default: 1.",
        "X",
    ),
    "train_dtype": _option(
        str | None, "float32 or bfloat16: of frozen weights and of products. auto: bfloat16 where the device has it.", "NAME"
    ),
    "checkpointing": Annotated[
        bool | None,
        typer.Option(help="Recompute activations: less RAM, a third more time.", rich_help_panel=_OPTIMISER),
    ],
    "preset": options.Preset,
    "layers": options.Layers,
    "budget": options.Budget,
    "selector": options.Selector,
    "reference_length": options.ReferenceLength,
    "memory_prefix": options.MemoryPrefix,
    "dtype": options.Dtype,
    "references_per_chunk": _option(int | None, "References read at once.", "N", options.SETTINGS, "--k"),
    "chunk_length": _option(int | None, "Tokens between two retrievals.", "N", options.SETTINGS, "--chunk"),
    "device": options.Device,
    "as_json": options.Json,
}
#: What every command takes, in the order of its help.
RUN = ("data", "records", "held_out", "config", "resume", "seed", "save_every", "keep", "eval_every", "eval_groups")
OPTIMISER = (
    "steps",
    "passes",
    "groups",
    "sequence_length",
    "rate",
    "warmup",
    "weight_decay",
    "clip",
    "train_dtype",
    "checkpointing",
)
LORA = ("rank", "alpha", "targets", "strength")
MEMORY = (
    "preset",
    "layers",
    "budget",
    "selector",
    "reference_length",
    "memory_prefix",
    "dtype",
    "references_per_chunk",
    "chunk_length",
)


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these names, behind those that it declares itself; it finds their values in its context."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        more = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=_KINDS[name],
                default=False if name in ("resume", "as_json") else None,
            )
            for name in (*names, "device", "as_json")
        ]
        kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = own.replace(parameters=[*kept, *more])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return with_options


def settings_of(folder: Path, given: Mapping[str, Any], defaults: Settings) -> Settings:
    """Of a run that is resumed: its own. Else ``defaults``, or those of --config, with what the options change. ``given``: a context's ``params``."""
    from memory3.training.settings import Settings

    given = {name: value for name, value in given.items() if value not in (None, [], ())}
    # `dtype` is how a bank stores numbers; what is computed in has a name of its own here.
    changes = {f.name: given[f.name] for f in fields(Settings) if f.name != "dtype" and f.name in given}
    stored = folder / "settings.json"
    if given.get("resume") and stored.exists():
        told = [*changes, *(name for name in (*MEMORY, "config", "tokenizer", "train_dtype") if name in given)]
        if told:
            raise ConfigError(f"{folder} is resumed with its own settings ({stored}): leave {', '.join(told)} out")
        return Settings.read(stored)
    name = given.get("model") or given.get("tokenizer")
    changes |= {"model": full_name(name)} if name else {}
    changes |= {key: [str(Path(path).resolve()) for path in given[key]] for key in ("data", "held_out") if given.get(key)}
    changes |= {"mixture": _shares(changes["mixture"])} if "mixture" in changes else {}
    changes |= {"dtype": given["train_dtype"]} if given.get("train_dtype") else {}
    base = Settings.read(given["config"]) if given.get("config") else defaults
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


def start(folder: Path, given: Mapping[str, Any], defaults: Settings) -> None:
    """Run a command of ``memory3 train``, and say how it went."""
    from memory3.training.run import train

    settings = settings_of(folder, given, defaults)
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
