"""The numbers two ways, once on the real default model (SmolLM2-135M-Instruct) with a real bank on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ram_bank import RamBank

from memory3.bank import Bank
from memory3.config import MemoryConfig
from memory3.llm import Memory3
from memory3.models.adapter import shipped
from memory3.models.catalogue import DEFAULT_ADAPTED, DEFAULT_MODEL
from memory3.types import Document

pytestmark = pytest.mark.real

TEXTS = [
    "The Kestrel Bridge at Holm was opened in 1874. Its engineer, Ada Brennan, had built two lighthouses before. The "
    "bridge carries the "
    "old coast road over the river Tarn and has eleven arches of red stone.",
    "The annual fair of Holm takes place in the first week of June. Visitors pay three crowns, children nothing.",
    "Marmots sleep for seven months. Before winter they close the entrance of the burrow with hay and stones.",
]
QUESTION = "Who was the engineer of the Kestrel Bridge at Holm?"
# 30 layers in float32: what two orders of summation differ by.
CLOSE = {"rtol": 1e-3, "atol": 2e-3}


@pytest.fixture(scope="module")
def loaded(default_model_path: str) -> Memory3:
    return Memory3.from_pretrained(default_model_path)


def with_config(loaded: Memory3, **settings: Any) -> Memory3:
    return Memory3(loaded.model, loaded.tokenizer, MemoryConfig(**settings), name="smollm2-135m-instruct")


def logits(m3: Memory3, rows: list[list[int]]) -> torch.Tensor:
    tokens, mask = m3.prompts.pad(rows)
    with torch.no_grad():
        return m3.model(tokens, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp_min(0)).logits


def test_whole_memory_is_text(loaded: Memory3) -> None:
    m3 = with_config(loaded, budget="all", dtype="float32", memory_temperature=1.0, arrangement="row", rank_discount=0.0)
    bank = RamBank(m3, TEXTS[:1], {None: [0]})
    passage, after = bank.all[bank.order[0]].token_ids, m3.frame.after(m3.prompts.ids(QUESTION))
    assert m3.tokenizer.decode(m3.frame.prefix).endswith("<|im_start|>user\nUse these passages:\n\n")
    text = [*m3.frame.prefix, *passage, *after]
    positions = torch.arange(len(text))
    positions[-len(after) :] += 128 - len(passage)
    with torch.no_grad():
        expected = m3.model(
            torch.tensor([text]), attention_mask=torch.ones(1, len(text), dtype=torch.long), position_ids=positions[None]
        ).logits[:, -len(after) :]
    with m3.recall(bank):
        torch.testing.assert_close(logits(m3, [after]), expected, **CLOSE)
    assert (logits(m3, [m3.frame.closed_book(m3.prompts.ids(QUESTION))])[0, -1] - expected[0, -1]).abs().max() > 1


def test_at_once_in_parts_and_in_company(loaded: Memory3) -> None:
    m3 = with_config(loaded, references_per_chunk=2)
    bank = RamBank(m3, TEXTS)
    rows = [m3.frame.after(m3.prompts.ids(QUESTION + " " + " ".join(TEXTS[1:]))), m3.frame.after(m3.prompts.ids(QUESTION))]
    assert len(rows[0]) > 64
    tokens, mask = m3.prompts.pad(rows)
    with m3.recall(bank, prompt=rows):
        together = logits(m3, rows)
    for step in (tokens.shape[1] // 3, 1):
        with m3.recall(bank, prompt=rows), torch.no_grad():
            cache, parts = None, []
            for at in range(0, tokens.shape[1], step):
                end = min(at + step, tokens.shape[1])
                o = m3.model(tokens[:, at:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
                cache = o.past_key_values
                parts.append(o.logits)
        torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], together[mask.bool()], **CLOSE)
    for n, row in enumerate(rows):
        with m3.recall(bank):
            torch.testing.assert_close(logits(m3, [row])[0], together[n][mask[n].bool()], **CLOSE)


def test_nothing_to_read_is_the_untouched_model(loaded: Memory3) -> None:
    rows = [loaded.frame.closed_book(loaded.prompts.ids(QUESTION))]
    expected = logits(loaded, rows)
    with loaded.recall(RamBank(loaded, [])):
        torch.testing.assert_close(logits(loaded, rows), expected, rtol=0, atol=1e-4)
    assert torch.equal(logits(loaded, rows), expected)


def test_bank_on_disk_is_ram(loaded: Memory3, default_embedder_path: str, tmp_path: Path) -> None:
    documents = [Document(f"doc{n}", text, source=f"doc{n}.txt") for n, text in enumerate(TEXTS)]
    with Bank.open(tmp_path / "bank", loaded, embedder=default_embedder_path) as bank:
        bank.write(documents)
    ram = RamBank(loaded, TEXTS)
    with Bank.open(tmp_path / "bank", loaded, embedder=default_embedder_path, create=False) as bank:
        for name, kept in ram.stored.items():
            [read] = bank.memories([name])
            # The bank may have encoded it in other company: other pairs where scores are as good as equal, no others. The
            # budget fixes how many there are in all, but not of which head and place, nor their numbers, which its codec
            # rounds.
            mine, theirs = _pairs(read), _pairs(kept)
            both = sorted(mine.keys() & theirs.keys())
            assert len(both) >= 0.99 * max(len(mine), len(theirs))
            at, beside = [mine[pair] for pair in both], [theirs[pair] for pair in both]
            for got, wanted, most in ((read.keys, kept.keys, 0.03), (read.values, kept.values, 0.1)):
                got, wanted = got[at].float(), wanted[beside].float()
                assert float((got - wanted).square().sum()) < most * float(wanted.square().sum())
        answer = loaded.generate(QUESTION, bank, max_new_tokens=24, k=1)
        assert "Ada Brennan" in answer.text
        assert answer.citations[0].source == "doc0.txt"
        assert answer.citations[0].share == pytest.approx(1.0)
        assert answer.usage.prompt_tokens < 30
        text = loaded.generate(QUESTION, bank, mode="text", max_new_tokens=24, k=1)
        none = loaded.generate(QUESTION, mode="none", max_new_tokens=24)
        assert text.citations[0].source == "doc0.txt"
        assert text.usage.prompt_tokens > answer.usage.prompt_tokens + 40
        assert "Brennan" not in none.text


def _pairs(memory: Any) -> dict[tuple[int, int], int]:
    """By head and position of each pair kept, its row among the keys and values."""
    counts = memory.counts.reshape(-1).astype(int)
    heads = np.repeat(np.arange(len(counts)), counts)
    return {pair: row for row, pair in enumerate(zip(heads.tolist(), memory.positions.tolist(), strict=True))}


SHIPPED = {
    "smollm2-135m-instruct-360": (
        360,
        MemoryConfig(layers="17:26", budget="adaptive:360", selector="blended", codec="raw", rank_discount=0.0),
    ),
    "smollm2-135m-instruct-1440": (1440, MemoryConfig(budget="adaptive:1/8", selector="blended", arrangement="tight")),
}


def test_what_is_shipped() -> None:
    assert shipped() == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_adapter_answers_from_its_pairs(name: str, loaded: Memory3, default_model_path: str) -> None:
    pairs, config = SHIPPED[name]
    adapted = Memory3.from_pretrained(default_model_path, adapter=name)
    assert adapted.name == f"{default_model_path}+{name}"  # a name, not a place: the bank opens on another machine
    assert adapted.config == config.replace(memory_temperature=1.0)
    assert adapted.fingerprint != loaded.fingerprint
    for number, question, answer in (
        (0, "When was the Kestrel Bridge opened?", "1874"),
        (1, "How much do visitors pay?", "three crowns"),
    ):
        bank = RamBank(adapted, TEXTS, {None: [number]})
        assert {int(memory.counts.sum()) for memory in bank.stored.values()} == {pairs}
        assert adapted.generate(question, bank, max_new_tokens=24).text.startswith(answer)
        assert answer not in adapted.generate(question, mode="none", max_new_tokens=24).text


def test_what_comes_with_memory3_for_the_default_model(
    loaded: Memory3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_embedder_path: str
) -> None:
    """A codebook, so that memories take an eighth of their bytes, and a learned selector; an empty cache folder does not
    matter.
    """
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    m3 = with_config(loaded)
    with Bank.open(tmp_path / "bank", m3, embedder=default_embedder_path) as bank:
        bank.write([Document(f"d{n}", text) for n, text in enumerate(TEXTS)])
        assert (bank.manifest.codec, bank.manifest.record_bytes) == ("foretold:96+160", 47_956)
        (kept,) = bank.memories(["d0#0"])
        (raw,) = m3.encode(bank.references(["d0#0"]))
        np.testing.assert_array_equal(kept.positions, raw.positions)
        for got, wanted, most in ((kept.keys, raw.keys, 0.02), (kept.values, raw.values, 0.08)):
            assert float((got - wanted).float().square().sum()) < most * float(wanted.float().square().sum())
        answer = m3.generate(QUESTION, bank, max_new_tokens=24)
        assert "Brennan" in answer.text
        assert answer.citations[0].document_id == "d0"
    learned = with_config(loaded, selector="learned", budget="adaptive:360")
    assert learned.encode(bank_references := list(m3.split(Document("d0", TEXTS[0]))))[0].counts.sum() == 360
    assert with_config(loaded, selector="blended", budget="adaptive:360").encode(bank_references)[0].counts.sum() == 360


def test_who_names_no_model_gets_the_adapter(
    loaded: Memory3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_model_path: str, default_embedder_path: str
) -> None:
    """With its codebook, in whatever number format its weights are read; ``none``, or the model's own name, is the
    untouched model.
    """
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(Path(default_model_path).parent)
    m3 = Memory3.from_pretrained()
    assert m3.name == DEFAULT_ADAPTED == f"{DEFAULT_MODEL}+smollm2-135m-instruct-1440"
    with Bank.open(tmp_path / "bank", m3, embedder=default_embedder_path) as bank:
        bank.write([Document(f"d{n}", text) for n, text in enumerate(TEXTS)])
        assert (bank.manifest.codec, bank.manifest.record_bytes) == ("foretold:96+160", 47_956)
        answer = m3.generate("When was the Kestrel Bridge opened?", bank, max_new_tokens=24)
        assert answer.text.startswith("1874")
        assert answer.citations[0].document_id == "d0"
    narrow = Memory3.from_pretrained(dtype="bfloat16")
    assert narrow.learned is not None
    assert narrow.learned.fingerprint == m3.learned.fingerprint
    row = [loaded.frame.closed_book(loaded.prompts.ids(QUESTION))]
    expected = logits(loaded, row)
    for name, adapter in ((DEFAULT_MODEL, None), (DEFAULT_ADAPTED, "none")):
        plain = Memory3.from_pretrained(name, adapter=adapter)
        assert plain.name == DEFAULT_MODEL
        assert plain.config == MemoryConfig()
        # Which of oneDNN's layouts is fastest is timed at each loading; the last bits of a product go with it.
        torch.testing.assert_close(logits(plain, row), expected, **CLOSE)
    assert not torch.equal(logits(m3, row), expected)
