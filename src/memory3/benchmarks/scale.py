"""Many writers, and the bank they leave.

- ``real``: the real model in 1 and in 2 processes of this machine, one thread each: references encoded per second, from the
  moment that the workers have encoded a shard each.
- ``cluster``: many workers that encode nothing, so that plan, spool, commits and storage are what is measured. Rows have
  the size of the default model's, 48 KB. Workers wait for one of two processes, which make noise.

Of each bank: time to open it, to search and to read from it, before and after it is compacted; what the planner says beside.
Every step runs in a process of its own, so that its peak of RAM is its own (Linux, macOS).
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from memory3.bank import Bank, Shard
from memory3.benchmarks.measure import python_documents
from memory3.benchmarks.synthetic import NoiseEmbedder, NoiseWriter, leave_noise, noise_documents
from memory3.cluster.pool import ShardPool
from memory3.cluster.process import local_pool
from memory3.cluster.recipe import Recipe
from memory3.cluster.spool import Spool
from memory3.codec import Codebook
from memory3.models.catalogue import DEFAULT_ADAPTED
from memory3.planner.library import Search
from memory3.planner.storage import ReferenceBytes

__all__ = ["OPTIONS", "run"]

#: ``real``: references that the real model encodes; 0 leaves that out. ``rows``: of the simulated clusters' banks, between
#: commas.
OPTIONS: dict[str, Any] = {
    "real": 96,
    "real_shard": 4,
    "model": DEFAULT_ADAPTED,
    "rows": "1000,4000",
    "workers": 64,
    "shard": 64,
    "pairs": 186,
    "dimension": 384,
    "searches": 200,
    "folder": "",
}
_MAKERS = 2
_K = 5


def run(
    real: int,
    real_shard: int,
    model: str,
    rows: str,
    workers: int,
    shard: int,
    pairs: int,
    dimension: int,
    searches: int,
    folder: str,
) -> dict[str, Any]:
    """One line per number of workers with the real model, and one per number of rows with stand-ins.

    Args:
        real: references for the real model; 0: none.
        real_shard: references of its shards.
        model: name or path of the real model.
        rows: numbers of rows between commas.
        workers: of a simulated cluster.
        shard: references of its shards.
        pairs: of a memory; they decide its bytes.
        dimension: of an embedding.
        searches: queries and reads that are timed.
        folder: where banks are made; empty: the system's for temporary files.
    """
    figures: dict[str, Any] = {"real": [], "cluster": []}
    for number in (1, 2) if real else ():
        figures["real"].append(_within(folder, "real", number, real, real_shard, model))
    if real:
        one, two = (each["references_per_second"] for each in figures["real"])
        figures["efficiency_of_2"] = two / (2 * one) if one and two else None
    for count in (int(text) for text in rows.split(",")):
        path = Path(tempfile.mkdtemp(prefix="scale-", dir=folder or None))
        try:
            line: dict[str, Any] = {"rows": count, "workers": workers}
            line["write"] = _step("write", path / "bank", count, workers, shard, pairs, dimension)
            line["read"] = _step("read", path / "bank", dimension, searches, count)
            line["compact"] = _step("compact", path / "bank")
            line["read_compacted"] = _step("read", path / "bank", dimension, searches, count)
            line["predicted"] = _predicted(count, line["write"]["record_bytes"], dimension)
        finally:
            shutil.rmtree(path, ignore_errors=True)
        figures["cluster"].append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)  # a long run that is stopped has told what it found
    return figures


def _within(folder: str, name: str, *arguments: object) -> dict[str, Any]:
    path = Path(tempfile.mkdtemp(prefix="scale-", dir=folder or None))
    try:
        return _step(name, path / "bank", *arguments)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _step(name: str, *arguments: object) -> dict[str, Any]:
    call = f"from memory3.benchmarks.scale import _{name} as step; import sys; step(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", call, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _tell(told: dict[str, Any]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)
    print(json.dumps({**told, "peak_mib": peak}))


def _real(path: str, workers: str, references: str, shard: str, model: str) -> None:
    import os

    from memory3.llm import Memory3

    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    m3, number = Memory3.from_pretrained(model), int(workers)
    documents = python_documents(m3, int(references))
    spool = Spool.beside(path)
    recipe = Recipe(model, m3.config.to_json())
    with Bank.open(path, m3) as bank, local_pool(spool, recipe, number, shard_references=int(shard)) as pool:
        report = bank.write(documents, pool=pool)
        pool.close()  # its processes have ended, so that their time is known
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = sorted(pool.encoded)
        # Too few shards tell no rate: each worker's first counts for nothing.
        rate = sum(count for _, count in done[number:]) / (done[-1][0] - done[number - 1][0]) if len(done) > number else None
        _tell(
            {
                "workers": number,
                "references": report.references,
                "references_per_second": rate,
                "seconds_with_loading": report.seconds,
                "workers_cpu_seconds_with_loading": used.ru_utime + used.ru_stime,
                "lost": pool.lost,
            }
        )


class _Waiting:
    """A worker that waits until one of the processes has made what it should have encoded."""

    def __init__(self, makers: ProcessPoolExecutor, spool: Spool) -> None:
        self._makers, self._spool = makers, spool

    def encode(self, shard: Shard, code_book: Codebook | None) -> None:
        self._makers.submit(leave_noise, shard.to_json(), str(self._spool.folder)).result()

    def stop(self) -> None:
        pass


def _write(path: str, rows: str, workers: str, shard: str, pairs: str, dimension: str) -> None:
    m3, embedder, spool = NoiseWriter(int(pairs)), NoiseEmbedder(int(dimension)), Spool.beside(path)
    with (
        ProcessPoolExecutor(_MAKERS, mp_context=get_context("spawn")) as makers,
        Bank.open(path, m3, embedder=embedder) as bank,
        ShardPool(spool, lambda: _Waiting(makers, spool), int(workers), shard_references=int(shard)) as pool,
    ):
        spool.prepare()
        list(makers.map(str, range(_MAKERS)))  # they are there
        before, started, used = bank.info().version, time.perf_counter(), time.process_time()
        report = bank.write(noise_documents(0, int(rows)), pool=pool)
        seconds, used = time.perf_counter() - started, time.process_time() - used
        info = bank.info()
        _tell(
            {
                "rows": report.references,
                "seconds": seconds,
                "rows_per_second": report.references / seconds,
                "committer_cpu_seconds": used,
                "rows_per_committer_cpu_second": report.references / used,
                "versions": info.version - before,
                "lost": pool.lost,
                "fragments": info.fragments,
                "record_bytes": bank.manifest.record_bytes,
                "bytes_per_row": info.bytes / report.references,
                "index": info.index,
            }
        )


def _read(path: str, dimension: str, searches: str, rows: str) -> None:
    import lancedb  # noqa: F401 (importing it is no part of opening)

    random, started = np.random.default_rng(0), time.perf_counter()
    with Bank.open(path, None, embedder=NoiseEmbedder(int(dimension)), cache_bytes=0) as bank:
        opened = time.perf_counter() - started
        bank.search(["the first"], _K)
        first = time.perf_counter() - started
        finding, reading = [], []
        for number in range(int(searches)):
            started = time.perf_counter()
            bank.search([f"query {number}"], _K)
            finding.append(time.perf_counter() - started)
            ids = [f"d{each}#0" for each in random.choice(int(rows), _K, replace=False)]
            started = time.perf_counter()
            bank.memories(ids, use_cache=False)
            reading.append(time.perf_counter() - started)
        _tell(
            {
                "open_seconds": opened,
                "open_and_first_search_seconds": first,
                "search_p50_ms": 1e3 * float(np.percentile(finding, 50)),
                "search_p99_ms": 1e3 * float(np.percentile(finding, 99)),
                "read_of_5_p50_ms": 1e3 * float(np.percentile(reading, 50)),
                "read_of_5_p99_ms": 1e3 * float(np.percentile(reading, 99)),
            }
        )


def _compact(path: str) -> None:
    with Bank.open(path, None) as bank:
        before, started = bank.info().fragments, time.perf_counter()
        bank.compact()
        _tell({"seconds": time.perf_counter() - started, "fragments": [before, bank.info().fragments]})


def _predicted(rows: int, record_bytes: int, dimension: int) -> dict[str, Any]:
    """What the planner says of such a bank."""
    each = ReferenceBytes(record=record_bytes, text=576 + 4 * 128, embedding=4 * dimension)
    search = Search(rows, dimension)
    return {"bytes_per_row": each.disk, "index_ram_mib": search.ram / (1 << 20), "is_searched_in_ram": search.is_exact}
