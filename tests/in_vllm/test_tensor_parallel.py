"""Tensor parallelism: two workers in processes of their own, each with its own KV heads of the model and of its memories."""

from __future__ import annotations

import pytest
from inside import ASKED, Inside, said


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return Inside(tmp_path_factory.mktemp("two"), tensor_parallel_size=2, max_num_batched_tokens=83)


def heads_laid_out(worker):
    """Runs in a worker: its KV heads, and the heads of the keys of every lane that rows have sat in."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    layouts = get_kv_transfer_group()._layouts
    mine = layouts._heads
    lanes = layouts.seats._lanes._lanes.values()
    return (mine.start, mine.stop), {keys.shape[1] for lane in lanes for keys in lane._keys}


def test_tokens_are_those_of_generate(inside):
    asked = ASKED[:9]
    outputs = inside.run(asked, every=3)
    wrong = [n for n, (one, output) in enumerate(zip(asked, outputs, strict=True)) if said(output) != inside.twin(*one)]
    assert not wrong
    assert inside.llm.collective_rpc(heads_laid_out) == [((0, 1), {1}), ((1, 2), {1})]
