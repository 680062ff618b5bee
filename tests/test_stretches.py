"""The text of an answer as it grows."""

from __future__ import annotations

import random

import pytest
from tiny import tiny_tokenizer

from memory3.serving.stretches import MOST_TOKENS, GrowingText

TEXT = "  The river rises in the mountains. It reaches 東京! \n\nNaïve café: 3.14 is no end 🙂. And\na line   "


def grown(text: str, stop: tuple[str, ...] = ()) -> tuple[GrowingText, list[str], list[int]]:
    tokenizer = tiny_tokenizer(adds_bos=False)
    ids = tokenizer(text)["input_ids"]
    growing = GrowingText(lambda some: tokenizer.decode(some), stop)
    parts = [growing.add(token) for token in ids]
    return growing, [*parts, growing.finish()], ids


def test_parts_make_the_whole() -> None:
    growing, parts, _ = grown(TEXT)
    assert "".join(parts) == growing.text == TEXT.strip()
    assert all("\ufffd" not in part for part in parts)
    assert sum(map(bool, parts)) > 20  # it streams


def test_stretches_are_sentences_and_lines() -> None:
    growing, _, ids = grown(TEXT)
    said = [growing.text[one.start : one.end] for one in growing.stretches]
    assert [one.strip() for one in said] == [
        "The river rises in the mountains.",
        "It reaches 東京!",
        "Naïve café: 3.14 is no end 🙂.",
        "And",
        "a line",
    ]
    assert growing.stretches[0].first == 0
    assert all(a.last <= b.first or a.last == b.first for a, b in zip(growing.stretches, growing.stretches[1:], strict=False))
    assert growing.stretches[-1].last <= len(ids)


@pytest.mark.parametrize("stop", ["mountains", "reaches", " 東", "🙂", "e"])
def test_stop_texts(stop: str) -> None:
    growing, parts, _ = grown(TEXT, (stop, "never there"))
    whole = TEXT.strip()
    assert growing.stopped
    assert "".join(parts) == growing.text == whole[: whole.index(stop)].rstrip()


def test_a_stop_text_that_does_not_come_holds_nothing_back_for_good() -> None:
    growing, parts, _ = grown("abc abd abe", ("abf", "e!"))
    assert not growing.stopped
    assert "".join(parts) == "abc abd abe"


def test_a_long_sentence_is_several_stretches() -> None:
    growing, _, _ = grown("word " * 150)
    assert len(growing.stretches) > 1
    assert all(one.last - one.first <= MOST_TOKENS + 1 for one in growing.stretches)
    assert growing.stretches[-1].end == len(growing.text)


def test_any_text_comes_out_as_it_is() -> None:
    draw = random.Random(3)
    for _ in range(100):
        text = "".join(draw.choice("ab .!?\n東🙂é\t") for _ in range(draw.randrange(1, 60)))
        growing, parts, _ = grown(text)
        assert "".join(parts) == growing.text == text.strip()
        covered = [growing.text[one.start : one.end] for one in growing.stretches]
        assert "".join("".join(covered).split()) == "".join(growing.text.split())
