"""``memory3 circuit imitable``: can a text stand for a fact that a model does not know?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from memory3.cli import options
from memory3.cli.circuit import options as own
from memory3.cli.circuit.shown import ready
from memory3.cli.loading import full_name, load_model, silence
from memory3.cli.output import message, out, print_json
from memory3.cli.progress import StepMeter
from memory3.config import MemoryConfig
from memory3.files import write_atomically

if TYPE_CHECKING:
    from memory3.interpret.imitable import Tried
    from memory3.llm import Memory3

__all__ = ["imitable"]

_ASKED = "How facts are asked"


def imitable(
    context: typer.Context,
    facts: Annotated[
        Path, typer.Argument(metavar="FACTS", help="JSON lines (.gz too) of facts and patterns, as ParaRel has them.")
    ],
    model: own.Model = None,
    other: Annotated[
        str | None,
        typer.Option("--other-model", help="Another model, whose own texts of the facts are tried too.", metavar="MODEL"),
    ] = None,
    relations: Annotated[str | None, typer.Option(help="Relations by name. Default: all.", metavar="A,B,..")] = None,
    asked: Annotated[int, typer.Option(help="Facts asked of each relation.", min=1, max=100_000, metavar="N")] = 100,
    tried: Annotated[
        int, typer.Option(help="Of these, known ones tried at most, and unknown ones.", min=1, max=100_000, metavar="N")
    ] = 20,
    others: Annotated[int, typer.Option(help="Patterns beside the one that is asked.", min=0, max=20, metavar="N")] = 3,
    known: Annotated[
        float,
        typer.Option(
            help="Probability of each token of the answer from which on a fact is known.", min=0.501, max=1, metavar="P"
        ),
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", metavar="N", rich_help_panel=_ASKED)] = 0,
    target: own.Target = None,
    memory_prefix: options.MemoryPrefix = None,
    memory_temperature: options.MemoryTemperature = None,
    device: options.Device = None,
    model_dtype: options.ModelDtype = None,
    as_json: options.Json = False,
) -> None:
    """Test whether a text can stand for a fact: as a prefix, as memory, in other words.

    Facts are asked without help. Of those that the model knows (every token of the answer
    has a probability of 0.9 or more) and of those that it does not (one has 0.5 or less),
    some are asked again behind a text of the fact, in several patterns and as memory, and
    behind controls. Rates have Wilson's intervals of 95%. Small models know few facts that
    well: with --known 0.501 a fact is known where the model writes the answer by itself and
    each token is likelier than all others together.

    [bold]Examples[/bold]

        memory3 circuit imitable pararel.jsonl.gz --relations P36,P19
        memory3 circuit imitable pararel.jsonl.gz --asked 200 --known 0.501
        memory3 circuit imitable facts.jsonl --asked 500 --tried 100 --out claim.json
    """
    from memory3.interpret.facts import read_facts
    from memory3.interpret.imitable import summary, try_relations, usable

    found = read_facts(facts)
    wanted = [name.strip() for name in relations.split(",") if name.strip()] if relations else list(found)
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise typer.BadParameter(
            f"{facts} has no relation {lacking[0]!r}: it has {', '.join(found)}", param_hint="--relations"
        )
    m3 = _loaded(context, model, memory_prefix, device, model_dtype)
    writer = _loaded(context, other, memory_prefix, device, model_dtype) if other else None
    chosen = usable([found[name] for name in wanted])
    seen: list[Tried] = []
    report: dict[str, Any] = {}
    with StepMeter() as meter:
        tests = try_relations(m3, chosen, asked=asked, tried=tried, others=others, seed=seed, known=known, other=writer)
        for number, mine in enumerate(tests, 1):
            meter("relation", number, len(chosen), chosen[number - 1].name)
            seen += mine
            report = {"model": m3.name, "other model": writer.name if writer else None, "memory": m3.config.to_dict()}
            report |= {"seed": seed, "patterns beside": others} | summary(seen, known)
            if target is not None:  # after each relation, so that a run that is ended leaves what it found
                write_atomically(target, json.dumps(report, indent=1) + "\n")
    if target is not None:
        message(f"written to {target}")
    if as_json:
        print_json(report)
    else:
        _show(report)


def _loaded(context: typer.Context, model: str | None, prefix: str | None, device: str | None, dtype: str | None) -> Memory3:
    from memory3.interpret.imitable import settings_for
    from memory3.models.adapter import adapter_of, trained_config
    from memory3.models.catalogue import DEFAULT_MODEL
    from memory3.models.load import load_tokenizer

    silence()
    ready(None)
    name = full_name(model or DEFAULT_MODEL)
    base = options.settings(trained_config(name) or MemoryConfig(), context.params)
    config = base.replace(arrangement="row") if prefix else settings_for(load_tokenizer(adapter_of(name)[0]), base)
    return load_model(name, config, device=device, dtype=dtype)


def _show(report: dict[str, Any]) -> None:
    from memory3.interpret.imitable import ARMS

    counts = report["facts"]
    out.print(f"{counts['asked']:,} facts asked: {counts['known']:,} known, {counts['unknown']:,} not known")
    for group, title in (("unknown", "facts that the model does not know"), ("known", "facts that it knows")):
        part = report[group]
        if not part["facts"]:
            continue
        out.print(Text(f"\n{part['facts']:,} {title}", "bold"))
        table = Table(box=None, pad_edge=False)
        known = report["thresholds"]["known"]
        weaker = (f"P >= {known:g}", "95%") if known < report["thresholds"]["says it"] else ()
        for column in ("in front of the prompt", "says it (P >= 0.9)", "95%", *weaker, "median P", ""):
            table.add_column(column)
        for arm, rate in part["arms"].items():
            cells = [f"{rate['rate']:.1%} of {rate['of']}", _interval(rate)]
            if weaker:
                cells += [f"{rate['as if known']['rate']:.1%}", _interval(rate["as if known"])]
            table.add_row(arm, *cells, f"{rate['median probability']:.2f}", ARMS[arm])
        out.print(table)
    for arm, numbers in report["unknown"].get("what tells failures", {}).items():
        if numbers:
            out.print(Text(f"\nwhat tells facts that fail ({arm})", "bold"))
            table = Table(box=None, pad_edge=False)
            for column in ("", "mean of failures", "mean of the others", "AUROC"):
                table.add_column(column)
            for name, each in numbers.items():
                table.add_row(name, f"{each['failures']:.2f}", f"{each['others']:.2f}", f"{each['auroc']:.2f}")
            out.print(table)


def _interval(rate: dict[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{low:.1%} to {high:.1%}"
