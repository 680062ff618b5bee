"""Codecs: bytes both ways, decode against FAISS's own and against slow twins, what centring is worth, damaged codebooks, the
paper's sizes.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_writer import SHAPE, HashingWriter, same_memory
from codebooks import ANGLES, by_hand, fitted, memories
from golden import golden_memory

from memory3.attention.rotary import rotate
from memory3.codec import Codebook, CodedCodec, RawCodec
from memory3.codec.centring import Centring
from memory3.codec.factory import default_factory, table_shapes
from memory3.codec.kinds.product import Product
from memory3.codec.layout import Layout
from memory3.codec.quantiser import Quantiser
from memory3.codec.registry import find
from memory3.codec.rows import Rows, fields
from memory3.codec.scalar import fit_step, rounded
from memory3.codec.trellis import ERROR, Trellis
from memory3.config import MemoryConfig
from memory3.errors import CodecError, ConfigError, InputError
from memory3.types import Memory, MemoryShape

GOLDEN = Path(__file__).parent / "data"
#: Every family, with and without a rotation, numbers within and across bytes.
FACTORIES = {
    "OPQ2_6,Residual2x3,PQ3x4": 6,
    "Residual3x5,PQ2x7": 6,
    "PQ2x3": 6,
    "PQ7x8": 14,
    "OPQ7_14,PQ7x5": 14,
    "RQ3x4": 6,
    "OPQ2_6,RQ5x2": 6,
}
CODECS = ("int8", "int4", "transform:24+16", "product:Residual1x2,PQ5x3", "product:RQ3x4", "product:PQ5x4+RQ3x2")


def error(a: list[Memory], b: list[Memory], name: str = "keys") -> float:
    """Squared error over squared length."""
    pairs = [(getattr(x, name).float(), getattr(y, name).float()) for x, y in zip(a, b, strict=True)]
    return float(sum((x - y).square().sum() for x, y in pairs) / sum(x.square().sum() for x, _ in pairs))


# ---- quantisers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FACTORIES)
def quantiser(request):
    dimension = FACTORIES[request.param]
    vectors = np.random.default_rng(0).standard_normal((600, dimension), dtype=np.float32)
    return Quantiser.train(request.param, vectors), vectors


def unpacked(codes, bits, starts):
    """The obvious way: one long number per code."""
    rows = [int.from_bytes(code.tobytes(), "little") for code in codes]
    return [[(row >> start) & ((1 << size) - 1) for size, start in zip(bits, starts, strict=True)] for row in rows]


def test_rows_equal_what_faiss_decodes(quantiser):
    quantiser, vectors = quantiser
    codes = quantiser.encode(vectors[:53])
    assert codes.shape == (53, quantiser.code_size)
    numbers = fields(torch.from_numpy(codes), quantiser.bits, quantiser.starts)
    assert numbers.tolist() == unpacked(codes, quantiser.bits, quantiser.starts)
    of_faiss = torch.from_numpy(quantiser.decode(codes))
    slow = sum(table[numbers[:, place].long()] for place, table in enumerate(quantiser.rows()))
    torch.testing.assert_close(slow, of_faiss, atol=1e-6, rtol=1e-6)
    still = Centring(torch.zeros(2, vectors.shape[1]), torch.ones(2, vectors.shape[1]), torch.zeros(0))
    heads, positions = torch.arange(53) % 2, torch.arange(53)
    rows = Rows(quantiser.rows(), quantiser.starts, still, "cpu")
    (fast,) = rows.decode(torch.from_numpy(codes), heads, positions, [53], torch.float32)
    torch.testing.assert_close(fast, of_faiss, atol=1e-6, rtol=1e-6)


def test_a_quantiser_put_together_from_its_tensors_is_the_same(quantiser):
    quantiser, vectors = quantiser
    again = Quantiser.of(quantiser.factory, quantiser.dimension, quantiser.tensors())
    assert {name: tuple(tensor.shape) for name, tensor in quantiser.tensors().items()} == table_shapes(
        quantiser.factory, quantiser.dimension
    )
    codes = quantiser.encode(vectors)
    assert np.array_equal(again.encode(vectors), codes)
    assert np.array_equal(again.decode(codes), quantiser.decode(codes))


def test_the_nearest_is_chosen():
    """PQ: every part by itself, against all distances."""
    vectors = np.random.default_rng(1).standard_normal((300, 6), dtype=np.float32)
    quantiser = Quantiser.train("PQ2x3", vectors)
    parts = torch.from_numpy(vectors).view(300, 2, 3).transpose(0, 1)
    nearest = torch.cdist(parts, quantiser.tables["fine"]).argmin(-1).t()
    assert torch.equal(fields(torch.from_numpy(quantiser.encode(vectors)), [3, 3], [0, 3]).long(), nearest)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_of_any_size(seed):
    rng = np.random.default_rng(seed)
    bits = rng.integers(1, 17, 7).tolist()
    starts = [0, *np.cumsum(bits)[:-1].tolist()]
    codes = rng.integers(0, 256, (11, -(-sum(bits) // 8)), dtype=np.uint8)
    assert fields(torch.from_numpy(codes), bits, starts).tolist() == unpacked(codes, bits, starts)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_the_default_quantiser_has_14_bytes(head_dim):
    factory = default_factory(head_dim)
    assert factory == {64: "OPQ16_64", 80: "OPQ20_80", 128: "OPQ32_128"}[head_dim] + ",Residual2x14,PQ8x10"
    shapes = table_shapes(factory, head_dim)
    tables = {name: torch.zeros(shape) for name, shape in shapes.items()}
    quantiser = Quantiser.of(factory, head_dim, tables)
    assert (quantiser.code_size, sum(quantiser.bits)) == (14, 108)
    import faiss

    assert faiss.index_factory(head_dim, factory).sa_code_size() == 14


@pytest.mark.parametrize(
    ("factory", "dimension", "says"),
    [
        ("IVF16,Flat", 6, "unknown"),
        ("PQ4x8", 6, "does not fit vectors of 6"),
        ("PQ2x17", 6, "1 to 16 bits"),
        ("OPQ2_8,PQ2x4", 6, "does not fit"),
        ("Residual0x4,PQ2x4", 6, "does not fit"),
        ("RQ0x4", 6, "does not fit"),
    ],
)
def test_quantisers_that_do_not_exist(factory, dimension, says):
    with pytest.raises(ConfigError, match=says):
        table_shapes(factory, dimension)


def test_no_default_for_an_odd_head_dimension():
    with pytest.raises(ConfigError, match=r"not 14: name one"):
        Product().shapes(3, 14)


def test_settings_name_a_codec():
    assert MemoryConfig(codec="product:RQ14x8").codec == "product:RQ14x8"
    assert MemoryConfig.from_json(MemoryConfig(codec="int4").to_json()).codec == "int4"
    assert "codec" not in MemoryConfig.WRITING
    for wrong in ("product:", "product:../x", "int8+", "+int8", "a b", "x" * 300, 8):
        with pytest.raises(ConfigError, match="codec"):
            MemoryConfig(codec=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("zip", "codec 'zip' is unknown: use one of int4, int8, predicted, predicted:BITS, product"),
        ("int8+zip", "int8 has no options"),
        ("zip+int8", "'zip.int8' is unknown: use one of"),
        ("int8:4", "int8 has no options"),
        ("raw:4", "raw has no options"),
        ("raw+int8", "raw is for keys and values together"),
        ("int8+raw", "raw is for keys and values together"),
        ("transform:12", "a multiple of 8"),
        ("transform:0", "a multiple of 8"),
        ("transform:x", "a multiple of 8"),
        ("product:PQ", "quantiser 'PQ' is unknown"),
        ("auto", "codec 'auto' is unknown"),
        ("product:../x", "is unknown"),
        ("", "is unknown"),
    ],
)
def test_codecs_that_do_not_exist(name, says):
    with pytest.raises(ConfigError, match=says):
        find(name)


def test_names_of_two_codecs():
    for name, sides in {
        "int8": ("int8", "int8"),
        "int8+int4": ("int8", "int4"),
        "transform:128+160": ("transform:128", "transform:160"),
        "product:PQ32x8+RQ14x8": ("product:PQ32x8", "product:RQ14x8"),
        "product+transform:8": ("product", "transform:8"),
    }.items():
        pair = find(name)
        assert (pair.text, str(pair)) == (name, name)
        assert [pair.keys, pair.values] == [find(side).keys for side in sides]
        assert (pair.is_fitted, pair.predicts) == (True, False)
        assert pair.uses_metric == ("transform" in name)
    assert find("raw").is_fitted is False


# ---- centring --------------------------------------------------------------------------------------------------------------


def test_centring_takes_rope_back_and_gives_it_again():
    rng = torch.Generator().manual_seed(0)
    straight = torch.randn(211, 5, generator=rng) + torch.tensor([3.0, -2.0, 1.0, 0.0, 4.0])
    heads, positions = torch.arange(211) % 3, torch.arange(211) % 7
    keys = rotate(straight, positions, ANGLES)
    centring = Centring.fit(keys, heads, positions, 4, ANGLES)
    torch.testing.assert_close(centring.mean[1], straight[heads == 1].mean(0), atol=1e-5, rtol=1e-5)
    z = centring.centred(keys, heads, positions)
    torch.testing.assert_close(z, (straight - centring.mean[heads]) / centring.scale[heads], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(centring.restored(z, heads, positions), keys, atol=1e-5, rtol=1e-5)
    assert bool((centring.scale > 0).all())  # also of the fourth head, which has no vector


def test_width_of_a_channel():
    vectors = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 0.1])
    nothing = torch.zeros(3000, dtype=torch.int64)
    scale = Centring.fit(vectors, nothing, nothing, 1, None).scale[0]
    assert scale[0] == pytest.approx(5.0, rel=0.05)
    assert 0.1 < scale[1] < 0.5  # a few vectors of the average channel are counted in


def test_a_step_of_least_error():
    z = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0))
    step = float(fit_step(z, 4))
    best = (rounded(z, step, 4) * step - z).square().mean()
    assert best <= min((rounded(z, other, 4) * other - z).square().mean() for other in (step * 0.8, step * 1.25))
    assert 0.25 < step < 0.45  # the best step of 16 levels for a normal distribution is 0.335


# ---- records ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_records_have_one_size_and_decode_to_what_is_near(codec):
    book = fitted(codec)
    made = CodedCodec(book)
    given = memories(53)
    records = [made.encode(memory) for memory in given]
    assert {len(record) for record in records} == {made.record_size}
    decoded = made.decode(records)
    assert made.decode([]) == []
    for one, memory, original in zip(records, decoded, given, strict=True):
        (alone,) = made.decode([bytearray(one)])
        assert np.array_equal(memory.counts, original.counts)
        assert np.array_equal(memory.positions, original.positions)
        assert memory.keys.dtype == memory.values.dtype == SHAPE.torch_dtype
        assert memory.keys.shape == original.keys.shape
        torch.testing.assert_close(alone.keys, memory.keys)
        assert memory.keys.untyped_storage().nbytes() == memory.keys.nbytes  # its own bytes
    for name in ("keys", "values"):
        assert error(given, decoded, name) == pytest.approx(book.about[f"{name}_error"], rel=0.5, abs=2e-5)
        assert error(given, decoded, name) < {"int8": 1e-3, "int4": 0.03}.get(codec, 0.4)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if not codec.startswith("transform")])  # has its own, below
def test_decoding_the_slow_way(codec):
    """Each vector by itself: its code's rows or number, its head's place and width, its position's rotation."""
    book = fitted(codec)
    made = CodedCodec(book)
    for memory in memories(5):
        record = made.encode(memory)
        (decoded,) = made.decode([record])
        layout: Layout = made._layout
        (counts, positions, keys, values, _) = layout._parts(record)
        heads = [head for head, count in enumerate(counts) for _ in range(count)]
        for name, codes in (("keys", keys), ("values", values)):
            side = book.side(name)
            for place, head in enumerate(heads):
                kind = find(codec).sides[name]
                if kind.name == "int8":
                    z = (torch.from_numpy(codes[place].copy()).float() - 128) * side["step"]
                elif kind.name == "int4":
                    nibbles = [half for byte in codes[place].tolist() for half in (byte & 15, byte >> 4)][:5]
                    z = (torch.tensor(nibbles).float() - 8) * side["step"]
                else:
                    quantiser = Quantiser.of(kind.named, 5, side)
                    z = torch.from_numpy(quantiser.decode(codes[place : place + 1].copy()))[0]
                x = side["mean"][head] + side["scale"][head] * z
                if name == "keys":
                    x = rotate(x[None], torch.tensor([int(positions[place])]), ANGLES)[0]
                torch.testing.assert_close(getattr(decoded, name)[place], x.half(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("codec", CODECS)
def test_a_memory_without_pairs(codec):
    empty = dataclasses.replace(
        golden_memory(),
        counts=np.zeros((3, 2), np.uint16),
        positions=np.zeros(0, np.uint16),
        keys=torch.zeros(0, 5, dtype=torch.float16),
        values=torch.zeros(0, 5, dtype=torch.float16),
    )
    made = CodedCodec(fitted(codec))
    records = [made.encode(empty), made.encode(golden_memory()), made.encode(empty)]
    assert [len(memory.keys) for memory in made.decode(records)] == [0, 4, 0]
    assert same_memory(made.decode([records[0]])[0], empty)


def test_the_raw_codec_is_the_raw_record():
    made = RawCodec(SHAPE)
    assert made.encode(golden_memory()) == bytes.fromhex((GOLDEN / "record-v1.hex").read_text())
    assert same_memory(made.decode([made.encode(golden_memory())])[0], golden_memory())


@pytest.mark.parametrize(
    ("codec", "tables"),
    [
        ("int4", [("step", torch.tensor(0.5))]),
        ("product:PQ5x3", [("fine", torch.arange(40).view(5, 8, 1).float() % 8 * 2)]),
    ],
)
def test_golden_bytes(codec, tables):
    """Format version 2. If this fails, banks on people's disks cannot be read any more."""
    made = CodedCodec(by_hand(codec, tables))
    golden = bytes.fromhex((GOLDEN / f"record-v2-{codec.partition(':')[0]}.hex").read_text())
    assert made.encode(golden_memory()) == golden
    counts = struct.unpack_from("<6H", golden, 0)
    assert (counts, struct.unpack_from("<7B", golden, 12)) == ((1, 0, 2, 1, 0, 0), (3, 1, 2, 127, 0, 0, 0))
    (decoded,) = made.decode([golden])
    assert np.array_equal(decoded.positions, golden_memory().positions)
    # Key 1 belongs to head 2, whose mean is 1/2: 5, 6, 7, 8, 9 is 4 and a half widths and more above it.
    codes = golden[19:][2 if codec != "int4" else 3 :]
    if codec == "int4":
        assert codes[:3] == bytes([0xFF, 0xFF, 0x0F])  # 9 steps and more: cut to 7, stored as 15
        assert decoded.keys[1].tolist() == [0.5 + 0.5 * 3.5] * 5
    else:
        # 9, 11, 13, 15, 17 widths: halfway goes to one of its neighbours, 8 and 10 being rows 4 and 5
        assert [int.from_bytes(codes[:2], "little") >> 3 * n & 7 for n in range(5)] == [4, 5, 6, 7, 7]
        assert decoded.keys[1].tolist() == [4.5, 5.5, 6.5, 7.5, 7.5]


def test_positions_of_long_references_take_two_bytes():
    short, long = (CodedCodec(by_hand("int8", [("step", torch.tensor(0.1))], positions)) for positions in (256, 257))
    assert long.record_size - short.record_size == SHAPE.pairs
    memory = dataclasses.replace(golden_memory(), positions=np.array([256, 1, 2, 3], np.uint16))
    assert long.decode([long.encode(memory)])[0].positions.tolist() == [256, 1, 2, 3]
    with pytest.raises(InputError, match="256"):
        short.encode(memory)


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_records(codec):
    made = CodedCodec(fitted(codec))
    record = made.encode(golden_memory())
    with pytest.raises(CodecError, match=f"{len(record) - 1} bytes.*{len(record)}"):
        made.decode([record, record[:-1]])
    with pytest.raises(CodecError, match="at most 7"):
        made.decode([record[:10] + b"\xff\xff" + record[12:]])
    rng = np.random.default_rng(0)
    for _ in range(50):
        noise = rng.integers(0, 256, made.record_size - 12, dtype=np.uint8)
        noise[:7] %= 128  # places
        (memory,) = made.decode([record[:12] + noise.tobytes()])
        assert len(memory.keys) == 4
    with pytest.raises(CodecError, match="keeps the token at 131, references have 128"):
        made.decode([record[:12] + b"\x83" + record[13:]])
    with pytest.raises(InputError):
        made.encode(dataclasses.replace(golden_memory(), keys=torch.zeros(4, 6)))


# ---- codebooks ------------------------------------------------------------------------------------------------------------


def test_a_codebook_is_its_bytes():
    book = fitted("int4")
    again = Codebook.of(book.data, "book")
    assert (again.fingerprint, again.codec, again.shape, again.positions) == (book.fingerprint, "int4", SHAPE, 128)
    assert (again.memories, again.about) == (HashingWriter().fingerprint, book.about)
    assert Codebook(**{**vars_of(book), "positions": 127}).fingerprint != book.fingerprint
    assert Codebook(**vars_of(book)).data == book.data


def vars_of(book):
    return {field.name: getattr(book, field.name) for field in dataclasses.fields(book)}


def test_damaged_codebooks():
    book = fitted("product:PQ5x3")
    for data in (b"", b"x" * 100, book.data[:-4], book.data.replace(b"memory3", b"memory4")):
        with pytest.raises(CodecError, match=r"a\.safetensors cannot be read"):
            Codebook.of(data, "a.safetensors")
    older = book.data.replace(b'\\"version\\": 1', b'\\"version\\": 9')
    with pytest.raises(CodecError, match="version 9, this memory3 reads version 1"):
        Codebook.of(older, "a.safetensors")
    infinite = Codebook(**{**vars_of(book), "tensors": {**book.tensors, "keys.mean": book.tensors["keys.mean"] / 0}})
    with pytest.raises(CodecError, match=r"keys\.mean has numbers that are not finite"):
        Codebook.of(infinite.data, "a.safetensors")


@pytest.mark.parametrize("name", ["keys.fine", "values.mean", "keys.angles"])
def test_codebooks_that_lack_a_tensor_or_have_another_shape(name):
    book = fitted("product:PQ5x3")
    without = {key: tensor for key, tensor in book.tensors.items() if key != name}
    for tensors in (without, {**without, name: torch.zeros(2, 2, 2, 2)}, {**without, name: book.tensors[name].double()}):
        with pytest.raises(CodecError, match=name):
            CodedCodec(Codebook(**{**vars_of(book), "tensors": tensors}))


def test_too_few_memories():
    from memory3.codec import fit

    with pytest.raises(InputError, match=r"too few to fit the codec 'product:RQ3x4', which needs 18"):
        fit("product:RQ3x4", memories(1), SHAPE, fingerprint="", positions=128)


def test_fitting_twice_gives_the_same_codebook():
    assert fitted("product:PQ5x3").fingerprint == fitted("product:PQ5x3").fingerprint


# ---- the paper's figures ---------------------------------------------------------------------------------------------------


def test_storage_of_the_paper():
    """7.17 PiB of all keys and values, 45.9 TiB sparse, 4.02 TiB quantised (arXiv 2407.01178, section 3.3), from shapes and
    1.12e8 references.
    """
    references, head_dim = 112_000_000, 80
    sparse = MemoryShape(tuple(range(22)), 8, head_dim, pairs=22 * 8 * 8, dtype="bfloat16")
    dense = MemoryShape(tuple(range(44)), 40, head_dim, pairs=44 * 40 * 128, dtype="bfloat16")
    of_vectors = {name: 2 * shape.pairs * head_dim * 2 * references for name, shape in (("sparse", sparse), ("dense", dense))}
    factory = default_factory(head_dim)
    tables = {name: torch.zeros(shape) for name, shape in table_shapes(factory, head_dim).items()}
    code = Quantiser.of(factory, head_dim, tables).code_size
    assert f"{of_vectors['dense'] / 2**50:.2f}" == "7.17"
    assert f"{of_vectors['sparse'] / 2**40:.1f}" == "45.9"
    assert f"{2 * sparse.pairs * code * references / 2**40:.2f}" == "4.02"
    assert f"{head_dim * 2 / code:.1f}" == "11.4"
    # What our records add: counts and positions. The quantised one keeps a byte a position.
    assert Layout(sparse, 128, code, code).size == 2 * 176 + 1408 + 2 * 1408 * 14
    assert RawCodec(sparse).record_size == 2 * 176 + 2 * 1408 + 2 * 1408 * 160


def test_sizes_of_the_default_preset():
    """1440 pairs of SmolLM2: 371,700 bytes raw, 41,940 at 14 bytes a vector."""
    shape = MemoryShape(tuple(range(30)), 3, 64, 1440)
    assert [Layout(shape, 128, width, width).size for width in (64, 32, 14)] == [185_940, 93_780, 41_940]


# ---- transform coding ------------------------------------------------------------------------------------------------------


def stream_values(stream: int, bits: list[int], table: torch.Tensor) -> list[float]:
    """What a stream of bits stands for, number by number: the last 8 bits so far say which entry."""
    values, end = [], 0
    for size in bits:
        end += size
        window = (stream << 8 >> end) & 255  # eight zeros before the stream's beginning
        values.append(float(table[size, window]))
    return values


def test_the_best_of_all_streams_is_written_and_read():
    bits, weights = [1, 2, 3, 2], torch.tensor([0.5, 1.0, 2.0, 3.0])
    table = Trellis.fit(bits, weights, torch.randn(300, 4))
    trellis = Trellis(bits, weights, table)
    every = torch.tensor([stream_values(stream, bits, table) for stream in range(2 ** sum(bits))])
    numbers = torch.randn(53, 4)
    codes = torch.from_numpy(trellis.encode(numbers))
    assert codes.shape == (53, 1)
    torch.testing.assert_close(trellis.decode(codes), every[codes[:, 0].long()])
    errors = ((every[None] - numbers[:, None]).square() * weights).sum(-1)
    got = ((trellis.decode(codes) - numbers).square() * weights).sum(-1)
    torch.testing.assert_close(got, errors.min(1).values)


@pytest.mark.parametrize(("size", "rounded"), [(1, 0.3634), (2, 0.1188), (3, 0.03744)])
def test_a_trellis_leaves_less_error_than_rounding(size, rounded):
    bits, weights = [size] * 30, torch.ones(30)
    trellis = Trellis(bits, weights, Trellis.fit(bits, weights, torch.randn(2000, 30)))
    numbers = torch.randn(300, 30)
    error = float((trellis.decode(torch.from_numpy(trellis.encode(numbers))) - numbers).square().mean())
    assert 4.0**-size < error < 0.92 * rounded
    assert error == pytest.approx(ERROR[size], rel=0.12)


def test_a_trellis_of_any_sizes():
    bits = [5, 8, 1, 7, 3, 2, 6, 4]
    table = torch.randn(9, 256)
    trellis = Trellis(bits, torch.ones(8), table)
    codes = np.random.default_rng(0).integers(0, 256, (11, -(-sum(bits) // 8)), dtype=np.uint8)
    wanted = [stream_values(int.from_bytes(code.tobytes(), "little"), bits, table) for code in codes]
    torch.testing.assert_close(trellis.decode(torch.from_numpy(codes)), torch.tensor(wanted))


def test_transform_decodes_the_slow_way():
    """Vector by vector: its stream's numbers on the axes that have bits, its head's mean, its position's rotation."""
    book = fitted("transform:16+24")
    made = CodedCodec(book)
    memory = memories(3)[2]
    record = made.encode(memory)
    (decoded,) = made.decode([record])
    heads = [head for head, count in enumerate(memory.counts.reshape(-1)) for _ in range(int(count))]
    _, _, *coded, _ = made._layout._parts(record)
    for (name, angles), codes in zip((("keys", ANGLES), ("values", None)), coded, strict=True):
        side = book.side(name)
        bits = [int(b) for b in side["bits"]]
        with_bits = [axis for axis in reversed(range(5)) if bits[axis]]
        for place, head in enumerate(heads):
            stream = int.from_bytes(codes[place].tobytes(), "little")
            coarse = torch.zeros(5)
            coarse[with_bits] = torch.tensor(stream_values(stream, [bits[axis] for axis in with_bits], side["table"]))
            x = side["mean"][head] + torch.linalg.solve(side["analysis"][head].T, coarse)
            if angles is not None:
                x = rotate(x[None], torch.tensor([int(memory.positions[place])]), ANGLES)[0]
            torch.testing.assert_close(getattr(decoded, name)[place].float(), x, atol=4e-3, rtol=4e-3)
    assert made.record_size == Layout(SHAPE, 128, 2, 3).size


def test_golden_bytes_of_transform():
    """Format version 2. If this fails, banks on people's disks cannot be read any more."""
    tensors = {}
    for side in ("keys", "values"):
        tensors[f"{side}.mean"] = torch.arange(SHAPE.heads).float()[:, None].repeat(1, SHAPE.head_dim) / 4
        tensors[f"{side}.angles"] = torch.zeros(0)
        tensors[f"{side}.bits"] = torch.tensor([5.0, 2, 1, 0, 0])
        tensors[f"{side}.variance"] = torch.tensor([3.0, 2, 1, 0, 0])
        tensors[f"{side}.table"] = (torch.arange(256) * 37 % 256 - 128).float().repeat(9, 1) / 8
        tensors[f"{side}.analysis"] = torch.eye(5).repeat(SHAPE.heads, 1, 1) / 2
    made = CodedCodec(Codebook("transform:8", "0" * 32, SHAPE, 128, tensors))
    golden = bytes.fromhex((GOLDEN / "record-v2-transform.hex").read_text())
    assert made.encode(golden_memory()) == golden
    (decoded,) = made.decode([golden])
    # Key 1 belongs to head 2, whose mean is 1/2. Its stream: one bit for axis 2, two for axis 1, five for axis 0.
    stream = golden[12 + SHAPE.pairs :][1]
    windows = [(stream & 1) << 7, (stream & 7) << 5, stream]
    z = [(window * 37 % 256 - 128) / 8 for window in reversed(windows)]
    assert decoded.keys[1].tolist() == [0.5 + 2 * z[0], 0.5 + 2 * z[1], 0.5 + 2 * z[2], 0.5, 0.5]
