"""The chunks of a prompt and which tokens belong to them."""

from __future__ import annotations

import torch

from memory3.recall.chunks import chunk_table, cut


def test_chunks_of_a_prompt_and_its_answer() -> None:
    chunks = [(c.start, c.end, c.query) for c in cut(split=3, start=3, length=3 + 10 + 13, size=5, answer=13)]
    assert chunks == [
        (3, 8, slice(3, 8)),
        (8, 13, slice(8, 13)),
        (13, 18, None),
        (18, 23, slice(13, 18)),
        (23, 26, slice(18, 23)),
    ]
    # A short last chunk looks back over a whole chunk's length, but never in front of the memories.
    assert [c.query for c in cut(split=3, start=3, length=15, size=5)] == [slice(3, 8), slice(8, 13), slice(10, 15)]
    assert [c.query for c in cut(split=3, start=3, length=5, size=5)] == [slice(3, 5)]
    assert cut(split=3, start=9, length=9, size=5) == []


def test_table_finds_the_chunk_of_every_token() -> None:
    chunks = [*((0, c) for c in cut(2, 2, 11, 5)), *((1, c) for c in cut(3, 3, 4, 5)), *((2, c) for c in cut(0, 0, 7, 5))]
    stretches = [(row, chunk.start, chunk.end) for row, chunk in chunks]
    index = torch.tensor(
        [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]]
    )
    behind = torch.tensor([[False] * 2 + [True] * 9, [False] * 10 + [True], [False] * 4 + [True] * 7])
    table = chunk_table(stretches, 5, index, behind)
    expected = {(c, t) for c, (_, start, end) in enumerate(stretches) for t in range(start, end)}
    found = set()
    for c, row in enumerate(table.tolist()):
        for flat in row:
            if flat >= 0:
                assert flat // 11 == stretches[c][0]
                found.add((c, int(index[flat // 11, flat % 11])))
    assert found == expected
    assert chunk_table(stretches, 5, index[:, :1], behind[:, :1]).shape == (5, 1)
