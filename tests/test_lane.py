"""Requests that decode side by side attend as each would alone."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from transformers import DynamicCache

from memory3.attention import lane
from memory3.attention.kernels import additive
from memory3.attention.lane import Lanes, Seat, can_sit
from memory3.attention.reading import Reading
from memory3.types import LayerMemory, MemoryBatch

LAYERS, HEADS, GROUP, DIM = 3, 2, 5, 7
SCALE = 0.3


@dataclass(eq=False)
class Alone:
    """A request as its slow twin keeps it: keys and values of each layer, memories apart."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    memory: MemoryBatch | None = None
    seat: Seat | None = None
    seen: list[torch.Tensor] = field(default_factory=list)

    def attend(self, layer: int, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output ``[A, d]`` and the weights of each head ``[A, M + S]``: one head after the other, one softmax."""
        outs, weights = [], []
        memory = None if self.memory is None else self.memory.layers.get(layer)
        for head in range(HEADS):
            keys, values = self.keys[layer][0, head], self.values[layer][0, head]
            if memory is not None:
                real = slice(None) if memory.bias is None else memory.bias[0, head, 0] == 0
                keys, values = torch.cat([memory.keys[0, head, real], keys]), torch.cat([memory.values[0, head, real], values])
            for one in query[head * GROUP : (head + 1) * GROUP]:
                paid = torch.softmax(keys @ one * SCALE, 0)
                outs.append(paid @ values)
                weights.append(paid)
        return torch.stack(outs), torch.tensor([0.0]) if memory is None else _by_reference(memory, weights)


def _by_reference(memory: LayerMemory, weights: list[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros(3)
    for number, paid in enumerate(weights):
        head = number // GROUP
        real = memory.owner[0, head] >= 0 if memory.bias is None else memory.bias[0, head, 0] == 0
        for owner, one in zip(memory.owner[0, head, real].tolist(), paid.tolist(), strict=False):
            if owner >= 0:
                total[owner] += one
    return total


def a_memory(draw: random.Random) -> MemoryBatch:
    layers = {}
    for layer in draw.sample(range(LAYERS), draw.choice([1, 2, 3])):
        widths = tuple(draw.randrange(1, 12) for _ in range(HEADS))
        most = max(widths)
        real = torch.arange(most) < torch.tensor(widths)[:, None]
        owner = torch.randint(-1, 3, (1, HEADS, most)).where(real[None], -1)
        bias = None if bool(real.all()) else additive(real, torch.float64)[None, :, None]
        keys, values = (torch.randn(1, HEADS, most, DIM, dtype=torch.float64) for _ in range(2))
        layers[layer] = LayerMemory(keys, values, bias, owner, widths)
    return MemoryBatch(layers=layers, references=[["a", "b", "c"]])


def a_request(draw: random.Random, length: int) -> Alone:
    def some() -> list[torch.Tensor]:
        return [torch.randn(1, HEADS, length, DIM, dtype=torch.float64) for _ in range(LAYERS)]

    return Alone(some(), some(), draw.choice([None, a_memory(draw), a_memory(draw)]))


def sit(lanes: Lanes, one: Alone) -> None:
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(one.keys[layer], one.values[layer], layer)
    assert can_sit(cache)
    one.seat = lanes.take(cache)
    read(one)


def read(one: Alone) -> None:
    if one.memory is not None:
        assert one.seat is not None
        one.seat.lane.lead(one.seat, Reading(one.memory))
        one.seen = []


def step(lanes: Lanes, requests: list[Alone]) -> None:
    """Each feeds one token; what the lanes give is compared with what each would compute alone."""
    for one in requests:
        assert one.seat is not None
        one.seat = lanes.with_room(one.seat)
    seats = [one.seat for one in requests if one.seat is not None]
    for each, numbers in lanes.begin(seats):
        mine = [requests[n] for n in numbers]
        for layer in range(LAYERS):
            query = torch.randn(1, HEADS * GROUP, len(mine), DIM, dtype=torch.float64)
            key, value = (torch.randn(1, HEADS, len(mine), DIM, dtype=torch.float64) for _ in range(2))
            out = each.attend(layer, query, key, value, SCALE)
            for n, one in enumerate(mine):
                one.keys[layer] = torch.cat([one.keys[layer], key[:, :, n, None]], 2)
                one.values[layer] = torch.cat([one.values[layer], value[:, :, n, None]], 2)
                expected, paid = one.attend(layer, query[0, :, n])
                torch.testing.assert_close(out[0, :, n], expected)
                if one.memory is not None and layer in one.memory.layers:
                    one.seen.append(paid)


@pytest.mark.parametrize("stretch", [3, 64])
def test_beside_others_as_alone(monkeypatch: pytest.MonkeyPatch, stretch: int) -> None:
    monkeypatch.setattr(lane, "_STRETCH", stretch)
    torch.manual_seed(3)
    draw = random.Random(5)
    lanes, there = Lanes(), []
    left = 0
    for _ in range(120):
        if len(there) < 11 and draw.random() < 0.4:
            there.append(a_request(draw, draw.choice([1, 3, 50, 250, 255, 256, 300, 530])))
            sit(lanes, there[-1])
        for one in [one for one in there if draw.random() < 0.1]:
            if draw.random() < 0.5:
                there.remove(one)
                assert one.seat is not None
                lanes.leave(one.seat)
                left += 1
            else:
                one.memory = a_memory(draw)
                read(one)
        feeding = [one for one in there if draw.random() < 0.8]
        draw.shuffle(feeding)
        if feeding:
            step(lanes, feeding)
    assert left > 10
    assert len(there) > 3


def test_attention_paid_is_told() -> None:
    torch.manual_seed(3)
    draw = random.Random(2)
    lanes = Lanes()
    requests = [a_request(draw, length) for length in (2, 3, 11)]
    for one in requests:
        one.memory = a_memory(draw)
        sit(lanes, one)
    for who in ([0, 1, 2], [2, 0], [1], [2, 1, 0]):
        step(lanes, [requests[n] for n in who])
    for one in requests:
        assert one.seat is not None
        assert one.seat.reading is not None
        paid = one.seat.reading.settle(one.seat.reading.batch)[0]
        torch.testing.assert_close(paid, sum(one.seen, torch.zeros(3)), atol=1e-5, rtol=1e-5)


def test_who_broke_leaves_nothing_behind() -> None:
    """A request that computed NaN goes, and the next in its row computes what it would alone."""
    torch.manual_seed(3)
    draw = random.Random(7)
    lanes = Lanes()
    beside = a_request(draw, 11)
    sit(lanes, beside)
    for _ in range(5):
        broken = a_request(draw, 7)
        broken.memory = a_memory(draw)
        for part in (broken.keys, broken.values, *((one.keys, one.values) for one in broken.memory.layers.values())):
            for one in part:
                one.fill_(torch.nan)
        sit(lanes, broken)
        assert beside.seat is not None
        assert broken.seat is not None
        row = broken.seat.row
        for each, numbers in lanes.begin([beside.seat, broken.seat]):
            assert len(numbers) == 2
            for layer in range(LAYERS):
                query = torch.randn(1, HEADS * GROUP, 2, DIM, dtype=torch.float64)
                key, value = (torch.randn(1, HEADS, 2, DIM, dtype=torch.float64) for _ in range(2))
                out = each.attend(layer, query, key, value, SCALE)
                beside.keys[layer] = torch.cat([beside.keys[layer], key[:, :, :1]], 2)
                beside.values[layer] = torch.cat([beside.values[layer], value[:, :, :1]], 2)
                torch.testing.assert_close(out[0, :, 0], beside.attend(layer, query[0, :, 0])[0])
                assert out[0, :, 1].isnan().all()
        lanes.leave(broken.seat)
        after = a_request(draw, 2)
        after.memory = a_memory(draw) if draw.random() < 0.5 else None
        sit(lanes, after)
        assert after.seat is not None
        assert after.seat.row == row
        step(lanes, [beside, after])
        lanes.leave(after.seat)


def test_new_memories_in_place_of_broken_ones() -> None:
    draw = random.Random(9)
    lanes = Lanes()
    one = a_request(draw, 3)
    for _ in range(7):
        one.memory = a_memory(draw)
        for layer in one.memory.layers.values():
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
        if one.seat is None:
            sit(lanes, one)
        else:
            read(one)
        one.memory = a_memory(draw)
        read(one)
        step(lanes, [one])


def test_an_empty_lane_gives_its_ram_back() -> None:
    draw = random.Random(1)
    lanes = Lanes()
    one, two, three = a_request(draw, 5), a_request(draw, 257), a_request(draw, 300)
    for each in (one, two, three):
        sit(lanes, each)
    for each, left in ((one, [512]), (two, [512]), (three, [])):
        assert each.seat is not None
        lanes.leave(each.seat)
        assert list(lanes._lanes) == left
    again = a_request(draw, 7)
    sit(lanes, again)
    step(lanes, [again])


def test_nothing_waits_for_the_garbage_collector() -> None:
    draw = random.Random(4)
    lanes = Lanes()
    requests = [a_request(draw, 3) for _ in range(3)]
    for one in requests:
        one.memory = a_memory(draw)
        sit(lanes, one)
    step(lanes, requests)
    assert requests[0].seat is not None
    buffers = [weakref.ref(one) for one in requests[0].seat.lane._keys]
    readings = [weakref.ref(one.seat.reading) for one in requests if one.seat is not None and one.seat.reading is not None]
    assert (len(buffers), len(readings)) == (LAYERS, 3)
    gc.disable()
    try:
        while requests:
            seat = requests.pop().seat
            assert seat is not None
            lanes.leave(seat)
        assert not any(one() for one in buffers + readings)
    finally:
        gc.enable()


def test_what_cannot_sit() -> None:
    assert not can_sit(DynamicCache())  # nothing in it
    assert not can_sit(None)
    cache = DynamicCache()
    cache.update(torch.randn(1, 2, 3, 5), torch.randn(1, 2, 3, 7), 0)  # values of another size
    assert not can_sit(cache)
