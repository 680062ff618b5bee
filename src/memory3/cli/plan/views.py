"""What ``memory3 plan`` shows: each view as JSON and as tables for people."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memory3.cli.output import printable, size
from memory3.codec.registry import shown
from memory3.config import MemoryConfig
from memory3.models.sizes import ModelSizes
from memory3.planner.allocation import allocate
from memory3.planner.capacity import CorpusSize
from memory3.planner.cost import LABELS, Costs, paper_costs
from memory3.planner.library import embedder_of, library_costs
from memory3.planner.storage import ReferenceBytes, library_bytes, paper_bytes
from memory3.planner.usage import DocumentUsage
from memory3.retention import RetentionPolicy

__all__ = ["PlanSubject", "View", "allocation", "binary", "columns", "costs", "digits", "storage", "traffic"]

#: Name in JSON, value there, tables for people.
View = tuple[str, Any, list[RenderableType]]

#: References in the bank where nobody says; only the search depends on it.
TYPICAL = 1_000_000


@dataclass(frozen=True)
class PlanSubject:
    """What is planned for.

    Attributes:
        name, shape: of the model.
        config: how memories are written, stored and read.
        embedder: by name.
        references: how many there are; None: not said.
    """

    name: str
    shape: ModelSizes
    config: MemoryConfig
    embedder: str
    references: int | None = None

    @property
    def own_costs(self) -> Costs:
        """As this library would pay them."""
        return library_costs(self.shape, self.config, embedder=self.embedder, references=self.references or TYPICAL)

    def own_bytes(self, tokens: float = 0.0, text_bytes: float = 0.0) -> ReferenceBytes:
        """Of a reference in a bank."""
        dimension = embedder_of(self.embedder).dimension
        return library_bytes(self.shape, self.config, dimension=dimension, tokens=tokens, text_bytes=text_bytes)


def digits(value: float) -> str:
    """Three significant digits: ``2.24``, ``13,400``, ``1.44e-4``, ``0``."""
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else "unbounded"
    rounded = float(f"{value:.3g}")
    if 1e-3 <= abs(rounded) < 1e6:
        whole = abs(rounded) >= 100
        return f"{rounded:,.0f}" if whole else f"{value:#.3g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def binary(number: float) -> str:
    """Bytes in binary units, as the paper counts them: ``45.9 TiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            return f"{digits(number)} {unit}"
        number /= 1024
    return f"{digits(number)} PiB"


# ---- costs of a reference ------------------------------------------------------------------------------------------------


def costs(asked: PlanSubject, figure: Path | None) -> View:
    """Writing and reading a reference, term by term; the figure where one is wanted."""
    paper = paper_costs(asked.shape)
    own = asked.own_costs
    if figure is not None:
        from memory3.planner.figure import draw_costs

        draw_costs(paper, figure, title=f"{asked.name}, by the paper's formulas")
    value = {
        "shape": dataclasses.asdict(asked.shape),
        "unit": "FLOPs per reference (write) and per use by one chunk (read)",
        "paper": _costs_json(paper),
        "library": _costs_json(own),
    }
    shape = asked.shape
    about = Text(
        f"{asked.name}: {shape.layers} layers, {shape.heads} heads and {shape.kv_heads} KV heads of {shape.head_dim}, "
        f"width {shape.hidden}, MLP {shape.mlp}; {digits(shape.block_weights / 1e9)}e9 weights in its layers"
    )
    settings = f"{asked.config.layers} layers, {asked.config.budget}, {asked.config.selector}, {shown(asked.config.codec)}"
    return (
        "costs",
        value,
        [
            about,
            Text("\nBy the paper's formulas", "bold"),
            _costs_table(paper),
            _between(paper),
            Text(f"\nAs this library does it: {settings}", "bold"),
            _costs_table(own),
            _between(own),
        ],
    )


def _costs_json(all_costs: Costs) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, cost in all_costs.formats().items():
        value[name] = {
            "write": cost.write_flops,
            "read": cost.read_flops,
            "write_terms": {term.name: term.flops for term in cost.write},
            "read_terms": {term.name: term.flops for term in cost.read},
        }
    low, high = all_costs.interval
    value["memory_is_cheapest_between"] = [low, high if math.isfinite(high) else None]
    return value


def _costs_table(all_costs: Costs) -> Table:
    table = columns("TFLOPs", "formula", "write", "read")
    table.columns[1].justify = "left"
    for name, cost in all_costs.formats().items():
        table.add_row(LABELS[name], "", digits(cost.write_flops / 1e12), digits(cost.read_flops / 1e12), style="bold")
        for column, terms in enumerate((cost.write, cost.read)):
            for term in terms:
                if term.flops:
                    values = ["", ""]
                    values[column] = digits(term.flops / 1e12)
                    table.add_row(f"  {term.name}", term.formula, *values)
    return table


def _between(all_costs: Costs) -> Text:
    low, high = all_costs.interval
    if low >= high:
        return Text("memory is never the cheapest: weights are from the first use on that text is not")
    upper = f"({digits(low)}, {digits(high).replace(',', '')})"
    return Text(f"explicit memory is cheapest for a number of uses in {upper}")


# ---- storage -------------------------------------------------------------------------------------------------------------


def storage(asked: PlanSubject, corpus: CorpusSize) -> View:
    """The paper's three sizes, and a bank of this library."""
    number = corpus.references
    paper = paper_bytes(asked.shape)
    own = asked.own_bytes(corpus.tokens, corpus.text_bytes)
    value = {
        "references": number,
        "paper": {name: {"per_reference": each, "bytes": each * number} for name, each in paper.items()},
        "library": {
            **{name: {"per_reference": each, "bytes": round(each * number)} for name, each in _parts(own).items()},
        },
    }
    table = columns(f"{number:,} references", "each", "all", "")
    for name, each in paper.items():
        table.add_row(f"paper: {name}", size(each), binary(each * number), f"dense / {digits(paper['dense'] / each)}")
    for name, part in _parts(own).items():
        table.add_row(f"bank: {name}", size(part), binary(part * number), "")
    return "storage", value, [table]


def _parts(own: ReferenceBytes) -> dict[str, float]:
    return {
        "memory": own.record,
        "text and tokens": own.text,
        "embedding": own.embedding,
        "other columns": own.other,
        "all": own.disk,
        "lazy (text only)": own.text_only,
    }


# ---- allocation ----------------------------------------------------------------------------------------------------------

#: Documents of a usage log that are listed; ``--json`` has all.
_LISTED = 10


def allocation(asked: PlanSubject, usage: list[DocumentUsage], figure: Path | None) -> View:
    """The cheapest format of each document, against one format for all."""
    costs_ = asked.own_costs
    made = allocate(usage, costs_)
    if figure is not None:
        from memory3.planner.figure import draw_policies

        draw_policies([u.count for u in usage], made.each, figure, title=f"{len(usage):,} documents, {asked.name}")
    totals = made.totals
    value = {
        "documents": len(usage),
        "recalls": sum(u.count for u in usage),
        "total_flops": totals,
        "in_format": made.documents,
        "formats": {u.document_id: name for u, name in zip(usage, made.formats, strict=True)},
    }
    policies = columns("policy", "documents", "TFLOPs", "of the cheapest")
    for name, total in totals.items():
        number = (
            f"{len(usage):,}" if name != "cheapest" else ", ".join(f"{n:,} {LABELS[f]}" for f, n in made.documents.items())
        )
        label = "cheapest for each" if name == "cheapest" else f"all {LABELS[name]}"
        policies.add_row(label, number, digits(total / 1e12), f"x {digits(total / totals['cheapest'])}")
    listing = columns("document", "recalls", "references", "cheapest as")
    for use, name in list(zip(usage, made.formats, strict=True))[:_LISTED]:
        listing.add_row(Text(printable(use.document_id)), f"{use.count:,}", f"{use.references:,}", LABELS[name])
    rest = [Text(f"and {len(usage) - _LISTED:,} more; --json lists all")] if len(usage) > _LISTED else []
    return "allocation", value, [listing, *rest, Text(""), policies]


def traffic(asked: PlanSubject, recalls: Any, disk: int | None) -> View:
    """What the bank's policy ``auto`` pays for traffic it does not know beforehand, against the best in hindsight.

    ``recalls``: numbers of references in order of their recalls.
    """
    from memory3.planner.traffic import break_even, optimum, simulate

    costs_, record = asked.own_costs, asked.own_bytes().record
    pays = break_even(costs_)
    capacity = None if disk is None else disk // record
    policies = {
        "auto, at recall 1": (RetentionPolicy("auto", 1, disk), True),
        f"auto, at recall {pays} (break-even)": (RetentionPolicy("auto", pays, disk), True),
        f"auto, at recall {pays}, never as text": (RetentionPolicy("auto", pays, disk), False),
    }
    names = len({str(name) for name in recalls})
    best = optimum(recalls, costs_, capacity)
    table = columns("policy", "TFLOPs", "of best", "written", "dropped", "found")
    value: dict[str, Any] = {
        "recalls": len(recalls),
        "references_recalled": names,
        "break_even": pays,
        "capacity": capacity,
        "optimum_flops": best,
        "policies": {},
    }
    table.add_row("best in hindsight", digits(best / 1e12), "x 1", "", "", "")
    text = len(recalls) * costs_.external.read_flops
    table.add_row("all text", digits(text / 1e12), f"x {digits(text / best)}", "0", "0", "0%")
    number = max(names, asked.references or 0)
    if capacity is None or number <= capacity:
        at_once = number * costs_.explicit.write_flops + len(recalls) * costs_.explicit.read_flops
        table.add_row("memory at once", digits(at_once / 1e12), f"x {digits(at_once / best)}", f"{number:,}", "0", "100%")
    for label, (policy, lazy_as_text) in policies.items():
        outcome = simulate(recalls, costs_, policy, record, lazy_as_text=lazy_as_text)
        share = outcome.flops / best
        value["policies"][label] = {**dataclasses.asdict(outcome), "of_optimum": share}
        counts = (f"{outcome.written:,}", f"{outcome.dropped:,}", f"{outcome.from_memory:.0%}")
        table.add_row(label, digits(outcome.flops / 1e12), f"x {digits(share)}", *counts)
    room = "" if capacity is None else f", room for {capacity:,} memories"
    return "traffic", value, [Text(f"\n{len(recalls):,} recalls of {names:,} references{room}", "bold"), table]


def columns(*names: str) -> Table:
    """Without borders; all columns but the first to the right."""
    table = Table(*names, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    return table
