"""What the planner says of a bank that was measured, beside each figure, and of banks that no machine here holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from memory3.config import MemoryConfig
from memory3.models.sizes import ModelSizes
from memory3.planner.capacity import CorpusSize, plan
from memory3.planner.library import Search
from memory3.planner.machine import Machine, machine_of
from memory3.planner.storage import ReferenceBytes

__all__ = ["beside", "of_bank", "tables"]

#: A prediction is to be within this part of what is measured.
CLOSE = 0.25
_TEXT_BYTES, _TOKENS = 576, 128


def beside(predicted: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, Any]:
    """Each figure that was measured, its prediction, their ratio, and whether that is within a quarter.

    Args:
        predicted, measured: by name; what is in one alone is left out.
    """
    found = {}
    for name in predicted.keys() & measured.keys():
        ratio = predicted[name] / measured[name] if measured[name] else None
        close = ratio is not None and 1 / (1 + CLOSE) <= ratio <= 1 + CLOSE
        found[name] = {"predicted": predicted[name], "measured": measured[name], "ratio": ratio, "within_25_percent": close}
    return dict(sorted(found.items()))


def of_bank(
    rows: int, record_bytes: int, dimension: int, shape: ModelSizes, config: MemoryConfig, machine: Machine
) -> dict[str, float]:
    """Bytes of a row and of the index, and milliseconds of a search and of a read of five, by the planner.

    Args:
        rows: of the bank.
        record_bytes: of a memory.
        dimension: of an embedding.
        shape: of the model whose memories they are.
        config: with which they are written; the codec is what it takes to decode one.
        machine: the one that measures.
    """
    each = ReferenceBytes(record=record_bytes, text=_TEXT_BYTES + 4 * _TOKENS, embedding=4 * dimension)
    search = Search(rows, dimension)
    recall = plan(CorpusSize(rows), shape, config, machine).recall
    return {
        "bytes_per_row": each.disk,
        "index_ram_mib": search.ram / (1 << 20),
        "search_p50_ms": 1e3 * recall.search,
        "read_of_5_p50_ms": 1e3 * (recall.read + recall.unpack),
    }


def tables(shape: ModelSizes, config: MemoryConfig, machines: tuple[str, ...] = ("h100", "cpu-16")) -> list[dict[str, Any]]:
    """What 1e8 and 1e9 references take on rented machines. None of it was measured.

    Args:
        shape, config: of the model.
        machines: names of `memory3.planner.machine.MACHINES`.
    """
    found = []
    for name in machines:
        machine = machine_of(name)
        for references in (10**8, 10**9):
            made = plan(CorpusSize(references), shape, config, machine)
            found.append(
                {
                    "machine": name,
                    "price_an_hour": machine.price,
                    "disk_price_a_tb_and_month": machine.disk_price,
                    "prices": machine.priced,
                    **dataclasses.asdict(made),
                    "recall_seconds": made.recall.seconds,
                }
            )
    return found
