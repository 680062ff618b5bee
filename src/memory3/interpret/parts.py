"""The parts of a model that its edges end at: MLPs, output projections of attention, the last norm, the language head.

Found by the names that transformers gives them. What is not found is refused, and what was found is checked
(`memory3.interpret.gates.GatedModel`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from memory3.errors import UnsupportedModel

__all__ = ["Parts"]

_MLPS = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
#: Norms between an MLP, or an attention, and the residual stream: the edge is what they let through.
_BEHIND_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
_NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")


class Parts:
    """Where a model's edges end.

    Attributes:
        mlps: by layer, the module whose output an MLP adds to the residual stream.
        attentions: by layer, the attention.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Look for the parts.

        Args:
            model: a causal language model.

        Raises:
            UnsupportedModel: a layer has no MLP or no attention under the names that transformers gives them.
        """
        self._model: Any = model
        self.name = type(model).__name__
        found: dict[int, tuple[nn.Module, nn.Module]] = {}
        for block in model.modules():
            attention = next((part for part in block.children() if _is_attention(part)), None)
            if attention is not None:
                found[int(attention.layer_idx)] = (block, attention)  # type: ignore[arg-type]
        layers = model.config.get_text_config().num_hidden_layers
        mlps = {layer: _first(block, (*_BEHIND_MLP, *_MLPS)) for layer, (block, _) in found.items()}
        lacking = [layer for layer in range(layers) if mlps.get(layer) is None]
        if lacking:
            raise UnsupportedModel(
                f"{self.name}: layer {lacking[0]} has no attention and MLP under the names that transformers gives them "
                f"({', '.join(_MLPS)}), so that its edges cannot be cut. Use a Llama-, Qwen- or Mistral-like model"
            )
        self.mlps: list[nn.Module] = [mlp for layer in range(layers) if (mlp := mlps[layer]) is not None]
        self.attentions = [found[layer][1] for layer in range(layers)]

    def written(self, layer: int, head: int, heads: int, vectors: torch.Tensor) -> torch.Tensor:
        """What a head adds to the residual stream, ``[..., D]``.

        Args:
            layer: number of the layer.
            head: number of the query head.
            heads: how many there are.
            vectors: ``[..., d]``, weighted sums of the head's values.

        Raises:
            UnsupportedModel: the output projection is not found.
        """
        projection = _first(self.attentions[layer], _PROJECTIONS)
        if not isinstance(projection, nn.Linear) or projection.in_features != heads * vectors.shape[-1]:
            raise UnsupportedModel(f"{self.name}: layer {layer} has no output projection of {heads} heads")
        size = vectors.shape[-1]
        return vectors @ projection.weight[:, head * size : (head + 1) * size].T

    def unembedded(self, vectors: torch.Tensor) -> torch.Tensor:
        """Logits ``[..., V]`` that vectors of the residual stream say by themselves: the last norm, then the language head.

        Args:
            vectors: ``[..., D]``.

        Raises:
            UnsupportedModel: the model has no last norm under the names that transformers gives it.
        """
        norm, head = _first(self._model.base_model, _NORMS), self._model.get_output_embeddings()
        if norm is None or head is None:
            raise UnsupportedModel(f"{self.name} has no last norm and language head that vectors could be read with")
        logits: torch.Tensor = head(norm(vectors))
        return logits


def _is_attention(module: nn.Module) -> bool:
    return isinstance(getattr(module, "layer_idx", None), int) and "attention" in type(module).__name__.lower()


def _first(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((part for name in names if isinstance(part := getattr(module, name, None), nn.Module)), None)
