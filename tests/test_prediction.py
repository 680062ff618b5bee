"""Prediction: what tokens say of keys and values, against a loop over pairs and against least squares, in records, in
codebooks.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from bank_writer import HashingWriter
from codebooks import ANGLES, memories
from told import SHAPE, VECTORS, told

from memory3.codec import Codebook, CodedCodec, fit
from memory3.codec.centring import turned
from memory3.codec.kinds.transform import Transform
from memory3.codec.latents import token_features
from memory3.codec.prediction import Moments, Prediction
from memory3.codec.registry import default_codec, find, shown
from memory3.errors import CodecError, ConfigError, InputError
from memory3.types import Memory


def fitted(codec: str = "predicted:16+24", some: list[Memory] | None = None) -> Codebook:
    return fit(
        codec,
        some or told(),
        SHAPE,
        fingerprint="f",
        positions=128,
        angles=ANGLES,
        token_vectors=VECTORS if find(codec).predicts else None,
    )


def codec_of(book: Codebook) -> CodedCodec:
    return CodedCodec(book).with_vectors(VECTORS)


def error(codec: CodedCodec, some: list[Memory], name: str) -> float:
    again = codec.decode([codec.encode(memory) for memory in some])
    pairs = [(getattr(a, name).float(), getattr(b, name).float()) for a, b in zip(some, again, strict=True)]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


@pytest.fixture(scope="module")
def book():
    return fitted()


def test_names():
    """Files say ``foretold``, as they always did; settings and the command line may say either."""
    for name in ("predicted:96+160", "foretold:96+160"):
        codec = find(name)
        assert (codec.text, str(codec), shown(name)) == ("foretold:96+160", "predicted:96+160", "predicted:96+160")
        assert codec.sides == {"keys": Transform(96), "values": Transform(160)}
        assert codec == find(codec.text)
    assert find("predicted").sides == {"keys": Transform(), "values": Transform()}
    assert find("predicted").text == "foretold"
    assert find("foretold:8").sides == {"keys": Transform(8), "values": Transform(8)}
    assert default_codec(64) == "foretold:96+160"
    assert shown("zip") == "zip"
    told = {name: find(name).predicts for name in ("foretold:8", "predicted", "transform:8", "raw")}
    assert told == {"foretold:8": True, "predicted": True, "transform:8": False, "raw": False}
    for wrong in ("x", "12", "8+x", "8:16", "8,16"):
        for name in ("foretold", "predicted"):
            with pytest.raises(ConfigError, match="predicted:BITS"):
                find(f"{name}:{wrong}")
    for wrong in ("foretold+int8", "predicted:8+int8", "int8+foretold", "int8+predicted:8", "predicted:8+"):
        with pytest.raises(ConfigError, match="predicted:BITS"):
            find(wrong)


def test_either_name_gives_the_same_codebook(book):
    assert fitted("foretold:16+24").data == book.data
    assert book.codec == "foretold:16+24"
    assert CodedCodec(dataclasses.replace(book, codec="predicted:16+24")).name == "foretold:16+24"


def test_what_is_predicted_costs_no_bits(book):
    unseen = told(23, seed=7)
    plain, ours = CodedCodec(fitted("transform:16+24")), codec_of(book)
    assert ours.record_size == plain.record_size + 2 * 128
    for side in ("keys", "values"):
        assert error(ours, unseen, side) < 0.3 * error(plain, unseen, side)
        # Variance 1 is a map of the tokens, 0.3^2 is noise.
        assert book.about[f"{side}_foretold"] == pytest.approx(1 / 1.09, abs=0.03)
        assert book.about[f"{side}_error"] == pytest.approx(error(ours, unseen, side), rel=0.4)


def test_tokens_that_say_nothing_cost_nothing():
    some = memories(300, SHAPE)  # random numbers beside random tokens
    book = fit(
        "foretold:16+24",
        some,
        SHAPE,
        fingerprint="f",
        positions=128,
        angles=ANGLES,
        token_vectors=HashingWriter().token_vectors,
    )
    ours = CodedCodec(book).with_vectors(HashingWriter().token_vectors)
    plain = CodedCodec(fit("transform:16+24", some, SHAPE, fingerprint="f", positions=128, angles=ANGLES))
    for side in ("keys", "values"):
        assert abs(book.about[f"{side}_foretold"]) < 0.05
        assert error(ours, memories(30, SHAPE), side) < 1.05 * error(plain, memories(30, SHAPE), side)


def test_decodes_the_slow_way(book):
    """Pair by pair: two token vectors, a head's matrix, a turn; and what a plain transform makes of the same codes."""
    codec, some = codec_of(book), told(5, seed=3)
    records = [codec.encode(memory) for memory in some]
    tensors = {key: x for key, x in book.tensors.items() if not key.startswith("foretelling")}
    plain = CodedCodec(dataclasses.replace(book, codec="transform:16+24", tensors=tensors))
    rests = plain.decode([record[: plain.record_size] for record in records])
    (now, before), out = book.tensors["foretelling.project"].float(), book.tensors["foretelling.out"].float()
    features = [row / row.square().mean().sqrt() for row in VECTORS]
    for memory, rest, found in zip(some, rests, codec.decode(records), strict=True):
        heads = np.repeat(np.arange(SHAPE.heads), memory.counts.reshape(-1))
        assert np.array_equal(found.tokens, memory.tokens[: memory.positions.max() + 1])
        for n, (head, place) in enumerate(zip(heads, memory.positions.tolist(), strict=True)):
            z = features[memory.tokens[place]] @ now
            if place:
                z = z + features[memory.tokens[place - 1]] @ before
            both = z @ out[head]
            key = turned(both[None, : SHAPE.head_dim], torch.tensor([place]), ANGLES)[0]
            torch.testing.assert_close(found.keys[n].float(), rest.keys[n].float() + key, atol=4e-3, rtol=0)
            torch.testing.assert_close(
                found.values[n].float(), rest.values[n].float() + both[SHAPE.head_dim :], atol=4e-3, rtol=0
            )


def test_maps_are_least_squares():
    """Of full rank they are the ridge regressions of each head, with an intercept, in double precision."""
    some = told(60)
    moments = Moments(SHAPE, VECTORS, ANGLES)
    for memory in some:
        moments.add(memory)
    made = moments.solved(None, rank=22)
    features = token_features(VECTORS).double()
    project = made["project"].double().flatten(0, 1)
    for head in range(SHAPE.heads):
        x, y = [], []
        for memory in some:
            heads = np.repeat(np.arange(SHAPE.heads), memory.counts.reshape(-1))
            mine = np.flatnonzero(heads == head)
            places = torch.from_numpy(memory.positions.astype(np.int64))[mine]
            for place, key, value in zip(places.tolist(), memory.keys[mine], memory.values[mine], strict=True):
                behind = features[memory.tokens[place - 1].item()] if place else torch.zeros(11).double()
                x.append(torch.cat([features[memory.tokens[place].item()], behind]))
                y.append(torch.cat([turned(key[None].float(), torch.tensor([-place]), ANGLES)[0], value.float()]).double())
        x, y = torch.stack(x), torch.stack(y)
        x, y = x - x.mean(0), y - y.mean(0)
        wanted = torch.linalg.solve(x.T @ x + 150 * torch.eye(22), x.T @ y)
        torch.testing.assert_close(project @ made["out"][head].double(), wanted, atol=3e-3, rtol=0)


def test_a_lower_rank_keeps_what_matters():
    moments = Moments(SHAPE, VECTORS, ANGLES)
    for memory in told(60):
        moments.add(memory)
    (memory,) = told(1, seed=11)
    heads, places = np.repeat(np.arange(SHAPE.heads), memory.counts.reshape(-1)), memory.positions.astype(np.int64)
    left = []
    for rank in (1, 5, 13, 22):
        made = moments.solved(None, rank=rank)
        assert made["out"].shape == (SHAPE.heads, rank, 2 * SHAPE.head_dim)
        ours = Prediction(made["project"], made["out"], ANGLES, VECTORS)
        rest = ours.rest(memory.keys, memory.values, [memory], heads, places)
        left.append(float(sum((x - x.mean(0)).square().sum() for x in rest)))
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.8 * left[0]


def test_wide_models_see_fewer_directions(monkeypatch):
    monkeypatch.setattr("memory3.codec.prediction._MOST_BYTES", 4 * SHAPE.heads * 14**2)
    moments = Moments(SHAPE, VECTORS, ANGLES)
    assert moments.gram.shape == (SHAPE.heads, 14, 14)
    book = fitted()
    assert book.tensors["foretelling.project"].shape == (2, 11, 14)
    assert book.about["keys_foretold"] > 0.4


def test_without_the_model_records_are_only_checked(book):
    (memory,) = told(1)
    bare = CodedCodec(Codebook.of(book.data, "book"))
    record = codec_of(book).encode(memory)
    bare.check(record)
    for use in (lambda: bare.encode(memory), lambda: bare.decode([record])):
        with pytest.raises(ConfigError, match="predicts from the model's token vectors"):
            use()
    with pytest.raises(CodecError, match="bytes"):
        bare.check(record[1:])
    for name in ("project", "out", "vocabulary"):
        tensors = {key: x for key, x in book.tensors.items() if key != f"foretelling.{name}"}
        with pytest.raises(CodecError, match=name):
            CodedCodec(dataclasses.replace(book, tensors=tensors))


def test_tokens_must_be_there_and_known(book):
    codec, (memory,) = codec_of(book), told(1)
    for tokens in (None, memory.tokens[: memory.positions.max()]):
        with pytest.raises(InputError, match="needs the tokens"):
            codec.encode(dataclasses.replace(memory, tokens=tokens))
    with pytest.raises(InputError, match="has the token 300"):
        codec.encode(dataclasses.replace(memory, tokens=np.full(128, 300, np.uint32)))
    with pytest.raises(InputError, match="give token_vectors"):
        fit("foretold:8", told(), SHAPE, fingerprint="f", positions=128, angles=ANGLES)
    record = codec.encode(memory)
    assert np.array_equal(
        np.frombuffer(record[-256:], "<u2")[: memory.positions.max() + 1], memory.tokens[: memory.positions.max() + 1]
    )
    with pytest.raises(CodecError, match="token beyond the 300"):
        codec.decode([record[:-256] + b"\xff\x01" * 128])


def test_a_record_of_nothing(book):
    codec = codec_of(book)
    empty = Memory(
        np.zeros((len(SHAPE.layers), SHAPE.kv_heads), np.uint16),
        np.zeros(0, np.uint16),
        torch.zeros(0, SHAPE.head_dim, dtype=SHAPE.torch_dtype),
        torch.zeros(0, SHAPE.head_dim, dtype=SHAPE.torch_dtype),
        np.arange(3, dtype=np.uint32),
    )
    (again,) = codec.decode([codec.encode(empty)])
    assert len(again.keys) == len(again.values) == len(again.tokens) == 0
    assert codec.encode(again) == codec.encode(empty) == bytes(codec.record_size)
