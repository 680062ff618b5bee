"""Controls: what selection must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from memory3.encode.selectors.base import LayerView, Selector, register

if TYPE_CHECKING:
    import torch

__all__ = ["First", "Random"]


@register
class Random(Selector):
    """Uniform scores from the reference's own seed, so that writing twice gives the same bytes."""

    name: ClassVar[str] = "random"
    help: ClassVar[str] = "a control"

    def score(self, view: LayerView) -> torch.Tensor:
        """A number from the reference's seed for each token and head: float32 ``[N, H, S]``."""
        import torch

        rows = []
        for seed in view.seeds:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + view.layer) % 2**63)
            rows.append(torch.rand(4096, view.key.shape[1], generator=generator)[: view.key.shape[2]].T)
        return torch.stack(rows).to(view.key.device)


@register
class First(Selector):
    """The earliest tokens."""

    name: ClassVar[str] = "first"
    help: ClassVar[str] = "the earliest tokens, a control"

    def score(self, view: LayerView) -> torch.Tensor:
        """The token's position, negated: float32 ``[N, H, S]``."""
        import torch

        refs, heads, tokens, _ = view.key.shape
        return -torch.arange(tokens, dtype=torch.float32, device=view.key.device).expand(refs, heads, tokens)
