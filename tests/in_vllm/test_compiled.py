"""`torch.compile`: what lies between attention layers is compiled, attention itself is an operation of vLLM's and stays."""

from __future__ import annotations

import pytest
from inside import ASKED, Inside, said
from torch._dynamo.utils import counters


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return Inside(tmp_path_factory.mktemp("compiled"), enforce_eager=False, max_num_batched_tokens=83)


def test_tokens_are_those_of_generate(inside):
    asked = ASKED[:9]
    outputs = inside.run(asked, every=3)
    wrong = [n for n, (one, output) in enumerate(zip(asked, outputs, strict=True)) if said(output) != inside.twin(*one)]
    assert not wrong
    assert inside.engine.vllm_config.compilation_config.mode.name == "DYNAMO_TRACE_ONCE"
    assert counters["stats"]["unique_graphs"] == 1  # one for all numbers of rows and tokens
