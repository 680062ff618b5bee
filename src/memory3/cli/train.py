"""``memory3 train``: the doors to `memory3.training`."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory3.cli import options
from memory3.cli.loading import full_name, silence
from memory3.cli.output import duration, err, message, out, print_json
from memory3.cli.progress import progress_bar
from memory3.errors import ConfigError

if TYPE_CHECKING:
    from memory3.training.continual import Result
    from memory3.training.settings import Settings

__all__ = ["train"]

RUN = "The run"
OPTIMISER = "Optimiser"

train = typer.Typer(
    name="train",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Teach a model to write and read memories. Needs the extra: pip install 'memory3\\[train]'.",
    epilog="Every command goes on with [bold]--resume[/bold]; Ctrl-C finishes the step and writes a checkpoint.",
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints, logs, result.", metavar="DIR")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Settings as JSON; the options below change single ones.", metavar="FILE", rich_help_panel=RUN
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on from the last checkpoint of --out, with the settings of that run.", rich_help_panel=RUN
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="JSON lines (.gz too): passage, question, answer; or prompt, answer; or text. May be repeated.",
        metavar="FILE",
        rich_help_panel=RUN,
    ),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        help="Files or folders that must not be trained on: a record that shares a text with them ends the run at its start.",
        metavar="PATH",
        rich_help_panel=RUN,
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.", metavar="N", rich_help_panel=OPTIMISER)]
Seed = Annotated[int | None, typer.Option(help="Of the data's order and everything random.", metavar="N", rich_help_panel=RUN)]


def _option(help_: str, metavar: str = "N", panel: str = OPTIMISER) -> Any:
    return typer.Option(help=help_, metavar=metavar, rich_help_panel=panel)


@train.command()
def continual(
    run: Out,
    data: Data = None,
    records: Annotated[int | None, _option("Records of each file at most, drawn at random.", panel=RUN)] = None,
    held_out: HeldOut = None,
    config: Config = None,
    resume: Resume = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Catalogue name, hub id or folder.", metavar="MODEL")
    ] = None,
    steps: Steps = None,
    passes: Annotated[int | None, _option("Forward and backward passes per step.")] = None,
    groups: Annotated[int | None, _option("Groups per pass: more where there is RAM for it.")] = None,
    questions: Annotated[int | None, _option("Questions of a group at most.")] = None,
    text_length: Annotated[int | None, _option("Tokens of a text at most.")] = None,
    sequence_length: Annotated[int | None, _option("Tokens of a sequence of chunks (mixture chunks=1).")] = None,
    mixture: Annotated[
        str | None,
        _option("Shares of passes, such as memory=6,text=2,none=1,continue=1,plain=1.", "SHARES"),
    ] = None,
    rate: Annotated[float | None, _option("Largest learning rate.", "X")] = None,
    warmup: Annotated[int | None, _option("Steps over which it rises.")] = None,
    decay: Annotated[float | None, _option("Last share of the steps, over which it falls.", "X")] = None,
    weight_decay: Annotated[float | None, _option("Of AdamW.", "X")] = None,
    rank: Annotated[int | None, _option("Of LoRA; 0 trains all weights.")] = None,
    alpha: Annotated[int | None, _option("Of LoRA; its product counts alpha / rank.")] = None,
    targets: Annotated[
        str | None, _option("Modules that LoRA adapts: all-linear, or names such as q_proj,v_proj.", "NAMES")
    ] = None,
    train_dtype: Annotated[str | None, _option("float32 or bfloat16: of frozen weights and of products.", "NAME")] = None,
    checkpointing: Annotated[bool | None, _option("Recompute activations: less RAM, a third more time.", "")] = None,
    seed: Seed = None,
    save_every: Annotated[int | None, _option("Steps between checkpoints.", panel=RUN)] = None,
    eval_every: Annotated[int | None, _option("Steps between looks at held-back groups; 0: none.", panel=RUN)] = None,
    eval_groups: Annotated[int | None, _option("Groups per kind held back for that.", panel=RUN)] = None,
    preset: options.Preset = None,
    layers: options.Layers = None,
    budget: options.Budget = None,
    selector: options.Selector = None,
    reference_length: options.ReferenceLength = None,
    beginning: options.Beginning = None,
    dtype: options.Dtype = None,
    k: Annotated[
        int | None, typer.Option("--k", help="References read at once.", metavar="N", rich_help_panel=options.SETTINGS)
    ] = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Train with memories: references are encoded inside the step.

    By default a LoRA adapter that reads 360 key-value pairs per reference. What
    is trained is what is served: `memory3 write --adapter RUN/adapter` uses it
    with the settings it was trained for.

    [bold]Examples[/bold]

        memory3 train continual --out run --data questions.jsonl --data texts.jsonl
        memory3 train continual --out run --resume
        memory3 train continual --out paper --data texts.jsonl --mixture chunks=1 --rank 0
        memory3 train continual --out run8 --data qa.jsonl.gz --budget adaptive:1/8 --steps 300
        accelerate launch --num_processes 2 $(which memory3) train continual --out run --data qa.jsonl
    """
    from memory3.training.continual import continual as start

    memory = {
        "layers": layers,
        "budget": budget,
        "selector": selector,
        "reference_length": reference_length,
        "beginning": beginning,
        "dtype": dtype,
        "references_per_chunk": k,
    }
    changes: dict[str, Any] = {
        "model": full_name(model) if model else None,
        "data": [str(Path(path).resolve()) for path in data] if data else None,
        "held_out": [str(Path(path).resolve()) for path in held_out] if held_out else None,
        "mixture": _shares(mixture),
        "dtype": train_dtype,
    }
    given = locals()
    names = {f.name for f in fields(_settings_class())} - {*changes, "memory"}
    changes |= {name: given[name] for name in names if name in given}
    settings = _settings(run, resume, config, changes, preset, memory)
    meter = _Meter()
    silence()
    started = time.monotonic()
    with meter:
        result = start(settings, run, resume=resume, device=device, progress=meter)
    _report(result, settings, time.monotonic() - started, as_json)


@train.command()
def warmup(
    run: Out,
    data: Data = None,
    held_out: HeldOut = None,
    config: Config = None,
    resume: Resume = False,
    shape: Annotated[
        str | None,
        typer.Option(help="Of the model: memory3-2.4b, memory3-0.92b, memory3-27m, memory3-4m, ...", metavar="NAME"),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model whose tokenizer it uses: catalogue name, hub id or folder.", metavar="MODEL")
    ] = None,
    records: Annotated[int | None, _option("Records of each file at most, drawn at random.", panel=RUN)] = None,
    steps: Steps = None,
    passes: Annotated[int | None, _option("Forward and backward passes per step.")] = None,
    groups: Annotated[int | None, _option("Sequences per pass.")] = None,
    sequence_length: Annotated[int | None, _option("Tokens of a sequence.")] = None,
    rate: Annotated[float | None, _option("Largest learning rate.", "X")] = None,
    warmup_steps: Annotated[int | None, typer.Option("--warmup", help="Steps over which it rises.", metavar="N")] = None,
    decay: Annotated[float | None, _option("Last share of the steps, over which it falls.", "X")] = None,
    weight_decay: Annotated[float | None, _option("Of AdamW.", "X")] = None,
    train_dtype: Annotated[str | None, _option("float32 or bfloat16: of products; weights are float32.", "NAME")] = None,
    checkpointing: Annotated[bool | None, _option("Recompute activations: less RAM, a third more time.", "")] = None,
    seed: Seed = None,
    save_every: Annotated[int | None, _option("Steps between checkpoints.", panel=RUN)] = None,
    eval_every: Annotated[int | None, _option("Steps between looks at held-back sequences; 0: none.", panel=RUN)] = None,
    eval_groups: Annotated[int | None, _option("Sequences held back for that.", panel=RUN)] = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Pretrain a model from scratch, without memories: the first of two stages.

    Texts are packed into sequences; AdamW with weight decay 0.1; the learning
    rate warms up, stays and decays. The second stage is `memory3 train continual`
    with the model that this leaves in RUN/model.

    [bold]Examples[/bold]

        memory3 train warmup --shape memory3-4m --data texts.jsonl.gz --out warm
        memory3 train continual --model warm/model --rank 0 --mixture chunks=1 --data texts.jsonl.gz --out second
    """
    from memory3.training.continual import continual as start
    from memory3.training.settings import WARMUP

    changes: dict[str, Any] = {
        "model": full_name(tokenizer) if tokenizer else None,
        "data": [str(Path(path).resolve()) for path in data] if data else None,
        "held_out": [str(Path(path).resolve()) for path in held_out] if held_out else None,
        "dtype": train_dtype,
        "warmup": warmup_steps,
    }
    given = locals()
    names = {f.name for f in fields(_settings_class())} - {*changes, "memory"}
    changes |= {name: given[name] for name in names if name in given}
    settings = _settings(run, resume, config, changes, None, {}, WARMUP)
    meter = _Meter()
    silence()
    started = time.monotonic()
    with meter:
        result = start(settings, run, resume=resume, device=device, progress=meter)
    _report(result, settings, time.monotonic() - started, as_json)


@train.command(name="two-stage")
def two_stage(
    out_: Annotated[Path, typer.Option("--out", "-o", help="Folder of the experiment.", metavar="DIR")],
    data: Data = None,
    config: Config = None,
    shape: Annotated[str | None, typer.Option(help="Of the models, such as memory3-4m.", metavar="NAME")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Model whose tokenizer they use.", metavar="MODEL")] = None,
    seeds: Annotated[int, typer.Option(help="How many pairs of runs.", metavar="N", min=1)] = 3,
    records: Annotated[int | None, _option("Records of each file at most, drawn at random.", panel=RUN)] = None,
    steps: Annotated[int | None, _option("Steps of either way; half of them are the warm-up of the second.")] = None,
    groups: Annotated[int | None, _option("Sequences per step.")] = None,
    sequence_length: Annotated[int | None, _option("Tokens of a sequence.")] = None,
    rate: Annotated[float | None, _option("Largest learning rate.", "X")] = None,
    warmup: Annotated[int | None, _option("Steps over which it rises.")] = None,
    train_dtype: Annotated[str | None, _option("float32 or bfloat16: of products.", "NAME")] = None,
    eval_every: Annotated[int | None, _option("Steps between looks at held-back sequences.", panel=RUN)] = None,
    eval_groups: Annotated[int | None, _option("Sequences held back for that.", panel=RUN)] = None,
    preset: options.Preset = "paper",
    layers: options.Layers = None,
    budget: options.Budget = None,
    selector: options.Selector = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Memories from the first step, or after a warm-up? (the paper's figure 11)

    Trains pairs of small models on the same sequences: one reads memories from
    its first step, the other from the middle on. Their losses with and without
    memories are written to stages.json and drawn to stages.png. Interrupted, the
    same command goes on.

    [bold]Examples[/bold]

        memory3 train two-stage --out stages --data texts.jsonl.gz
        memory3 train two-stage --out stages --data texts.jsonl.gz --steps 4000 --shape memory3-27m
    """
    from memory3.training.settings import WARMUP
    from memory3.training.stages import two_stages

    memory = {"layers": layers, "budget": budget, "selector": selector}
    changes: dict[str, Any] = {
        "model": full_name(tokenizer) if tokenizer else None,
        "data": [str(Path(path).resolve()) for path in data] if data else None,
        "dtype": train_dtype,
    }
    given = locals()
    names = {f.name for f in fields(_settings_class())} - {*changes, "memory"}
    changes |= {name: given[name] for name in names if name in given}
    settings = _settings(out_, False, config, changes, preset, memory, WARMUP)
    meter = _Meter()
    silence()
    with meter:
        figures = two_stages(settings, out_, range(seeds), device=device, progress=meter)
    if as_json:
        print_json(figures)
    elif not figures["complete"]:
        out.print("stopped before its end: go on with the same command")
    else:
        for way in ("from_start", "two_stages"):
            last = {name: value["mean"] for name, value in figures["summary"][way].items()}
            out.print(
                f"{way.replace('_', ' '):<12} loss with memories {last['eval_chunks']:.3f}, without {last['eval_packed']:.3f}, gain {last['gain']:.3f}"
            )
        out.print(f"written to {out_ / 'stages.json'}", soft_wrap=True)


def _settings_class() -> type[Settings]:
    from memory3.training.settings import Settings

    return Settings


def _settings(
    run: Path,
    resume: bool,
    config: Path | None,
    changes: dict[str, Any],
    preset: str | None,
    memory: dict[str, Any],
    defaults: Settings | None = None,
) -> Settings:
    """Of a run that is resumed: its own. Else those of the file, with what the options change."""
    kind = _settings_class()
    changed = {name: value for name, value in changes.items() if value is not None}
    stored = run / "settings.json"
    if resume and stored.exists():
        if changed or config or preset or any(value is not None for value in memory.values()):
            raise ConfigError(f"{run} is resumed with its own settings ({stored}): leave other settings out")
        return kind.read(stored)
    base = kind.read(config) if config else defaults or kind()
    wanted = options.settings(base.memory, {"preset": preset, **memory})
    try:
        return base.replace(**{**changed, "memory": wanted.to_dict()})
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def _shares(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        return {name.strip(): float(share) for name, _, share in (part.partition("=") for part in text.split(","))}
    except ValueError:
        raise typer.BadParameter(
            f"mixture {text!r} is not understood: write memory=6,text=2,none=1,continue=1,plain=1"
        ) from None


class _Meter:
    """The progress of a run on stderr: a bar on a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._what, self._started, self._from, self._told = "", 0.0, 0, 0.0

    def __enter__(self) -> _Meter:
        if err.is_terminal:
            self._bar = progress_bar()
            self._bar.__enter__()
            self._bar.add_task("", total=None, status="starting")
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def __call__(self, what: str, done: int, total: int, more: str) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._started, self._from, self._told = what, now, max(done - 1, 0), 0.0
        work = done - self._from
        left = (now - self._started) / work * (total - done) if total and work > 1 else 0.0
        parts = [f"{what} {done:,} of {total:,}" if total else what, more, f"{duration(left)} left" if left > 2 else ""]
        status = ", ".join(part for part in parts if part)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, status=status)
        elif now - self._told >= 15.0 or done == total:
            self._told = now
            message(status)


def _report(result: Result, settings: Settings, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "run": str(result.run),
                "trained": str(result.trained) if result.trained else None,
                "step": result.step,
                "steps": settings.steps,
                "seconds_per_step": round(result.seconds_per_step, 3),
                "seconds": round(seconds, 3),
                "losses": {name: round(loss, 4) for name, loss in result.losses.items()},
            }
        )
        return
    out.print(f"step {result.step:,} of {settings.steps:,}, {result.seconds_per_step:.2f} s a step, in {duration(seconds)}")
    for name, loss in sorted(result.losses.items()):
        out.print(f"  {name:<16} {loss:.3f}")
    if result.trained:
        out.print(f"trained: {result.trained}", soft_wrap=True)
    else:
        out.print("stopped before its end: go on with the same command and --resume", soft_wrap=True)
