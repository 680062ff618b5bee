"""Many writers, and the bank they leave.

- ``real``: the real model in 1 and in 2 processes of this machine, one thread each: references encoded per second, from the
  moment that the workers have encoded a shard each; and the time to the first token of some questions to their bank.
- ``cluster``: many workers that encode nothing, so that plan, spool, commits and storage are what is measured. Rows have
  the size of the default model's, 48 KB. Workers wait for one of two processes, which make noise.
- ``tables``: what the planner says of 1e8 and 1e9 references on rented machines.

Of each bank: time to open it, to search and to read from it, before and after it is compacted; search's recall of the true
nearest five; questions over time, by Zipf's law and never asked before, each until its memories are decoded, and which tier
had them; what the planner says beside. Vectors are drawn (`memory3.benchmarks.synthetic.NoiseEmbedder`).
Every step runs in a process of its own, so that its peak of RAM is its own (Linux, macOS).
"""

from __future__ import annotations

import dataclasses
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
from memory3.bank.retriever import search_exactly
from memory3.benchmarks.scale_predictions import beside, of_bank, tables
from memory3.benchmarks.scale_questions import ask
from memory3.benchmarks.synthetic import NoiseEmbedder, NoiseWriter, leave_noise, noise_documents, question
from memory3.cluster.pool import ShardPool
from memory3.cluster.process import local_pool
from memory3.cluster.recipe import Recipe
from memory3.cluster.spool import Spool
from memory3.codec import Codebook
from memory3.config import MemoryConfig
from memory3.errors import InputError
from memory3.models.adapter import adapter_of
from memory3.models.catalogue import DEFAULT_ADAPTED
from memory3.models.sizes import ModelSizes, sizes_of
from memory3.planner.capacity import CorpusSize, plan
from memory3.planner.machine import Machine, machine_of

__all__ = ["OPTIONS", "run"]

#: ``real``: references that the real model encodes; 0 leaves that out. ``rows``: of the simulated clusters' banks, between
#: commas. ``questions``: of each kind. ``ram``: MB of the cache that questions find their memories in. ``machine``: for the
#: planner, ``measure`` for this one.
OPTIONS: dict[str, Any] = {
    "real": 96,
    "real_shard": 4,
    "first_tokens": 20,
    "model": DEFAULT_ADAPTED,
    "rows": "1000,40000",
    "workers": 64,
    "shard": 64,
    "pairs": 186,
    "dimension": 384,
    "searches": 200,
    "questions": 10_000,
    "ram": 256,
    "machine": "measure",
    "folder": "",
}
_MAKERS = 2
_K = 5
#: What a bank takes beyond its rows while it is written, indexed and compacted: old files stay for a while.
_ROOM = 2.2


def run(
    real: int,
    real_shard: int,
    first_tokens: int,
    model: str,
    rows: str,
    workers: int,
    shard: int,
    pairs: int,
    dimension: int,
    searches: int,
    questions: int,
    ram: int,
    machine: str,
    folder: str,
) -> dict[str, Any]:
    """One line per number of workers with the real model, and one per number of rows with stand-ins.

    Args:
        real: references for the real model; 0: none.
        real_shard: references of its shards.
        first_tokens: questions to the bank it leaves, of which the first token is timed.
        model: name or path of the real model.
        rows: numbers of rows between commas.
        workers: of a simulated cluster.
        shard: references of its shards.
        pairs: of a memory; they decide its bytes.
        dimension: of an embedding.
        searches: queries and reads that are timed, and of which recall is counted.
        questions: by Zipf's law, and as many that were never asked before; 0: none.
        ram: megabytes (1e6) of RAM's tier while they are asked.
        machine: of the planner's predictions: ``measure``, or a name of `memory3.planner.machine.MACHINES`.
        folder: where banks are made; empty: the system's for temporary files.

    Raises:
        InputError: the disk has no room for a bank of so many rows.
    """
    counts = [int(text) for text in rows.split(",")]
    _check_room(max(counts), pairs, dimension, folder)
    from memory3.planner.measure import measure  # and transformers, which no step but `real` needs

    shape, config = sizes_of(adapter_of(model)[0]), MemoryConfig(codec="raw")
    here = measure(shape, config.reference_length) if machine == "measure" else machine_of(machine)
    figures: dict[str, Any] = {"planner_machine": dataclasses.asdict(here), "real": [], "cluster": []}
    for number in (1, 2) if real else ():
        asked = first_tokens if number == 1 else 0
        figures["real"].append(_within(folder, "real", number, real, real_shard, model, asked))
    if real:
        one, two = (each["references_per_second"] for each in figures["real"])
        figures["efficiency_of_2"] = two / (2 * one) if one and two else None
        figures["real_predicted"] = _real_predicted(figures["real"][0], shape, here)
    for count in counts:
        path = Path(tempfile.mkdtemp(prefix="scale-", dir=folder or None))
        try:
            line: dict[str, Any] = {"rows": count, "workers": workers}
            line["write"] = _step("write", path / "bank", count, workers, shard, pairs, dimension)
            line["read"] = _step("read", path / "bank", dimension, searches, count)
            line["recall"] = _step("recall", path / "bank", dimension, searches, count)
            for kind in ("zipf", "new") if questions else ():
                line[kind] = _step("ask", path / "bank", dimension, kind, questions, count, ram)
            line["compact"] = _step("compact", path / "bank")
            line["read_compacted"] = _step("read", path / "bank", dimension, searches, count)
            said = of_bank(count, line["write"]["record_bytes"], dimension, shape, _config(pairs, config), here)
            line["predicted"] = beside(said, {**line["write"], **line["read_compacted"]})
        finally:
            shutil.rmtree(path, ignore_errors=True)
        figures["cluster"].append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)  # a long run that is stopped has told what it found
    figures["tables"] = tables(shape, MemoryConfig(codec="predicted"))
    return figures


def _config(pairs: int, config: MemoryConfig) -> MemoryConfig:
    """Settings of memories of so many pairs."""
    shape = NoiseWriter(pairs).shape
    return config.replace(budget=f"adaptive:{pairs / (shape.heads * config.reference_length):.6f}")


def _check_room(rows: int, pairs: int, dimension: int, folder: str) -> None:
    each = 4 * NoiseWriter(pairs).shape.head_dim * pairs + 4 * dimension + 2048
    wanted, free = int(_ROOM * rows * each), shutil.disk_usage(folder or tempfile.gettempdir()).free
    if wanted > free:
        raise InputError(
            f"{rows:,} rows of {each:,} bytes take up to {wanted:,} bytes while they are written, and {free:,} are free: "
            "give fewer --rows, smaller ones with --pairs, or another --folder"
        )


def _real_predicted(found: dict[str, Any], shape: ModelSizes, machine: Machine) -> dict[str, Any]:
    """References encoded per second by one worker."""
    corpus = CorpusSize(found["references"], found["tokens"], found["text_bytes"])
    made = plan(corpus, shape, MemoryConfig.from_json(found["config"]), machine)
    measured = found["references_per_second"]
    return beside(
        {"references_per_second": made.references_per_second}, {"references_per_second": measured} if measured else {}
    )


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


def _real(path: str, workers: str, references: str, shard: str, model: str, first_tokens: str) -> None:
    import os

    from memory3.benchmarks.measure import bank_references, python_documents
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
        written = bank_references(bank)
        first = []
        for asked in range(int(first_tokens)):
            text = written[asked * len(written) // int(first_tokens)].text[:80]
            first.append(m3.generate(f"What is said about this? {text}", bank, max_new_tokens=1).timings.first_token)
        times = {f"first_token_p{part}_ms": 1e3 * float(np.percentile(first, part)) for part in (50, 99)} if first else {}
        _tell(
            {
                **times,
                "first_tokens": len(first),
                "tokens": sum(len(one.token_ids) for one in written) / len(written),
                "text_bytes": sum(len(one.text.encode()) for one in written) / len(written),
                "config": bank.manifest.config.to_json(),
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
                "commits": info.version - before,
                "conflicts": len(report.conflicts),
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
            bank.search([question(f"query {number}", int(random.integers(int(rows))))], _K)
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


def _recall(path: str, dimension: str, searches: str, rows: str) -> None:
    """Of the nearest five by the cosine with every row, how many search finds; of each question's own document, too."""
    random = np.random.default_rng(1)
    with Bank.open(path, None, embedder=NoiseEmbedder(int(dimension)), cache_bytes=0) as bank:
        about = random.integers(0, int(rows), int(searches)).tolist()
        texts = [question(f"recall {number}", document) for number, document in enumerate(about)]
        found = [{hit.reference_id for hit in hits} for hits in bank.search(texts, _K)]
        exact = search_exactly(bank.pin().snapshot, bank.embedder.encode(texts), _K)
        nearest = [{hit.reference_id for hit in hits} for hits in exact]
        _tell(
            {
                "searches": len(texts),
                "index": bank.info().index,
                "of_the_nearest_5": sum(len(a & b) for a, b in zip(found, nearest, strict=True)) / sum(map(len, nearest)),
                "own_document": sum(f"d{n}#0" in names for n, names in zip(about, found, strict=True)) / len(texts),
                "own_document_exactly": sum(f"d{n}#0" in names for n, names in zip(about, nearest, strict=True)) / len(texts),
            }
        )


def _ask(path: str, dimension: str, kind: str, questions: str, rows: str, ram: str) -> None:
    with Bank.open(
        path, NoiseWriter(_pairs(path)), embedder=NoiseEmbedder(int(dimension)), cache_bytes=10**6 * int(ram)
    ) as bank:
        _tell(ask(bank, kind, int(questions), int(rows)))


def _pairs(path: str) -> int:
    return Bank.describe(path).shape.pairs


def _compact(path: str) -> None:
    with Bank.open(path, None) as bank:
        before, started = bank.info().fragments, time.perf_counter()
        bank.compact()
        _tell({"seconds": time.perf_counter() - started, "fragments": [before, bank.info().fragments]})
