"""The options of ``memory3 train``.

A command names the options it takes, by the names that `memory3.training.settings.Settings` and `MemoryConfig` have for them;
their texts stand here, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from memory3.cli import options

__all__ = ["LORA", "MEMORY", "OPTIMISER", "RUN", "Folder", "takes"]

Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints, logs, result.", metavar="DIR")]

_RUN, _OPTIMISER = "The run", "Optimiser"


def _option(kind: Any, help_: str, metavar: str = "N", panel: str | None = _OPTIMISER, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=help_, metavar=metavar, rich_help_panel=panel)]


_KINDS: dict[str, Any] = {
    "data": _option(
        list[str] | None,
        "JSON lines (.gz too): passage, question, answer; prompt, answer; prompt, chosen, rejected; or text. May be repeated.",
        "FILE",
        None,
    ),
    "bank": _option(
        Path | None,
        "Bank to retrieve references from, with its model and settings. Default: passages and texts of the data.",
        "DIR",
        None,
    ),
    "records": _option(int | None, "Records of each file at most, drawn at random.", "N", _RUN),
    "held_out": _option(
        list[str] | None,
        "Files or folders that must not be trained on: a record that shares a text with them ends the run at its start.",
        "PATH",
        _RUN,
    ),
    "resume": Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint of --out, with the settings of that run."),
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
    "steps": _option(int | None, "Optimiser steps.", "N", None),
    "epochs": _option(float | None, "Rounds over the data, in place of --steps; 0: as --steps says.", "X", None),
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
    "rate": _option(float | None, "Largest learning rate.", "X", None),
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
RUN = ("data", "records", "held_out", "resume", "seed", "save_every", "keep", "eval_every", "eval_groups")
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
    """Give a command the options of these names, behind those that it declares itself.

    It finds their values in its context.
    """

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
