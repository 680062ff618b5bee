"""Greedy tokens inside vLLM are those of `Memory3.generate`: requests that come and go, renewals, cached prefixes, a cache so
small that requests are put off and begin anew, prompts fed in parts, with memories and without.
"""

from __future__ import annotations

import pytest
from inside import ASKED, Inside, said, text


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return Inside(tmp_path_factory.mktemp("inside"), num_gpu_blocks_override=26, max_num_batched_tokens=83)


def test_tokens_are_those_of_generate(inside):
    outputs = inside.run(ASKED, every=3)
    wrong = [n for n, (asked, output) in enumerate(zip(ASKED, outputs, strict=True)) if said(output) != inside.twin(*asked)]
    assert not wrong
    reached = {}
    again = set()
    for step in inside.steps:
        for row in step.rows:
            if row.start < reached.get(row.request, 0):
                again.add(row.request)
            reached[row.request] = row.end
    assert len(again) >= 2, "no request was put off: the cache is too large for this test"
    assert sum(len(set(row.spans)) > 1 for step in inside.steps for row in step.rows) > 3  # several chunks in one portion
    assert max(len(step.rows) for step in inside.steps) > 4


def test_a_cached_prefix_is_read_under_the_same_memories_alone(inside):
    prompt = text(201, 45)
    asked = [(prompt, 31, {"references": ["d1#0"]}), (prompt, 31, {"references": ["d2#0"]}), (prompt, 31, None)]
    first = [inside.run([one])[0] for one in asked]
    assert [one.num_cached_tokens for one in first] == [0, 0, 0]
    second = [inside.run([one])[0] for one in asked]
    assert all(one.num_cached_tokens >= 32 for one in second)
    expected = [inside.twin(*one) for one in asked]
    assert [said(one) for one in first] == expected
    assert [said(one) for one in second] == expected
    assert len(set(map(tuple, expected))) == 3


def test_the_response_says_what_was_read(inside):
    (output,) = inside.run([(text(301, 4), 60, {"k": 2})])
    told = output.kv_transfer_params["memory3"]
    answer = inside.m3.generate(text(301, 4), inside.bank, k=2, max_new_tokens=60, min_new_tokens=60)
    assert {one["id"] for one in told["references"]} == {citation.reference_id for citation in answer.citations}
    assert told["recalls"] == answer.usage.recalls == 4
    assert told["read"] == answer.usage.references
    (plain,) = inside.run([(text(301, 4), 5, None)])
    assert plain.kv_transfer_params is None


def test_the_pool_is_bounded_and_shared(inside):
    pool = inside.connector_of_worker().pool
    before = pool.decoded
    inside.run([(text(400 + n, 5), 2, {"references": ["d7#0"]}) for n in range(5)])
    assert pool.decoded - before <= 1
    for n in range(17):
        inside.run([(text(500 + n, 5), 2, {"references": [f"d{n}#0"]})])
    assert 0 < pool.bytes <= 300_000
    assert pool.decoded - before > 5


def test_what_cannot_be_asked_ends_with_the_reason(inside):
    for memory, reason in (
        ({"bank": "other"}, "not served"),
        ({"k": -1}, "whole number"),
        ({"references": ["nowhere#0"]}, "nowhere#0"),
        ({"colour": 1}, "colour is unknown"),
    ):
        (output,) = inside.run([(text(601, 4), 9, memory)])
        assert reason in output.kv_transfer_params["memory3"]["error"]
        assert len(said(output)) == 1
