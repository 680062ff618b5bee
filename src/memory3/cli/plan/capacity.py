"""The capacity part of ``memory3 plan``: what a corpus takes on a machine.

The corpus, or the usage of a bank, is counted. The machine is chosen or measured.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from memory3.cli.loading import silence
from memory3.cli.output import err, message, size
from memory3.cli.plan.views import PlanSubject, View, columns, digits
from memory3.cli.progress import progress_bar
from memory3.config import MemoryConfig
from memory3.errors import InputError
from memory3.models.sizes import PAPER_MODEL
from memory3.planner.capacity import CapacityPlan, CorpusSize, plan
from memory3.planner.library import writing_tokens
from memory3.planner.machine import Machine, machine_of
from memory3.planner.usage import DocumentUsage

if TYPE_CHECKING:
    from memory3.bank.format.manifest import BankManifest

__all__ = ["bank_usage", "capacity", "chosen_machine", "counted"]

#: Numbers of references that are shown where none is asked for.
DECADES = tuple(10**power for power in range(4, 10))
#: A bar is shown from here on, in seconds.
_PATIENCE = 2.0


def chosen_machine(asked: PlanSubject, name: str | None, measured: bool, price: float | None, tokens: float = 0.0) -> Machine:
    """A profile by name, or this machine timed with the model's shape."""
    if measured:
        from memory3.planner.measure import measure

        passed = writing_tokens(asked.config, round(tokens) or asked.config.reference_length)
        with err.status("measuring") as status:
            machine = measure(asked.shape, passed, tell=lambda what: status.update(f"measuring {what}"))
    else:
        machine = machine_of(name or "")
    return machine if price is None else dataclasses.replace(machine, price=price)


def counted(paths: Sequence[str], model: str, config: MemoryConfig) -> CorpusSize:
    """How many references documents make, read by the library's own readers and cut by its own splitter."""
    from memory3.models.catalogue import DEFAULT_MODEL
    from memory3.models.load import load_tokenizer
    from memory3.text import read_documents, split

    silence()
    if model == PAPER_MODEL:
        message(f"{PAPER_MODEL} has no tokenizer; the texts are counted with that of {DEFAULT_MODEL}", kind="note")
        model = DEFAULT_MODEL
    tokenizer = load_tokenizer(model)
    references = tokens = length = 0
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("", total=None, status="", visible=False)
        for document in read_documents(*paths, on_skip=lambda place, reason: message(f"{place}: {reason}", kind="note")):
            for reference in split(document, tokenizer, config.reference_length):
                references += 1
                tokens += len(reference.token_ids)
                length += len(reference.text.encode())
            late = time.monotonic() - started > _PATIENCE
            bar.update(task, status=f"{references:,} references, {size(length)}", visible=late)
    return CorpusSize(references, tokens / references, length / references)


def bank_usage(path: Path) -> tuple[BankManifest, list[DocumentUsage]]:
    """What a bank says about itself, and how often its documents were recalled, most used first."""
    from memory3.bank import Bank

    with Bank.open(path, None, create=False) as bank:
        counts = bank.recalls()
        usage = [DocumentUsage(entry.id, counts[entry.id], entry.references) for entry in bank.documents()]
        if not usage:
            raise InputError(f"{path}: the bank holds no documents: there is nothing to allocate")
        return bank.manifest, sorted(usage, key=lambda use: (-use.count, use.document_id))


def capacity(asked: PlanSubject, corpus: CorpusSize | None, machine: Machine, within_hours: float) -> View:
    """What a corpus takes on a machine; without one, what 1e4 to 1e9 references take."""
    corpora = [corpus] if corpus else [CorpusSize(number) for number in DECADES]
    plans = [
        plan(each, asked.shape, asked.config, machine, embedder=asked.embedder, within_hours=within_hours) for each in corpora
    ]
    value = {"machine": dataclasses.asdict(machine), "plans": [_json(each) for each in plans]}
    if corpus:
        value["corpus"] = dataclasses.asdict(corpus)
    about = (
        f"\n{machine.name}: {digits(machine.flops / 1e12)} TFLOP/s, memory {size(machine.memory_bandwidth)}/s, disk "
        f"{size(machine.disk_bandwidth)}/s, {machine.price:g} an hour, {machine.disk_price:g} a TB and month"
    )
    shown = columns("references", *(f"{each.references:.3g}" if not corpus else f"{each.references:,}" for each in plans))
    rows = [_rows(each) for each in plans]
    shown.padding = (0, 1, 0, 0)
    for column in shown.columns:
        column.no_wrap = True
    for cells in zip(*rows, strict=True):
        shown.add_row(cells[0][0], *(text for _, text in cells))
    return "capacity", value, [Text(about, "bold"), shown]


def _json(made: CapacityPlan) -> dict[str, Any]:
    return {**dataclasses.asdict(made), "recall_seconds": made.recall.seconds, "tokens_per_second_lost": made.lost}


def _rows(made: CapacityPlan) -> list[tuple[str, str]]:
    return [
        ("memory: write", _time(3600 * made.write_hours)),
        ("  references/s", digits(made.references_per_second)),
        ("  price", digits(made.price)),
        ("  machines", f"{made.machines:,}"),
        ("  disk", size(made.disk)),
        ("  disk, a month", digits(made.disk_price)),
        ("  index in RAM", size(made.index_ram)),
        ("  a recall", _time(made.recall.seconds)),
        ("  read by it", size(made.recall_bytes)),
        ("  tokens/s", digits(made.tokens_per_second)),
        ("  tokens/s lost", f"{made.lost:.0%}"),
        ("text: embed", _time(3600 * made.text_hours)),
        ("  disk", size(made.text_disk)),
        ("  first token", _time(made.text_first_token)),
        ("weights: train", _time(3600 * made.training_hours)),
        ("  price", digits(made.training_price)),
    ]


def _time(seconds: float) -> str:
    """Short enough for six columns: ``7.9 ms``, ``41 s``, ``11 h``, ``48 d``."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length:
            return f"{float(f'{seconds / length:.2g}'):,g} {unit}"
    return f"{float(f'{seconds * 1000:.2g}'):g} ms"
