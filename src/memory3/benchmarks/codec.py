"""Codecs: bytes of a memory, error of its keys and values, and how long five memories take to decode and one to encode
among as many as are written at once.

The references are drawn from a text that codebooks may have been fitted on; ``fitted_error`` is of vectors that were held
out. Codebooks are taken from the cache folder, or fitted first, which takes minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from memory3.bank.codebooks import cached_codebook
from memory3.benchmarks.measure import progress, python_documents
from memory3.codec import Codec, CodedCodec, RawCodec
from memory3.config import MemoryConfig
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL
from memory3.types import Memory

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "preset": "default",
    "codecs": "raw,int8,int4,predicted:96+160,transform:96+160,product",
    "memories": 5,
    "references": 40,
    "repeats": 100,
}


def run(model: str, preset: str, codecs: str, memories: int, references: int, repeats: int) -> dict[str, Any]:
    """One entry per codec; times are medians with the middle half of ``repeats``.

    Args:
        model: name or path.
        preset: of the settings.
        codecs: names between commas.
        memories: decoded at once when time is taken.
        references: encoded for it.
        repeats: turns measured.
    """
    m3 = Memory3.from_pretrained(model, config=MemoryConfig.preset(preset))
    chosen = [r for document in python_documents(m3, references) for r in m3.split(document)][:references]
    chosen.sort(key=lambda r: len(r.token_ids))
    written: list[Memory] = []
    for start in progress(range(0, len(chosen), m3.batch_size), "encoding"):
        written += m3.encode(chosen[start : start + m3.batch_size])
    full = sorted(written, key=lambda memory: -len(memory.positions))[:memories]
    results: dict[str, Any] = {"pairs": m3.shape.pairs, "head_dim": m3.shape.head_dim, "references": len(written)}
    results["threads"] = torch.get_num_threads()
    for name in codecs.split(","):
        codec, about = _codec(m3, name)
        codec.encode_many(written[: m3.batch_size])  # what is made at first use
        started = time.perf_counter()
        at_once = range(0, len(written), m3.batch_size)
        records = [record for i in at_once for record in codec.encode_many(written[i : i + m3.batch_size])]
        seconds = (time.perf_counter() - started) / len(written)
        decoded = codec.decode([bytearray(record) for record in records])
        few = [codec.encode(memory) for memory in full]
        results[name] = {
            "record_bytes": codec.record_size,
            "ratio": RawCodec(m3.shape).record_size / codec.record_size,
            "error": {side: _error(written, decoded, side) for side in ("keys", "values")},
            "fitted_error": {side: about.get(f"{side}_error") for side in ("keys", "values")},
            "encode_milliseconds": 1000 * seconds,
            f"decode_{len(few)}_milliseconds": _decoding(codec, few, repeats),
        }
    return results


def _codec(m3: Memory3, name: str) -> tuple[Codec, dict[str, Any]]:
    if name == "raw":
        return RawCodec(m3.shape), {}
    book = cached_codebook(name, m3.fingerprint)
    if book is None:
        from memory3.calibration.codec import calibrate
        from memory3.calibration.sample import default_documents

        book = calibrate(m3, default_documents(), codec=name)
    return CodedCodec(book).with_vectors(m3.token_vectors), dict(book.about)


def _error(written: Sequence[Memory], decoded: Sequence[Memory], side: str) -> float:
    """Squared error over squared length."""
    pairs = [(getattr(a, side).float(), getattr(b, side).float()) for a, b in zip(written, decoded, strict=True)]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


def _decoding(codec: Codec, records: Sequence[bytes], repeats: int) -> dict[str, float]:
    times = []
    for turn in range(repeats + 5):
        started = time.perf_counter()
        codec.decode(records)
        if turn >= 5:
            times.append(1000 * (time.perf_counter() - started))
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "quarter": low, "three_quarters": high}
