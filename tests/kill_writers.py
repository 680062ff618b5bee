"""A write with several workers, killed at random moments: a worker, the process that commits, or both at once; begun again
until it is done. What is in the bank then is compared with what one process wrote that nobody disturbed.

    python tests/kill_writers.py 100
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

import bank_process
import pyarrow as pa
from bank_writer import open_bank
from shard_worker import Nursery

from memory3.bank.write import pace
from memory3.errors import WorkerLost

#: Of a worker for each reference, so that there is time to be killed.
_SECONDS = 0.002


def rows_of(bank: Any) -> pa.Table:
    """Every column of every row, codes and checksums among them, in order of the ids."""
    bank.refresh()
    return bank._snapshot.table.to_arrow().sort_by("reference_id").combine_chunks()


def write(path: Path, told: Connection) -> None:
    """Tells the pid of each worker, of every document and shard, and how it ended."""
    nursery, lock = Nursery(), Lock()
    bank_process.small_commits()

    def tell(what: Any) -> None:
        with lock:
            told.send(what)

    with open_bank(path) as bank, nursery.pool(path, 2, told=tell, first={"delay": _SECONDS}) as pool:
        try:
            bank.write(bank_process.second_version(), prune=True, pool=pool, progress=lambda _: tell(True))
        except WorkerLost:
            tell("lost")
        else:
            tell("done")


class Writing:
    """The process that commits, and its workers."""

    def __init__(self, context: Any, path: Path) -> None:
        self._told, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=write, args=(path, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.workers: list[int] = []

    def steps(self, number: int) -> str:
        """Wait for so many steps. How it ended; "" where it goes on."""
        while number > 0:
            try:
                what = self._told.recv()
            except EOFError:
                return "died"
            if isinstance(what, str):
                self.process.join()
                return what
            if isinstance(what, bool):
                number -= 1
            else:
                self.workers.append(what)
        return ""

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        end = time.monotonic() + 20
        while any(map(_is_alive, self.workers)):  # they end by themselves, as nobody waits for them any more
            assert time.monotonic() < end, "a worker outlived the write"
            time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run(folder: Path, moments: int, seed: int = 0) -> Counter[str]:
    """Kill so many times or some more. What happened, by name; AssertionError where a bank is not as it should be.

    Args:
        folder: where banks are made.
        moments: kills.
        seed: of the moments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kill_writers", "lancedb"])
    chance, counts = random.Random(seed), Counter()
    most, pace.COMMIT_REFERENCES = pace.COMMIT_REFERENCES, 6
    try:
        with open_bank(folder / "first") as bank:
            bank.write(bank_process.first_version())
        shutil.copytree(folder / "first", folder / "quiet")
        with open_bank(folder / "quiet") as bank:
            bank.write(bank_process.second_version(), prune=True)
            quiet = rows_of(bank)
    finally:
        pace.COMMIT_REFERENCES = most
    while counts["kills"] < moments:
        path = folder / f"bank{counts['banks']}"
        shutil.copytree(folder / "first", path)
        _write_through(context, path, chance, counts)
        with open_bank(path) as bank:
            assert rows_of(bank).equals(quiet)
            assert bank.verify().ok
        assert sorted(os.listdir(path)) == ["CURRENT", "references-1.lance", "writer.lock"]
        assert not path.with_name(f"{path.name}.spool").exists()
        counts["banks"] += 1
        counts["rows"] += len(quiet)
        shutil.rmtree(path)
    return counts


def _write_through(context: Any, path: Path, chance: random.Random, counts: Counter[str]) -> None:
    """One write, until it is done."""
    writing = Writing(context, path)
    while True:
        ended = writing.steps(chance.randrange(35))  # a whole write has about 50
        assert ended != "died"
        if ended == "done":
            return
        if ended == "lost":
            counts["given up"] += 1
            writing = Writing(context, path)
            continue
        time.sleep(chance.uniform(0, 0.02))
        victims = chance.choice(["worker", "worker", "committer", "both"])
        counts["kills"] += 1
        counts[victims] += 1
        if victims != "committer":
            alive = [pid for pid in writing.workers if _is_alive(pid)]
            for pid in alive if victims == "both" else alive[:1]:
                os.kill(pid, signal.SIGKILL)
        if victims != "worker":
            counts["shards kept"] += len(list(path.with_name(f"{path.name}.spool").glob("*.arrow")))
            writing.kill()
            with open_bank(path) as bank:
                assert bank.verify().problems == ()
            writing = Writing(context, path)


def main() -> None:
    moments = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), moments, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(dict(counts), f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
