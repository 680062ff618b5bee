"""What is kept for a model serves the same weights in every number format they are loaded in, and no other weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import family
from safetensors.torch import save_file

from memory3 import Memory3, MemoryConfig
from memory3.bank.codebooks import cached_codebook, new_codec
from memory3.calibration.codec import calibrate
from memory3.calibration.formats import serve_formats
from memory3.calibration.selector import Passage, calibrate_selector
from memory3.errors import FingerprintMismatch
from memory3.models.calibrated import kept_under, own_calibrated
from memory3.models.fingerprint import other_formats
from memory3.types import Document

SETTINGS: dict[str, Any] = {"reference_length": 24, "dtype": "float32", "memory_temperature": 1.0, "codec": "int8"}
PLAIN = MemoryConfig(**SETTINGS)
TEXTS = [Document(str(n), "The bridge was built in 1874 by hand. " * 11) for n in range(3)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny.tiny_chat_tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, model: Any) -> Path:
    """Plain LoRA of rank 3 on two products, large enough to be seen in any number format."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(("layers.1.self_attn.k_proj", "layers.3.mlp.up_proj")):
            rows, columns = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(3, columns, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 3, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 0.7, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2", "adapted"])
def test_fingerprints_in_other_formats_are_those_of_models_loaded_so(tmp_path: Path, kind: str) -> None:
    model = family(kind, {}) if kind == "olmo2" else tiny.tiny_model("llama" if kind == "adapted" else kind)
    name = str(saved(tmp_path / "model", model))
    if kind == "adapted":
        name += f"+{adapter(tmp_path / 'adapter', model)}"
    expected = {}
    for dtype in ("float32", "float16", "bfloat16"):
        m3 = Memory3.from_pretrained(name, config=PLAIN, dtype=dtype)
        expected[dtype] = (m3.whole_model, m3.fingerprint)
    assert len(set(expected.values())) == 3
    exact = Memory3.from_pretrained(name, config=PLAIN, dtype="float32")
    assert set(exact.in_other_formats()) == {expected["float16"], expected["bfloat16"]}


def test_a_model_saved_in_bfloat16_is_found_from_either_side(tmp_path: Path) -> None:
    """As most models of hubs are: its weights in float32 are exactly those in bfloat16."""
    name = str(saved(tmp_path / "model", tiny.tiny_model().to(torch.bfloat16)))
    coarse = Memory3.from_pretrained(name, config=PLAIN, dtype="bfloat16")
    fine = Memory3.from_pretrained(name, config=PLAIN, dtype="float32")
    assert (fine.whole_model, fine.fingerprint) in set(coarse.in_other_formats())
    assert (coarse.whole_model, coarse.fingerprint) in set(fine.in_other_formats())


def test_a_codebook_and_a_selector_serve_every_format_of_the_same_weights_alone(tmp_path: Path) -> None:
    name = str(saved(tmp_path / "model", tiny.tiny_model()))
    other = str(saved(tmp_path / "other", tiny.tiny_model(seed=1)))
    first = Memory3.from_pretrained(name, config=PLAIN)
    calibrate_selector(first, [Passage(document.text) for document in TEXTS])
    learned = MemoryConfig(**SETTINGS | {"selector": "learned"})
    m3 = Memory3.from_pretrained(name, config=learned)
    book = calibrate(m3, TEXTS)
    for dtype in ("bfloat16", "float16"):
        same = Memory3.from_pretrained(name, config=learned, dtype=dtype)
        assert same.fingerprint != m3.fingerprint  # a bank still tells them apart
        assert torch.equal(same.learned.weights, m3.learned.weights)
        assert cached_codebook("int8", same.fingerprint).fingerprint == book.fingerprint
        codec, found = new_codec(same, book)  # given by hand, it is taken too
        assert found is book
        (memory,) = same.encode(list(same.split(TEXTS[0]))[:1])
        (read,) = codec.decode([bytearray(codec.encode(memory))])
        assert read.positions.tolist() == memory.positions.tolist()
    stranger = Memory3.from_pretrained(other, config=PLAIN, dtype="bfloat16")
    assert stranger.learned is None
    assert cached_codebook("int8", stranger.fingerprint) is None
    with pytest.raises(FingerprintMismatch):
        new_codec(stranger, book)


def test_a_model_of_two_formats_is_served_in_its_own_alone() -> None:
    model = tiny.tiny_model()
    assert len(other_formats(model)) == 2
    model.model.layers[2].mlp.to(torch.bfloat16)
    assert other_formats(model) == ()


def test_a_note_that_holds_no_fingerprint_counts_as_none() -> None:
    mark, other = "0" * 32, "f" * 32
    path = own_calibrated("formats", mark)
    path.parent.mkdir(parents=True)
    for said in ("", "../../x", "g" * 32, other * 9, "f" * 31):
        path.write_text(said)
        assert kept_under(mark) == (mark,)
    path.write_text(other + "\n")
    assert kept_under(mark) == (mark, other)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert kept_under(mark) == (mark,)
    assert kept_under("../../../etc/passwd") == ("../../../etc/passwd",)


@pytest.mark.real
def test_the_default_model_has_its_selector_and_codebook_in_bfloat16(default_model_path: str) -> None:
    m3 = Memory3.from_pretrained(dtype="bfloat16")
    assert m3.learned is not None
    assert new_codec(m3, None)[1] is not None


def test_notes_are_written_for_both_fingerprints() -> None:
    m3 = Memory3(tiny.tiny_model(), tiny.tiny_chat_tokenizer(), PLAIN)
    serve_formats(m3)
    notes = {path.name: path.read_text().strip() for path in own_calibrated("formats").iterdir()}
    assert set(notes.values()) == {m3.whole_model, m3.fingerprint}
    assert len(notes) == 4
