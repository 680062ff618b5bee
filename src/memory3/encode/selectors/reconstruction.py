"""Reconstruction attention: the attention a token gets while the model repeats the reference.

What a model must look at to say the text again is what it would need to answer from it; the score is the idea of KVzip (Kim et
al. 2025, arXiv 2505.23416, eq. 3), here with several references encoded at once:

    s_j = max over queries i of the repetition and query heads of the group of  exp(q_i . k_j * scale - lse_i)

lse_i being over everything query i sees (prefix, reference, cue and repetition so far).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from memory3.encode.selectors.base import LayerView, Selector, register

if TYPE_CHECKING:
    import torch

__all__ = ["Reconstruction"]


@register
class Reconstruction(Selector):
    """Attention that a token gets while the model repeats the reference; two passes."""

    name: ClassVar[str] = "reconstruction"
    help: ClassVar[str] = "what the model looks at to repeat the text; two passes"
    repeats: ClassVar[bool] = True

    def score(self, view: LayerView) -> torch.Tensor:
        """The most attention that the reference, repeated, pays to each token: float32 ``[N, H, S]``."""
        import torch

        assert view.later_query is not None, "the encoder runs the repetition for selectors that say `repeats`"
        assert view.later_lse is not None
        refs, heads, tokens, dim = view.later_query.shape
        kv_heads = view.key.shape[1]
        query = view.later_query.reshape(refs, kv_heads, heads // kv_heads * tokens, dim)
        lse = view.later_lse.reshape(refs, kv_heads, -1, 1)
        logits = torch.matmul(query * view.scale, view.key.transpose(-1, -2)).float()
        return logits.sub_(lse).amax(dim=2).exp_()
