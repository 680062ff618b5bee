"""Parity on a user's own documents: from memories of all pairs, does the model compute the logits that it computes from text?

`memory3.proof` asks it at attach, of a few tokens. Here references have the length, the prefix and the positions that they
will have, and a model that goes astray further on is found.

Differences are told as a share of the spread of the logits, both as root mean squares over the vocabulary. They may be no
larger than rounding, of which there are two kinds. A number format with the unit roundoff u (half the distance from 1 to the
next number) rounds the residual stream of L layers some 6 times a layer: both norms' outputs, both blocks' outputs, both sums.
Errors that do not know of one another add up in squares, to u sqrt(6 L) of its size. And RoPE's angle of position P, computed
in float32 by every model, is wrong by up to v P, v being the unit roundoff of float32; so is the part of a key that it turns
fastest, once where the key was written and once where it is moved to. What the model's own logits differ by when it reads the
same text in two passes is the first kind measured. Four times the larger of sum and measurement is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from memory3.checking.questions import Item
from memory3.errors import UnsupportedModel
from memory3.llm import Memory3
from memory3.parity import ParityText, from_memories, from_text, in_one_and_in_two

__all__ = ["COMPARED", "MOST", "allowed", "grain", "measure_parity", "share"]

#: What is compared, and what the page says of it.
COMPARED = {
    "one": "one reference, read from memory and as text",
    "two": "two references, read from memory and as text with a block mask",
    "batch": "two prompts from memory, in one batch and one by one",
}
#: Roundings of the residual stream in a layer, and how many times the expected error is still rounding.
_ROUNDINGS, _ALLOWED = 6, 4
#: Above this share of the spread nothing is rounding: the format would be too coarse to use.
MOST = 0.25
#: Tokens of a question at most.
_QUESTION = 96


def grain(dtype: torch.dtype, layers: int, positions: int) -> float:
    """Expected rounding of logits, as a share of their spread.

    Args:
        dtype: of the model.
        layers: of the model.
        positions: of the longest text that is read.
    """
    stream = torch.finfo(dtype).eps / 2 * math.sqrt(_ROUNDINGS * layers)
    return stream + torch.finfo(torch.float32).eps / 2 * positions


def share(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Root mean square of the difference over the vocabulary, divided by that of the expected logits around their mean,
    ``[Q]``.

    Args:
        found: logits, float32 ``[Q, V]``.
        expected: of the same places.
    """
    spread = expected.std(dim=-1, correction=0).mean().clamp_min(1e-30)
    return (found - expected).square().mean(-1).sqrt() / spread


def allowed(rounding: float, expected: float) -> float:
    """The largest share that is rounding.

    Args:
        rounding: what the model's own logits differ by when it reads the same text in two passes.
        expected: see `grain`.
    """
    return min(_ALLOWED * max(rounding, expected), MOST)


@torch.no_grad()
def measure_parity(m3: Memory3, items: Sequence[Item], tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Parity over texts of two items each; of places the median, of prompts the largest.

    Args:
        m3: the model.
        items: an even number of them, neighbours are read together.
        tell: told how many texts are done, of how many.

    Raises:
        UnsupportedModel: logits are not finite.

    Returns:
        ``ok``, ``texts``, ``places``, ``rounding`` and ``allowed``, and of each of `COMPARED` ``difference`` (the figure that
        is judged), ``largest`` of any place, and ``same``: the share of places whose next token is the same.
    """
    model, shape, tokenizer = m3.model, m3.geometry, m3.tokenizer
    differences: dict[str, list[torch.Tensor]] = {name: [] for name in COMPARED}
    same: dict[str, list[torch.Tensor]] = {name: [] for name in COMPARED}
    roundings: list[float] = []
    longest = 0
    pairs = list(zip(items[::2], items[1::2], strict=True))
    for n, (best, second) in enumerate(pairs):
        text = _text(m3, best, second)
        longest = max(longest, len(text.prefix) + 2 * text.length + len(text.question))
        longer, short, *alone = from_memories(model, shape, tokenizer, text, [text.rows, *([row] for row in text.rows)])
        both, single = from_text(model, shape, text)
        for name, found, expected in (
            ("one", short, single),
            ("two", longer, both),
            ("batch", longer, alone[0]),
            ("batch", short, alone[1]),
        ):
            differences[name].append(share(found, expected))
            same[name].append(found.argmax(-1) == expected.argmax(-1))
        roundings.append(float(share(*reversed(in_one_and_in_two(model, text))).median()))
        tell(n + 1, len(pairs))
    if not all(bool(each.isfinite().all()) for parts in differences.values() for each in parts):
        raise UnsupportedModel(
            f"{m3.name} computes logits that are not finite on these documents; is its dtype too narrow for its weights?"
        )
    most = allowed(max(roundings), grain(model.dtype, shape.num_layers, longest))
    compared = {
        name: {
            "difference": max(float(each.median()) for each in differences[name]),
            "largest": float(torch.cat(differences[name]).max()),
            "same": float(torch.cat(same[name]).float().mean()),
        }
        for name in COMPARED
    }
    worst = max(each["difference"] for each in compared.values())
    return {
        "ok": worst <= most,
        "texts": len(pairs),
        "places": int(sum(map(len, differences["one"])) + sum(map(len, differences["two"]))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "rounding": max(roundings),
        "allowed": most,
        "compared": compared,
    }


def _text(m3: Memory3, best: Item, second: Item) -> ParityText:
    """The references of two items behind the model's prefix, and the question of the first with its answer."""
    prompts = m3.prompts
    question = [*m3.frame.after(prompts.ids(best.question)), *prompts.ids(best.answer)]
    length = max(len(best.reference.token_ids), len(second.reference.token_ids))
    room = m3.geometry.max_positions - len(m3.frame.prefix) - 2 * length
    question = question[-max(min(_QUESTION, room), 4) :]
    return ParityText(m3.frame.prefix, best.reference.token_ids, second.reference.token_ids, question)
