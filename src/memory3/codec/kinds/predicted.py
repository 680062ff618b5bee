"""``predicted``: `transform` of what a reference's tokens do not predict of its keys and values
(`memory3.codec.prediction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from memory3.codec.base import CodecCost, RecordSizes, VectorPair
from memory3.codec.kinds.transform import Transform
from memory3.codec.registry import register
from memory3.errors import ConfigError

__all__ = ["Predicted"]


@register
@dataclass(frozen=True)
class Predicted(VectorPair):
    """Transform coding of what is left of keys and values when what their tokens say is taken off.

    Files call it ``foretold``, as settings of earlier releases do.
    """

    name: ClassVar[str] = "predicted"
    stored_name: ClassVar[str] = "foretold"
    form: ClassVar[str] = "predicted:BITS"
    help: ClassVar[str] = "transform of what the text's tokens do not predict; of one size it loses least"
    predicts: ClassVar[bool] = True

    @classmethod
    def parse(cls, options: str) -> Predicted:
        """The codec with ``options``: bits of a vector, or of keys and of values with a plus between them.

        Raises:
            ConfigError: they are not such numbers.
        """
        sides = options.split("+")
        text = f"{cls.stored_name}:{options}" if options else cls.stored_name
        try:
            if len(sides) > 2 or (options and "" in sides):
                raise ConfigError("too many, or none")
            keys, values = (Transform.parse(side) for side in (sides[0], sides[-1]))
        except ConfigError:
            raise ConfigError(
                f"codec {f'{cls.name}:{options}'!r} is unknown: write {cls.form} or {cls.form}+BITS, bits being a multiple "
                "of 8, as in predicted:96+160"
            ) from None
        return cls(text, keys, values)

    def cost(self, sizes: RecordSizes) -> CodecCost | None:
        """See `MemoryCodec.cost`. A product of `memory3.codec.prediction.RANK` numbers and as many as a head has for every
        vector more.
        """
        transform = super().cost(sizes)
        if transform is None:
            return None
        more = 2 * (2 * sizes.head_dim**2 + sizes.head_dim)
        return CodecCost(transform.record_bytes, transform.encode_flops + more, transform.decode_flops + more)

    def __str__(self) -> str:
        """See `MemoryCodec`."""
        return self.text.replace(self.stored_name, self.name, 1)
