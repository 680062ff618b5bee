"""Writing on Ray: the rows of one quiet process. Where Ray is not installed (`memory3[ray]`), nothing is tested."""

from __future__ import annotations

import os

import pytest
from bank_writer import HashingEmbedder, HashingWriter, documents, open_bank
from kill_writers import rows_of

from memory3.cluster.on_ray import RayWorker, ray_pool
from memory3.cluster.pool import ShardPool
from memory3.cluster.recipe import Recipe
from memory3.cluster.spool import Spool
from memory3.errors import ConfigError

ray = pytest.importorskip("ray", reason="memory3[ray] is not installed")


class Encoder:
    """The actor of `memory3.cluster.on_ray`, with the stand-ins. Those whose number is given die at their first shard."""

    def __init__(self, name: str, dies: bool) -> None:
        self.name, self.dies = name, dies

    def encode(self, shard: str, code_book: bytes | None) -> bytes:
        from memory3.cluster.on_ray import encoded_bytes

        if self.dies:
            os._exit(1)
        return encoded_bytes(HashingWriter(name=self.name), lambda name: HashingEmbedder(), shard, code_book, {})


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", "") + os.pathsep + os.path.dirname(__file__))
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
        yield ray.remote(num_cpus=1, max_restarts=0)(Encoder)
        ray.shutdown()


def pool_of(cluster, spool, dying=0, name="hashing"):
    started = []

    def start():
        started.append(name)
        return RayWorker(ray, cluster.remote(name, len(started) <= dying), spool)

    return ShardPool(spool, start, 1, shard_references=6)


def test_where_no_cluster_is(tmp_path):
    with pytest.raises(ConfigError, match="no cluster of Ray"), ray_pool(Spool(tmp_path), Recipe("m", "{}"), "nowhere"):
        pytest.fail("there is one")


def test_more_workers_than_cores_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **options: None)  # an actor without a core would be waited for without end
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    with (
        pytest.raises(ConfigError, match=r"has 3 cores.*workers=3 or fewer"),
        ray_pool(Spool(tmp_path), Recipe("m", "{}"), "auto", 5),
    ):
        pytest.fail("it has")


def test_the_same_rows_also_where_an_actor_dies(tmp_path, cluster):
    with open_bank(tmp_path / "one") as one, open_bank(tmp_path / "many") as many:
        one.write(documents())
        with pool_of(cluster, Spool.beside(tmp_path / "many"), dying=1) as pool:
            many.write(documents(), pool=pool)
        assert pool.lost == 1
        assert rows_of(many).equals(rows_of(one))


def test_an_actor_with_another_model_is_refused(tmp_path, cluster):
    with (
        open_bank(tmp_path / "bank") as bank,
        pool_of(cluster, Spool.beside(tmp_path / "bank"), name="other") as pool,
        pytest.raises(ConfigError, match="holds another model"),
    ):
        bank.write(documents(3), pool=pool)
