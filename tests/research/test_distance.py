"""A text at a distance: at none it is the text in front of the prompt, and at a reference's length the memory of it."""

from __future__ import annotations

import pytest
from tiny import tiny_model, tiny_tokenizer

from memory3 import Memory3, MemoryConfig
from memory3.interpret.facts import Fact, Relation
from memory3.interpret.imitable import ask_closed, settings_for, try_facts
from research.circuits.distance import least_likely

RELATION = Relation("built", ("[X] was built in [Y] .",), (Fact("The bridge", "1874"), Fact("The sea", "the river")))


def test_the_ends_of_the_distances() -> None:
    tokenizer = tiny_tokenizer(adds_bos=False)
    m3 = Memory3(tiny_model(), tokenizer, settings_for(tokenizer, MemoryConfig(budget="all", memory_temperature=1.0)))
    tried = ask_closed(m3, RELATION, RELATION.facts)
    try_facts(m3, RELATION, tried)
    ratios = []
    for each in tried:
        text, prompt = RELATION.text(RELATION.patterns[0], each.fact), RELATION.prompt(RELATION.patterns[0], each.fact)
        far = m3.config.reference_length - len(m3.prompts.ids(text))
        found = dict(zip((0, far), least_likely(m3, text, prompt, each.fact.answer, (0, far)), strict=True))
        assert found[0] == pytest.approx(each.found["text, same pattern"], rel=1e-3)
        assert found[far] == pytest.approx(each.found["memory, same pattern"], rel=0.02)
        ratios.append(found[0] / found[far])
    assert max(ratios) > 2  # the distance matters
