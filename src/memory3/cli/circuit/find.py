"""``memory3 circuit find``: the edges that the answers of some texts go through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memory3.cli import options as shared
from memory3.cli.circuit import options
from memory3.cli.circuit.shown import give, ready
from memory3.cli.loading import full_name, silence
from memory3.cli.output import count, err, message
from memory3.cli.progress import StepMeter
from memory3.errors import InputError
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["find"]

TEXTS = "Which texts"


def find(
    texts: Annotated[
        Path,
        typer.Argument(
            metavar="TEXTS",
            help="JSON lines with prompt, answer and subject (.gz too), a .tsv of them, or facts as ParaRel has them.",
        ),
    ],
    model: options.Model = None,
    relation: Annotated[str | None, typer.Option(help="The relation of a file of facts.", metavar="NAME")] = None,
    edges: options.Edges = 40,
    target: options.Target = None,
    figure: options.Figure = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="Ask the relation so. Default: its first pattern.", metavar="'[X] .. [Y]'", rich_help_panel=TEXTS),
    ] = None,
    least: Annotated[
        float,
        typer.Option(
            help="Probability of an answer below which a text is left out.", min=0, max=1, metavar="P", rich_help_panel=TEXTS
        ),
    ] = 0.3,
    most: Annotated[
        int,
        typer.Option(
            "--texts", help="Texts at most, the likeliest answers first.", min=1, max=1000, metavar="N", rich_help_panel=TEXTS
        ),
    ] = 32,
    asked: Annotated[
        int,
        typer.Option(help="Facts of the relation that are looked at.", min=1, max=10_000, metavar="N", rich_help_panel=TEXTS),
    ] = 300,
    baseline: options.Baseline = "mean",
    exact: options.Exact = 20,
    threshold: options.Threshold = 0.5,
    seed: options.Seed = 0,
    device: shared.Device = None,
    model_dtype: shared.ModelDtype = None,
    as_json: shared.Json = False,
) -> None:
    """Find the circuit of texts that ask for the same relation.

    All attention edges (layer, head, from, to) and MLPs (layer, token) are weighed by what
    the log-likelihood of the answer loses without them: by a gradient for all, and by
    taking out for the heaviest. Edges of tokens of the same role are one edge. Takes two
    minutes for the default model on two cores.

    [bold]Examples[/bold]

        memory3 circuit find births.jsonl
        memory3 circuit find pararel.jsonl.gz --relation P36 --figure capitals.svg
        memory3 circuit find births.tsv --baseline zero --exact 0 --json
    """
    options.check_figure(figure)
    from memory3.interpret.asked import asked_of, laid_out, read_asked
    from memory3.interpret.facts import read_facts

    name = texts.name
    if relation is None:
        if pattern is not None:
            raise typer.BadParameter("a pattern is one of a relation: give --relation too", param_hint="--pattern")
        wanted = read_asked(texts)
    else:
        relations = read_facts(texts)
        if relation not in relations:
            raise typer.BadParameter(
                f"{texts} has no relation {relation!r}: it has {', '.join(relations)}", param_hint="--relation"
            )
        name, wanted = asked_of(relations[relation], pattern, asked, seed)
    silence()
    ready(figure)
    loaded = full_name(model or DEFAULT_MODEL)
    from memory3.interpret.finding import find_circuit, known
    from memory3.interpret.gates import GatedModel
    from memory3.models.load import load_model

    with err.status(f"loading {loaded}"):
        network, tokenizer = load_model(loaded, device=device, dtype=model_dtype)
        gated = GatedModel(network)
    found, refused = laid_out(tokenizer, wanted)
    if refused:
        message(f"{count(len(refused), 'text')} left out: {refused[0]}", kind="warning", style="yellow")
    with StepMeter() as meter:
        tell = lambda what, done, total: meter(f"{what}:", done, total, "")  # noqa: E731
        chosen = known(gated, [text for _, text in found], least, most, tell)
        if not chosen:
            raise InputError(
                f"of {count(len(found), 'text')} none has an answer of probability {least:g} or more: lower --least"
            )
        report, _ = find_circuit(
            gated,
            tokenizer,
            [found[n][1] for n in chosen],
            edges=edges,
            baseline=baseline,
            exact=exact,
            threshold=threshold,
            seed=seed,
            tell=tell,
        )
    shown = [f"{found[n][0].prompt}{found[n][0].answer}" for n in chosen]
    report = {"model": loaded, "layers": gated.layers, "heads": gated.heads, "asked": name, "first texts": shown[:5], **report}
    give(report, f"{name} ({count(len(chosen), 'text')})", target, figure, as_json)
