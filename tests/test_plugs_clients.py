"""Other programs as clients of the server: LangChain's ChatOpenAI, and what Open WebUI sends and reads."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
import served
from bank_writer import HashingEmbedder
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from memory3.bank.embedder import Embedder
from memory3.plugs.langchain import BankRetriever
from memory3.serving.keys import Tenant

QUESTION = "Who built the bridge, and when?"


@pytest.fixture(name="running", scope="module")
def running_server(tmp_path_factory):
    with served.server(tmp_path_factory.mktemp("banks")) as running:
        yield running


def chat(running, model="tiny@docs", **options):
    given = {"max_tokens": 40, "temperature": 0, "max_retries": 0, "timeout": 60} | options
    return ChatOpenAI(model=model, base_url=f"{running.address}/v1", api_key="none", **given)


def alone(running, prompt, mode="memory", length=40):
    """What the library answers to the same."""
    bank = running.state.banks.get("docs", Tenant()).bank if mode != "none" else None
    return running.state.m3.generate(prompt, bank=bank, mode=mode, max_new_tokens=length)


# ---- LangChain -----------------------------------------------------------------------------------------------------------


def test_langchain_asks_the_server(running):
    answer = chat(running).invoke(QUESTION)
    assert answer.content
    assert answer.text == alone(running, [{"role": "user", "content": QUESTION}]).text
    assert (
        answer.usage_metadata["output_tokens"] == alone(running, [{"role": "user", "content": QUESTION}]).usage.answer_tokens
    )


def cited(message):
    """References that a message of LangChain cites, and the stretch of the answer that each belongs to."""
    found = [each for block in message.content_blocks for each in block.get("annotations", [])]
    assert all(each["type"] == "citation" for each in found)
    return [(each["extras"]["reference_id"], each["title"], each["extras"]["content"]) for each in found]


def test_langchain_shows_citations_of_responses(running):
    """ChatOpenAI drops annotations of chat completions; of the Responses API it keeps them, whole and streamed."""
    model = chat(running, use_responses_api=True)
    whole = model.invoke(QUESTION)
    expected = alone(running, [{"role": "user", "content": QUESTION}])
    assert whole.text.strip() == expected.text
    known = {each.reference_id: (each.reference_id, each.source, each.text) for each in expected.citations}
    assert cited(whole)
    assert all(each == known[each[0]] for each in cited(whole) if known[each[0]][1])

    streamed = None
    for chunk in model.stream(QUESTION):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.text.strip() == expected.text
    assert cited(streamed) == cited(whole)
    assert "annotations" not in chat(running).invoke(QUESTION).additional_kwargs, (
        "LangChain keeps them now: say so in docs/plugs.md"
    )


def test_langchain_asks_in_turns(running):
    turns = [SystemMessage("Answer in one word."), HumanMessage("Where?"), AIMessage("There."), HumanMessage(QUESTION)]
    roles = {"system": "system", "human": "user", "ai": "assistant"}
    plain = [{"role": roles[turn.type], "content": turn.content} for turn in turns]
    assert chat(running).invoke(turns).text == alone(running, plain).text


@pytest.mark.parametrize("mode", ["memory", "text", "none"])
def test_langchain_passes_our_options_on(running, mode):
    answer = chat(running, extra_body={"memory3": {"mode": mode}}).invoke(QUESTION)
    assert answer.text == alone(running, [{"role": "user", "content": QUESTION}], mode).text


def test_langchain_streams(running):
    whole = alone(running, [{"role": "user", "content": QUESTION}]).text
    chunks = list(chat(running).stream(QUESTION))
    assert "".join(chunk.text for chunk in chunks) == whole
    assert sum(bool(chunk.text) for chunk in chunks) > 3, "in pieces, as they come"

    async def streamed():
        return "".join([chunk.text async for chunk in chat(running).astream(QUESTION)])

    assert asyncio.run(streamed()) == whole


def test_langchain_in_a_chain_with_a_retriever(running):
    """Plain RAG: the passages of the retriever in the prompt, and the plain model behind it."""
    bank = running.state.banks.get("docs", Tenant()).bank
    joined = BankRetriever(bank=bank, k=1) | (lambda found: found[0].page_content)
    prompt = ChatPromptTemplate.from_messages([("user", "{passage}\n\n{question}")])
    chain = {"passage": joined, "question": lambda question: question} | prompt | chat(running, "tiny") | StrOutputParser()
    (passage,) = bank.references([bank.search([QUESTION], 1)[0][0].reference_id])
    expected = alone(running, [{"role": "user", "content": f"{passage.text}\n\n{QUESTION}"}], "none")
    assert chain.invoke(QUESTION) == expected.text
    assert chain.batch([QUESTION] * 3) == [expected.text] * 3


# ---- Open WebUI ----------------------------------------------------------------------------------------------------------

#: What Open WebUI 0.12.4 sends, as it was recorded: to list models, for a chat, and for titles and tags of chats.
HEADERS = {"Authorization": "Bearer none", "Accept": "*/*", "User-Agent": "Python/3.11 aiohttp/3.14.5"}
CHAT = {"model": "tiny@docs", "stream": True, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
TASKS = [
    {"model": "tiny@docs", "messages": [{"role": "user", "content": f"### Task: {QUESTION}"}], "stream": False},
    {
        "model": "tiny@docs",
        "messages": [{"role": "user", "content": f"### Task: a title. {QUESTION}"}],
        "stream": False,
        "max_tokens": 100,
    },
]


def sources_of(lines):
    """The text and the sources that Open WebUI makes of a stream: of each line that begins with ``data:``, it reads the
    first choice's delta, its content, and of its annotations those of type url_citation.
    """
    text, sources = "", []
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        choices = json.loads(data).get("choices", [])
        if not choices:
            continue
        delta = choices[0].get("delta", {})
        text += delta.get("content") or ""
        for annotation in delta.get("annotations") or []:
            if annotation.get("type") == "url_citation" and "url_citation" in annotation:
                cited = annotation["url_citation"]
                sources.append((cited.get("url", ""), cited.get("title", cited.get("url", ""))))
    return text, sources


def test_open_webui_lists_the_models(running):
    found = running.http(headers=HEADERS).get("/v1/models").json()
    assert {"tiny", "tiny@docs"} <= {each["id"] for each in found["data"]}
    assert all(each["object"] == "model" for each in found["data"])


def test_open_webui_shows_the_passages_as_sources(running):
    with running.http(headers=HEADERS).stream("POST", "/v1/chat/completions", json=CHAT | {"max_tokens": 40}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        text, sources = sources_of(answer.iter_lines())
    expected = alone(running, [{"role": "user", "content": QUESTION}])
    assert text.strip() == expected.text
    assert sources
    cited = {each.reference_id: each for each in expected.citations}
    for url, title in sources:
        assert title in {each.source for each in cited.values()} | {"The town", "town"}
        if url.startswith(running.address):  # a passage that has no address of its own is shown by the server
            assert running.http().get(url).text


@pytest.mark.parametrize("body", TASKS)
def test_open_webui_makes_titles(running, body):
    answer = running.http(headers=HEADERS).post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert isinstance(answer.json()["choices"][0]["message"]["content"], str)


def test_tools_of_open_webui_are_refused_by_name(running):
    """It offers tools of its own unless it is told that the model has none (docs/plugs.md)."""
    tool = {"type": "function", "function": {"name": "search_web", "parameters": {"type": "object", "properties": {}}}}
    answer = running.http(headers=HEADERS).post("/v1/chat/completions", json=CHAT | {"tools": [tool]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"


# ---- the page ------------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "plugs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(3))
def test_the_python_of_the_page_runs(running, number, tmp_path, monkeypatch, capsys):
    """Word for word but for the server's address and its model, where the bank of the server lies."""
    assert len(BLOCKS) == 3
    monkeypatch.setattr(Embedder, "load", lambda name, **_: HashingEmbedder(name))
    monkeypatch.chdir(tmp_path)
    bank = running.state.banks.get("docs", Tenant()).bank
    (tmp_path / "bank").symlink_to(Path(bank.pin().snapshot.path))
    code = BLOCKS[number].replace("http://127.0.0.1:8000", running.address).replace("smollm2-135m-instruct", "tiny")
    exec(code, {})
    assert "guide/bridge.md" in capsys.readouterr().out
