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

from memory3.cli.output import size
from memory3.config import MemoryConfig
from memory3.theory.cost import Costs, paper_costs
from memory3.theory.library import embedder_of, library_costs
from memory3.theory.shape import Shape
from memory3.theory.storage import ReferenceBytes, library_bytes, paper_bytes

__all__ = ["Asked", "View", "binary", "costs", "digits", "storage"]

#: Name in JSON, value there, tables for people.
View = tuple[str, Any, list[RenderableType]]

#: References in the bank where nobody says; only the search depends on it.
TYPICAL = 1_000_000

LABELS = {"implicit": "weights", "explicit": "explicit memory", "external": "text (RAG)"}


@dataclass(frozen=True)
class Asked:
    """What is planned for.

    Attributes:
        name, shape: of the model.
        config: how memories are written and read.
        codec, embedder: by name.
        references: how many there are; None: not said.
    """

    name: str
    shape: Shape
    config: MemoryConfig
    codec: str
    embedder: str
    references: int | None = None


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


def costs(asked: Asked, figure: Path | None) -> View:
    """Writing and reading a reference, term by term; the figure where one is wanted."""
    paper = paper_costs(asked.shape)
    own = library_costs(
        asked.shape, asked.config, codec=asked.codec, embedder=asked.embedder, references=asked.references or TYPICAL
    )
    if figure is not None:
        from memory3.theory.figure import draw_costs

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
    settings = f"{asked.config.layers} layers, {asked.config.budget}, {asked.config.selector}, {asked.codec}"
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
    table = Table("TFLOPs", "formula", "write", "read", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
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


def storage(asked: Asked, number: int) -> View:
    """The paper's three sizes, and a bank of this library, for a number of references."""
    paper = paper_bytes(asked.shape)
    embedder = embedder_of(asked.embedder)
    own = library_bytes(asked.shape, asked.config, codec=asked.codec, dimension=embedder.dimension)
    value = {
        "references": number,
        "paper": {name: {"per_reference": each, "bytes": each * number} for name, each in paper.items()},
        "library": {
            **{name: {"per_reference": each, "bytes": round(each * number)} for name, each in _parts(own).items()},
        },
    }
    table = Table(f"{number:,} references", "each", "all", "", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, each in paper.items():
        table.add_row(f"paper: {name}", size(each), binary(each * number), f"dense / {digits(paper['dense'] / each)}")
    for name, each in _parts(own).items():
        table.add_row(f"bank: {name}", size(each), binary(each * number), "")
    return "storage", value, [table]


def _parts(own: ReferenceBytes) -> dict[str, float]:
    return {
        "memory": own.record,
        "text and tokens": own.text,
        "embedding": own.embedding,
        "other columns": own.other,
        "all": own.disk,
        "cold (text only)": own.cold,
    }
