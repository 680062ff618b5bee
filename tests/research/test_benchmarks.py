"""`memory3 bench train_step`, `overlap` and `writing`, on tiny sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import save_tiny

from memory3 import benchmarks
from memory3.models.sizes import SHAPES, ModelSizes


def test_a_step_with_memories_and_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", ModelSizes(5, 6, 2, 14, 24, 22, 331))  # type: ignore[index]
    options = {"shape": "tiny", "tokenizer": save_tiny(tmp_path, chat=True), "sequence_length": "150", "references": "23"}
    found = benchmarks.run("train_step", options | {"sequences": "2", "repeats": "1"})
    assert found["tokens"] == 300
    assert 2 <= found["references"] <= 6  # one for each chunk of 64 tokens, at most
    assert found["reference_tokens"] <= 128 * found["references"]
    assert found["seconds_per_step"]["ratio"] > 0


def test_overlaps_timed(tmp_path: Path) -> None:
    options = {"model": save_tiny(tmp_path, chat=True), "tokens": "500", "reference": "70", "references": "3", "repeats": "1"}
    found = benchmarks.run("overlap", options)
    assert found["tokens"] == 500
    assert found["reference_tokens"] == [70, 70, 70]
    assert 0 < found["largest_overlap"] < 1
    assert found["milliseconds"]["overlap"] > found["milliseconds"]["exceeds"] > 0


def test_writes_with_threads_and_without(tmp_path: Path) -> None:
    options = {"model": save_tiny(tmp_path, chat=True), "references": "5", "dtypes": "float32", "repeats": "1"}
    found = benchmarks.run("writing", options)
    assert {"float32, 0 encoders", "float32, 2 encoders"} <= found.keys()
    for name in ("float32, 0 encoders", "float32, 2 encoders"):
        stages = found[name]["seconds_a_reference"]
        assert stages["encoding"] > 0
        assert stages["cpu"] == pytest.approx(sum(stages[each] for each in ("encoding", "embedding", "packing", "other")))
