"""Compaction: time and peak RAM against the number of rows.

RAM should not grow with the bank, and full fragments must not be written again.

Rows are synthetic: random records and embeddings in the real schema, a hundred or so rows a commit, as a slow model leaves
them. Every step runs in a process
of its own, so that its peak is its own (Linux, macOS).
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memory3.config import MemoryConfig
from memory3.types import MemoryShape, Reference

__all__ = ["OPTIONS", "run"]

#: 186 pairs make 48 KB a row, 1440 make 372 KB: the default model's, with and without a codec. 178 of the wide ones fill a
#: fragment, and commits of as many leave nothing to merge. ``late`` rows are added once all is compacted.
OPTIONS: dict[str, Any] = {"rows": "1000,10000", "pairs": 186, "commit": 200, "late": 1000, "dimension": 384, "folder": ""}


def run(rows: str, pairs: int, commit: int, late: int, dimension: int, folder: str) -> dict[str, Any]:
    """One line per number of rows: what the first compaction takes, and a second one after ``late`` more rows.

    Args:
        rows: numbers of rows between commas.
        pairs: of a memory; they decide its bytes.
        commit: rows of a commit.
        late: rows added before the second compaction.
        dimension: of an embedding.
        folder: where banks are made; empty: the system's for temporary files.
    """
    lines = []
    for count in (int(text) for text in rows.split(",")):
        path = Path(tempfile.mkdtemp(prefix="compaction-", dir=folder or None)) / "bank"
        try:
            made = _step("write", path, count, pairs, commit, dimension, 0)
            first = _step("compact", path)
            _step("write", path, late, pairs, commit, dimension, count)
            lines.append({"rows": count, "write": made, "compact": first, "compact_again": _step("compact", path)})
            print(json.dumps(lines[-1]), file=sys.stderr, flush=True)  # a long run that is stopped has told what it found
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
    return {"compaction": lines}


def _step(name: str, *arguments: object) -> dict[str, Any]:
    call = f"from memory3.benchmarks.compaction import _{name} as step; import sys; step(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", call, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def _write(path: str, rows: str, pairs: str, commit: str, dimension: str, first: str) -> None:
    from memory3.bank.format.manifest import BankManifest
    from memory3.bank.store import Store
    from memory3.codec.raw import record_size

    shape = MemoryShape(layers=tuple(range(30)), kv_heads=3, head_dim=64, pairs=int(pairs))
    manifest = BankManifest(
        1, "synthetic", MemoryConfig(codec="raw"), shape, "0" * 16, "synthetic", int(dimension), "raw", "", record_size(shape)
    )
    started = time.perf_counter()
    store = Store(path)
    store.create(manifest)
    with store.lock():
        table, _ = store.open(store.current())
        for batch in _batches(manifest, int(first), int(first) + int(rows), int(commit)):
            table.add(batch)
    _tell(started)


def _batches(manifest: Any, first: int, last: int, size: int) -> Iterator[Any]:
    from memory3.bank.format.rows import BankRow, row_batch, row_schema

    schema = row_schema(manifest)
    for start in range(first, last, size):
        random = np.random.default_rng(start)
        numbers = range(start, min(start + size, last))
        text = random.bytes(300).hex()
        rows = [
            BankRow(Reference(f"d{n}#0", f"d{n}", 0, 0, 600, text, tuple(range(128))), random.bytes(16).hex(), 1)
            for n in numbers
        ]
        vectors = random.standard_normal((len(rows), manifest.dimension), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        width = manifest.record_bytes
        noise = random.integers(0, 1 << 62, len(rows) * width // 8 + 1).tobytes()
        yield row_batch(rows, vectors, [noise[n * width : (n + 1) * width] for n in range(len(rows))], schema)


def _compact(path: str) -> None:
    from datetime import timedelta

    from memory3.bank import Bank
    from memory3.bank.merging import merge, rows_per_fragment
    from memory3.bank.store import Store

    store = Store(path)
    before = store.snapshot()
    fragments, record = before.fragments()[0], before.record_bytes
    opened = _peak()
    written = _written()
    started = time.perf_counter()
    with store.lock():
        passed = merge(before)
        store.backend.prune(before.name, timedelta(0), passed)
    merged, seconds, peak = _written() - written, time.perf_counter() - started, _peak()
    with Bank.open(path, None) as bank:  # nothing is left to merge: what else compacting does, indexes above all
        bank.compact()
        after = bank.info()
    told = {
        "fragments": [fragments, after.fragments],
        "rows_per_fragment": rows_per_fragment(before),
        "record_bytes": record,
        "bank_bytes": after.bytes,
        "index": after.index,
        "merge": {"seconds": seconds, "peak_mib": peak, "peak_before_mib": opened, "written_bytes": merged},
    }
    _tell(started, told)


def _tell(started: float, told: dict[str, Any] | None = None) -> None:
    print(json.dumps({**(told or {}), "seconds": time.perf_counter() - started, "peak_mib": _peak()}))


def _peak() -> float:
    """The most RAM this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)


def _written() -> int:
    """Bytes that this process has written (Linux; elsewhere 0)."""
    try:
        return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])
    except OSError:
        return 0
