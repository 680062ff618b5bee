"""Models in 16 bits. Two engines round in other places, so tokens may differ where two logits are nearly the same, and only
there. Each engine of vLLM has a process of its own here.
"""

from __future__ import annotations

import pytest
import torch
from inside import ASKED, Inside, said
from transformers import LogitsProcessorList

#: Of the largest logit: what both engines' rounding may add up to over five layers.
NEAR = {"bfloat16": 0.02, "float16": 0.003}


class Watch:
    """Keeps the logits of every step; changes nothing."""

    def __init__(self):
        self.steps = []

    def __call__(self, ids, scores):
        self.steps.append(scores[0].float())
        return scores


@pytest.mark.parametrize("dtype", NEAR)
def test_tokens_differ_at_near_ties_alone(tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    inside = Inside(tmp_path, dtype, max_num_batched_tokens=83)
    asked = ASKED[:13]
    try:
        outputs = inside.run(asked, every=3)
    finally:
        inside.llm.llm_engine.engine_core.shutdown()
    compared = equal = 0
    for one, output in zip(asked, outputs, strict=True):
        watch = Watch()
        twin, mine = inside.twin(*one, logits_processor=LogitsProcessorList([watch])), said(output)
        at = next((n for n, (a, b) in enumerate(zip(twin, mine, strict=True)) if a != b), len(twin))
        equal += at
        compared += min(at + 1, len(twin))
        if at < len(twin):
            logits = watch.steps[at]
            assert float(logits[twin[at]] - logits[mine[at]]) <= NEAR[dtype] * float(logits.abs().max()), (one, at)
    assert inside.m3.model.dtype == getattr(torch, dtype)
    assert equal > 150
    assert equal >= 0.9 * compared  # of a random model many logits are nearly the same
