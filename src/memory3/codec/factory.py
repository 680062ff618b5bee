"""Factory strings of FAISS quantisers, read: their tables, and how many vectors those need. Imports no torch and no FAISS.

Three families, each with an optional rotation in front that FAISS learns (``OPQ16_64,``):

- ``Residual2x14,PQ8x10``, the paper's: the vector's halves are each one of 2^14 centroids, what is left is cut into 8 parts,
  each one of 2^10. 28 + 80 bits; FAISS fills the first up to whole bytes: 4 + 10 = 14 bytes.
- ``PQ16x7``: the vector is cut into 16 parts, each one of 2^7.
- ``RQ14x8``: 14 whole vectors out of 2^8 each, which add up, found by beam search.
"""

from __future__ import annotations

import re

from memory3.errors import ConfigError

__all__ = ["check_factory", "default_factory", "needed_vectors", "table_shapes"]

_FACTORY = re.compile(
    r"(?:OPQ(?P<groups>\d{1,5})(?:_(?P<width>\d{1,5}))?,)?"
    r"(?:Residual(?P<coarse>\d{1,5})x(?P<coarse_bits>\d{1,5}),PQ(?P<fine>\d{1,5})x(?P<fine_bits>\d{1,5})"
    r"|PQ(?P<parts>\d{1,5})x(?P<part_bits>\d{1,5})|RQ(?P<sums>\d{1,5})x(?P<sum_bits>\d{1,5}))"
)


def default_factory(head_dim: int) -> str:
    """The paper's quantiser for a head dimension: 14 bytes a vector (arXiv 2407.01178, section 3.3; for 80 the string as
    printed there).

    Raises:
        ConfigError: 8 does not divide the head dimension.
    """
    if head_dim % 8:
        raise ConfigError(
            f"the default quantiser needs a head dimension that 8 divides, not {head_dim}: name one, as in codec "
            "'product:RQ14x8'"
        )
    return f"OPQ{head_dim // 4}_{head_dim},Residual2x14,PQ8x10"


def check_factory(factory: str) -> re.Match[str]:
    """The parts of a factory string.

    Raises:
        ConfigError: it is of no family.
    """
    match = _FACTORY.fullmatch(factory)
    if not match:
        raise ConfigError(
            f"the quantiser {factory!r} is unknown: write ResidualMxB,PQMxB or PQMxB or RQMxB (M numbers of B bits), "
            "optionally behind OPQM_D, such as OPQ16_64,Residual2x14,PQ8x10 or RQ14x8"
        )
    return match


def table_shapes(factory: str, dimension: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a quantiser has, by name (`memory3.codec.quantiser.Quantiser`).

    Args:
        factory: its string.
        dimension: numbers of a vector, d.

    Raises:
        ConfigError: the string is of no family, or does not fit the dimension.
    """
    part = {name: int(text) for name, text in check_factory(factory).groupdict().items() if text is not None}
    divisors = [part[name] for name in ("groups", "coarse", "fine", "parts") if name in part]
    bits_ = [part[name] for name in ("coarse_bits", "fine_bits", "part_bits", "sum_bits") if name in part]
    width = part.get("width", dimension)
    fits = width <= dimension and all(count and width % count == 0 for count in divisors) and part.get("sums", 1)
    if not fits or not all(1 <= bits <= 16 for bits in bits_):
        raise ConfigError(
            f"the quantiser {factory!r} does not fit vectors of {dimension} numbers: every count must divide them, and a "
            "number have 1 to 16 bits"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    if "groups" in part:
        shapes["rotation"] = (width, dimension)
    for name, number, bits in (
        ("coarse", "coarse", "coarse_bits"),
        ("fine", "fine", "fine_bits"),
        ("fine", "parts", "part_bits"),
    ):
        if number in part:
            shapes[name] = (part[number], 1 << part[bits], width // part[number])
    if "sums" in part:
        shapes["sums"] = (part["sums"], 1 << part["sum_bits"], width)
    return shapes


def needed_vectors(factory: str, dimension: int) -> int:
    """Vectors that training needs at least: as many as its largest table has rows.

    Args:
        factory: FAISS's string.
        dimension: numbers of a vector.
    """
    shapes = table_shapes(factory, dimension)
    return max(256 if "rotation" in shapes else 1, *(shape[1] for name, shape in shapes.items() if name != "rotation"))
