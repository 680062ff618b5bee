"""Tensor parallelism: two workers in processes of their own, each with its own KV heads of the model and of its memories."""

from __future__ import annotations

import pytest
from inside import ASKED, Inside, said


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return Inside(tmp_path_factory.mktemp("two"), shares=True, tensor_parallel_size=2, max_num_batched_tokens=83)


def heads_laid_out(worker):
    """Runs in a worker: its KV heads, and the heads of the keys of every lane that rows have sat in."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    layouts = get_kv_transfer_group()._layouts
    mine = layouts._heads
    lanes = layouts.seats._lanes._lanes.values()
    return (mine.start, mine.stop), {keys.shape[1] for lane in lanes for keys in lane._keys}


def test_tokens_and_attention_are_those_of_generate(inside):
    asked = ASKED[:9]
    outputs = inside.run(asked, every=3)
    for n, (one, output) in enumerate(zip(asked, outputs, strict=True)):
        answer = inside.answer(*one)
        assert said(output) == answer.token_ids, n
        mass = {}
        for worker in inside.paid.get(n, ()):
            for at, paid in worker.items():
                if at >= len(output.prompt_token_ids) - 1:  # the token that chooses the answer's first
                    mass |= {name: mass.get(name, 0.0) + value for name, value in paid.items()}
        shares = {name: value / sum(mass.values()) for name, value in mass.items()}
        assert shares == pytest.approx({one.reference_id: one.share for one in answer.citations}, abs=1e-3), n
    assert all(all(workers) and len(workers) == 2 for workers in inside.paid.values())
    assert inside.llm.collective_rpc(heads_laid_out) == [((0, 1), {1}), ((1, 2), {1})]
