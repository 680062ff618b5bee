"""``memory3 ask``: a question, its answer, and what the answer was read from."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from memory3.cli import options
from memory3.cli.deferred import alone, without
from memory3.cli.loading import full_name, load_model, open_bank
from memory3.cli.output import count, first_line, message, out, print_json, printable, size
from memory3.errors import InputError
from memory3.garbage import collecting_later

if TYPE_CHECKING:
    from memory3.llm import Answer, Memory3
    from memory3.types import Citation

__all__ = ["answer_json", "ask", "place", "usage_line"]

ANSWER = "How it answers"

Mode = Literal["memory", "text", "none", "all"]


def ask(
    question: Annotated[str, typer.Argument(help="The question, or - to read it from standard input.")],
    bank: Annotated[
        str | None,
        typer.Option(
            "--bank",
            "-b",
            help="Folder of the bank, its URL on object storage, or the address of one that memory3 serve serves. "
            "Needed in all modes but none.",
            envvar="MEMORY3_BANK",
            metavar="DIR|URL",
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="memory: read key-values. text: the same references in the prompt. none: closed book. all: side by side.",
        ),
    ] = "memory",
    k: Annotated[
        int | None,
        typer.Option(
            help="References read at once. Default: up to 5, those about as near to the question as the best one.",
            min=0,
            metavar="N",
        ),
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(
            help=(
                "Read only references whose cosine is within this of the best one's: 0 the best alone, 2 all. Default: "
                "0.1; with --k, 2."
            ),
            min=0,
            max=2,
            metavar="X",
            rich_help_panel=options.READING,
        ),
    ] = None,
    memory_temperature: options.MemoryTemperature = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only references with this metadata; again for more. Values of one key: any of them.", metavar="KEY=VALUE"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answer at most.", min=1, metavar="N")] = 128,
    explain: Annotated[
        Path | None,
        typer.Option(
            help="Write a page: which heads looked at which tokens of which passage, for each token of the answer. "
            "Mode memory alone.",
            metavar="FILE",
            rich_help_panel=ANSWER,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System text, for chat models.", metavar="TEXT")] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print words as they come. Default: on a terminal.")
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens by chance instead of the likeliest.", rich_help_panel=ANSWER)
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(help="With --sample: below 1 safer, above 1 wilder.", min=0.01, metavar="T", rich_help_panel=ANSWER),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="With --sample: the same seed gives the same answer.", metavar="N", rich_help_panel=ANSWER),
    ] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    cache_device: options.CacheDevice = None,
    cache_ram: options.CacheRam = None,
    cache_disk: options.CacheDisk = None,
    as_json: options.Json = False,
) -> None:
    """Answer a question from a bank, with citations.

    The three modes answer from the same bank: compare them with --mode all.

    [bold]Examples[/bold]

        memory3 ask "Who built the bridge?" --bank bank
        memory3 ask "Who built the bridge?" --bank bank --mode all
        memory3 ask "What changed?" --bank bank --where year=2020
        memory3 ask "Who built the bridge?" --bank bank --explain explain.html
        echo "Who built the bridge?" | memory3 ask - --bank bank --json
    """
    if (temperature is not None or seed is not None) and not sample:
        raise typer.BadParameter("--temperature and --seed need --sample")
    if bank is None and mode != "none":
        raise typer.BadParameter(f"mode {mode} needs a bank: give --bank DIR, or --mode none to answer without one")
    if stream and (as_json or mode == "all"):
        raise typer.BadParameter("--stream goes with one mode and without --json")
    cache = options.cache_bytes(cache_device, cache_ram, cache_disk)
    if explain is not None:
        _check_page(explain, mode)
    choice: dict[str, Any] = {"k": k, "gap": gap, "where": _where(where or []), "max_new_tokens": max_new_tokens}
    if sample:
        choice |= {"do_sample": True, "temperature": temperature or 1.0}
    text = _question(question)
    prompt: Any = [{"role": "system", "content": _clean(system)}, {"role": "user", "content": text}] if system else text

    with collecting_later(), without():  # here, once and for all that follows
        alone()
        if bank is not None:
            import lancedb  # noqa: F401

            import memory3.bank
        import memory3.llm  # noqa: F401
    if bank is None:
        from memory3.models.catalogue import DEFAULT_ADAPTED

        m3, opened = load_model(full_name(model or DEFAULT_ADAPTED, adapter), device=device), None
    else:
        from memory3.bank.address import is_address

        m3, opened = open_bank(
            bank if is_address(bank) else str(options.place(bank)),
            model,
            adapter=adapter,
            device=device,
            temperature=memory_temperature,
            embedder=mode != "none",
            cache=cache,
        )

    one = mode != "all"
    streaming = one and not as_json and (out.is_terminal if stream is None else stream)
    answers: dict[str, Answer] = {}
    explanation: dict[str, Any] = {}
    if explain is not None:
        from memory3.attention.watching import Watch

        choice["watch"] = Watch()
    for each in (mode,) if one else ("memory", "text", "none"):
        if seed is not None:
            _sow(seed)
        answers[each] = m3.generate(prompt, bank=opened, mode=each, streamer=_printer(m3) if streaming else None, **choice)
    tiers = None
    if explain is not None:
        explanation = _explained(m3, opened, choice["watch"], answers[mode], text, str(bank), explain)
    if opened is not None:
        tiers = opened.tiers.statistics().to_dict()
        opened.close()  # writes down what was recalled

    for note in dict.fromkeys(answer.note for answer in answers.values() if answer.note):
        message(note, kind="note", style="yellow")
    if any(answer.found is False for answer in answers.values()):
        message("probably not found in the bank: the answer may be made up", kind="note", style="yellow")
    if as_json:
        found = [answer_json(each, answer) for each, answer in answers.items()]
        about = {"question": text, "bank": None if bank is None else str(bank), "model": m3.name, "tiers": tiers}
        print_json({**about, **(found[0] if one else {"answers": found}), **explanation})
    elif one:
        if not streaming:
            out.print(printable(answers[mode].text), soft_wrap=True)
        _print_sources(answers[mode])
    else:
        _print_side_by_side(answers)


def answer_json(mode: str, answer: Answer) -> dict[str, Any]:
    """An answer as JSON values."""
    return {
        "mode": mode,
        "answer": answer.text,
        "note": answer.note,
        "found": answer.found,
        "found_score": answer.found_score,
        "citations": [dataclasses.asdict(citation) for citation in answer.citations],
        "usage": dataclasses.asdict(answer.usage),
        "timings": dataclasses.asdict(answer.timings),
    }


def usage_line(answer: Answer) -> str:
    """What the answer took, in one line."""
    usage, timings = answer.usage, answer.timings
    parts = [f"first token {timings.first_token:.2f} s", f"{timings.tokens_per_second:.1f} tokens/s"]
    parts += [count(usage.prompt_tokens, "prompt token")]
    if usage.references:
        parts += [count(usage.references, "reference"), f"{size(usage.bytes_read)} read"]
    return ", ".join(parts)


def place(citation: Citation) -> str:
    """``docs/guide.md:1200-1710``: source and character offsets."""
    return f"{printable(citation.source or citation.document_id)}:{citation.start}-{citation.end}"


def _check_page(page: Path, mode: str) -> None:
    if mode != "memory":
        raise typer.BadParameter(f"--explain shows what was read from memories: mode {mode} has none to show, leave one out")
    if page.is_dir() or not page.absolute().parent.is_dir():
        raise typer.BadParameter(f"--explain {page}: give the name of a file in a folder that is there")


def _explained(m3: Memory3, bank: Any, watch: Any, answer: Answer, question: str, where: str, page: Path) -> dict[str, Any]:
    """Write the page, and return what ``--json`` says of it."""
    from memory3.files import write_atomically
    from memory3.interpret.explained import explained
    from memory3.interpret.explaining import bounded, explain

    references = bank.references([citation.reference_id for citation in answer.citations])
    read = [reference.token_ids for reference in references]
    found = explain(watch, m3.tokenizer, answer.token_ids, answer.citations, read)
    write_atomically(page, explained(found, question, m3.name, where))
    message(f"{printable(str(page))} shows what each token of the answer looked at", kind="note", style="dim")
    return {"explained": str(page), "explanation": bounded(found)}


def _question(argument: str) -> str:
    text = sys.stdin.buffer.read().decode("utf-8", "replace") if argument == "-" else _clean(argument)
    if not text.strip():
        raise InputError('the question is empty: memory3 ask "What is ...?" --bank DIR')
    return text.strip()


def _clean(argument: str) -> str:
    """An argument whose bytes are not UTF-8 reaches Python as lone surrogates, which no tokenizer takes."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _where(conditions: list[str]) -> dict[str, list[str | int | float | bool]]:
    """``["year=2020"]`` as ``{"year": ["2020", 2020]}``: text or number, whichever the documents have."""
    where: dict[str, list[str | int | float | bool]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{condition!r} is not a condition: write --where key=value", param_hint="--where")
        where.setdefault(key, []).extend(_readings(value))
    return where


def _readings(value: str) -> list[str | int | float | bool]:
    if value.lower() in ("true", "false"):
        return [value, value.lower() == "true"]
    for number in (int, float):
        try:
            return [value, number(value)] if math.isfinite(number(value)) else [value]
        except (ValueError, OverflowError):
            continue
    return [value]


def _sow(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _printer(m3: Memory3) -> Any:
    """Prints words as they come."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            text = text if self.begun else text.lstrip()
            self.begun = self.begun or bool(text)
            out.print(printable(text), end="\n" if stream_end else "", soft_wrap=True)

    return Printer(m3.tokenizer, skip_prompt=True, skip_special_tokens=True)


def _print_sources(answer: Answer) -> None:
    """Number, share of attention and place of each citation, and under it the first line of its text."""
    out.print()
    for n, citation in enumerate(answer.citations, 1):
        out.print(Text.assemble(f"{f'[{n}]':>4} ", (f"{citation.share:4.0%}", "bold"), f"  {place(citation)}"), soft_wrap=True)
        out.print(Text(f"{'':11}{first_line(citation.text)}", style="dim"), no_wrap=True, overflow="ellipsis")
    if answer.citations:
        out.print()
    out.print(usage_line(answer), style="dim", soft_wrap=True)


def _print_side_by_side(answers: dict[str, Answer]) -> None:
    table = Table(*answers, expand=True, show_lines=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(printable(answer.text)) for answer in answers.values()))
    table.add_row(*(Text(_top_sources(answer)) for answer in answers.values()))
    table.add_row(*(Text(usage_line(answer), style="dim") for answer in answers.values()))
    out.print(table)


def _top_sources(answer: Answer, most: int = 3) -> str:
    return "\n".join(f"{citation.share:.0%} {place(citation)}" for citation in answer.citations[:most])
