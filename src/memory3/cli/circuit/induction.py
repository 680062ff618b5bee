"""``memory3 circuit induction``: the circuit that copies what stood behind an earlier copy, and the scores it is known by."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from memory3.cli import options as shared
from memory3.cli.circuit import options
from memory3.cli.circuit.shown import give, ready, rows
from memory3.cli.loading import full_name, silence
from memory3.cli.output import err, out
from memory3.cli.progress import StepMeter
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["induction"]


def induction(
    model: options.Model = None,
    edges: options.Edges = 40,
    texts: Annotated[int, typer.Option(help="Texts of random tokens.", min=2, max=1000, metavar="N")] = 8,
    period: Annotated[int, typer.Option(help="Tokens before they are repeated.", min=3, max=127, metavar="N")] = 25,
    target: options.Target = None,
    figure: options.Figure = None,
    baseline: options.Baseline = "mean",
    exact: options.Exact = 20,
    threshold: options.Threshold = 0.5,
    seed: options.Seed = 0,
    device: shared.Device = None,
    model_dtype: shared.ModelDtype = None,
    as_json: shared.Json = False,
) -> None:
    """Find the induction circuit, on random tokens that are repeated.

    Beside the circuit, every head's prefix-matching and copying score (Olsson et al.
    2022) and how well its weight agrees with them.

    [bold]Examples[/bold]

        memory3 circuit induction
        memory3 circuit induction --model Qwen/Qwen2.5-0.5B --figure induction.svg
        memory3 circuit induction --texts 4 --period 12 --exact 0
    """
    options.check_figure(figure)
    silence()
    ready(figure)
    loaded = full_name(model or DEFAULT_MODEL)
    from memory3.interpret.finding import find_circuit
    from memory3.interpret.gates import GatedModel
    from memory3.interpret.induction import agreement, copying, drawn_from, prefix_matching
    from memory3.interpret.texts import repeated_texts
    from memory3.models.load import load_model

    with err.status(f"loading {loaded}"):
        network, tokenizer = load_model(loaded, device=device, dtype=model_dtype)
        gated = GatedModel(network)
    front = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    made = repeated_texts(drawn_from(tokenizer), front, texts, period, seed)
    with StepMeter() as meter:
        tell = lambda what, done, total: meter(f"{what}:", done, total, "")  # noqa: E731
        options_of_all: dict[str, Any] = {
            "edges": edges,
            "baseline": baseline,
            "exact": exact,
            "threshold": threshold,
            "seed": seed,
        }
        report, weights = find_circuit(gated, tokenizer, made, **options_of_all, tell=tell)
        matching = prefix_matching(gated, weights.alignment)
        copied = copying(gated, weights.alignment, lambda done, total: tell("copying scores", done, total))
    scores = agreement(weights, matching, copied)
    report = {
        "model": loaded,
        "layers": gated.layers,
        "heads": gated.heads,
        "asked": f"random tokens, {period} and again",
        **report,
        "induction": scores,
    }
    give(report, f"random tokens, repeated ({texts} texts)", target, figure, as_json)
    if not as_json:
        out.print("\nheads by the weight of their edge from the token behind the earlier copy")
        table = [
            (f"{head['layer']}.{head['head']}", *(f"{head[name]:.3f}" for name in ("weight", "prefix matching", "copying")))
            for head in scores["heads"]
        ]
        rows(("head", "weight", "prefix matching", "copying"), table)
        out.print(
            f"rank correlation of weight and prefix matching over all heads: {scores['rank correlation']:.2f}; of the "
            f"{len(table)} heaviest heads {scores['shared']} are among the {len(table)} of the highest prefix matching"
        )
