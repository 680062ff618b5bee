"""The paper's selector: attention mass without mask and without position (arXiv 2407.01178, section 3.3).

    w_j = sum_i softmax_j(q_i . k_j / sqrt(d))       i, j over the reference's own tokens

with q and k before RoPE and no causal mask; BOS and padding take no part. With grouped queries, w sums over the group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from memory3.encode.selectors.base import LayerView, Selector, register

if TYPE_CHECKING:
    import torch

__all__ = ["AttentionMass"]


@register
class AttentionMass(Selector):
    """Attention that a token gets from the reference's own tokens."""

    name: ClassVar[str] = "attention"
    help: ClassVar[str] = "the paper's"

    def score(self, view: LayerView) -> torch.Tensor:
        """Attention that each token gets from its reference, without mask and position: float32 ``[N, H, S]``."""
        import torch

        from memory3.attention.rotary import rotate

        # Turning back by the position undoes RoPE exactly, whatever model computed it.
        back = -(torch.arange(view.key.shape[2], device=view.key.device) + view.offset)
        query, key = rotate(view.query, back, view.inv_freq), rotate(view.key, back, view.inv_freq)
        refs, heads, tokens, dim = query.shape
        grouped = query.reshape(refs, key.shape[1], heads // key.shape[1] * tokens, dim)
        logits = torch.matmul(grouped, key.transpose(-1, -2)).float() * view.scale
        logits.masked_fill_(~view.valid[:, None, None, :], -torch.inf)
        weights = torch.softmax(logits, dim=-1).view(refs, key.shape[1], -1, tokens, tokens)
        return (weights * view.valid[:, None, None, :, None]).sum(dim=(2, 3))
