"""What OpenAI's own client gets from the server: chats, completions, responses, embeddings, models; whole and streamed."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
import served
from bank_writer import HashingEmbedder
from chat_surface import *  # noqa: F403 (pytest runs its tests with the server of this file)
from chat_surface import QUESTION, TURNS, ask, compare_answer

from memory3.serving.citations import worth_citing
from memory3.types import Citation


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served.server(tmp_path_factory.mktemp("banks")) as running:
        yield running


@pytest.mark.parametrize("mode", ["memory", "text", "none"])
@pytest.mark.parametrize("messages", [QUESTION, TURNS])
def test_an_answer_is_that_of_the_library(server, client, mode, messages):
    choice, expected = compare_answer(server, client, messages, mode)
    assert choice.message.content == expected.text
    cited = choice.model_extra["memory3"]["citations"]
    assert [one["reference_id"] for one in cited] == [one.reference_id for one in expected.citations]


def test_which_references_of_a_stretch_are_cited():
    def cited(*shares):
        return [one.share for one in worth_citing([Citation("a#0", "a", "", 0, 1, "x", share, 0.5) for share in shares])]

    assert cited(0.5, 0.26, 0.24) == [0.5, 0.26]
    assert cited(0.25, 0.25, 0.25, 0.25) == [0.25, 0.25, 0.25]
    assert cited(1.0) == [1.0]
    assert cited(0.0, 0.0) == []


def test_logprobs_of_a_chat(client):
    whole = ask(client, max_tokens=12, logprobs=True, top_logprobs=3)
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        # Greedy: the likeliest is the one that was chosen.
        assert token.top_logprobs[0].logprob == token.logprob
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    streamed = []
    for chunk in ask(client, max_tokens=12, logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == content
    assert ask(client).choices[0].logprobs is None


def test_models(client):
    assert [one.id for one in client.models.list()] == ["tiny", "tiny@docs", "tiny@secret"]
    assert client.models.retrieve("tiny@docs").model_extra["memory3"]["bank"] == "docs"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tiny@nix")


def test_embeddings_are_those_of_the_bank(client):
    texts = ["the river", "the bridge and the town"]
    expected = HashingEmbedder().encode(texts)
    for form in ("float", "base64"):
        answer = client.embeddings.create(model="tiny@docs", input=texts, encoding_format=form)
        rows = [one.embedding for one in answer.data]
        if form == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        np.testing.assert_allclose(np.array(rows), expected, rtol=1e-6)
        assert answer.usage.prompt_tokens > 0
    np.testing.assert_allclose(client.embeddings.create(model="tiny@docs", input=texts[0]).data[0].embedding, expected[0])
    assert len(client.embeddings.create(model="tiny@docs", input="x", dimensions=11).data) == 1


#: Path, a good body, what is changed in it, and the field that the error has to name.
