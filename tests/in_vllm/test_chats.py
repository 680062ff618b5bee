"""The tests of `memory3 serve`'s chats, completions and responses with OpenAI's own client, over vLLM's engine: the same
answers, and the same citations with the same shares of attention.
"""

from __future__ import annotations

from functools import partial

import openai
import pytest
import served
from chat_surface import *  # noqa: F403 (pytest runs its tests with the server of this file)
from chat_surface import QUESTION, TURNS, ask, compare_answer, compare_stream

from memory3.vllm.engine import VllmEngine


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    small = {"max_num_batched_tokens": 64, "block_size": 32}
    engine_of = partial(VllmEngine, folder=folder / "model", cache_bytes=64 << 20, settings=small)
    with served.server(folder, m3=served.tiny_memory3(head_dim=32), engine_of=engine_of) as running:
        yield running


@pytest.mark.parametrize("mode", ["memory", "text", "none"])
@pytest.mark.parametrize("messages", [QUESTION, TURNS])
def test_an_answer_is_that_of_the_library(server, client, mode, messages):
    choice, expected = compare_answer(server, client, messages, mode)
    about = choice.model_extra["memory3"]
    assert choice.message.content == expected.text.strip()
    assert [one["reference_id"] for one in about["citations"]] == [one.reference_id for one in expected.citations]
    assert [one["share"] for one in about["citations"]] == pytest.approx([one.share for one in expected.citations], abs=0.01)
    assert about["bytes_read"] == expected.usage.bytes_read
    if mode == "memory":
        assert about["shares"] == "attention"


@pytest.mark.parametrize("options", [{}, {"stop": ["a", "e"]}])
def test_a_stream_says_what_the_whole_answer_says(client, options):
    compare_stream(client, **options)


def test_several_choices_differ_when_they_are_drawn(client):
    choices = ask(client, n=3, temperature=1.5).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) == 3


def test_answers_are_greedy_unless_chance_is_asked_for(client):
    greedy = {
        ask(client, **options).choices[0].message.content for options in ({}, {"seed": 3}, {"temperature": 0, "seed": 5})
    }
    assert len(greedy) == 1
    assert len({ask(client, top_p=0.99).choices[0].message.content for _ in range(5)}) > 1


@pytest.mark.parametrize("options", [{"temperature": 1.5}, {"n": 3, "temperature": 1.5}, {"top_p": 0.9}])
def test_a_seed_is_refused_where_chance_decides(client, options):
    """vLLM's engine would end on a CPU, with all requests."""
    with pytest.raises(openai.BadRequestError, match="seed"):
        ask(client, seed=7, **options)
    assert ask(client).choices
