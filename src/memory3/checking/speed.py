"""First token and tokens per second of an answer from memory, from the same references as text, and from nothing.

Memories are decoded from their packed records every time, as a bank reads them. Search is left out: memory and text need the
same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from memory3.checking.questions import Item
from memory3.codec import Codec
from memory3.llm import Memory3
from memory3.recall.held import Held
from memory3.types import Memory, Reference

__all__ = ["MODES", "measure_speed"]

MODES = ("memory", "text", "none")
#: Tokens of an answer, and turns that are measured after one to warm up.
_TOKENS, _TURNS = 24, 5


def measure_speed(
    m3: Memory3, items: Sequence[Item], records: Mapping[str, bytes], codec: Codec, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Medians of ``turns``, in which the modes take turns to go first.

    Args:
        m3: who answers.
        items: whose first references are read, as many as the settings read at once.
        records: packed memories by reference id.
        codec: decodes them.
        tell: told how many answers are done, of how many.

    Returns:
        by mode ``first_token`` (seconds), ``tokens_per_second`` and ``prompt_tokens``; and ``references`` that were read,
        ``tokens`` of an answer, ``turns``.
    """
    read = [item.reference for item in items[: max(1, m3.config.references_per_chunk)]]
    room = m3.geometry.max_positions - len(m3.frame.prefix) - len(m3.frame.closed_book([0])) - 2 * _TOKENS
    question = m3.tokenizer.decode(m3.prompts.ids(items[0].question)[:_TOKENS])
    while len(read) > 1 and sum(len(one.token_ids) + len(m3.frame.separator) for one in read) + _TOKENS > room:
        read = read[:-1]  # text of so many has no room in this model
    source: Any = _Decoded({one.id: one for one in read}, records, codec)
    first: dict[str, list[float]] = {mode: [] for mode in MODES}
    rate: dict[str, list[float]] = {mode: [] for mode in MODES}
    prompts: dict[str, int] = {}
    for turn in range(_TURNS + 1):
        for n, mode in enumerate(MODES if turn % 2 else reversed(MODES)):
            options: dict[str, Any] = {} if mode == "none" else {"references": [one.id for one in read]}
            bank = None if mode == "none" else source
            answer = m3.generate(
                question, bank, mode=mode, max_new_tokens=_TOKENS, min_new_tokens=_TOKENS, do_sample=False, **options
            )
            prompts[mode] = answer.usage.prompt_tokens
            if turn:
                first[mode].append(answer.timings.first_token)
                rate[mode].append(answer.timings.tokens_per_second)
            tell(turn * len(MODES) + n + 1, (_TURNS + 1) * len(MODES))
    return {
        "references": len(read),
        "tokens": _TOKENS,
        "turns": _TURNS,
        **{
            mode: {
                "first_token": statistics.median(first[mode]),
                "tokens_per_second": statistics.median(rate[mode]),
                "prompt_tokens": prompts[mode],
            }
            for mode in MODES
        },
    }


class _Decoded(Held):
    """Packed records, each decoded anew every time it is read."""

    def __init__(self, references: Mapping[str, Reference], records: Mapping[str, bytes], codec: Codec) -> None:
        """Hold records.

        Args:
            references: by id.
            records: by id, as ``codec`` packed them.
            codec: decodes them.
        """
        super().__init__({}, references)
        self._records, self._codec = records, codec

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> Sequence[Memory]:
        """Memories, in order, decoded now.

        Args:
            reference_ids: in any order.
            use_cache: makes no difference.
            device: where keys and values are made; None: the CPU.
        """
        return self._codec.decode([bytearray(self._records[name]) for name in reference_ids], device=device or "cpu")
