"""Workers that are actors of Ray: the same plan, the same spool and the same committer, on the machines of a cluster.

An actor holds the model and gets a shard as text; what it encoded comes back as bytes and is put into the spool here. Ray
Data is not used: it may read its input again after a failure and gives no name to what it read, while our shards have an id
each, are kept one by one until their commit, and come back in order. Nor are placement, restarts or retries of Ray's: the
pool has its own, which are the same without Ray.

Ray sends classes and their arguments with pickle, within the cluster. Ours are text and bytes.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from memory3.bank import EncodedShard, MemoryWriter, Shard, TextEmbedder, encode_shard
from memory3.cluster.failures import same_everywhere
from memory3.cluster.pool import SHARD_REFERENCES, ShardPool
from memory3.cluster.process import PATIENCE_SECONDS
from memory3.cluster.recipe import Recipe
from memory3.cluster.spool import Spool
from memory3.codec import Codebook
from memory3.errors import ConfigError, Memory3Error, MissingDependency, WorkerLost, setting

__all__ = ["RayWorker", "encoded_bytes", "ray_pool", "require_ray"]


def require_ray() -> Any:
    """The module. MissingDependency: it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(str(error.name or "ray"), "ray", "writing on a cluster") from None
    return ray


class _Encoder:
    """The actor."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._m3, self._embedder_of = Recipe.of(recipe).load()
        self._books: dict[str, Codebook] = {}

    def encode(self, shard: str, code_book: bytes | None) -> bytes:
        return encoded_bytes(self._m3, self._embedder_of, shard, code_book, self._books)


def encoded_bytes(
    m3: MemoryWriter,
    embedder_of: Callable[[str], TextEmbedder],
    shard: str,
    code_book: bytes | None,
    books: dict[str, Codebook],
) -> bytes:
    """An encoded shard as bytes; or the class of an error that another actor would meet, too, a zero byte and its message.

    Args:
        m3: the model.
        embedder_of: loads an embedder by name.
        shard: as JSON.
        code_book: the bank's, if its codec needs one.
        books: those that were read before, by fingerprint.
    """
    try:
        planned = Shard.from_json(shard)
        manifest = planned.manifest
        manifest.require(m3)
        if code_book is not None and manifest.code_book not in books:
            books[manifest.code_book] = Codebook.of(code_book, "what came from the head")
        book, embedder = books.get(manifest.code_book), embedder_of(manifest.embedder)
        return encode_shard(m3, planned, embedder=embedder, code_book=book).to_bytes()
    except Memory3Error as error:
        return f"{type(error).__name__}\0{error}".encode()


class RayWorker:
    """An actor, as `memory3.cluster.pool.Worker` asks for it."""

    def __init__(self, ray: Any, actor: Any, spool: Spool, patience: float = PATIENCE_SECONDS) -> None:
        """
        Args:
            ray: the module.
            actor: of `_Encoder`.
            spool: where what comes back is left.
            patience: seconds that one shard may take.
        """
        self._ray, self._actor, self._spool, self._patience = ray, actor, spool, patience
        self._sent: tuple[str, Any] = ("", None)

    def encode(self, shard: Shard, code_book: Codebook | None) -> None:
        """Have a shard encoded there, and put it into the spool here.

        Args:
            shard: to encode.
            code_book: of the bank, if its codec needs one. It is put into Ray's store once.
        """
        ray = self._ray
        try:
            if code_book is not None and self._sent[0] != code_book.fingerprint:
                self._sent = (code_book.fingerprint, ray.put(code_book.data))
            coming = self._actor.encode.remote(shard.to_json(), self._sent[1] if code_book is not None else None)
            data = ray.get(coming, timeout=self._patience)
        except ray.exceptions.GetTimeoutError:
            raise WorkerLost(f"an actor encoded nothing for {self._patience:.0f} s") from None
        except ray.exceptions.RayError as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise WorkerLost(f"an actor ended or failed: {text[:300]}") from error
        name, zero, message = data[:4096].partition(b"\0")
        if zero and name.isalpha():
            raise same_everywhere(name.decode(), data[len(name) + 1 :].decode("utf-8", "replace")) or WorkerLost(
                f"an actor failed ({name.decode()}: {message[:200].decode('utf-8', 'replace')})"
            )
        self._spool.keep(EncodedShard.from_bytes(data))

    def stop(self) -> None:
        """End the actor at once; who waits for it gets WorkerLost."""
        with suppress(Exception):  # Ray itself may be gone
            self._ray.kill(self._actor)


@contextmanager
def ray_pool(
    spool: Spool, recipe: Recipe, address: str, workers: int | None = None, *, shard_references: int = SHARD_REFERENCES
) -> Iterator[ShardPool]:
    """A pool of actors, for as long as the block runs. This process is the driver: what it writes stays on its machine.

    Args:
        spool: of the bank, on this machine.
        recipe: what each actor loads, by a name that every machine knows.
        address: ``"local"``: a new cluster on this machine; ``"auto"``: the one that runs here; else ``host:port`` or
            ``ray://host:port``.
        workers: actors; None: one for each GPU, or where there is none for each core.
        shard_references: see `ShardPool`.

    Raises:
        MissingDependency: Ray is not installed.
        ConfigError: no cluster is at that address, or it has fewer cores than workers.
    """
    if address == "local":  # before Ray is imported: it would tell its makers of this cluster
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require_ray()
    try:
        with warnings.catch_warnings():
            # Ray forks to start its own programs at once, which is no harm to lancedb.
            warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address == "local" else None,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no cluster of Ray at {address!r} ({str(error).splitlines()[0][:200]}): start one with `ray start --head`, or "
            "give local"
        ) from error
    try:
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if recipe.device in (None, "cuda") else 0
        cores = max(1, int(there.get("CPU", 1)))
        number = workers or gpus or cores
        if not gpus and number > cores:
            raise ConfigError(f"the cluster has {cores} cores, a worker takes one: give {setting('workers', cores)} or fewer")
        needs = {"num_gpus": min(1.0, gpus / number), "num_cpus": 0} if gpus else {"num_cpus": 1}
        actor = ray.remote(**needs, max_restarts=0, max_task_retries=0)(_Encoder)
        with ShardPool(
            spool,
            lambda: RayWorker(ray, actor.remote(recipe.to_dict()), spool),
            number,
            shard_references=shard_references,
        ) as pool:
            yield pool
    finally:
        ray.shutdown()
