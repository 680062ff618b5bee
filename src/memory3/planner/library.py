"""The same costs for this library's own format: what its code computes, where the paper's formulas are bounds.

What differs from `memory3.planner.cost`. Writing: the reconstruction selector passes over a reference twice with a cue
between; every token also attends to the prefix; the attention kernel is given a mask and skips nothing; the last memory
layer's output is not computed. Reading: the adaptive budget leaves ragged heads, which are padded; a codec is decoded; a query
is embedded and searched for, once for all references of a chunk.

Counts work, not time: `memory3.planner.capacity` has the time. Symbols as in `memory3.planner.cost`; further b tokens of the
prefix, c of the cue, T = S or 2 S + c tokens of a writing pass over a reference of S, R layers up to the last memory layer,
qkv and o weights of a layer's matrices, P pairs kept, G = H / Hkv, k references of a chunk, e numbers of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from memory3.codec.registry import shown
from memory3.config import MemoryConfig
from memory3.encode import selectors
from memory3.errors import ConfigError
from memory3.models.sizes import ModelSizes
from memory3.planner.cost import Cost, Costs, Setting, Term, implicit
from memory3.planner.storage import codec_cost

__all__ = [
    "EMBEDDERS",
    "EmbedderShape",
    "Search",
    "embedder_of",
    "library_costs",
    "writing_tokens",
]

#: Tokens of the prefix and of "Repeat the passages word for word." for a chat model; the default model has 29 and 15.
PREFIX_TOKENS = 29
CUE_TOKENS = 15

#: As the bank does it (`memory3.bank.snapshot`, `memory3.bank.indexes`): embeddings up to this size are searched exactly.
RESIDENT_BYTES = 128 << 20


@dataclass(frozen=True)
class EmbedderShape:
    """Sizes of a BERT-like sentence embedder.

    Attributes:
        layers, hidden, mlp: of its transformer.
        dimension: numbers of an embedding.
    """

    layers: int
    hidden: int
    mlp: int
    dimension: int

    @property
    def weights(self) -> int:
        """Of all layers; the embedding matrix is looked up, not multiplied."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.mlp)

    def flops(self, tokens: int) -> int:
        """To embed a text of so many tokens."""
        return 2 * tokens * self.weights + 4 * self.layers * tokens**2 * self.hidden


#: The catalogue's default, and the paper's.
EMBEDDERS: Mapping[str, EmbedderShape] = {
    "all-minilm-l6-v2": EmbedderShape(6, 384, 1536, 384),
    "BAAI/bge-m3": EmbedderShape(24, 1024, 4096, 1024),
}


def embedder_of(name: str) -> EmbedderShape:
    """The embedder of that name."""
    if name not in EMBEDDERS:
        raise ConfigError(f"the shape of embedder {name!r} is unknown: use one of {', '.join(EMBEDDERS)}")
    return EMBEDDERS[name]


@dataclass(frozen=True)
class Search:
    """One search of the bank's index of embeddings.

    Attributes:
        references: in the bank.
        dimension: of an embedding.
    """

    references: int
    dimension: int

    @property
    def is_exact(self) -> bool:
        """Whether all embeddings lie in RAM and are compared; else some cells of an index are."""
        return self.references * self.dimension * 4 <= RESIDENT_BYTES

    @property
    def compared(self) -> int:
        """Vectors a query is compared with: all of them, or the centroids and the cells searched."""
        if self.is_exact:
            return self.references
        cells = math.isqrt(self.references)
        searched = max(32, min(cells // 3, 128))
        return min(self.references, cells + searched * -(-self.references // cells))

    @property
    def flops(self) -> int:
        """A multiply-add per number compared."""
        return 2 * self.compared * self.dimension

    @property
    def bytes(self) -> int:
        """Read of the index for one query."""
        return 4 * self.compared * self.dimension

    @property
    def ram(self) -> int:
        """Bytes of the index that must lie in RAM: all embeddings where it is exact, the centroids of the cells where not."""
        return 4 * self.dimension * (self.references if self.is_exact else math.isqrt(self.references))


def writing_tokens(config: MemoryConfig, tokens: int) -> int:
    """Tokens the model passes over to write a reference.

    Args:
        config: its selector may read the reference twice.
        tokens: of the reference.

    Raises:
        ConfigError: there is no such selector.
    """
    repeats = selectors.find(config.selector).repeats or (config.biases and config.budget.selects)
    return 2 * tokens + CUE_TOKENS if repeats and config.budget.selects else tokens


def library_costs(
    shape: ModelSizes,
    config: MemoryConfig,
    *,
    embedder: str = "all-minilm-l6-v2",
    references: int = 1,
    tokens: int = 0,
) -> Costs:
    """The three formats as this library would do them, FLOPs per reference and per use of it by one chunk of tokens.

    Args:
        shape: of the model.
        config: layers, budget, selector, codec, reference length, chunk length, references per chunk.
        embedder: name of `EMBEDDERS`.
        references: in the bank, for the search.
        tokens: of a reference on average; 0: a full one.
    """
    tokens = tokens or config.reference_length
    if not 1 <= tokens <= config.reference_length:
        raise ConfigError(f"references of {tokens} tokens: the settings allow 1 to {config.reference_length}")
    find = _finding(config, embedder_of(embedder), references)
    about = Term("embedding of the text", "", embedder_of(embedder).flops(tokens))
    return Costs(
        implicit=implicit(shape, Setting(tokens, kept=1, chunk=config.chunk_length)),
        explicit=Cost((*_writing(shape, config, tokens), about), (*_reading(shape, config), *find)),
        external=Cost((about,), (*_prompting(shape, config, tokens), *find)),
    )


def _writing(shape: ModelSizes, config: MemoryConfig, tokens: int) -> tuple[Term, ...]:
    memory_layers = shape.memory_layers(config)
    run = max(memory_layers) + 1
    passed = writing_tokens(config, tokens)
    repeats = passed > tokens
    width, d = shape.attention_width, shape.hidden
    projected = run * (shape.attention_weights - width * d) + (run - 1) * width * d  # the last layer's output is not needed
    attended = run if repeats else run - 1
    kept = config.budget.pairs(len(memory_layers) * shape.kv_heads, config.reference_length)
    chosen = selectors.find(config.selector).flops(tokens, width) if config.budget.selects else 0
    return (
        Term("attention matrices", "2 T (R qkv + (R-1) o)", 2 * passed * projected),
        Term("attention", "2 R 2 T (b+T) H dh", 4 * attended * passed * (PREFIX_TOKENS + passed) * width),
        Term("MLP", "2 (R-1) T 3dW", 2 * (run - 1) * passed * shape.mlp_weights),
        Term("selection of tokens", "2 Lmem S^2 H dh", len(memory_layers) * chosen),
        Term(
            f"codec {shown(config.codec)}",
            "P encode(dh), keys and values",
            kept * codec_cost(shape, config).encode_flops,
        ),
    )


def _reading(shape: ModelSizes, config: MemoryConfig) -> tuple[Term, ...]:
    kept = config.budget.pairs(len(shape.memory_layers(config)) * shape.kv_heads, config.reference_length)
    attention = 4 * config.chunk_length * kept * (shape.heads // shape.kv_heads) * shape.head_dim
    return (
        Term("attention to memory", "2 2 lchunk P G dh", attention),
        Term("attention to padding", "", (config.budget.padding - 1) * attention),
        Term(
            f"codec {shown(config.codec)}",
            "P decode(dh), keys and values",
            kept * codec_cost(shape, config).decode_flops,
        ),
    )


def _prompting(shape: ModelSizes, config: MemoryConfig, tokens: int) -> tuple[Term, ...]:
    """As the paper's bound, but the last layer's MLP is run for the passages too."""
    return (
        Term("attention matrices", "2 L S (2d H dh + 2d Hkv dh)", 2 * shape.layers * tokens * shape.attention_weights),
        Term(
            "attention",
            "2 L 2 S (S/2 + lchunk) H dh",
            2 * shape.layers * tokens * (tokens + 2 * config.chunk_length) * shape.attention_width,
        ),
        Term("MLP", "2 L S 3dW", 2 * shape.layers * tokens * shape.mlp_weights),
    )


def _finding(config: MemoryConfig, embedder: EmbedderShape, references: int) -> tuple[Term, ...]:
    """A chunk embeds and searches once for all references it reads; each bears its part."""
    part = 1 / max(1, config.references_per_chunk)
    search = Search(references, embedder.dimension)
    return (
        Term("embedding of the query", "1/k of it", part * embedder.flops(config.chunk_length)),
        Term("search", f"1/k of 2 e {search.compared:,} vectors", part * search.flops),
    )
