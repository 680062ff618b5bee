"""What memory3 must know of a causal language model: its sizes, which layers see the whole context, and how each layer
rotates its keys.

Looked for in the model itself, by what its attention is given in a pass of a few tokens, and not read off a config that
may say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from memory3.attention.attach import Seen, attached
from memory3.attention.rotary import find_rotation
from memory3.config import MemoryConfig
from memory3.errors import Memory3Error, ModelError, UnsupportedModel
from memory3.models.sizes import config_value

__all__ = ["STATIC_ROPE", "ModelGeometry"]

#: Kinds of RoPE whose angles do not depend on the length of the text, so that keys can be moved.
STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")


class ModelGeometry:
    """What memory3 must know of a causal language model, looked for when made: sizes and rotations are those of a pass of
    one token.

    Attributes:
        base: the transformer without its language head.
        num_layers, heads, kv_heads, head_dim: of the attention; ``heads`` of queries.
        full_layers: layers whose attention sees the whole context.
        max_positions: positions the model was made for.
        angles: ``[r/2]`` RoPE angles per position, of every layer; empty where a layer does not rotate (NoPE).
        inv_freq: those of the first layer of full attention that rotates.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.name = type(model).__name__
        self._windows: dict[int, torch.Tensor] = {}
        self.base = model.base_model
        self.num_layers: int = config.num_hidden_layers
        self.max_positions: int = config_value(config, "max_position_embeddings") or 1 << 30
        self.full_layers = self._full_attention_layers(config)
        self._check_rope(config)
        candidates = [b for name, b in self.base.named_buffers() if re.search(r"(?<!original_)inv_freq$", name)]
        if not candidates:
            raise UnsupportedModel(f"{self.name} has no rotary position embedding; memories cannot be placed")
        positions = (3, 10, min(self.max_positions - 1, 200))
        token = torch.full((len(positions), 1), config.vocab_size // 2, device=model.device)
        seen = self._look(model, token, position_ids=torch.tensor(positions, device=model.device)[:, None])
        if not all(bool(key.isfinite().all()) for _, key, _, _ in seen.values()):
            raise ModelError(f"{self.name} computes keys that are not finite; is its dtype too narrow for its weights?")
        query, key, _, _ = seen[self.full_layers[0]]
        self.heads, self.kv_heads, self.head_dim = query.shape[1], key.shape[1], key.shape[3]
        odd = {i: tuple(x.shape[1::2]) for i in self.full_layers for x in seen[i][1:3] if x.shape != key.shape}
        if odd:
            raise UnsupportedModel(
                f"{self.name}: keys and values of all layers must be {self.kv_heads} heads of {self.head_dim} "
                "numbers, some are "
                f"{next(iter(odd.values()))} (layer {next(iter(odd))}); memories have one shape"
            )
        self.angles = self._rotations({i: seen[i][1][:, :, 0] for i in seen}, positions, candidates)
        self.inv_freq = next((self.angles[i] for i in self.full_layers if len(self.angles[i])), key.new_zeros(0))

    def _check_rope(self, config: Any) -> None:
        rope = config_value(config, "rope_parameters") or {}
        # One kind for all layers, or one for each type of layer.
        each = [value for value in rope.values() if isinstance(value, dict)] or [rope]
        for kind in (one.get("rope_type", "default") for one in each):
            if kind not in STATIC_ROPE:
                raise UnsupportedModel(
                    f"{self.name} uses RoPE of type {kind!r}, whose angles change with the length of the text; "
                    "stored keys would be "
                    f"wrong. Supported: {', '.join(STATIC_ROPE)}. Set config.rope_parameters accordingly."
                )

    def _full_attention_layers(self, config: Any) -> tuple[int, ...]:
        kinds = config_value(config, "layer_types")
        if kinds is None:
            window = config_value(config, "sliding_window") if config_value(config, "use_sliding_window", True) else None
            kinds = ["sliding_attention" if window else "full_attention"] * self.num_layers
        foreign = sorted({k for k in kinds if k not in ("full_attention", "sliding_attention", "chunked_attention")})
        if foreign:
            where = [i for i, k in enumerate(kinds) if k in foreign]
            raise UnsupportedModel(
                f"{self.name}: layers {where} are {', '.join(foreign)}, which keep no keys and values that a prefix "
                "could be read from"
            )
        full = tuple(i for i, k in enumerate(kinds) if k == "full_attention")
        if 2 * len(full) <= self.num_layers:
            how_many = f"{self.num_layers - len(full)} of" if full else "all"
            raise UnsupportedModel(
                f"{self.name}: {how_many} {self.num_layers} layers attend within a window "
                f"(sliding_window={config_value(config, 'sliding_window')}) and cannot hold memories, so that it "
                "would not read them as it reads text; "
                "memories need full attention in most layers. If your texts are shorter than the window, load the "
                "model with config.sliding_window=None."
            )
        return full

    def memory_layers(self, config: MemoryConfig) -> tuple[int, ...]:
        """The memory layers of this model: what the config says, within the layers of full attention.

        Raises:
            UnsupportedModel: layers named one by one that attend within a window.
        """
        chosen = config.memory_layers(self.num_layers)
        full = tuple(i for i in chosen if i in self.full_layers)
        if full == chosen:
            return chosen
        without = [i for i in chosen if i not in self.full_layers]
        if not isinstance(config.layers, str) or not full:
            raise UnsupportedModel(
                f"{self.name}: layers {without} attend within a window; memory layers must be among {list(self.full_layers)}"
            )
        return full

    def _look(
        self, model: PreTrainedModel, tokens: torch.Tensor, **kwargs: Any
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """What each layer's attention is given in one pass over tokens."""
        reader = Seen()
        try:
            with attached(model), torch.no_grad():
                self.base(tokens, use_cache=False, memory3=reader, **kwargs)
        except Memory3Error:
            raise
        except Exception as error:  # the model's own code: whatever it raises, say whose it is
            raise UnsupportedModel(
                f"{self.name} cannot read {tokens.shape[1]} token(s) ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]})"
            ) from error
        silent = sorted(set(range(self.num_layers)) - set(reader.layers))
        if silent:
            raise UnsupportedModel(
                f"{self.name} does not ask the attention interface of transformers for its attention in layers {silent}; "
                "memories cannot be merged into it"
            )
        return reader.layers

    def _rotations(
        self, keys: Mapping[int, torch.Tensor], positions: Sequence[int], candidates: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """By what angles each layer turns its keys, ``[P, H, d]`` of one token at P positions. Rotation is a layer's
        property: some have none.
        """
        tolerance = 1e-3 if torch.finfo(keys[0].dtype).bits >= 32 else 0.02
        still = candidates[0].new_zeros(0)
        found = {i: find_rotation(key, positions, [*candidates, still], tolerance) for i, key in keys.items()}
        foreign = sorted(i for i, angles in found.items() if angles is None)
        if foreign:
            raise UnsupportedModel(
                f"{self.name} rotates keys by another convention than Llama's in layers {foreign}; its memories "
                "could not be moved"
            )
        return tuple(angles for _, angles in sorted(found.items()) if angles is not None)

    def windows(self, model: PreTrainedModel, length: int) -> dict[int, torch.Tensor]:
        """For each layer that attends within a window: bool ``[length or more, length or more]``, which places a token at
        each place sees.

        Measured on the model's own masks, whatever kind they are, and kept; layers with the same window share one tensor.
        """
        windowed = [i for i in range(self.num_layers) if i not in self.full_layers]
        if not windowed or len(next(iter(self._windows.values()), ())) >= length:
            return self._windows
        seen = self._look(model, torch.ones(1, length, dtype=torch.int64, device=model.device))
        tables: list[torch.Tensor] = []
        found: dict[int, torch.Tensor] = {}
        for layer in windowed:
            bias = seen[layer][3]
            allowed = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
            if bias is not None:
                allowed &= bias[0, 0] == 0
            found[layer] = next((table for table in tables if table.equal(allowed)), allowed)
            if found[layer] is allowed:
                tables.append(allowed)
        self._windows = found
        return found
