"""What a corpus takes on a machine: hours and money to write it, disk, RAM, what a recall reads, and tokens per second lost.

Against the same corpus as text (RAG) and in weights (fine-tuning). Time is work divided by the machine's rates, plus what the
software takes by itself, in the constants named here: estimates for two cores, of which some were fitted and one is a guess
(docs/planner.md). Predictions, to be within a
quarter: ``memory3 plan --check`` holds them against this machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from memory3.config import MemoryConfig
from memory3.errors import ConfigError
from memory3.models.sizes import ModelSizes
from memory3.planner.cost import Cost
from memory3.planner.library import EMBEDDERS, Search, embedder_of, library_costs
from memory3.planner.machine import Machine
from memory3.planner.storage import codec_cost, library_bytes

__all__ = ["CapacityPlan", "CorpusSize", "RecallTime", "plan"]

#: Seconds that a read of a few rows takes in Lance and Python, whatever their size.
LANCE_SECONDS = 3e-3
#: Seconds of an embedding beside the model's layers: tokenising and the wrapping of sentence-transformers.
EMBED_SECONDS = 6e-3
#: How often a record's bytes pass through memory between the disk and the attention: checksum, copy, conversion, gathering,
#: padding.
UNPACK_PASSES = 10
#: Extra operations of a memory layer while decoding, as a part of the layer's own: a longer mask, queries kept for citations.
#: 0.15 was fitted to the default model on two cores while memories took a second kernel call; one call does now, and a third
#: of it is a guess.
EXTRA_CALLS = 0.05
#: Operations of a step outside the layers (sampling, masks, positions), in layers.
STEP_CALLS = 4.0
#: References that are written in one forward pass.
BATCH = 16


@dataclass(frozen=True)
class CorpusSize:
    """What is to be remembered.

    Attributes:
        references: how many.
        tokens: of a reference on average; 0: full ones.
        text_bytes: of a reference's text on average; 0: estimated from its tokens.
    """

    references: int
    tokens: float = 0.0
    text_bytes: float = 0.0

    def __post_init__(self) -> None:
        if self.references < 1:
            raise ConfigError(f"{self.references} references are nothing to plan for: give at least 1")


@dataclass(frozen=True)
class RecallTime:
    """Seconds of one recall: finding and reading the references of one chunk, nothing cached.

    Attributes:
        embed: the query's embedding.
        search: of the index.
        read: of the memories from the disk.
        unpack: from bytes to tensors, decoding the codec.
    """

    embed: float
    search: float
    read: float
    unpack: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.embed + self.search + self.read + self.unpack


@dataclass(frozen=True)
class CapacityPlan:
    """A corpus as explicit memory on a machine, and the same as text and in weights.

    Attributes:
        references: how many.
        references_per_second: writing, with embeddings, on one machine.
        write_hours: on one machine.
        disk: bytes of the bank.
        index_ram: bytes of the search index that lie in RAM.
        recall: seconds of a recall.
        recall_bytes: read from the disk by a recall.
        tokens_per_second, plain_tokens_per_second: decoding one answer, with memory and without.
        machines: needed for disk and RAM, and to be written within the time that was given.
        price: of writing, in the profile's currency.
        disk_price: of keeping, per month.
        text_hours, text_disk: RAG: embedding the corpus, and its bytes.
        text_first_token: RAG: seconds that a question's references add to its first token; with memory a recall does.
        training_hours, training_price: weights: one epoch of training on the corpus, every weight, on one machine.
    """

    references: int
    references_per_second: float
    write_hours: float
    disk: float
    index_ram: float
    recall: RecallTime
    recall_bytes: float
    tokens_per_second: float
    plain_tokens_per_second: float
    machines: int
    price: float
    disk_price: float
    text_hours: float
    text_disk: float
    text_first_token: float
    training_hours: float
    training_price: float

    @property
    def lost(self) -> float:
        """Share of the tokens per second that memory costs, 0 to 1."""
        return 1 - self.tokens_per_second / self.plain_tokens_per_second


def plan(
    corpus: CorpusSize,
    shape: ModelSizes,
    config: MemoryConfig,
    machine: Machine,
    *,
    embedder: str = "all-minilm-l6-v2",
    within_hours: float = 168.0,
) -> CapacityPlan:
    """Predict what a corpus takes.

    Args:
        corpus: how much there is.
        shape, config, embedder: as `memory3.planner.library.library_costs` takes them.
        machine: the profile.
        within_hours: time there is for writing, for the number of machines.
    """
    if not within_hours > 0:
        raise ConfigError(f"nothing can be written within {within_hours} hours: give more than 0")
    tokens = max(1, round(corpus.tokens or config.reference_length))
    dimension = embedder_of(embedder).dimension
    costs = library_costs(shape, config, embedder=embedder, references=corpus.references, tokens=tokens)
    each = library_bytes(shape, config, dimension=dimension, tokens=corpus.tokens, text_bytes=corpus.text_bytes)
    disk = corpus.references * each.disk
    launching = machine.layer_seconds * shape.layers / BATCH
    writing = costs.explicit.write_flops / machine.flops + launching + each.disk / machine.disk_bandwidth
    search = Search(corpus.references, dimension)
    recall = _recall(shape, config, machine, embedder, search, each.record)
    plain, reading = _steps(shape, config, machine)
    hours = corpus.references * writing / 3600
    embedding = corpus.references * _embedding(costs.external, machine, embedder) / 3600
    training = corpus.references * costs.implicit.write_flops / machine.flops / 3600
    k = config.references_per_chunk
    passages = sum(term.flops for term in costs.external.read[:3]) * k / machine.flops
    return CapacityPlan(
        references=corpus.references,
        references_per_second=1 / writing,
        write_hours=hours,
        disk=disk,
        index_ram=search.ram,
        recall=recall,
        recall_bytes=k * each.record,
        tokens_per_second=1 / (reading + recall.seconds / config.chunk_length),
        plain_tokens_per_second=1 / plain,
        machines=max(1, *(math.ceil(x) for x in (disk / machine.disk, search.ram / machine.ram, hours / within_hours))),
        price=hours * machine.price,
        disk_price=disk / 1e12 * machine.disk_price,
        text_hours=embedding,
        text_disk=corpus.references * each.text_only,
        text_first_token=passages + recall.embed + recall.search + LANCE_SECONDS,
        training_hours=training,
        training_price=training * machine.price,
    )


def _recall(
    shape: ModelSizes, config: MemoryConfig, machine: Machine, embedder: str, search: Search, record: int
) -> RecallTime:
    k = config.references_per_chunk
    sizes = EMBEDDERS[embedder]
    pairs = config.budget.pairs(len(shape.memory_layers(config)) * shape.kv_heads, config.reference_length)
    decoded = k * 2 * pairs * shape.head_dim * machine.number_bytes * config.budget.padding
    in_ram = search.references * search.dimension * 4 <= machine.ram
    return RecallTime(
        embed=sizes.flops(config.chunk_length) / machine.flops + sizes.layers * machine.layer_seconds + EMBED_SECONDS,
        search=search.bytes / (machine.memory_bandwidth if in_ram else machine.disk_bandwidth),
        read=LANCE_SECONDS + k * (machine.disk_latency + record / machine.disk_bandwidth),
        unpack=UNPACK_PASSES * (k * record + decoded) / 2 / machine.memory_bandwidth
        + k * pairs * codec_cost(shape, config).decode_flops / machine.flops,
    )


def _steps(shape: ModelSizes, config: MemoryConfig, machine: Machine) -> tuple[float, float]:
    """Seconds of one decoded token, without memory and with it, recalls left out."""
    calls = (shape.layers + STEP_CALLS) * machine.layer_seconds
    # Of the embedding matrix one row is read, of the language head all.
    weights = shape.block_weights + shape.vocabulary * shape.hidden
    plain = weights * machine.number_bytes / machine.memory_bandwidth + calls
    memory_layers = len(shape.memory_layers(config))
    pairs = config.budget.pairs(memory_layers * shape.kv_heads, config.reference_length) * config.budget.padding
    read = config.references_per_chunk * pairs * 2 * shape.head_dim * machine.number_bytes
    extra = read / machine.memory_bandwidth + EXTRA_CALLS * memory_layers * machine.layer_seconds
    return plain, plain + (extra if config.references_per_chunk else 0.0)


def _embedding(external: Cost, machine: Machine, embedder: str) -> float:
    """Seconds to embed one reference of many."""
    return external.write_flops / machine.flops + EMBEDDERS[embedder].layers * machine.layer_seconds / BATCH
