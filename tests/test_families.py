"""The tables behind docs/families.md hold: what is said to be read is read as text is, what is said to be refused is, and for
that reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families_page
import pytest
import torch
from families import READ, REAL, REASONS, REFUSED, family
from ram_bank import RamBank
from tiny import tiny_tokenizer

import memory3.proof
from memory3.config import Budget, MemoryConfig
from memory3.errors import UnsupportedModel
from memory3.llm import Memory3

TEXT = "The bridge was built in 1874 by the engineer."
QUESTION = "Who built it?"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path))
    monkeypatch.setattr(memory3.proof, "_PROVEN", {})


def attach(kind: str, changes: dict[str, Any]) -> Memory3:
    config = MemoryConfig(
        dtype="float32", budget=Budget("all"), reference_length=31, memory_temperature=1.0, arrangement="row"
    )
    return Memory3(family(kind, changes), tiny_tokenizer(), config, name="tiny")


@pytest.mark.parametrize("kind", READ)
def test_what_is_said_to_be_read_is_read_as_text_is(kind: str) -> None:
    m3 = attach(kind, READ[kind][1])
    assert m3.proof.share < 1e-3
    if len(m3.geometry.full_layers) < m3.geometry.num_layers:
        return  # text has its windows: see test_proof.py
    bank = RamBank(m3, [TEXT], {None: [0]})
    (reference,) = bank.all.values()
    after = m3.frame.after(m3.prompts.ids(QUESTION))
    before = [*m3.frame.prefix, *reference.token_ids]
    places = [*range(len(before)), *(n + m3.config.reference_length + len(m3.frame.prefix) for n in range(len(after)))]
    with torch.no_grad():
        text = m3.model(torch.tensor([[*before, *after]]), position_ids=torch.tensor([places])).logits[:, len(before) :]
        with m3.recall(bank):
            memory = m3.model(torch.tensor([after])).logits
    torch.testing.assert_close(memory, text, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_said_to_be_refused_is_refused_for_that_reason(kind: str) -> None:
    _, changes, reason = REFUSED[kind]
    with pytest.raises(UnsupportedModel, match=REASONS[reason][0]):
        attach(kind, changes)


def test_the_page_is_that_of_the_tables() -> None:
    page = Path(__file__).parent.parent / "docs" / "families.md"
    assert page.read_text(encoding="utf-8") == families_page.page(), "python tests/families_page.py > docs/families.md"
    assert REAL.keys() <= READ.keys()
    assert {why for _, _, why in REFUSED.values()} == set(REASONS)
