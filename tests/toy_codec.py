"""A new codec in one file, as it would lie in `memory3.codec.kinds`: vectors as float16, whatever the dtype. Not in the
package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from memory3.codec.base import VectorCodec, VectorCost
from memory3.codec.registry import register
from memory3.codec.vectors import VectorCoder


@register
@dataclass(frozen=True)
class Half(VectorCodec):
    name: ClassVar[str] = "half"
    form: ClassVar[str] = "half"
    help: ClassVar[str] = "float16, whatever the dtype"

    def cost(self, head_dim):
        return VectorCost(bytes=2 * head_dim, encode_flops=0, decode_flops=0)

    def appetite(self, head_dim):
        return 1, 1  # vectors that it must be fitted on, and those that make it good: there is nothing to fit

    def coder(self, head_dim, tensors):
        return HalfCoder(2 * head_dim)


class HalfCoder(VectorCoder):
    def __init__(self, width):
        self.width = width

    def encode(self, vectors, heads, positions):
        return vectors.half().numpy().view("uint8")

    def decode(self, codes, heads, positions, sizes, dtype):
        import torch

        finite = codes.view(torch.float16).nan_to_num(0, 0, 0)  # records come from strangers
        return [part.to(dtype, copy=True) for part in finite.split(list(sizes))]
