"""Biases of kept pairs: least squares on the attention mass, against the plain solver; and reading them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_writer import HashingEmbedder
from scipy.optimize import nnls
from tiny import tiny_model, tiny_tokenizer

from memory3 import Bank, Document, Memory3
from memory3.attention.attend import attention_with_lse
from memory3.attention.layout import gather_memories
from memory3.codec.fitting import fit
from memory3.config import MemoryConfig
from memory3.encode.mass import MOST, fitted_biases, gram
from memory3.errors import ConfigError, FingerprintMismatch
from memory3.types import Memory, MemoryShape

HEADS, GROUP, QUERIES, TOKENS = 2, 3, 17, 11


def _attention(seed: int = 0) -> torch.Tensor:
    """``[H, G, T, S]``, rows that pay less than 1 in all, as where a prefix is seen too."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(HEADS, GROUP, QUERIES, TOKENS + 1, generator=generator)
    return logits.softmax(-1)[..., 1:]


def _plain(attention: torch.Tensor, kept: torch.Tensor, ridge: float) -> np.ndarray:
    """Weights of the kept pairs of one head, ``[G, T, S]``: the sum of the module, row by row, by Lawson and Hanson."""
    rows = attention.flatten(0, 1).double().numpy()
    mine = rows[:, kept.numpy()]
    held = np.diag(np.sqrt(ridge * (mine**2).sum(0)))
    return nnls(np.vstack([mine, held]), np.concatenate([rows.sum(1), held.sum(1)]))[0]


@pytest.mark.parametrize("ridge", [0.0, 0.1, 1.0])
def test_equals_the_plain_solver(ridge: float) -> None:
    attention = _attention()
    kept = torch.rand(HEADS, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.5
    found = fitted_biases(gram(attention), kept, ridge)
    for head in range(HEADS):
        expected = np.clip(_plain(attention[head], kept[head], ridge), math.exp(-MOST), math.exp(MOST))
        # what the bound moves moves the others a little, so that only weights within it are the plain ones
        assert expected.min() > math.exp(-MOST) or ridge == 0.0
        if expected.min() > math.exp(-MOST):
            np.testing.assert_allclose(found[head][kept[head]].exp().numpy(), expected, rtol=1e-3)
    assert bool((found[~kept] == 0).all())


def test_what_is_kept_draws_what_all_drew() -> None:
    attention = _attention(2)
    kept = torch.arange(TOKENS).expand(HEADS, TOKENS) % 3 != 0
    weights = fitted_biases(gram(attention), kept, 0.0).exp() * kept
    whole = attention.sum(-1)
    before = (attention * kept[:, None, None]).sum(-1) - whole
    after = (attention * weights[:, None, None]).sum(-1) - whole
    assert float(after.square().sum()) < 0.8 * float(before.square().sum())


def test_all_kept_is_no_bias() -> None:
    kept = torch.ones(HEADS, TOKENS, dtype=torch.bool)
    assert bool((fitted_biases(gram(_attention()), kept, 0.1) == 0).all())


def test_one_of_twins_stands_for_both() -> None:
    attention = _attention()[..., :4]
    attention[..., 1] = attention[..., 0]
    found = fitted_biases(gram(attention), torch.tensor([[True, False, True, True]]).expand(HEADS, 4), 0.0)
    expected = torch.tensor([math.log(2), 0, 0, 0]).expand(HEADS, 4)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_pair_with_a_bias_is_read_as_several() -> None:
    """A bias of log 3 is the pair three times; a memory beside it without biases is read as it was."""
    generator = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, 5, 4, generator=generator).unbind()
    shape = MemoryShape(layers=(0,), kv_heads=2, head_dim=4, pairs=9, dtype="float32")

    def memory(counts: list[int], rows: list[int], biases: torch.Tensor | None) -> Memory:
        places = np.zeros(len(rows), np.uint16)
        return Memory(np.array([counts], np.uint16), places, keys[rows], values[rows], biases=biases)

    biased = memory([1, 2], [0, 1, 2], torch.tensor([0.0, math.log(3), 0.0]))
    twice = memory([1, 4], [0, 1, 1, 1, 2], None)
    plain = memory([1, 1], [3, 4], None)
    query = torch.randn(1, 4, 3, 4, generator=generator)
    read = []
    for one in (biased, twice):
        batch = gather_memories([["one", "plain"]], {"one": one, "plain": plain}, shape, dtype=torch.float32)
        layer = batch.layers[0]
        read.append(attention_with_lse(query, layer.keys, layer.values, layer.bias, scale=0.5))
    for found, expected in zip(*read, strict=True):
        torch.testing.assert_close(found, expected)


TEXT = "The bridge was built in 1874 by the engineer of the county. It crosses the river near the old town."


def _memory3(**changes: object) -> Memory3:
    return Memory3(tiny_model(), tiny_tokenizer(), MemoryConfig(codec="raw", **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("selector", ["reconstruction", "attention"])
def test_the_encoder_fits_them_to_the_repetition(selector: str) -> None:
    """Against attention as transformers' own eager kernel reports it, head by head; a short reference beside a long one."""
    m3 = _memory3(biases=True, selector=selector)
    texts = [TEXT, "Who built it?"]
    references = [next(iter(m3.split(Document(str(n), text)))) for n, text in enumerate(texts)]
    made = m3.encode(references)
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    for reference, memory in zip(references, made, strict=True):
        prefix, size = len(m3.frame.prefix), len(reference.token_ids)
        tokens = [*m3.frame.prefix, *reference.token_ids, *m3.frame.repeat, *reference.token_ids]
        again = prefix + m3.config.reference_length
        behind = len(tokens) - prefix - size
        positions = [*range(prefix + size), *range(again, again + behind)]
        with torch.no_grad():
            seen = eager(torch.tensor([tokens]), position_ids=torch.tensor([positions]), output_attentions=True).attentions
        start = 0
        for layer, counts in enumerate(memory.counts):
            paid = seen[layer][0, :, -size:, prefix : prefix + size].unflatten(0, (len(counts), -1))
            for head, count in enumerate(counts):
                mine = slice(start, start + int(count))
                start = mine.stop
                kept = torch.zeros(size, dtype=torch.bool)
                kept[torch.from_numpy(memory.positions[mine].astype(np.int64))] = True
                assert memory.biases is not None
                found, expected = memory.biases[mine].exp().numpy(), _plain(paid[head], kept, 0.1)
                expected = np.clip(expected, math.exp(-MOST), math.exp(MOST))
                np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.05)  # a bound moves what is beside it


def test_a_bank_keeps_them(tmp_path: Path) -> None:
    m3 = _memory3(biases=True)
    document = Document("bridge", TEXT)
    (expected,) = m3.encode(list(m3.split(document)))
    assert expected.biases is not None
    assert float(expected.biases.abs().max()) > 0.1
    embedder = HashingEmbedder()
    with Bank.open(tmp_path / "bank", m3, embedder=embedder) as bank:
        bank.write([document])
    with Bank.open(tmp_path / "bank", m3, embedder=embedder) as bank:
        (found,) = bank.memories(["bridge#0"])
        said = m3.generate("Who built it?", bank, max_new_tokens=4)
    assert found.biases is not None
    torch.testing.assert_close(found.biases, expected.biases, atol=0.5 / 40 + 1e-6, rtol=0)
    torch.testing.assert_close(found.keys, expected.keys)
    assert said.citations
    assert Bank.describe(tmp_path / "bank").format_version == 3
    with pytest.raises(FingerprintMismatch, match="biases"):
        Bank.open(tmp_path / "bank", _memory3())


def test_everything_kept_has_none() -> None:
    m3 = _memory3(biases=True, budget="all")
    (memory,) = m3.encode(list(m3.split(Document("bridge", TEXT))))
    assert memory.biases is not None
    assert not bool(memory.biases.any())


def test_without_them_nothing_is_said_of_them() -> None:
    """So that banks, codebooks and fingerprints from before there were biases stand."""
    assert "biases" not in MemoryConfig().to_dict()
    shape = MemoryShape((0,), 1, 4, 9)
    assert "biases" not in shape.to_dict()
    assert MemoryShape.from_dict(shape.to_dict()) == shape
    biased = MemoryShape((0,), 1, 4, 9, biases=True)
    assert MemoryShape.from_dict(biased.to_dict()) == biased
    assert MemoryConfig.from_dict(MemoryConfig(biases=True).to_dict()).biases
    assert _memory3().whole_model == _memory3(biases=True).whole_model


def test_packed_records_refuse_them() -> None:
    with pytest.raises(ConfigError, match="keeps no biases"):
        MemoryConfig(biases=True, codec="int8")
    with pytest.raises(ConfigError, match="keeps no biases"):
        fit("int8", [], MemoryShape((0,), 1, 4, 9, biases=True), fingerprint="", positions=128)
