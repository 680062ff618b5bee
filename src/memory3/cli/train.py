"""``memory3 train``: the doors to `memory3.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memory3.cli import options
from memory3.cli.loading import silence
from memory3.cli.output import out, print_json
from memory3.cli.progress import StepMeter
from memory3.cli.training import LORA, MEMORY, OPTIMISER, RUN, Folder, settings_of, start, takes
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["train"]

train = typer.Typer(
    name="train",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Teach a model to write and read memories. Needs the extra: pip install 'memory3\\[train]'.",
    epilog="Every command goes on with [bold]--resume[/bold]; Ctrl-C finishes the step and writes a checkpoint.",
)


@train.command()
@takes(
    "model",
    "bank",
    *RUN,
    *OPTIMISER,
    "schedule",
    "decay",
    "mixture",
    "questions",
    "blanks",
    "text_length",
    "distil",
    *LORA,
    *MEMORY,
)
def continual(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Train with memories: references are encoded inside the step.

    By default a LoRA adapter that reads 360 key-value pairs per reference. What
    is trained is what is served: `memory3 write --adapter RUN/adapter` uses it
    with the settings it was trained for.

    [bold]Examples[/bold]

        memory3 train continual --out run --data questions.jsonl --data texts.jsonl
        memory3 train continual --out run --data texts.jsonl --blanks 3
        memory3 train continual --out run --resume
        memory3 train continual --out paper --data texts.jsonl --mixture chunks=1 --rank 0
        memory3 train continual --out run8 --data qa.jsonl.gz --budget adaptive:1/8 --steps 300
        torchrun --nproc_per_node 2 $(which memory3) train continual --out run --data qa.jsonl
    """
    from memory3.training.settings import Settings

    start(folder, context.params, Settings())


@train.command()
@takes("shape", "tokenizer", *RUN, *OPTIMISER, "schedule", "decay")
def warmup(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Pretrain a model from scratch, without memories: the first of two stages.

    Texts are packed into sequences; AdamW with weight decay 0.1; the learning
    rate warms up, stays and decays. The second stage is `memory3 train continual`
    with the model that this leaves in RUN/model.

    [bold]Examples[/bold]

        memory3 train warmup --shape memory3-4m --data texts.jsonl.gz --out warm
        memory3 train continual --model warm/model --rank 0 --mixture chunks=1 --data texts.jsonl.gz --out second
    """
    from memory3.training.settings import WARMUP

    start(folder, context.params, WARMUP)


@train.command()
@takes("model", "bank", "epochs", *RUN, *OPTIMISER, "schedule", "decay", "mixture", "distil", *LORA, *MEMORY)
def sft(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Fine-tune on prompts and answers, with memories attached to the prompts.

    Each prompt reads the references found for it in --bank, or in the passages
    and texts of the data. The paper's settings: all weights, cosine from 5e-5,
    10% warm-up, weight decay 0.1, 512 prompts a step, 2048 tokens, 3 epochs.

    [bold]Examples[/bold]

        memory3 train sft --out sft --data prompts.jsonl --bank bank
        memory3 train sft --out sft --data prompts.jsonl --bank bank --rank 16 --rate 3e-4 --passes 8
        memory3 train sft --out sft --data prompts.jsonl --mixture none=1
        memory3 train sft --out sft --resume
    """
    from memory3.training.settings import SFT

    start(folder, context.params, SFT)


@train.command()
@takes("model", "bank", "epochs", "beta", *RUN, *OPTIMISER, "schedule", "decay", *LORA, *MEMORY)
def dpo(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Prefer the better of two answers, with memories attached to the prompts.

    Direct preference optimisation with the paper's rate of 4e-6 and beta of 0.01.
    Records have prompt, chosen and rejected. The model as it is before training
    is what it is compared with; its likelihoods are taken once, at the start.

    [bold]Examples[/bold]

        memory3 train dpo --model sft/model --out dpo --data pairs.jsonl --bank bank
        memory3 train dpo --model sft/model --out dpo --data pairs.jsonl --k 0
        memory3 train dpo --out dpo --resume
    """
    from memory3.training.settings import DPO

    start(folder, context.params, DPO)


@train.command()
def tokenizer(
    folder: Folder,
    data: Annotated[
        list[Path], typer.Option(help="JSON lines (.gz too) with texts or passages. May be repeated.", metavar="FILE")
    ],
    size: Annotated[int, typer.Option(help="Tokens at most.", metavar="N")] = 4096,
    of: Annotated[str, typer.Option(help="Model whose kind of tokenizer it is.", metavar="MODEL")] = DEFAULT_MODEL,
    as_json: options.Json = False,
) -> None:
    """Train a tokenizer of fewer tokens, for small models from scratch.

    [bold]Examples[/bold]

        memory3 train tokenizer --data texts.jsonl.gz --out tokens
        memory3 train warmup --shape memory3-2m --tokenizer tokens --data texts.jsonl.gz --out warm
    """
    from memory3.training.vocabulary import train_vocabulary

    silence()
    with StepMeter() as meter:
        made = train_vocabulary(of, data, size, folder, progress=lambda done, total: meter("reading", done, total, "texts"))
    if as_json:
        print_json({"tokens": made, "folder": str(folder)})
    else:
        out.print(f"{made:,} tokens, saved to {folder}", soft_wrap=True)


@train.command(name="two-stage")
@takes("shape", "tokenizer", *(name for name in RUN if name != "resume"), *OPTIMISER, *MEMORY)
def two_stage(
    context: typer.Context,
    folder: Folder,
    seeds: Annotated[int, typer.Option(help="How many pairs of runs.", metavar="N", min=1)] = 3,
    **given: Any,
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
    from memory3.checkout import research
    from memory3.config import MemoryConfig
    from memory3.training.settings import WARMUP

    two_stages = research("two_stage", "memory3 train two-stage").two_stages
    settings = settings_of(folder, context.params, WARMUP.replace(memory=MemoryConfig.preset("paper")))
    silence()
    with StepMeter() as meter:
        figures = two_stages(settings, folder, range(seeds), device=given["device"], progress=meter)
    if given["as_json"]:
        print_json(figures)
    elif not figures["complete"]:
        out.print("stopped before its end: go on with the same command")
    else:
        for way in ("from_start", "two_stages"):
            last = {name: value["mean"] for name, value in figures["summary"][way].items()}
            out.print(
                f"{way.replace('_', ' '):<12} loss with memories {last['eval_chunks']:.3f}, without {last['eval_packed']:.3f}, gain {last['gain']:.3f}"
            )
        out.print(f"written to {folder / 'stages.json'}", soft_wrap=True)
