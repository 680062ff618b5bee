"""The memory of one request: its clock against a slow twin, and requests that come and go beside one another."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass

import pytest
import torch
from ram_bank import Found, RamBank
from tiny import tiny_chat_tokenizer, tiny_model, tiny_tokenizer

from memory3.config import MemoryConfig
from memory3.errors import ConfigError, RecallError
from memory3.llm import Memory3
from memory3.models.frame import Frame
from memory3.recall.request import RequestMemory
from memory3.recall.retrieval import Retrieval

TEXTS = ["The river rises in the mountains.", "The bridge was built in 1874.", "Keys and values.", "A town by the sea."]
CHUNK, ROOM = 5, 31
PROMPT = list(range(40, 53))  # 13 tokens: chunks of 5, 5 and 3


def request(retrieval: Retrieval | None = None, **options) -> RequestMemory:
    """Of a plain model whose text of a token is its number; a query names the reference that answers it."""
    frame = Frame((), (1, 2, 3), (), (), (), (), (), (), frozenset({0}))
    return RequestMemory(
        frame,
        retrieval or Retrieval(2),
        chunk_length=CHUNK,
        room=ROOM,
        text_of=lambda tokens: " ".join(map(str, tokens)),
        **options,
    )


def step(one: RequestMemory, tokens: list[int]) -> None:
    one.feed(tokens)
    one.receive([[Found(query, 0.9), Found("far", 0.2)] for query in one.lookups])


def words(tokens) -> str:
    return " ".join(map(str, tokens))


@dataclass
class SlowClock:
    """Which query decides what token ``n`` of a request reads, by the paper's words, one token at a time."""

    prompt: int

    def query(self, tokens: list[int], n: int) -> str:
        if n < self.prompt:
            end = min((n // CHUNK + 1) * CHUNK, self.prompt)
            return words(tokens[max(0, end - CHUNK) : end])
        decoded = (n - self.prompt) // CHUNK * CHUNK
        if not decoded:
            return words(tokens[max(0, self.prompt - CHUNK) : self.prompt])
        return words(tokens[self.prompt + decoded - CHUNK : self.prompt + decoded])


@pytest.mark.parametrize("length", [1, 4, 5, 6, 13])
@pytest.mark.parametrize("pieces", ["whole", "announced"])
def test_clock_is_the_papers(length, pieces):
    tokens = [*PROMPT[:length], *range(100, 117)]
    one, slow = request(prompt=tokens[:length] if pieces == "announced" else None), SlowClock(length)
    if pieces == "whole":
        step(one, tokens[:length])
    else:
        for at in range(0, length, 3):
            step(one, tokens[at : min(at + 3, length)])
    for chunk in one.chunks:
        for n in range(chunk.start, chunk.end):
            assert chunk.references[0] == slow.query(tokens, n)
    assert [n for chunk in one.chunks for n in range(chunk.start, chunk.end)] == list(range(length))
    for n in range(length, len(tokens)):
        step(one, [tokens[n]])
        assert one.is_decoding
        assert one.reading[0] == slow.query(tokens, n)
        assert one.chunks[0].references == one.reading
    assert one.statistics.recalls == -(-length // CHUNK) + (17 - 1) // CHUNK
    assert one.statistics.queries[-1] == words(tokens[length + 10 : length + 15])


def test_a_later_turn_is_a_prompt_again():
    one = request()
    step(one, PROMPT)
    step(one, [100])
    step(one, [101, 102, 103, 104, 105, 106, 107])
    assert not one.is_decoding
    assert [(chunk.start, chunk.end) for chunk in one.chunks] == [(14, 19), (19, 21)]
    assert one.reading == ("103 104 105 106 107", "far")


def test_an_answer_to_be_scored_reads_as_if_decoded():
    tokens = [*PROMPT, *range(100, 107)]
    whole, slow = request(prompt=tokens, answer_tokens=7), SlowClock(len(PROMPT))
    step(whole, tokens)
    for chunk in whole.chunks:
        assert {slow.query(tokens, n) for n in range(chunk.start, chunk.end)} == {chunk.references[0]}


def test_what_is_said_is_read_and_nothing_looked_up():
    pinned = request(Retrieval(2, references=("a", "b")))
    pinned.feed(PROMPT)
    assert pinned.lookups == []
    pinned.receive([])
    assert {chunk.references for chunk in pinned.chunks} == {("a", "b")}
    for n in range(CHUNK + 1):
        step(pinned, [100 + n])
    assert (pinned.reading, pinned.renewals) == (("a", "b"), 2)
    named = request(Retrieval(2, chunk_references=(("a",), (), ("c",))))
    step(named, PROMPT)
    assert [chunk.references for chunk in named.chunks] == [("a",), (), ("c",)]
    short = request(Retrieval(2, chunk_references=(("a",),)))
    short.feed(PROMPT)
    with pytest.raises(RecallError, match="1 chunks of a prompt that has 3"):
        short.receive([])
    nothing = request(Retrieval(2, references=()))
    step(nothing, PROMPT)
    assert (nothing.reads, nothing.shift, nothing.reading) == (False, 0, ())


def test_positions_and_padding():
    plain = request()
    step(plain, PROMPT)
    plain.lie_at(7)
    assert (plain.place.split, plain.place.missing, plain.shift, plain.moved) == (0, 3, 3 + ROOM, 7)
    behind = request()
    step(behind, [])  # padding: it has not begun
    step(behind, [1, 2, 3, *PROMPT])
    behind.lie_at(0)
    assert (behind.place.split, behind.shift, behind.moved) == (3, ROOM, 0)
    assert behind.chunks[0].start == 3


def test_what_has_ended_goes_on_reading():
    one = request()
    step(one, PROMPT)
    before = one.reading
    for _ in range(2 * CHUNK + 1):
        step(one, [0])  # a special token: no text
    assert (one.reading, one.renewals) == (before, 3)
    assert one.statistics.queries[-2:] == ["", ""]


def test_a_gap_leaves_out_what_is_far():
    one = request(Retrieval(2, gap=0.1))
    step(one, PROMPT)
    assert one.reading == (words(PROMPT[-CHUNK:]),)
    assert one.scores == dict.fromkeys(one.statistics.queries, 0.9)
    for wrong in ({"k": -1}, {"k": 2.0}, {"k": True}, {"k": 1, "gap": 5}, {"k": 1, "gap": float("nan")}):
        with pytest.raises(ConfigError, match="gap" if "gap" in wrong else "k="):
            Retrieval(**wrong)
    with pytest.raises(ConfigError, match="every 0 tokens"):
        RequestMemory(one._frame, one.retrieval, chunk_length=0, room=1, text_of=str)


def test_a_fork_goes_its_own_way():
    one = request()
    step(one, PROMPT)
    one.pay({one.reading[0]: 2.0}, 8)
    other = one.fork()
    for n in range(CHUNK + 1):
        step(one, [200 + n])
        step(other, [300 + n])
    other.pay({other.reading[0]: 6.0}, 8)
    assert (one.reading[0], other.reading[0]) == (words(range(200, 205)), words(range(300, 305)))
    assert (one.attention(), other.attention()) == (0.25, 0.5)
    assert [share for _, share, _ in other.shares()] == [0.75, 0.25]


# ---- requests beside one another on one model ---------------------------------------------------------------------------


def memory3(family="llama", *, chat=False) -> Memory3:
    config = MemoryConfig(reference_length=ROOM, chunk_length=7, references_per_chunk=2, dtype="float32")
    return Memory3(tiny_model(family), tiny_chat_tokenizer() if chat else tiny_tokenizer(), config, name="tiny")


class ByHand:
    """A request that is decoded by plain forward passes, one at a time, whenever its turn comes."""

    def __init__(self, m3, bank, question):
        self.m3, self.recall = m3, m3.recall(bank)
        self.next = torch.tensor([m3.question_tokens(question)])
        self.cache, self.said = None, []

    def step(self):
        with self.recall, torch.no_grad():
            out = self.m3.model(self.next, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        self.next = out.logits[:, -1:].argmax(-1)
        self.said.append(int(self.next))


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_requests_interleaved_by_hand_say_what_they_say_alone(family, chat):
    """Each with its own bank, its own start and its own renewals (every 7 tokens); a third without memories in between."""
    m3 = memory3(family, chat=chat)
    banks = [RamBank(m3, TEXTS[:2]), RamBank(m3, TEXTS[2:])]
    asked = ["Who built the bridge, and when?", "Why?"]
    length = 26
    alone = []
    for bank, question in zip(banks, asked, strict=True):
        one = ByHand(m3, bank, question)
        for _ in range(length):
            one.step()
        alone.append(one.said)
        end = m3.tokenizer.eos_token_id
        until = one.said.index(end) if end in one.said else length
        assert m3.generate(question, bank, max_new_tokens=length).token_ids == one.said[:until]
    assert alone[0] != alone[1]
    first, second = (ByHand(m3, bank, question) for bank, question in zip(banks, asked, strict=True))
    plain = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        untouched = m3.model(plain).logits
        for n in range(length + 3):
            if n < length:
                first.step()
            torch.testing.assert_close(m3.model(plain).logits, untouched, rtol=0, atol=0)
            if n >= 3:
                second.step()
    assert [first.said, second.said] == alone
    assert first.recall.shares()
    assert {name for name, _, _ in second.recall.shares()} <= set(banks[1].order)


def test_a_recall_entered_anew_begins_anew_and_sees_the_bank_as_it_is():
    m3 = memory3()
    bank = RamBank(m3, TEXTS)
    versions = []

    class Pinned(RamBank):
        def pin(self):
            versions.append(self)
            twin = RamBank.__new__(RamBank)
            vars(twin).update(vars(self))
            return twin

    bank.__class__ = Pinned
    recall = m3.recall(bank)
    tokens = torch.tensor([m3.question_tokens("Who?")])
    with recall, torch.no_grad():
        first = m3.model(tokens, use_cache=True)
        source = recall.source
    with recall, torch.no_grad():  # goes on
        m3.model(first.logits[:, -1:].argmax(-1), past_key_values=first.past_key_values)
        assert recall.source is source
        assert len(recall.requests[0].tokens) == tokens.shape[1] + 1
        m3.model(tokens)
        assert recall.source is not source
        assert len(recall.requests[0].tokens) == tokens.shape[1]
    assert len(versions) == 2


@pytest.mark.parametrize("apart", [1, 3])
def test_rows_renew_on_their_own_clocks(apart):
    """A row whose prompt ends earlier decodes beside one that is still reading; each says what it says alone."""
    m3 = memory3()
    bank = RamBank(m3, TEXTS)
    long = m3.question_tokens("Who built the bridge, and when? The old town near the sea")
    prompts = [long[: len(long) - apart], long]
    wanted = []
    for prompt in prompts:
        with m3.recall(bank), torch.no_grad():
            tokens, found = torch.tensor([prompt]), []
            out = m3.model(tokens, use_cache=True)
            for _ in range(18):
                found.append(out.logits[0, -1])
                out = m3.model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
        wanted.append(torch.stack(found))
    # Both rows are fed together; the prompts are announced, so that each knows where it ends.
    feeds = [[*prompt, *logits.argmax(-1).tolist()] for prompt, logits in zip(prompts, wanted, strict=True)]
    start = len(prompts[0]) - 2
    got: list[list[torch.Tensor]] = [[], []]
    with m3.recall(bank, prompt=prompts) as recall, torch.no_grad():
        out = m3.model(torch.tensor([feed[:start] for feed in feeds]), use_cache=True)
        for n in range(start, start + 18):
            out = m3.model(torch.tensor([[feed[n]] for feed in feeds]), past_key_values=out.past_key_values)
            for row in range(2):
                if n >= len(prompts[row]) - 1:
                    got[row].append(out.logits[row, -1])
        assert recall.requests[0].renewals > 2
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.stack(mine), theirs[: len(mine)], rtol=1e-4, atol=1e-4)


def alone(m3, bank, prompt, length):
    """Logits ``[length, V]`` of the tokens behind a prompt, greedy, and the tokens."""
    with m3.recall(bank), torch.no_grad():
        out, found = m3.model(torch.tensor([prompt]), use_cache=True), []
        for _ in range(length):
            found.append(out.logits[0, -1])
            out = m3.model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
    return torch.stack(found), torch.stack(found).argmax(-1).tolist()


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("columns", [1, 3])
def test_a_row_that_pauses_goes_on_reading(chat, columns):
    """Behind a renewal; a pass that holds nothing of a row changes nothing for it."""
    m3 = memory3(chat=chat)
    bank = RamBank(m3, TEXTS)
    prompts = [m3.question_tokens("Who built the bridge, and when?")] * 2
    prompts[1] = prompts[1][: len(prompts[0])]
    wanted, said = alone(m3, bank, prompts[0], 24)
    with m3.recall(bank) as recall, torch.no_grad():
        mask = torch.ones(2, len(prompts[0]), dtype=torch.int64)
        out = m3.model(torch.tensor(prompts), attention_mask=mask, use_cache=True)
        for n in range(23):
            if n == 9:  # row 0 pauses
                none = torch.tensor([[0] * columns, [1] * columns])
                mask = torch.cat([mask, none], 1)
                m3.model(torch.full((2, columns), said[0]), attention_mask=mask, past_key_values=out.past_key_values)
            torch.testing.assert_close(out.logits[0, -1], wanted[n], rtol=1e-4, atol=1e-4)
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], 1)
            fed = torch.tensor([[said[n]], [said[n]]])
            places = (mask.cumsum(-1) - 1)[:, -1:]
            out = m3.model(fed, attention_mask=mask, position_ids=places, past_key_values=out.past_key_values)
        assert recall.requests[0].renewals > 2


def test_a_row_may_begin_after_the_first_pass():
    m3 = memory3(chat=True)
    bank = RamBank(m3, TEXTS)
    asked = [
        [{"role": "system", "content": "Be brief, reader."}, {"role": "user", "content": "Who built it?"}],
        [
            {"role": "system", "content": "Memories are keys and values; the river rises."},
            {"role": "user", "content": "Why, and who?"},
        ],
    ]
    rows = sorted((m3.prompts.build(chat, "memory") for chat in asked), key=len)
    tokens, mask = m3.prompts.pad(rows)
    cut = len(rows[1]) - len(rows[0])
    assert cut > 2
    wanted, _ = alone(m3, bank, rows[0], 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with m3.recall(bank, prompt=rows) as recall, torch.no_grad():
        first = m3.model(
            tokens[:, : cut - 1], attention_mask=mask[:, : cut - 1], position_ids=positions[:, : cut - 1], use_cache=True
        )
        rest = {"attention_mask": mask, "position_ids": positions[:, cut - 1 :], "past_key_values": first.past_key_values}
        out = m3.model(tokens[:, cut - 1 :], **rest)
        assert recall.requests[0].is_placed
    torch.testing.assert_close(out.logits[0, -1], wanted[0], rtol=1e-4, atol=1e-4)
    with m3.recall(bank) as recall, torch.no_grad():  # not announced: row 0 begins in the second pass
        first = m3.model(tokens[:, :cut], attention_mask=mask[:, :cut], position_ids=positions[:, :cut], use_cache=True)
        m3.model(tokens[:, cut:], **rest | {"position_ids": positions[:, cut:], "past_key_values": first.past_key_values})
        found = recall.requests[0].moved, recall.requests[0].shift
    assert found == single_place(m3, bank, rows[0])


def single_place(m3, bank, row):
    with m3.recall(bank) as recall, torch.no_grad():
        m3.model(torch.tensor([row]))
    return recall.requests[0].moved, recall.requests[0].shift


def test_recalls_of_a_thread_take_turns_and_do_not_nest():
    m3 = memory3()
    bank = RamBank(m3, TEXTS)
    with m3.recall(bank), pytest.raises(RecallError, match="recalling already"), m3.recall(bank):
        pass
    recall = m3.recall(bank)
    with recall, recall, torch.no_grad():
        m3.model(torch.tensor([m3.question_tokens("Who?")]))
    assert recall.statistics.recalls


def test_a_task_does_not_read_a_recall_that_was_left():
    m3 = memory3()
    bank, tokens = RamBank(m3, TEXTS), torch.tensor([m3.question_tokens("Who?")])
    with torch.no_grad():
        untouched = m3.model(tokens).logits
        with m3.recall(bank):
            task = contextvars.copy_context()
        torch.testing.assert_close(task.run(lambda: m3.model(tokens).logits), untouched, rtol=0, atol=0)
        with m3.recall(bank), pytest.raises(RecallError, match="another thread"):
            task.run(lambda: m3.model(tokens))


def test_a_model_is_proven_while_it_recalls():
    m3 = memory3()
    with m3.recall(RamBank(m3, TEXTS)):
        assert Memory3(m3.model, m3.tokenizer, m3.config, name="another").proof.same == 1
