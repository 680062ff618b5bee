"""What one step's rows read, and their attention: over a row's memories and its context in the paged cache, under one softmax.

Rows of a single token sit in lanes (`memory3.vllm.seats`). Rows of more tokens (a prompt, or a part of it) are computed one
by one over the paged cache, a chunk for each span.

Symbols: R rows, T tokens of the step, S context length, A query heads, H KV heads, d head dimension, B blocks of a row,
b tokens of a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from memory3.attention.attend import additive, attend, attention_with_lse
from memory3.attention.layout import gather_memories
from memory3.attention.rotary import rotate
from memory3.errors import RecallError
from memory3.types import LayerMemory, MemoryBatch
from memory3.vllm.card import Card
from memory3.vllm.paying import Lead, Payments
from memory3.vllm.pool import Pool
from memory3.vllm.seats import Chunk, Seats, chunk_of
from memory3.vllm.step import Name, Row, Step

__all__ = ["Context", "Layouts", "StepReading"]


@dataclass(frozen=True)
class Context:
    """Keys and values of one layer in the paged cache, as a kernel of vLLM keeps them.

    Attributes:
        keys, values: ``[blocks, H, ...]``.
        keys_turned: whether a block's keys lie as ``[d, b]``, not as ``[b, d]``.
    """

    keys: torch.Tensor
    values: torch.Tensor
    keys_turned: bool

    def of(self, blocks: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rows, in order of their tokens: keys and values ``[R, H, length, d]``.

        Args:
            blocks: int ``[R, B]``.
            length: tokens wanted; what lies behind the end of a row is no row's.
        """
        keys, values = self.keys[blocks], self.values[blocks]  # [R, B, H, ...]
        rows, _many, heads = keys.shape[:3]
        dim = values.shape[-1]
        order = (0, 2, 1, 4, 3) if self.keys_turned else (0, 2, 1, 3, 4)
        # The CPU's kernel takes the last dimension for contiguous without looking; of one block, the shape alone is a view.
        keys = keys.permute(order).reshape(rows, heads, -1, dim).contiguous()
        values = values.permute(0, 2, 1, 3, 4).reshape(rows, heads, -1, dim)
        return keys[:, :, :length], values[:, :, :length]


class Layouts:
    """Lays memories of a pool out for the KV heads of this worker.

    Attributes:
        seats: of rows of single tokens.
    """

    def __init__(
        self,
        card: Card,
        pool: Pool,
        dtype: torch.dtype,
        device: torch.device,
        heads: slice,
        contexts: Callable[[], Sequence[Context]],
        payments: Payments | None = None,
    ) -> None:
        """
        Args:
            card: of the model.
            pool: of memories.
            dtype: of the model inside vLLM.
            device: of this worker.
            heads: its KV heads, of all that the model has.
            contexts: the paged cache of each layer, in order of the layers.
            payments: counts attention; None: nobody asks for it.
        """
        self.card = card
        self.device = device
        self._pool = pool
        self.dtype = dtype
        self._heads = heads
        self._contexts = contexts
        self.payments = payments
        self.seats = Seats(self.of, self._context, payments)
        self._angles = [one.to(device) for one in card.angles]

    def angles(self, layer: int) -> torch.Tensor:
        """``[r/2]`` RoPE angles of a layer, on the device."""
        return self._angles[layer]

    def _context(self, blocks: torch.Tensor, length: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values ``[1, H, length, d]`` of each layer, of a row with these blocks, int64 ``[B]``."""
        pairs = [one.of(blocks[None, : -(-length // _block(one))], length) for one in self._contexts()]
        return [keys for keys, _ in pairs], [values for _, values in pairs]

    def of(self, chunks: Sequence[Chunk]) -> MemoryBatch:
        """What chunks read, of the KV heads of this worker."""
        names = list(dict.fromkeys(name for ids, _, _ in chunks for name in ids))
        memories = self._pool.get(names)
        batch = gather_memories(
            [list(map(_flat, ids)) for ids, _, _ in chunks],
            {_flat(name): memory for name, memory in memories.items()},
            self.card.shape,
            dtype=self.dtype,
            device=self.device,
            inv_freq=self._angles,
            moved=[moved for _, moved, _ in chunks],
            arrangement=self.card.config.arrangement,
            span=self.card.config.reference_length,
            temperature=self.card.config.memory_temperature,
            rank_discount=self.card.config.rank_discount,
            prefix=self.card.prefix,
            prefix_tokens=[missing for _, _, missing in chunks],
        )
        return MemoryBatch({n: self._own(layer) for n, layer in batch.layers.items()}, batch.references)

    def _own(self, layer: LayerMemory) -> LayerMemory:
        mine = self._heads
        if layer.keys.shape[1] == mine.stop - mine.start:
            return layer
        bias = None if layer.bias is None else layer.bias[:, mine].contiguous()
        keys, values = layer.keys[:, mine].contiguous(), layer.values[:, mine].contiguous()
        return LayerMemory(keys, values, bias, layer.owner[:, mine], layer.widths[mine])


def _flat(name: Name) -> str:
    return "\0".join(name)


@dataclass(frozen=True)
class _Part:
    """A row of more than one token. ``first``: its first token within the step; ``tokens``: which of its own belong to which
    chunk, int64 ``[N, C]``, -1 pads; ``front``: how many of them lie in front of the memories' place; ``lead``: is shown the
    queries of its last token, which chooses the answer's first if it is the prompt's last; None: nobody is.
    """

    row: Row
    first: int
    blocks: torch.Tensor
    batch: MemoryBatch
    tokens: torch.Tensor
    bias: torch.Tensor | None
    front: int
    lead: Lead | None


class StepReading:
    """What rows of a step read, found in the batch as vLLM has ordered it.

    Attributes:
        is_all: whether no token of the step belongs to another row.
    """

    def __init__(self, step: Step, layouts: Layouts, starts: torch.Tensor, slots: torch.Tensor, blocks: torch.Tensor) -> None:
        """
        Args:
            step: of the scheduler.
            layouts: of this worker.
            starts: int ``[rows + 1]``: where each row of vLLM's batch begins among the tokens.
            slots: int64 ``[T or more]``: place in the cache of each token.
            blocks: int ``[rows, B]``: blocks of each row of the batch.

        Raises:
            RecallError: a row of the step is not in the batch.
        """
        bounds = starts.tolist()
        written = slots.tolist()
        found = {written[first]: n for n, (first, end) in enumerate(itertools.pairwise(bounds)) if end > first}
        self.is_all = step.tokens == sum(row.end - row.start for row in step.rows)
        self._angles = layouts.angles
        self._fronts: list[tuple[int, int, int]] = []
        self._parts: list[_Part] = []
        at, mine = [], []
        for row in step.rows:
            n = found.get(row.slot)
            if n is None or bounds[n + 1] - bounds[n] != row.end - row.start:
                raise RecallError(f"request {row.request} is not in vLLM's batch as its scheduler said")
            at.append(bounds[n])
            mine.append(blocks[n].long())
            if row.is_one:
                continue
            self._parts.append(self._part(row, bounds[n], mine[-1], layouts))
            if self._parts[-1].front and row.shift:
                self._fronts.append((bounds[n], bounds[n] + self._parts[-1].front, -row.shift))
        lanes = layouts.seats.begin(step, mine)
        self._lanes = [(lane, torch.tensor([at[n] for n in rows], device=layouts.device)) for lane, rows in lanes]

    @staticmethod
    def _part(row: Row, first: int, blocks: torch.Tensor, layouts: Layouts) -> _Part:
        tokens = row.end - row.start
        device = layouts.device
        most = max((one.end - one.start for one in row.spans), default=0)
        table = torch.full((len(row.spans), most), -1, device=device)
        for n, one in enumerate(row.spans):
            table[n, : one.end - one.start] = torch.arange(one.start - row.start, one.end - row.start, device=device)
        batch = layouts.of([chunk_of(row, n) for n in range(len(row.spans))]) if row.spans else MemoryBatch({}, [])
        bias = None
        if row.start:
            seen = torch.ones(tokens, row.end, dtype=torch.bool, device=device).tril(row.start)
            bias = additive(seen, layouts.dtype)[None, None]
        front = max(0, min(row.split, row.end) - row.start)
        lead = None
        if layouts.payments is not None and batch.layers:
            lead = layouts.payments.lead(row.request, batch, [name for _, _, name in row.spans[-1].names])
            layouts.payments.fed(row.request, row.end - 1)
        return _Part(row, first, blocks, batch, table, bias, front, lead)

    # ---- within a layer ----------------------------------------------------------------------------------------------

    def placed(self, layer: int, vectors: torch.Tensor) -> torch.Tensor:
        """Keys or queries with those of fronts where memory3 has them, as far back as memories take room.

        Args:
            layer: number of the layer.
            vectors: ``[T, heads, d]``, after RoPE.
        """
        if not self._fronts:
            return vectors
        vectors = vectors.clone()
        for start, end, by in self._fronts:
            some = vectors[start:end]
            vectors[start:end] = rotate(some, torch.tensor(by, device=some.device), self._angles(layer))
        return vectors

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: Context,
        out: torch.Tensor,
        scale: float,
    ) -> None:
        """Write the attention output of the rows that read.

        Args:
            layer: number of the layer.
            query: ``[T, A, d]``, after RoPE.
            key, value: ``[T, H, d]`` of the same tokens, keys after RoPE.
            context: of this layer; the step's own keys and values are in it.
            out: ``[T, A, d]``; other rows' stays.
            scale: what scores are multiplied with.
        """
        for lane, at in self._lanes:
            asked, keys, values = (x.index_select(0, at).transpose(0, 1)[None] for x in (query, key, value))
            out.index_copy_(0, at, lane.attend(layer, asked, keys, values, scale)[0].transpose(0, 1))
        query = self.placed(layer, query) if self._parts else query
        for part in self._parts:
            mine = slice(part.first, part.first + part.row.end - part.row.start)
            out[mine] = self._several(layer, part, query[mine], context, scale)

    @staticmethod
    def _several(layer: int, part: _Part, query: torch.Tensor, context: Context, scale: float) -> torch.Tensor:
        row = part.row
        keys, values = context.of(part.blocks[None, : -(-row.end // _block(context))], row.end)
        asked = query.transpose(0, 1)[None]
        memory, causal = part.batch.layers.get(layer), part.bias is None
        if memory is None:
            found = attention_with_lse(asked, keys, values, part.bias, causal=causal, scale=scale)[0]
        else:
            found, lse = attend(asked, keys, values, part.bias, memory, part.tokens, causal=causal, scale=scale)
            if (
                part.lead is not None and layer in part.lead.counted
            ):  # a copy: compiled models use the room of their queries again
                part.lead.saw(layer, asked[:, :, -1:].clone(), lse[:, :, -1:], scale)
        return found[0].transpose(0, 1)


def _block(context: Context) -> int:
    """Tokens of a block."""
    return context.values.shape[2]
