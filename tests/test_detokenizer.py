"""The text of tokens that come one by one, against decoding all of them each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from tiny import tiny_tokenizer

from memory3.serving.detokenizer import Detokenizer

PIECES = ["The river", " rises", "東京", "🙂", " café", "\n\n", "  ", " 3.14", "!", " ,", " n't", "ÿ", " मुंबई", "<|x|>"]


def _cut(said: Sequence[int]) -> str:
    """A decoder that drops a leading space and tidies up, as some do."""
    tokenizer = tiny_tokenizer(adds_bos=False)
    return str(tokenizer.decode(said)).removeprefix(" ").replace(" ,", ",").replace(" n't", "n't")


def _plain(said: Sequence[int]) -> str:
    return str(tiny_tokenizer(adds_bos=False).decode(said))


@pytest.mark.parametrize("decode", [_plain, _cut])
@pytest.mark.parametrize("seed", range(7))
def test_equals_decoding_all(decode: Callable[[Sequence[int]], str], seed: int) -> None:
    dice = random.Random(seed)
    ids = tiny_tokenizer(adds_bos=False)("".join(dice.choices(PIECES, k=40)))["input_ids"]
    said = Detokenizer(decode)
    for number, token in enumerate(ids, 1):
        assert said.add(token) == decode(ids[:number])


def test_a_long_answer_costs_as_much_at_each_token() -> None:
    counted: list[int] = []

    def decode(said: Sequence[int]) -> str:
        counted.append(len(said))
        return _plain(said)

    said = Detokenizer(decode)
    for token in tiny_tokenizer(adds_bos=False)("The river rises in the mountains. " * 60)["input_ids"]:
        said.add(token)
    assert len(said.ids) > 300
    assert max(counted) <= 24
