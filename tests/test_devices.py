"""From a record to attention on a device: decoded there, laid out there, and nothing comes back to the CPU.

The meta device has shapes and no numbers: whatever looks at a number, or fetches it, fails. Tests marked ``gpu`` compare
the numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bank_writer import SHAPE, HashingWriter
from codebooks import ANGLES, memories

from memory3.attention.attend import attend
from memory3.attention.layout import gather_memories
from memory3.codec import Codec, CodedCodec, RawCodec, fit
from memory3.types import LayerMemory, Memory

CODECS = ("raw", "int8", "int4", "product:Residual1x2,PQ5x3", "product:RQ3x4", "transform:24+16", "predicted:16+24")
REFERENCES = [["0", "1", "2"], ["3"], ["2", "4"]]


def records(name: str, device: str) -> tuple[Codec, list[bytes]]:
    """A codec whose token vectors lie on ``device``, as a model's do, and five memories of different sizes, encoded by it."""
    rng = np.random.default_rng(0)
    some = [replace(memory, tokens=rng.integers(0, 300, 128, dtype=np.uint32)) for memory in memories(100)]
    vectors = HashingWriter().token_vectors
    if name == "raw":
        codec: Codec = RawCodec(SHAPE)
    else:
        known = vectors if name.startswith("predicted") else None
        codec = CodedCodec(fit(name, some, SHAPE, fingerprint="f", positions=128, angles=ANGLES, token_vectors=known))
    encoded = [codec.with_vectors(vectors).encode(memory) for memory in some[:5]]
    return codec.with_vectors(vectors.to(device)), encoded


def read(decoded: list[Memory], device: str, dtype: torch.dtype) -> tuple[dict[int, LayerMemory], list[torch.Tensor]]:
    """Lay the memories out for three chunks, moved and spaced, and let one token of each row read them."""
    batch = gather_memories(
        REFERENCES,
        {str(number): memory for number, memory in enumerate(decoded)},
        SHAPE,
        dtype=dtype,
        device=device,
        inv_freq=ANGLES.to(device),
        moved=[0, 5, -2],
        arrangement="row",
        span=128,
        temperature=0.8,
    )
    g = torch.Generator().manual_seed(0)
    group, heads, outs = 3, SHAPE.kv_heads, []
    for layer in batch.layers.values():
        query = torch.randn(len(REFERENCES), group * heads, 1, SHAPE.head_dim, generator=g).to(device, dtype)
        context = torch.randn(len(REFERENCES), heads, 7, SHAPE.head_dim, generator=g).to(device, dtype)
        outs += attend(query, context, context, None, layer, None, scale=0.5)
    return batch.layers, outs


@pytest.mark.parametrize("name", CODECS)
def test_a_record_is_read_on_a_device_without_a_look_at_its_numbers(name: str) -> None:
    (codec, some), (twin, _) = records(name, "meta"), records(name, "cpu")
    there, here = codec.decode(some, device="meta"), twin.decode(some)
    for a, b in zip(there, here, strict=True):
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            assert (x.device.type, x.shape, x.dtype) == ("meta", y.shape, y.dtype)
        assert (a.counts == b.counts).all()
        assert (a.positions == b.positions).all()
    layers, outs = read(there, "meta", torch.bfloat16)
    wanted_layers, wanted_outs = read(here, "cpu", torch.bfloat16)
    assert {n: (x.keys.shape, x.owner.shape, x.widths) for n, x in layers.items()} == {
        n: (x.keys.shape, x.owner.shape, x.widths) for n, x in wanted_layers.items()
    }
    assert [(x.device.type, x.shape, x.dtype) for x in outs] == [("meta", x.shape, x.dtype) for x in wanted_outs]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CODECS)
def test_a_record_decoded_on_a_gpu_is_that_decoded_on_the_cpu(name: str) -> None:
    (codec, some), (twin, _) = records(name, "cuda"), records(name, "cpu")
    there, here = codec.decode(some, device="cuda"), twin.decode(some)
    for a, b in zip(there, here, strict=True):
        assert a.keys.is_cuda
        torch.testing.assert_close(a.keys.cpu(), b.keys, rtol=1e-3, atol=1e-3)  # float16, as a bank has them
        torch.testing.assert_close(a.values.cpu(), b.values, rtol=1e-3, atol=1e-3)
    layers, outs = read(there, "cuda", torch.float32)
    wanted_layers, wanted_outs = read(here, "cpu", torch.float32)
    for number, layer in layers.items():
        assert layer.keys.is_cuda
        torch.testing.assert_close(layer.keys.cpu(), wanted_layers[number].keys, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(layer.owner.cpu(), wanted_layers[number].owner, rtol=0, atol=0)
    for a, b in zip(outs, wanted_outs, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CODECS)
def test_packed_on_a_device_nothing_more_is_lost(name):
    codec, alone = records(name, "cpu")
    some = codec.decode(alone)
    rng = np.random.default_rng(0)
    some = [replace(memory, tokens=rng.integers(0, 300, 128, dtype=np.uint32)) for memory in some]
    ours, theirs = (codec.decode(codec.encode_many(some, device=device)) for device in ("cpu", "cuda"))
    for given, a, b in zip(some, ours, theirs, strict=True):
        for side in ("keys", "values"):
            x, *packed = (getattr(memory, side).float() for memory in (given, a, b))
            mine, its = (float((y - x).square().sum()) for y in packed)
            assert its <= 1.01 * mine + 1e-4
