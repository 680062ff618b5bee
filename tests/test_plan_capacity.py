"""Machine profiles and what a corpus takes on one, against numbers worked out by hand; measuring, with a tiny shape."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hand_costs import ODD

from memory3.config import Budget, MemoryConfig
from memory3.errors import ConfigError, InputError, UnsupportedModel
from memory3.models.sizes import SHAPES
from memory3.planner import capacity
from memory3.planner.capacity import CorpusSize, plan
from memory3.planner.cost import Setting, implicit
from memory3.planner.library import EMBEDDERS, Search, library_costs
from memory3.planner.machine import MACHINES, Machine, machine_of
from memory3.planner.measure import measure
from memory3.planner.storage import library_bytes

TIMED = dataclasses.replace(ODD, head_dim=8, hidden=12)
CONFIG = MemoryConfig(
    codec="raw", layers=(0, 2), budget=Budget("uniform", 3), selector="attention", reference_length=5, chunk_length=8
)
MACHINE = Machine(
    "odd", flops=1e9, memory_bandwidth=1e8, disk_bandwidth=1e7, disk_latency=2e-3, layer_seconds=3e-4, number_bytes=4,
    ram=1e6, disk=1e7, price=7.0, disk_price=11.0,
)  # fmt: skip


def made(references=1000, config=CONFIG, machine=MACHINE, **options):
    return plan(CorpusSize(references), ODD, config, machine, **options)


def test_writing_by_hand():
    costs, each = library_costs(ODD, CONFIG, references=1000), library_bytes(ODD, CONFIG)
    seconds = costs.explicit.write_flops / 1e9 + 3 * 3e-4 / 16 + each.disk / 1e7
    assert made().references_per_second == pytest.approx(1 / seconds)
    assert made().write_hours == pytest.approx(1000 * seconds / 3600)
    assert made().price == pytest.approx(7 * made().write_hours)
    assert made().disk == pytest.approx(1000 * each.disk)
    assert made().disk_price == pytest.approx(11 * 1000 * each.disk / 1e12)


def test_a_recall_by_hand():
    recall, record = made().recall, 2 * 4 + 2 * 12 + 12 * 2 * 7 * 2
    embedder = EMBEDDERS["all-minilm-l6-v2"]
    assert recall.embed == pytest.approx(embedder.flops(8) / 1e9 + 6 * 3e-4 + capacity.EMBED_SECONDS)
    assert recall.search == pytest.approx(1000 * 384 * 4 / 1e7)  # 1.5 MB do not fit into the RAM of 1 MB
    assert recall.read == pytest.approx(capacity.LANCE_SECONDS + 5 * (2e-3 + record / 1e7))
    assert recall.seconds == recall.embed + recall.search + recall.read + recall.unpack
    assert made().recall_bytes == 5 * record


def test_tokens_per_second_by_hand():
    weights = 3 * (1232 + 429) + 17 * 11
    plain = weights * 4 / 1e8 + (3 + capacity.STEP_CALLS) * 3e-4
    reading = plain + 5 * 12 * 2 * 7 * 4 / 1e8 + capacity.EXTRA_CALLS * 2 * 3e-4
    assert made().plain_tokens_per_second == pytest.approx(1 / plain)
    assert made().tokens_per_second == pytest.approx(1 / (reading + made().recall.seconds / 8))
    assert 0 < made().lost < 1


def test_text_and_weights_by_hand():
    costs, each = library_costs(ODD, CONFIG), library_bytes(ODD, CONFIG)
    assert made().text_disk == pytest.approx(1000 * each.text_only)
    assert made().training_hours == pytest.approx(1000 * implicit(ODD, Setting(5, 1, 8)).write_flops / 1e9 / 3600)
    passages = 5 * sum(term.flops for term in costs.external.read if "query" not in term.name and term.name != "search") / 1e9
    rest = made().recall.embed + made().recall.search + capacity.LANCE_SECONDS
    assert made().text_first_token == pytest.approx(passages + rest)


def test_as_many_machines_as_the_tightest_need():
    assert made(1).machines == 1
    disk = made(10**6).disk / 1e7
    assert made(10**6, within_hours=1e9).machines == math.ceil(max(disk, Search(10**6, 384).ram / 1e6))
    hours = made(10**6).write_hours
    assert made(10**6, within_hours=hours / 10**5).machines == 10**5


def test_more_of_anything_takes_no_less():
    sizes = [made(10**power) for power in range(4, 10)]
    for smaller, larger in itertools.pairwise(sizes):
        assert smaller.disk < larger.disk
        assert smaller.write_hours < larger.write_hours
        assert smaller.machines <= larger.machines
    faster = dataclasses.replace(MACHINE, flops=1e10)
    assert made(machine=faster).references_per_second > made().references_per_second


def test_a_codec_makes_disk_smaller_and_writing_slower():
    disk = dataclasses.replace(MACHINE, disk_bandwidth=1e15)  # what is saved there does not hide the encoding
    raw, coded = (
        plan(CorpusSize(1000), SHAPES["smollm2-135m-instruct"], MemoryConfig(codec=codec), disk)
        for codec in ("raw", "product")
    )
    assert coded.disk < raw.disk / 8
    assert coded.references_per_second < raw.references_per_second
    assert coded.recall.read < raw.recall.read


def test_without_references_nothing_is_lost_but_the_looking():
    none = made(config=CONFIG.replace(references_per_chunk=0))
    assert none.recall_bytes == 0
    assert none.tokens_per_second < none.plain_tokens_per_second


@pytest.mark.parametrize("name", MACHINES)
def test_built_in_machines_plan_every_size(name):
    for references in (10**4, 10**9):
        each = plan(CorpusSize(references), SHAPES["memory3-2.4b"], MemoryConfig(), machine_of(name))
        assert all(math.isfinite(value) for value in dataclasses.asdict(each).values() if isinstance(value, float))


def test_measuring_this_machine_leaves_nothing_behind(tmp_path):
    told = []
    machine = measure(TIMED, 9, batch=2, repeats=1, folder=tmp_path, tell=told.append)
    assert machine.flops > 0
    assert machine.disk_bandwidth > 0
    assert told == ["writing", "decoding", "the disk"]
    assert list(tmp_path.iterdir()) == []


def test_a_shape_that_cannot_be_built():
    with pytest.raises(UnsupportedModel, match="no multiple of 6 heads"):
        measure(ODD, 9)


def test_a_disk_that_cannot_be_measured(tmp_path):
    with pytest.raises(InputError, match="cannot be measured"):
        measure(TIMED, 9, batch=2, repeats=1, folder=tmp_path / "no")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: machine_of("h1000"), "'h1000' is unknown: use one of h100"),
        (lambda: dataclasses.replace(MACHINE, disk_bandwidth=0), "disk_bandwidth is 0"),
        (lambda: dataclasses.replace(MACHINE, memory_bandwidth=0.0), "memory_bandwidth is 0.0: give a number of more than 0"),
        (lambda: dataclasses.replace(MACHINE, flops=-1.0), "flops is -1.0"),
        (lambda: dataclasses.replace(MACHINE, flops=math.inf), "flops is inf"),
        (lambda: dataclasses.replace(MACHINE, price=-1.0), "price is -1.0: give a number of 0 or more"),
        (lambda: CorpusSize(0), "0 references"),
        (lambda: CorpusSize(-5), "-5 references"),
        (lambda: made(within_hours=0.0), "within 0.0 hours"),
        (lambda: made(embedder="ada"), "'ada' is unknown"),
        (lambda: made(config=CONFIG.replace(codec="product:RQ3x4")), "'product:RQ3x4' is unknown to the planner"),
    ],
)
def test_nonsense_is_refused_with_the_reason(wrong, said):
    with pytest.raises(ConfigError, match=said):
        wrong()
