"""The tests of `memory3 serve`'s chats, completions and responses with OpenAI's own client, over vLLM's engine. What differs
there is tested here: the shares of citations are by the scores of retrieval.
"""

from __future__ import annotations

from functools import partial

import pytest
import served
from test_serving_chat import (  # noqa: F401 (pytest runs them with the server of this file)
    QUESTION,
    TURNS,
    alone,
    ask,
    client,
    test_a_citation_leads_to_its_passage,
    test_a_message_of_an_answer_can_be_sent_back,
    test_a_prompt_that_is_too_long_is_refused_before_a_stream_begins,
    test_a_response_that_ends_by_itself_is_complete,
    test_a_stop_text_ends_the_answer_and_is_no_part_of_it,
    test_a_stream_says_what_the_whole_answer_says,
    test_answers_are_greedy_unless_chance_is_asked_for,
    test_citations_are_annotations_with_their_stretch_of_the_answer,
    test_completions_go_on_with_a_text_as_it_stands,
    test_length_is_bounded_by_either_name,
    test_logprobs_of_a_completion,
    test_responses,
    test_several_choices_differ_when_they_are_drawn,
    test_the_events_of_a_response_come_in_the_official_order,
    test_what_cannot_be_done_is_a_400_that_names_the_field,
    test_what_changes_nothing_is_taken,
    test_what_is_read_can_be_chosen_in_the_body_and_in_the_address,
    test_without_include_usage_no_chunk_has_any,
)

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
def test_an_answer_is_that_of_the_library(server, client, mode, messages):  # noqa: F811
    answer = ask(client, messages, extra_body={"memory3": {"mode": mode}})
    expected = alone(server, messages, mode)
    (choice,) = answer.choices
    assert choice.message.content == expected.text.strip()
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.answer_tokens
    about = choice.model_extra["memory3"]
    assert {one["reference_id"] for one in about["citations"]} == {one.reference_id for one in expected.citations}
    assert about["bytes_read"] == expected.usage.bytes_read
    if mode == "memory":
        assert about["shares"] == "retrieval"
        assert sum(one["share"] for one in about["citations"]) == pytest.approx(1, abs=0.01)
