"""``memory3 eval``: a suite of questions in several modes, into a folder of results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table as RichTable

from memory3.cli import options
from memory3.cli.loading import full_name, load_model, open_bank, silence
from memory3.cli.output import count, duration, err, message, out, print_json
from memory3.cli.progress import progress_bar
from memory3.config import MemoryConfig

__all__ = ["evaluate"]

SPEED = "The suite speed"
ITEMS = "What is asked"
GUARD = "Contamination guard"
RESULTS = "Results and banks"

#: Seconds between two lines in a log.
_LOG_EVERY = 15.0


def evaluate(
    suite: Annotated[str | None, typer.Argument(metavar="[SUITE]", help="Which suite. Without it, all are listed.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data files that docs/evaluation.md lists.", envvar="MEMORY3_DATA", metavar="DIR"),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of results. Run again, it goes on.", metavar="DIR")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Catalogue name, hub id or folder.", metavar="MODEL")
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            "-b",
            callback=options.folder,
            help="Answer from this bank, instead of the suite's own knowledge bases.",
            metavar="DIR",
        ),
    ] = None,
    banks: Annotated[
        Path | None,
        typer.Option(
            help="Where banks of knowledge bases are made and found again. Default: banks in --out.",
            metavar="DIR",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another results folder: what it measured in the same way is not measured again.",
            metavar="DIR",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    modes: Annotated[
        str | None,
        typer.Option(
            help=(
                "memory, text, none; the controls random and other; gold, gold_text (the right reference); each with a "
                "number of references if need be: text:7. Default: as the suite says."
            ),
            metavar="MODE,MODE:K,...",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Only this task of the suite; again for more.", metavar="NAME")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Items of each task at most, drawn by the seed.", min=1, metavar="N")
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="dev to tune, test to report; for tasks that have both.", metavar="dev|test", rich_help_panel=ITEMS),
    ] = "test",
    k: Annotated[
        int | None, typer.Option(help="References read at once. Default: the model's setting.", min=1, metavar="N")
    ] = None,
    guard: Annotated[
        str,
        typer.Option(
            help="Contamination guard: drop references that overlap the question by more: 2/3, 80%, none.",
            metavar="SHARE",
            rich_help_panel=GUARD,
        ),
    ] = "2/3",
    guard_of: Annotated[
        str | None,
        typer.Option(
            help="Share of what: reference, question, either. Default: as the task says.",
            metavar="NAME",
            rich_help_panel=GUARD,
        ),
    ] = None,
    guard_table: Annotated[
        bool,
        typer.Option(
            "--guard-table",
            help="Also answer under every threshold: none, 80%, 2/3. Costs only what they change.",
            rich_help_panel=GUARD,
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Of the draw of items and of the controls.", metavar="N", rich_help_panel=ITEMS)
    ] = 0,
    shots: Annotated[
        int | None,
        typer.Option(
            help="Examples in front of each question of a benchmark. Default: as on the leaderboards.",
            min=0,
            metavar="N",
            rich_help_panel=ITEMS,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Length of generated answers at most. Default: as the task has it.", min=1, metavar="N", rich_help_panel=ITEMS
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="mt-bench: the model that grades, at OPENAI_BASE_URL with OPENAI_API_KEY.",
            metavar="MODEL",
            rich_help_panel=ITEMS,
        ),
    ] = "",
    batches: Annotated[str, typer.Option(help="speed: batch sizes.", metavar="N,N", rich_help_panel=SPEED)] = "1,8",
    tokens_in: Annotated[
        int, typer.Option(help="speed: tokens of a prompt.", min=1, metavar="N", rich_help_panel=SPEED)
    ] = 128,
    tokens_out: Annotated[
        int, typer.Option(help="speed: tokens of an answer.", min=2, metavar="N", rich_help_panel=SPEED)
    ] = 128,
    repeats: Annotated[int, typer.Option(help="speed: turns.", min=1, metavar="N", rich_help_panel=SPEED)] = 5,
    hub: Annotated[
        bool,
        typer.Option(
            "--hub", help="Also the tasks whose questions must be fetched from the model hub.", rich_help_panel=ITEMS
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Questions at once. Default: 32. Halved when memory runs out.",
            min=1,
            metavar="N",
            rich_help_panel=options.MACHINE,
        ),
    ] = None,
    memory_temperature: options.MemoryTemperature = None,
    preset: options.Preset = None,
    device: options.Device = None,
    model_dtype: options.ModelDtype = None,
    as_json: options.Json = False,
) -> None:
    """Measure answers: memory against text, against nothing, against controls.

    Every answer is written to items.jsonl as it comes; the same command goes on
    where an interrupted one stopped, and a larger --limit adds to what is there.
    The folder gets results.json, report.md and report.html.

    [bold]Examples[/bold]

        memory3 eval
        memory3 eval qa --data shared/data --limit 100 --out results/qa
        memory3 eval qa --data shared/data --modes memory:2,text:2,none,random:2 --split dev --out results/qa2
        memory3 eval abstain --data shared/data --limit 200 --out results/abstain --json
        memory3 eval speed --batches 1,8 --tokens-in 128 --tokens-out 128 --out results/speed
    """
    from memory3.benchmarks import BENCHMARKS
    from memory3.evaluation.suites import SUITES

    known = {**{name: s.about for name, s in SUITES.items()}, "speed": BENCHMARKS["speed"]}
    if suite is None:
        _list(known, as_json)
        return
    if suite not in known:
        raise typer.BadParameter(f"suite {suite!r} is unknown: use one of {', '.join(known)}", param_hint="SUITE")
    if suite == "speed":
        if results is None:
            raise typer.BadParameter("give --out DIR, where results go")
        asked = {"batches": batches, "tokens_in": tokens_in, "tokens_out": tokens_out, "repeats": repeats}
        _speed(results, {"model": model, "preset": preset, **asked}, as_json)
        return
    if data is None or results is None:
        raise typer.BadParameter("give --data DIR, the folder of data, and --out DIR, where results go")
    from memory3.evaluation.guard import Guard
    from memory3.evaluation.modes import parse_modes
    from memory3.evaluation.run import run_suite
    from memory3.evaluation.runner import EvaluationPlan
    from memory3.evaluation.suites import Options, load_suite

    threshold = Guard.parse(guard, guard_of or "reference").threshold
    wanted = modes.split(",") if modes else list(SUITES[suite].modes)
    parse_modes(wanted, 1)  # a typing error is told before a model is loaded
    found = load_suite(suite, Options(data, split, shots, seed, max_new_tokens, judge, hub), tasks or ())
    opened = None
    if bank is not None:
        m3, opened = open_bank(bank, model, device=device, dtype=model_dtype, temperature=memory_temperature)
    else:
        from memory3.models.catalogue import DEFAULT_ADAPTED
        from memory3.models.chosen import settings_of

        name = full_name(model or DEFAULT_ADAPTED)
        given = {"preset": preset, "memory_temperature": memory_temperature}
        config = options.settings(settings_of(name) or MemoryConfig(), given)
        m3 = load_model(name, config, device=device, dtype=model_dtype)
    silence()
    plan = EvaluationPlan(
        parse_modes(wanted, m3.config.references_per_chunk, m3.config.score_gap) if k is None else parse_modes(wanted, k),
        limit,
        seed,
        threshold,
        guard_of,
        guard_table,
        batch_size,
    )
    with _meter() as tell:
        figures = run_suite(
            suite,
            found,
            m3,
            plan,
            results,
            data=data,
            banks=banks or results / "banks",
            bank=opened,
            reuse=reuse or (),
            progress=tell,
        )
    if opened is not None:
        opened.close()
    if as_json:
        print_json(figures)
        return
    _print(figures)
    message(f"{results / 'report.html'} shows it all")


def _speed(results: Path, asked: dict[str, Any], as_json: bool) -> None:
    """The speed table as a folder of results."""
    from memory3 import benchmarks
    from memory3.benchmarks.speed import tables
    from memory3.evaluation.run import write_results
    from memory3.evaluation.runner import now

    silence()
    with err.status("measuring speed"):
        measured = benchmarks.run("speed", {name: str(value) for name, value in asked.items() if value is not None})
    options = measured.pop("options")
    figures = {
        "suite": "speed",
        "model": options["model"],
        "finished": now(),
        "machine": measured.pop("machine"),
        "options": options,
        "measured": measured,
        "speed": tables(measured, options),
    }
    write_results(results, figures)
    if as_json:
        print_json(figures)
    else:
        _print(figures)


def _list(known: dict[str, str], as_json: bool) -> None:
    from memory3.cli.output import facts

    if as_json:
        print_json(known)
    else:
        out.print(facts(known))


@contextmanager
def _meter() -> Iterator[Any]:
    """How far it is, and how long it will take: a bar on a terminal, a line now and then in a log."""
    state: dict[str, Any] = {"text": "", "started": 0.0, "first": 0, "told": 0.0}

    def line(text: str, done: int, total: int) -> str:
        if text != state["text"]:
            state.update(text=text, started=time.monotonic(), first=done, told=0.0)
        work = done - state["first"]
        left = (total - done) * (time.monotonic() - state["started"]) / work if work else 0.0
        return f"{text}: {done:,} of {total:,}" + (f", {duration(left)} left" if work and total > done else "")

    if not err.is_terminal:

        def log(text: str, done: int, total: int) -> None:
            told = line(text, done, total)
            if time.monotonic() - state["told"] >= _LOG_EVERY or done >= total:
                state["told"] = time.monotonic()
                message(told)

        yield log
        return
    with progress_bar() as bar:
        task = bar.add_task("", total=1, status="")
        yield lambda text, done, total: bar.update(task, completed=done, total=total, status=line(text, done, total))


def _print(figures: dict[str, Any]) -> None:
    from memory3.evaluation.tables import sections

    for section in sections(figures):
        if not section.tables:
            continue
        for table in section.tables if figures["suite"] == "speed" else section.tables[:1]:
            title = f"{section.title}. {table.caption}" if table.caption else section.title
            shown = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
            for column in table.columns:
                shown.add_column(column)
            for row in table.rows:
                shown.add_row(*map(str, row))
            out.print(shown)
        for part in section.parts:
            for text in part.paragraphs:
                message(text, kind="flagged", style="bold yellow")
    items = sum(task["count"] for task in figures.get("tasks", {}).values())
    if items:
        message(f"{count(items, 'item')}, each in {len(figures['modes'])} modes")
