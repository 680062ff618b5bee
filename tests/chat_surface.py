"""Tests of what OpenAI's own client gets from a server, whatever engine it has. A file that wants them has a fixture
``server``, and takes all of this module.
"""

from __future__ import annotations

import itertools
import json

import openai
import pytest

__all__ = [
    "client",
    "test_a_citation_leads_to_its_passage",
    "test_a_message_of_an_answer_can_be_sent_back",
    "test_a_prompt_that_is_too_long_is_refused_before_a_stream_begins",
    "test_a_response_that_ends_by_itself_is_complete",
    "test_a_stop_text_ends_the_answer_and_is_no_part_of_it",
    "test_a_stream_says_what_the_whole_answer_says",
    "test_answers_are_greedy_unless_chance_is_asked_for",
    "test_citations_are_annotations_with_their_stretch_of_the_answer",
    "test_completions_go_on_with_a_text_as_it_stands",
    "test_length_is_bounded_by_either_name",
    "test_logprobs_of_a_completion",
    "test_responses",
    "test_several_choices_differ_when_they_are_drawn",
    "test_the_events_of_a_response_come_in_the_official_order",
    "test_what_cannot_be_done_is_a_400_that_names_the_field",
    "test_what_changes_nothing_is_taken",
    "test_what_is_read_can_be_chosen_in_the_body_and_in_the_address",
    "test_without_include_usage_no_chunk_has_any",
]


QUESTION = [{"role": "user", "content": "Who built the bridge, and when?"}]


TURNS = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Where does the river rise?"},
    {"role": "assistant", "content": "Mountains."},
    {"role": "user", "content": "And where does it end?"},
]


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def ask(client, messages=QUESTION, model="tiny@docs", **options):
    return client.chat.completions.create(model=model, messages=messages, **{"max_tokens": 40, **options})


def alone(server, prompt, mode="memory", length=40, **options):
    """What the library answers to the same."""
    bank = server.state.banks.get("docs", server.state.keys.tenant(None)).bank if mode != "none" else None
    return server.state.m3.generate(prompt, bank=bank, mode=mode, max_new_tokens=length, **options)


@pytest.mark.parametrize("mode", ["memory", "text"])
def test_citations_are_annotations_with_their_stretch_of_the_answer(server, client, mode):
    (choice,) = ask(client, extra_body={"memory3": {"mode": mode, "k": 2}}, max_tokens=64).choices
    text, annotations = choice.message.content, choice.message.annotations
    assert annotations
    for one in annotations:
        assert one.type == "url_citation"
        where = one.url_citation
        assert 0 <= where.start_index < where.end_index <= len(text)
        assert text[where.start_index : where.end_index].strip()
        assert where.title
        assert where.model_extra["content"]
        assert where.url.startswith((f"{server.address}/v1/passages?bank=docs&id=", "https://example.org/river"))
    if mode == "memory":
        stretches = sorted({(one.url_citation.start_index, one.url_citation.end_index) for one in annotations})
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(stretches))


def test_a_citation_leads_to_its_passage(server, client):
    found = {}
    for question in ("Who built the bridge?", "Where does the river rise in the mountains?", "Memories are keys and values"):
        for one in ask(client, [{"role": "user", "content": question}]).choices[0].message.annotations:
            found[one.url_citation.model_extra["document_id"]] = one.url_citation
    assert found["river"].url == "https://example.org/river"
    assert found["town"].title == "The town"
    with server.http() as http:
        passage = http.get(found["bridge"].url).json()
        assert passage["text"] == found["bridge"].model_extra["content"]
        assert passage["source"] == "guide/bridge.md"
        assert http.get("/v1/passages", params={"bank": "docs", "id": "nix#1"}).status_code == 404
        assert http.get("/v1/passages", params={"bank": "nix", "id": "bridge#0"}).status_code == 404


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}, {"stop": ["a", "e"]}])
def test_a_stream_says_what_the_whole_answer_says(client, options):
    compare_stream(client, **options)


def compare_answer(server, client, messages, mode):
    """An answer beside that of the library alone.

    Returns:
        the choice, and the library's answer.
    """
    answer = ask(client, messages, extra_body={"memory3": {"mode": mode}})
    expected = alone(server, messages, mode)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        expected.usage.prompt_tokens,
        expected.usage.answer_tokens,
    )
    about = choice.model_extra["memory3"]
    assert about["mode"] == mode
    assert about["bytes_read"] == expected.usage.bytes_read
    return choice, expected


def compare_stream(client, **options):
    """A streamed answer against the same one whole."""
    whole = ask(client, **options)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **options))
    *parts, last = chunks
    deltas = [chunk.choices[0].delta for chunk in parts]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    annotations = [one for delta in deltas for one in (delta.model_extra or {}).get("annotations", [])]
    assert annotations == [one.model_dump() for one in whole.choices[0].message.annotations]
    assert [chunk.choices[0].finish_reason for chunk in parts if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in parts)
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_has_any(client):
    chunks = list(ask(client, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_several_choices_differ_when_they_are_drawn(client):
    first, again = (ask(client, n=3, temperature=1.5, seed=7) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    alone = ask(client, temperature=1.5, seed=8).choices[0].message.content
    assert alone == texts[1]
    assert first.usage.completion_tokens > ask(client, max_tokens=1).usage.completion_tokens
    streamed = ["", "", ""]
    for chunk in ask(client, n=3, temperature=1.5, seed=7, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_answers_are_greedy_unless_chance_is_asked_for(client):
    greedy = {ask(client, **options).choices[0].message.content for options in ({}, {"temperature": 0}, {"top_p": 1.0})}
    assert len(greedy) == 1
    drawn = {ask(client, top_p=0.99, seed=seed).choices[0].message.content for seed in range(4)}
    assert len(drawn) > 1


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(client):
    text = ask(client).choices[0].message.content
    stop = text[8:10]
    answer = ask(client, stop=stop).choices[0]
    assert answer.message.content == text[: text.index(stop)].rstrip()
    assert answer.finish_reason == "stop"


def test_length_is_bounded_by_either_name(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="tiny", messages=QUESTION, **{name: 3})
        assert answer.usage.completion_tokens == 3
        assert answer.choices[0].finish_reason == "length"


def test_what_is_read_can_be_chosen_in_the_body_and_in_the_address(client):
    def read(**options):
        about = ask(client, **options).choices[0].model_extra["memory3"]
        return {one["document_id"] for one in about["citations"]}, len(about["citations"]), about["mode"]

    assert read(extra_body={"memory3": {"where": {"year": 1874}}})[0] == {"town"}
    assert read(extra_body={"memory3": {"k": 1, "mode": "text"}})[1:] == (1, "text")
    assert read(extra_query={"k": 1, "mode": "text"})[1:] == (1, "text")
    assert read(extra_query={"mode": "none"}) == (set(), 0, "none")
    # The body wins.
    assert read(extra_query={"mode": "none"}, extra_body={"memory3": {"mode": "memory"}})[2] == "memory"
    nothing = ask(client, extra_body={"memory3": {"where": {"year": 1}}}).choices[0].model_extra["memory3"]
    assert nothing["citations"] == []
    assert "year" in nothing["note"]


def test_completions_go_on_with_a_text_as_it_stands(server, client):
    prompt = "The river rises"
    ids = server.state.m3.tokenizer(prompt)["input_ids"]
    answer = client.completions.create(model="tiny@docs", prompt=prompt, max_tokens=20)
    by_ids = client.completions.create(model="tiny@docs", prompt=ids, max_tokens=20)
    assert answer.choices[0].text == by_ids.choices[0].text
    assert answer.usage.prompt_tokens == len(ids)
    both = client.completions.create(model="tiny@docs", prompt=[prompt, "The bridge"], max_tokens=20, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == answer.choices[0].text
    streamed = ["", ""]
    for chunk in client.completions.create(model="tiny@docs", prompt=[prompt, "The bridge"], max_tokens=20, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [both.choices[0].text, both.choices[2].text]


def test_logprobs_of_a_completion(client):
    answer = client.completions.create(model="tiny", prompt="The river", max_tokens=6, logprobs=2)
    told = answer.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 6
    assert all(max(likely.values()) == chosen for likely, chosen in zip(told.top_logprobs, told.token_logprobs, strict=True))


def test_responses(server, client):
    answer = client.responses.create(
        model="tiny@docs", input="Who built the bridge?", instructions="Answer in one word.", max_output_tokens=40
    )
    turns = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Who built the bridge?"}]
    expected = alone(server, turns)
    assert answer.output_text == expected.text
    assert answer.usage.input_tokens == expected.usage.prompt_tokens
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (part,) = answer.output[0].content
    assert part.annotations
    for one in part.annotations:
        assert one.type == "file_citation"
        assert one.file_id == one.model_extra["document_id"]
        assert 0 < one.index <= len(answer.output_text)
    # What came can be sent back.
    again = client.responses.create(
        model="tiny@docs",
        input=[{"role": "user", "content": "Who?"}, *answer.output, {"role": "user", "content": "And when?"}],
    )
    assert again.output_text


def test_the_events_of_a_response_come_in_the_official_order(client):
    asked = {"model": "tiny@docs", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Who built it?"}]}]}
    whole = client.responses.create(**asked, max_output_tokens=40)
    stop = whole.output_text
    events = list(client.responses.create(**asked, max_output_tokens=40, stream=True))
    assert [one.sequence_number for one in events] == list(range(len(events)))
    kinds = [one.type for one in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta", "response.output_text.annotation.added"}
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == stop
    added = [one.annotation for one in events if one.type == "response.output_text.annotation.added"]
    done = events[-1].response.output[0].content[0]
    assert [one.model_dump() for one in added] == [one.model_dump() for one in done.annotations]
    assert done.text == stop


def test_a_response_that_ends_by_itself_is_complete(client):
    """The random model ends a text by chance, at about one token in 300."""
    for _ in range(10):
        with client.responses.stream(model="tiny@docs", input="Who?", temperature=1.9, max_output_tokens=400) as stream:
            kinds = [event.type for event in stream]
            if kinds[-1] == "response.completed":
                assert stream.get_final_response().status == "completed"
                assert stream.get_final_response().usage.output_tokens < 400
                return
    pytest.fail("no answer has ended by itself")


CHAT = {"model": "tiny@docs", "messages": QUESTION, "max_tokens": 2}


TEXT = {"model": "tiny@docs", "prompt": "The river", "max_tokens": 2}


RESPONSE = {"model": "tiny@docs", "input": "The river", "max_output_tokens": 2}


EMBED = {"model": "tiny@docs", "input": "The river"}


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}
REFUSED = [
    ("chat/completions", CHAT, {"tools": [FUNCTION]}, "tools"),
    ("chat/completions", CHAT, {"tool_choice": "required"}, "tool_choice"),
    ("chat/completions", CHAT, {"functions": [{"name": "f"}]}, "functions"),
    ("chat/completions", CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
    ("chat/completions", CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ("chat/completions", CHAT, {"presence_penalty": 0.5}, "presence_penalty"),
    ("chat/completions", CHAT, {"frequency_penalty": -1}, "frequency_penalty"),
    ("chat/completions", CHAT, {"logit_bias": {"50": 1}}, "logit_bias"),
    ("chat/completions", CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    ("chat/completions", CHAT, {"audio": {"voice": "x", "format": "wav"}}, "audio"),
    ("chat/completions", CHAT, {"store": True}, "store"),
    ("chat/completions", CHAT, {"service_tier": "flex"}, "service_tier"),
    ("chat/completions", CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
    ("chat/completions", CHAT, {"web_search_options": {}}, "web_search_options"),
    ("chat/completions", CHAT, {"top_k": 5}, "top_k"),
    ("chat/completions", CHAT, {"repetition_penalty": 1.1}, "repetition_penalty"),
    ("chat/completions", CHAT, {"temperature": 2.5}, "temperature"),
    ("chat/completions", CHAT, {"temperature": "1"}, "temperature"),
    ("chat/completions", CHAT, {"top_p": -0.1}, "top_p"),
    ("chat/completions", CHAT, {"n": 0}, "n"),
    ("chat/completions", CHAT, {"n": 99}, "n"),
    ("chat/completions", CHAT, {"max_tokens": 0}, "max_tokens"),
    ("chat/completions", CHAT, {"max_tokens": 10**6}, "max_tokens"),
    ("chat/completions", CHAT, {"max_completion_tokens": 3}, "max_tokens"),
    ("chat/completions", CHAT, {"seed": 2**70}, "seed"),
    ("chat/completions", CHAT, {"stop": [""]}, "stop.0"),
    ("chat/completions", CHAT, {"stop": ["a"] * 9}, "stop"),
    ("chat/completions", CHAT, {"top_logprobs": 2}, "top_logprobs"),
    ("chat/completions", CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("chat/completions", CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
    ("chat/completions", CHAT, {"stream": True, "stream_options": {"every": 2}}, "stream_options.every"),
    ("chat/completions", CHAT, {"messages": []}, "messages"),
    ("chat/completions", CHAT, {"messages": QUESTION * 600}, "messages"),
    ("chat/completions", CHAT, {"messages": [{"role": "user", "content": "x" * 300_000}]}, "messages"),
    ("chat/completions", CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ("chat/completions", CHAT, {"messages": [{"role": "user"}]}, "messages.0.content"),
    ("chat/completions", CHAT, {"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, "messages"),
    (
        "chat/completions",
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0.type",
    ),
    ("chat/completions", CHAT, {"messages": [{"role": "user", "content": " \n"}]}, "messages"),
    ("chat/completions", CHAT, {"messages": [{"role": "user", "content": ""}], "stream": True}, "messages"),
    ("chat/completions", CHAT, {"messages": [{"role": "user", "content": "bridge " * 20_000}]}, "messages"),
    ("chat/completions", CHAT, {"memory3": {"mode": "rag"}}, "memory3.mode"),
    ("chat/completions", CHAT, {"memory3": {"k": -1}}, "memory3.k"),
    ("chat/completions", CHAT, {"memory3": {"k": 1000}}, "memory3.k"),
    ("chat/completions", CHAT, {"memory3": {"gap": 3}}, "memory3.gap"),
    ("chat/completions", CHAT, {"memory3": {"mode": "none", "k": 2}}, "memory3.k"),
    ("chat/completions", CHAT, {"memory3": {"where": {"year": {"$gt": 3}}}}, "memory3.where.year"),
    ("chat/completions", CHAT, {"memory3": {"bank": "secret"}}, "memory3.bank"),
    ("chat/completions", CHAT, {"model": "tiny", "memory3": {"mode": "memory"}}, "memory3.mode"),
    ("completions", TEXT, {"echo": True}, "echo"),
    ("completions", TEXT, {"best_of": 3}, "best_of"),
    ("completions", TEXT, {"suffix": "x"}, "suffix"),
    ("completions", TEXT, {"prompt": ""}, "prompt"),
    ("completions", TEXT, {"prompt": " ", "memory3": {"mode": "text"}, "model": "tiny@docs"}, "prompt"),
    ("completions", TEXT, {"prompt": "bridge " * 20_000}, "prompt"),
    ("completions", TEXT, {"prompt": [10**6]}, "prompt"),
    ("completions", TEXT, {"prompt": ["x"] * 20}, "n"),
    ("completions", TEXT, {"messages": QUESTION}, "messages"),
    ("responses", RESPONSE, {"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ("responses", RESPONSE, {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("responses", RESPONSE, {"store": True}, "store"),
    ("responses", RESPONSE, {"background": True}, "background"),
    ("responses", RESPONSE, {"text": {"format": {"type": "json_object"}}}, "text"),
    ("responses", RESPONSE, {"reasoning": {"effort": "high"}}, "reasoning"),
    ("responses", RESPONSE, {"include": ["message.output_text.logprobs"]}, "include"),
    ("responses", RESPONSE, {"truncation": "auto"}, "truncation"),
    ("responses", RESPONSE, {"stop": "x"}, "stop"),
    ("responses", RESPONSE, {"input": []}, "input"),
    ("responses", RESPONSE, {"input": " "}, "input"),
    ("embeddings", EMBED, {"input": [1, 2]}, "input.0"),
    ("embeddings", EMBED, {"input": ""}, "input"),
    ("embeddings", EMBED, {"input": ["x"] * 300}, "input"),
    ("embeddings", EMBED, {"dimensions": 5}, "dimensions"),
    ("embeddings", EMBED, {"encoding_format": "int8"}, "encoding_format"),
    ("embeddings", EMBED, {"model": "tiny"}, "model"),
]


@pytest.mark.parametrize(
    ("path", "good", "change", "field"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_cannot_be_done_is_a_400_that_names_the_field(server, path, good, change, field):
    with server.http() as http:
        answer = http.post(f"/v1/{path}", json={**good, **change})
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["param"] == field, error
    assert error["type"] == "invalid_request_error"
    assert field.split(".")[-1] in error["message"] or field.split(".")[0] in error["message"]


@pytest.mark.parametrize(("path", "good"), [("chat/completions", CHAT), ("completions", TEXT), ("responses", RESPONSE)])
def test_what_changes_nothing_is_taken(server, path, good):
    neutral = {
        "chat/completions": {
            "tools": [],
            "response_format": {"type": "text"},
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "logit_bias": {},
            "store": False,
            "service_tier": "auto",
            "metadata": {"a": "b"},
            "n": 1,
            "modalities": ["text"],
            "safety_identifier": "x",
        },
        "completions": {"echo": False, "best_of": 1, "suffix": None, "presence_penalty": 0},
        "responses": {
            "tools": [],
            "store": False,
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "include": [],
        },
    }[path]
    with server.http() as http:
        plain = http.post(f"/v1/{path}", json=good)
        answer = http.post(f"/v1/{path}", json={**good, "user": "u-1", **neutral})
    assert answer.status_code == plain.status_code == 200, answer.text
    if path != "responses":
        said = [
            json.dumps(each.json()["choices"][0].get("message", each.json()["choices"][0].get("text")))
            for each in (plain, answer)
        ]
        assert said[0] == said[1]


def test_a_message_of_an_answer_can_be_sent_back(client):
    message = ask(client).choices[0].message
    turns = [*QUESTION, message.model_dump(), {"role": "user", "content": "And when?"}]
    assert ask(client, turns).choices[0].message.content is not None


def test_a_prompt_that_is_too_long_is_refused_before_a_stream_begins(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="positions"):
            ask(client, [{"role": "user", "content": "river " * 6000}], stream=stream)
