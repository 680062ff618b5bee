"""What leaving pairs out does to what the heads of a layer write into the residual stream, as a quadratic form.

    E(w) = sum over queries i of |sum_j a_ij (w_j - 1) W_o v_j|^2 = (w - 1)^T K (w - 1)

w_j is the weight of a kept pair (1 without a bias) and 0 where it is left out; K is that of one KV head, so that what heads of
a layer do to one another is not in it. That the softmax hands the attention of what is left out to everything else is not in
it either. So one K tells which pairs to drop and which biases mend most of what the dropped ones leave.

Symbols as in `research.quality.passages`; G query heads of a KV head.
"""

from __future__ import annotations

import torch

from research.quality.passages import Passage

__all__ = ["costs", "drop_order", "read_products", "written_products"]

#: Heads of which a pair is dropped at once; each of these heads loses the one that costs it least.
_AT_ONCE = 8


def written_products(passage: Passage, kind: str, outputs: list[torch.Tensor]) -> torch.Tensor:
    """K of every head, float32 ``[L, H, S, S]``.

    Args:
        passage: whose pairs.
        kind: of the queries.
        outputs: W_o of every layer, ``[A, d, hidden]``.
    """
    found = []
    for layer, value in enumerate(passage.values):
        paid = passage.attention(kind, layer)  # [H, G, T, S]
        written = value[:, None] @ outputs[layer].view(*paid.shape[:2], value.shape[-1], -1)  # [H, G, S, hidden]
        found.append(((paid.transpose(-1, -2) @ paid) * (written @ written.transpose(-1, -2))).sum(1))
    return torch.stack(found)


def drop_order(products: torch.Tensor, power: float = 0.0) -> torch.Tensor:
    """When each pair is dropped, where the one that adds least to the sum of all heads' errors always goes next: float32
    ``[L, H, S]``, the last one highest.

    Args:
        products: K, ``[L, H, S, S]``.
        power: a layer's error counts over its square sum, what all its pairs write, to this power.
    """
    layers, heads, tokens, _ = products.shape
    if power:
        products = products / products.sum((1, 2, 3), keepdim=True).clamp_min(1e-12) ** power
    mine = products.reshape(-1, tokens, tokens)
    cost = mine.diagonal(dim1=1, dim2=2).clone()  # what dropping each adds to what is dropped already
    when = torch.zeros_like(cost)
    for step in range(1, layers * heads * tokens + 1):
        least, token = cost.min(1)
        head = least.argsort()[:_AT_ONCE]
        head = head[least[head].isfinite()]
        if not len(head):
            break
        which = token[head]
        cost[head] += 2 * mine[head, which]
        cost[head, which] = torch.inf
        when[head, which] = step
    return when.view(layers, heads, tokens)


def read_products(passage: Passage, kind: str, layer: int) -> torch.Tensor:
    """K of every head of a layer without W_o, float32 ``[H, S, S]``: what is read otherwise, instead of what is written."""
    rows, value = passage.attention(kind, layer).flatten(1, 2), passage.values[layer]
    return (rows.transpose(-1, -2) @ rows) * (value @ value.transpose(-1, -2))


def costs(products: torch.Tensor) -> torch.Tensor:
    """What each pair of a head adds to the error when it goes next, or what one before it did, if that was more: float32
    ``[..., S]``. The largest of many heads together are those that `drop_order` keeps, but for pairs that add less than one
    before them.

    Args:
        products: K, ``[..., S, S]``.
    """
    tokens = products.shape[-1]
    mine = products.reshape(-1, tokens, tokens)
    cost = mine.diagonal(dim1=1, dim2=2).clone()
    rows = torch.arange(len(mine))
    found, most = torch.zeros_like(cost), torch.full((len(mine),), -torch.inf)
    for _ in range(tokens):
        least, token = cost.min(1)
        most = torch.maximum(most, least)
        found[rows, token] = most
        cost += 2 * mine[rows, token]
        cost[rows, token] = torch.inf
    return found.view(products.shape[:-1])
