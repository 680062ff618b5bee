"""A stand-in for vLLM, small and plain: requests in a paged cache, run through a transformers model whose attention is that
of `memory3.vllm`. It schedules what a test says, in portions it says, and can put requests off.

Positions start at 0 whatever is read, blocks are handed out in any order, rows of a step stand in any order: as in vLLM.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import torch

from memory3.attention.attach import attached
from memory3.vllm.decoder import Decoder
from memory3.vllm.planning import Planner, Scheduled
from memory3.vllm.pool import Pool
from memory3.vllm.reading import Context, Layouts, StepReading

WORDS = "river bridge mountain county reader memory key value town sea engineer old new built answer question".split()  # noqa: SIM905


def text(seed, length):
    """Words in an order that no other seed gives."""
    return " ".join(random.Random(seed).choices(WORDS, k=length))


@dataclass(eq=False)
class Asked:
    request_id: str
    prompt_token_ids: list
    kv_transfer_params: dict | None
    max_tokens: int
    cache_salt: str | None = None
    all_token_ids: list = field(default_factory=list)
    block_hashes: list = field(default_factory=list)
    computed: int = 0
    next_decode_eligible_step: int = 0
    blocks: list = field(default_factory=list)

    def __post_init__(self):
        self.all_token_ids = list(self.prompt_token_ids)

    @property
    def num_prompt_tokens(self):
        return len(self.prompt_token_ids)

    @property
    def answer(self):
        return self.all_token_ids[self.num_prompt_tokens :]

    def update_block_hashes(self):
        pass


class PagedEngine:
    """Runs requests. ``block``: tokens of a block; ``turned``: whether keys lie as ``[d, b]``."""

    def __init__(self, m3, shelf, *, block=4, blocks=200, turned=True, default=None, pool=1 << 20, seed=0, payments=None):
        self.m3, self.turned, self.block = m3, turned, block
        self.random = random.Random(seed)
        self.steps = 0
        shape = m3.geometry
        self.free = list(range(blocks))
        self.random.shuffle(self.free)
        size = (shape.head_dim, block) if turned else (block, shape.head_dim)
        self.keys = [torch.randn(blocks, shape.kv_heads, *size) for _ in range(shape.num_layers)]
        self.values = [torch.randn(blocks, shape.kv_heads, block, shape.head_dim) for _ in range(shape.num_layers)]
        self.planner = Planner(shelf, block_size=block, default=default)
        self.decoder = Decoder(shelf.card)  # a worker of another process knows what it is told
        self.pool = Pool(pool, self.decoder.decode)
        heads = slice(0, shape.kv_heads)
        self.layouts = Layouts(shelf.card, self.pool, torch.float32, torch.device("cpu"), heads, self.contexts, payments)

    def contexts(self):
        return [Context(*pair, self.turned) for pair in zip(self.keys, self.values, strict=True)]

    def add(self, request):
        self.planner.arrive(request)
        while not self.planner.is_ready(request.request_id):
            time.sleep(0.001)

    def step(self, portions):
        """One pass. ``portions``: (request, tokens) of it, of which those that are not eligible are left out. Appends the next
        token of requests that are read to their end.
        """
        self.steps += 1
        portions = [(request, n) for request, n in portions if request.next_decode_eligible_step <= self.steps]
        for request, tokens in portions:
            while len(request.blocks) * self.block < request.computed + tokens:
                request.blocks.append(self.free.pop())
        step = self.planner.step([Scheduled(r.request_id, r.computed, n, r.blocks) for r, n in portions])
        if not portions:
            return
        rows = list(portions)
        self.random.shuffle(rows)
        tokens, positions, slots, starts = [], [], [], [0]
        for request, n in rows:
            for at in range(request.computed, request.computed + n):
                tokens.append(request.all_token_ids[at])
                positions.append(at)
                slots.append(request.blocks[at // self.block] * self.block + at % self.block)
            starts.append(len(tokens))
        width = max(len(request.blocks) for request, _ in rows)
        table = torch.tensor([request.blocks + [0] * (width - len(request.blocks)) for request, _ in rows])
        for form in step.forms:
            self.decoder.learn(form)
        assert not self.pool.take(step.packed)
        self.pool.update(step.reads, step.ended)
        self.slots, self.starts, self.table, self.rows = torch.tensor(slots), starts, table, rows
        self.reading = None
        if not step.rows:
            self.layouts.seats.begin(step, [])
        else:
            self.reading = StepReading(step, self.layouts, torch.tensor(starts), self.slots, table)
        model = self.m3.model
        with attached(model), torch.no_grad():
            out = model(
                input_ids=torch.tensor([tokens]),
                position_ids=torch.tensor([positions]),
                attention_mask=torch.zeros(1, 1, 1, 1),
                use_cache=False,
                memory3=self,
            )
        for (request, n), end in zip(rows, starts[1:], strict=True):
            request.computed += n
            if request.computed == len(request.all_token_ids):
                request.all_token_ids.append(int(out.logits[0, end - 1].argmax()))

    def put_off(self, request):
        """As vLLM does when its cache is full: blocks are freed, and all tokens are computed again."""
        self.free += request.blocks
        request.blocks, request.computed = [], 0
        self.random.shuffle(self.free)

    def end(self, request):
        self.free += request.blocks
        return self.planner.leave(request)

    def attend(self, layer, query, key, value, bias, *, causal, scale):
        """Of `memory3.attention.attach.Reader`: what vLLM's attention layer does."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
        if self.reading is not None:
            key = self.reading.placed(layer, key)
        block, within = self.slots // self.block, self.slots % self.block
        if self.turned:
            self.keys[layer][block, :, :, within] = key
        else:
            self.keys[layer][block, :, within] = key
        self.values[layer][block, :, within] = value
        context = Context(self.keys[layer], self.values[layer], self.turned)
        out = torch.zeros_like(query)
        for n, (request, tokens) in enumerate(self.rows):  # the stock kernel: every row over its context alone
            length = request.computed + tokens
            keys, values = context.of(self.table[n : n + 1], length)
            group = query.shape[1] // keys.shape[1]
            asked = query[self.starts[n] : self.starts[n + 1]].transpose(0, 1)[None]
            seen = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens)
            found = torch.nn.functional.scaled_dot_product_attention(
                asked, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), seen, scale=scale
            )
            out[self.starts[n] : self.starts[n + 1]] = found[0].transpose(0, 1)
        if self.reading is not None:
            self.reading.attend(layer, query, key, value, context, out, scale)
        return out.transpose(0, 1)[None]
