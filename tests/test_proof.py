"""At attach a model proves that it reads memories as it reads text; what a model does to its keys is measured layer by
layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family
from ram_bank import RamBank
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

import memory3.proof
from memory3.attention.attach import Seen, attached
from memory3.config import Budget, MemoryConfig
from memory3.errors import ModelError, UnsupportedModel
from memory3.llm import Memory3
from memory3.models.geometry import ModelGeometry
from memory3.proof import prove
from memory3.types import Document

TEXTS = ["The river rises in the mountains. It reaches the sea.", "The bridge was built in 1874 by the engineer."]
QUESTION = "Who built the bridge over the river, and when?"
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}

#: Read as text is, and how many of the layers do not rotate.
PROVEN: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama yarn": ("llama", {"rope_parameters": YARN}, 0),
    "qwen3 moe": ("qwen3_moe", MOE, 0),
    "partial rotary": ("phi3", {"partial_rotary_factor": 0.5}, 0),
    "multipliers": ("granite", {"attention_multiplier": 0.1, "residual_multiplier": 0.3, "embedding_multiplier": 4.0}, 0),
    "no rotation in some": ("smollm3", {"no_rope_layers": [0, 1, 1, 0, 1, 0]}, 3),
    "heads not in the config": ("gpt_neox", {}, 0),
    "local and global angles": (
        "gemma3_text",
        {
            "query_pre_attn_scalar": 16,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"] * 2,
        },
        0,
    ),
}
#: Refused, and a word of the reason.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "attention of its own": ("doge", {}, "does not read from memories"),
    "two attentions": ("diffllama", {}, "does not read from memories"),
    "sinks": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 6}, "s_aux"),
    "capped logits": ("gemma2", {"query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 6}, "softcap"),
    "pairs of neighbours": ("glm", {}, "another convention"),
    "mostly windows": ("exaone4", {"sliding_window": 32}, "5 of 6 layers attend within a window"),
    "no rotary": ("gpt2", {}, "no rotary"),
    "alibi": ("bloom", {}, "no rotary"),
}


def attach(model: PreTrainedModel, **settings: Any) -> Memory3:
    settings = {"reference_length": 31, "references_per_chunk": 2, "chunk_length": 512, "memory_temperature": 1.0, **settings}
    return Memory3(
        model,
        tiny_tokenizer(),
        MemoryConfig(dtype="float32", budget=Budget("all"), arrangement="row", rank_discount=0.0, **settings),
        name="tiny",
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path))
    monkeypatch.setattr(memory3.proof, "_PROVEN", {})


@pytest.mark.parametrize("name", PROVEN)
def test_two_references_are_read_as_a_block_mask_reads_them(name: str) -> None:
    """The twin here is written apart from the one of the proof, and by other lengths."""
    kind, changes, still = PROVEN[name]
    m3 = attach(family(kind, changes))
    assert m3.proof.share < 1e-3
    assert m3.proof.same == 1
    assert sum(not len(angles) for angles in m3.geometry.angles) == still
    if len(m3.geometry.full_layers) < 6:
        return  # a text of its own windows: test_windows_are_kept_when_writing
    bank = RamBank(m3, TEXTS, {None: [0, 1]})
    best, second = (list(bank.all[i].token_ids) for i in bank.order)
    first, after, gap = list(m3.frame.prefix), m3.frame.after(m3.prompts.ids(QUESTION)), m3.config.reference_length
    text = [*first, *second, *first, *best, *after]
    b, s = len(first), len(first) + len(second)
    places = [*range(s), *range(gap, gap + b + len(best)), *range(2 * gap + b, 2 * gap + b + len(after))]
    sees = torch.ones(len(text), len(text), dtype=torch.bool).tril()
    sees[s : s + b + len(best), :s] = False
    sees[s + b + len(best) :, :b] = False
    mask = torch.zeros(1, 1, *sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    with torch.no_grad():
        want = m3.model(torch.tensor([text]), attention_mask=mask, position_ids=torch.tensor([places])).logits[
            :, -len(after) :
        ]
        tokens, real = m3.prompts.pad([after])
        with m3.recall(bank):
            got = m3.model(tokens, attention_mask=real).logits
        without = m3.model(tokens, attention_mask=real).logits
    assert (want - without).abs().max() > 0.5
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_reads_memories_otherwise_is_refused(name: str) -> None:
    kind, changes, reason = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=reason):
        attach(family(kind, changes))


def test_keys_of_a_layer_without_rotation_stay() -> None:
    m3 = attach(family("smollm3", {"no_rope_layers": [1, 0, 1, 1, 0, 1]}))
    bank = RamBank(m3, TEXTS, {None: [0, 1]})
    with m3.recall(bank) as recall, torch.no_grad():
        m3.model(torch.tensor([m3.frame.after(m3.prompts.ids(QUESTION))]))
    second = bank.stored[bank.order[1]]
    counts = second.counts.reshape(-1).astype(int)
    for layer in range(6):
        read = recall._reading.batch.layers[layer]  # type: ignore[union-attr]
        start = int(counts[: 2 * layer].sum())
        stored = second.keys[start : start + int(counts[2 * layer])]
        assert torch.equal(read.keys[0, 0][read.owner[0, 0] == 1], stored) == (layer in (1, 4))


@pytest.mark.parametrize("window", [7, 200])
def test_windows_are_kept_when_writing(window: int) -> None:
    """What the writing pass computes behind windowed layers is what the model itself computes."""
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = tiny_model("qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=window, max_window_layers=0)
    m3 = attach(model, reference_length=48)
    [reference] = list(m3.split(Document("d", "The river rises in the mountains. It reaches the sea near the old town.")))[:1]
    dense = m3.encoder.dense([reference], ())
    seen = Seen()
    with attached(model), torch.no_grad():
        model.base_model(torch.tensor([[*m3.frame.prefix, *reference.token_ids]]), memory3=seen, use_cache=False)
    for place, layer in enumerate(m3.shape.layers):
        torch.testing.assert_close(
            dense.keys[:, place], seen.layers[layer][1][:, :, len(m3.frame.prefix) :], rtol=1e-4, atol=1e-4
        )


def test_a_fault_of_reading_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were all layers rotated, as they once were, a model with layers that do not rotate would be refused; the figures
    are said.
    """
    model, tokenizer = family("smollm3", {"no_rope_layers": [1, 1, 0, 1, 1, 1]}), tiny_tokenizer()
    shape = ModelGeometry(model)
    prove(model, shape, tokenizer)
    shape.angles = tuple(shape.inv_freq for _ in shape.angles)
    with pytest.raises(
        UnsupportedModel, match=r"logits differ by [\d.]+, [\d.]+% of their spread .* the same in \d+% of places"
    ):
        prove(model, shape, tokenizer)


def test_a_proof_is_remembered_for_this_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(model: Any, shape: Any, tokenizer: Any) -> Any:
        calls.append(str(model.dtype))
        return prove(model, shape, tokenizer)

    monkeypatch.setattr(memory3.proof, "prove", counted)
    first = attach(tiny_model()).proof
    assert attach(tiny_model()).proof == first
    assert len(calls) == 1
    monkeypatch.setattr(memory3.proof, "_PROVEN", {})  # another process
    assert attach(tiny_model()).proof == first
    assert len(calls) == 1
    attach(tiny_model(seed=1))
    attach(tiny_model().to(torch.bfloat16))
    monkeypatch.setattr(memory3.proof, "version", lambda name: "another")
    attach(tiny_model())
    assert len(calls) == 4
    [path, *_] = (tmp_path / "proofs").iterdir()
    assert set(json.loads(path.read_text())) == {"difference", "spread", "same", "of"}
    for path in (tmp_path / "proofs").iterdir():
        path.write_text("{")
    monkeypatch.setattr(memory3.proof, "_PROVEN", {})
    attach(tiny_model())
    assert len(calls) == 5


def test_models_that_cannot_be_attached_are_named(tmp_path: Path) -> None:
    compiled = tiny_model()
    compiled.model.layers[1].forward = torch.compile(compiled.model.layers[1].forward, backend="eager")
    with pytest.raises(UnsupportedModel, match="compiled"):
        attach(compiled)
    with pytest.raises(UnsupportedModel, match="compiled"):
        attach(torch.compile(tiny_model(), backend="eager"))
    with pytest.raises(UnsupportedModel, match="offloaded"):
        attach(tiny_model().to("meta"))
    m3 = attach(tiny_model())
    bank = RamBank(m3, TEXTS)
    m3.model.compile(backend="eager")
    with pytest.raises(UnsupportedModel, match="compiled"):
        m3.recall(bank)
    broken = tiny_model()
    broken.model.embed_tokens.weight.data[:, 3] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        attach(broken)
