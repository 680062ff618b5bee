"""Selectors and budgets against slow, obvious twins."""

from __future__ import annotations

import pytest
import torch

from memory3.attention.rotary import rotate
from memory3.config import Budget
from memory3.encode.budget import choose
from memory3.encode.selectors import SELECTORS, LayerView, find, selector

D = 10


def view(lengths: list[int], *, repeats: bool = False, seed: int = 0) -> LayerView:
    g = torch.Generator().manual_seed(seed)
    refs, span = len(lengths), max(lengths)
    padding = (torch.arange(span) >= torch.tensor(lengths)[:, None])[:, None]
    query = torch.randn(refs, 6, span, D, generator=g)
    return LayerView(
        layer=1,
        query=query,
        key=torch.randn(refs, 2, span, D, generator=g),
        value=torch.randn(refs, 2, span, D, generator=torch.Generator().manual_seed(seed + 1)),
        lengths=torch.tensor(lengths),
        offset=3,
        inv_freq=torch.tensor([1.0, 0.4, 0.1, 0.05, 0.01]),
        scale=0.3,
        seeds=tuple(range(refs)),
        later_query=torch.randn(refs, 6, span, D, generator=g) if repeats else None,
        later_lse=(torch.randn(refs, 6, span, generator=g) + 4).masked_fill(padding, torch.inf) if repeats else None,
    )


def test_attention_mass_is_the_papers_formula() -> None:
    v = view([7, 4])
    score = selector("attention").score(v)
    for n, length in enumerate([7, 4]):
        for h in range(2):
            expected = torch.zeros(length)
            for a in range(3 * h, 3 * h + 3):
                q = torch.stack([rotate(v.query[n, a, i], torch.tensor(-(i + 3)), v.inv_freq) for i in range(length)])
                k = torch.stack([rotate(v.key[n, h, j], torch.tensor(-(j + 3)), v.inv_freq) for j in range(length)])
                for i in range(length):
                    expected += torch.softmax(q[i] @ k.T * 0.3, 0)
            torch.testing.assert_close(score[n, h, :length], expected)


def test_reconstruction_is_the_largest_attention_of_a_repeated_token() -> None:
    v = view([7, 4], repeats=True)
    assert v.later_query is not None
    assert v.later_lse is not None
    score = selector("reconstruction").score(v)
    for n, length in enumerate([7, 4]):
        for h in range(2):
            for j in range(length):
                best = max(
                    float(torch.exp(v.later_query[n, a, i] @ v.key[n, h, j] * 0.3 - v.later_lse[n, a, i]))
                    for a in range(3 * h, 3 * h + 3)
                    for i in range(length)
                )
                assert float(score[n, h, j]) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_padding_never_changes_a_score(name: str) -> None:
    kind = find(name)
    weights = {1: torch.randn(kind.width(6 * D), 2)} if kind.fitted_as else None
    long, s = view([7, 4], repeats=True), selector(name, weights)
    short = LayerView(
        layer=1,
        query=long.query[1:, :, :4],
        key=long.key[1:, :, :4],
        value=long.value[1:, :, :4],
        lengths=torch.tensor([4]),
        offset=3,
        inv_freq=long.inv_freq,
        scale=0.3,
        seeds=(1,),
        later_query=None if long.later_query is None else long.later_query[1:, :, :4],
        later_lse=None if long.later_lse is None else long.later_lse[1:, :, :4],
    )
    torch.testing.assert_close(s.score(long)[1, :, :4], s.score(short)[0])


def test_uniform_budget_keeps_the_best_of_every_head() -> None:
    scores = torch.randn(3, 5, 2, 7)
    kept = choose(scores, torch.tensor([7, 4, 2]), Budget("uniform", 3), 7)
    assert kept.sum(-1).tolist() == [[[n] * 2] * 5 for n in (3, 3, 2)]
    assert set(kept[0, 2, 1].nonzero().flatten().tolist()) == set(scores[0, 2, 1].topk(3).indices.tolist())
    assert not kept[1, :, :, 4:].any()


def test_adaptive_budget_keeps_the_best_pairs_of_the_reference() -> None:
    scores, lengths = torch.randn(3, 5, 2, 7), [7, 4, 1]
    kept = choose(scores, torch.tensor(lengths), Budget("adaptive", 0.2), 7)
    for n, length in enumerate(lengths):
        every = sorted(scores[n, :, :, :length].flatten().tolist(), reverse=True)
        budget = min(round(0.2 * 5 * 2 * 7), len(every))
        assert sorted(scores[n][kept[n]].tolist(), reverse=True) == every[:budget]


def test_ties_go_to_the_earlier() -> None:
    kept = choose(torch.zeros(1, 2, 3, 5), torch.tensor([5]), Budget("adaptive", 7), 5)
    assert kept.flatten().nonzero().flatten().tolist() == list(range(7))
