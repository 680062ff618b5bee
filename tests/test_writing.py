"""Writing memories: the encoder against plain forward passes, on tiny random models of every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_chat_tokenizer, tiny_model, tiny_tokenizer

from memory3.config import Budget, MemoryConfig
from memory3.encode.selector_weights import SelectorWeights, keep_weights
from memory3.encode.selectors import SELECTORS, find
from memory3.errors import ConfigError, InputError, ModelError
from memory3.llm import Memory3
from memory3.types import Document, Memory, Provenance, Reference

TEXTS = [
    "The river rises in the mountains. It reaches the sea near the old town.",
    "Memories are keys and values.",
    "Go!",
]


def memory3(family: str = "llama", *, chat: bool = False, **settings: Any) -> Memory3:
    settings = {"reference_length": 37, "dtype": "float32", **settings}
    return Memory3(
        tiny_model(family), tiny_chat_tokenizer() if chat else tiny_tokenizer(), MemoryConfig(**settings), name="tiny"
    )


def references(m3: Memory3) -> list[Reference]:
    return [r for n, text in enumerate(TEXTS) for r in m3.split(Document(str(n), text))]


def same(a: Memory, b: Memory) -> None:
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_array_equal(a.positions, b.positions)
    torch.testing.assert_close(a.keys, b.keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-5)


def dense(m3: Memory3, reference: Reference) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values ``[H, S, d]`` of the reference in every layer: a plain forward pass behind the prefix."""
    first = len(m3.frame.prefix)
    with torch.no_grad():
        cache = m3.model(torch.tensor([[*m3.frame.prefix, *reference.token_ids]]), use_cache=True).past_key_values
    return [(layer.keys[0, :, first:], layer.values[0, :, first:]) for layer in cache.layers]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_the_models_own(family: str, chat: bool) -> None:
    m3 = memory3(family, chat=chat, layers=(1, 2, 4), budget=Budget("adaptive", 29))
    refs = references(m3)
    for reference, memory in zip(refs, m3.encode(refs), strict=True):
        plain, start = dense(m3, reference), 0
        for i, layer in enumerate((1, 2, 4)):
            for head in range(2):
                count = int(memory.counts[i, head])
                at = memory.positions[start : start + count].astype(int)
                assert list(at) == sorted(set(at.tolist()))
                torch.testing.assert_close(memory.keys[start : start + count], plain[layer][0][head, at], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    memory.values[start : start + count], plain[layer][1][head, at], rtol=1e-4, atol=1e-5
                )
                start += count
        assert start == len(memory.keys) == min(29, 3 * 2 * len(reference.token_ids))


@pytest.mark.parametrize("budget", ["uniform:3", "adaptive:1/8", "all"])
@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_padding_and_company_change_nothing(name: str, budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path))
    kind, plain = find(name), memory3("qwen3", budget=Budget.parse(budget))
    if kind.fitted_as:
        shape = plain.geometry
        size = (len(shape.full_layers), kind.width(shape.heads * shape.head_dim), shape.kv_heads)
        weights = torch.randn(size, generator=torch.Generator().manual_seed(3))
        keep_weights(SelectorWeights(plain.whole_model, shape.full_layers, weights, {}, plain.kept_as(name)))
    m3 = memory3("qwen3", selector=name, budget=Budget.parse(budget))
    refs = references(m3)
    for reference, memory in zip(refs, m3.encode(refs), strict=True):
        same(memory, m3.encode([reference])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_reconstruction_sees_what_eager_attention_sees(family: str) -> None:
    """The scores, from attention weights that transformers itself reports while the model repeats the reference."""
    m3 = memory3(family, budget=Budget("uniform", 3))
    reference = references(m3)[0]
    first, length, cue = len(m3.frame.prefix), len(reference.token_ids), len(m3.frame.repeat)
    tokens = [*m3.frame.prefix, *reference.token_ids, *m3.frame.repeat, *reference.token_ids]
    positions = torch.arange(len(tokens))
    positions[first + length :] += m3.config.reference_length - length
    m3.model.set_attn_implementation("eager")
    with torch.no_grad():
        mask = torch.ones(1, len(tokens), dtype=torch.long)
        weights = m3.model(
            torch.tensor([tokens]), attention_mask=mask, position_ids=positions[None], output_attentions=True
        ).attentions
    m3.model.set_attn_implementation("sdpa")
    start = 0
    memory = m3.encode([reference])[0]
    for layer in range(5):
        block = weights[layer][0, :, first + length + cue :, first : first + length]  # query heads, repetition, reference
        for head in range(2):
            best = block[3 * head : 3 * head + 3].amax(dim=(0, 1))
            kept = sorted(best.topk(3).indices.tolist())
            assert memory.positions[start : start + 3].tolist() == kept
            start += 3


def test_writing_stops_at_the_last_memory_layer() -> None:
    m3 = memory3("llama", layers=(0, 1, 2), budget=Budget("uniform", 3), selector="attention")
    ran: list[int] = []
    for number, layer in enumerate(m3.model.base_model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    m3.encoder.encode(references(m3))  # `Memory3.encode` would notice the hooks
    assert ran == [0, 1]


def test_half_precision_is_the_rounded_memory() -> None:
    refs = references(memory3())
    exact = memory3("llama").encode(refs)
    for dtype, kind in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        for a, b in zip(exact, memory3("llama", dtype=dtype).encode(refs), strict=True):
            assert b.keys.dtype == kind
            torch.testing.assert_close(a.keys.to(kind), b.keys)
            np.testing.assert_array_equal(a.counts, b.counts)


def test_random_is_the_same_twice_and_differs_between_references() -> None:
    m3 = memory3(selector="random", budget=Budget("uniform", 3))
    refs = references(m3)
    same(m3.encode(refs[:1])[0], m3.encode(refs[:1])[0])
    again = replace(refs[0], token_ids=refs[0].token_ids[::-1])
    assert not np.array_equal(m3.encode([again])[0].positions, m3.encode(refs[:1])[0].positions)


def test_fingerprint() -> None:
    m3 = memory3("llama", layers="0:3")
    base = m3.fingerprint
    assert len(base) == 32
    assert memory3("llama", layers="0:3").fingerprint == base

    def changed(change: Any) -> bool:
        other = memory3("llama", layers="0:3")
        with torch.no_grad():
            change(other)
        return other.fingerprint != base

    assert changed(lambda m: m.model.base_model.layers[2].self_attn.k_proj.weight[1, 2].add_(1e-3))
    assert changed(lambda m: m.model.base_model.embed_tokens.weight[5, 7].add_(1e-3))
    # Above the last memory layer, or after it, nothing can change a memory.
    assert not changed(lambda m: m.model.base_model.layers[3].self_attn.k_proj.weight[1, 2].add_(1e-3))
    assert not changed(lambda m: m.model.base_model.norm.weight.add_(1))
    # Reading settings are free, writing settings are not.
    assert memory3("llama", layers="0:3", references_per_chunk=2, chunk_length=11).fingerprint == base
    for setting in (
        {"budget": "uniform:2"},
        {"selector": "first"},
        {"reference_length": 36},
        {"prefix": "<bos>Text:"},
        {"dtype": "float16"},
    ):
        assert memory3("llama", layers="0:3", **setting).fingerprint != base
    assert memory3("llama", chat=True, layers="0:3").fingerprint != base


def test_a_memory_knows_what_it_covers_and_how_it_was_made() -> None:
    m3 = memory3(budget="uniform:2", selector="first")
    written = references(m3)
    for reference, memory in zip(written, m3.encode(written), strict=True):
        wanted = Provenance(
            reference.document_id, reference.start, reference.end, (reference.id,), "uniform:2", "first", fingerprint=""
        )
        assert (memory.provenance, memory.stored_bytes) == (wanted, 0)
        assert memory.bytes_read == memory.nbytes


def test_bad_references_and_settings() -> None:
    m3 = memory3()
    reference = references(m3)[0]
    assert m3.encode([]) == []
    with pytest.raises(InputError, match="0 tokens"):
        m3.encode([replace(reference, token_ids=())])
    with pytest.raises(InputError, match="38 tokens"):
        m3.encode([replace(reference, token_ids=(5,) * 38)])
    with pytest.raises(ModelError, match="lower reference_length"):
        memory3(reference_length=300)
    with pytest.raises(ConfigError, match="layers \\[9\\] do not exist"):
        memory3(layers=(1, 9))
    with pytest.raises(ConfigError, match="'psychic'"):
        memory3(selector="psychic")
    with pytest.raises(ConfigError, match="no tokens"):
        memory3(prefix="")
    model = tiny_model("llama")
    with torch.no_grad():
        model.base_model.layers[0].self_attn.k_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Memory3(model, tiny_tokenizer(), MemoryConfig(reference_length=37)).encode([reference])


def test_broken_chat_template_is_named() -> None:
    tokenizer = tiny_chat_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(ModelError, match="no users here"):
        Memory3(tiny_model("llama"), tokenizer, MemoryConfig(reference_length=37))
    tokenizer.chat_template = "always the same"
    with pytest.raises(ModelError, match="does not show"):
        Memory3(tiny_model("llama"), tokenizer, MemoryConfig(reference_length=37))
    # Without the template all is well.
    Memory3(tiny_model("llama"), tokenizer, MemoryConfig(reference_length=37, prefix="<bos>Reference:"))
