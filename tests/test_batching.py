"""Continuous batching: what a request gets, whatever runs beside it, is what `Memory3.generate` gives it alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ram_bank import RamBank
from tiny import FAMILIES, tiny_chat_tokenizer, tiny_model, tiny_tokenizer

from memory3.attention.lane import Lane
from memory3.choosing import Chooser
from memory3.config import MemoryConfig
from memory3.decoding import decoding
from memory3.errors import ConfigError
from memory3.llm import Memory3
from memory3.recall.batching import Batch, Stream

TEXTS = [
    "The river rises in the mountains. It reaches the sea near the old town.",
    "The bridge was built in 1874 by the engineer of the county.",
    "Memories are keys and values.",
    "Emoji 🙂 and naïve café.",
    "Keys are rotated, values are not; the reader reads them while the answer is being written.",
]
QUESTIONS = (
    "Who built it?",
    "Where does the river rise, and where does it reach the sea near the old town?",
    "Keys?",
    "What is read?",
)
WINDOWED: dict[str, Any] = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    "sliding_window": 9,
    "use_sliding_window": True,
}


def memory3(family: str = "llama", *, chat: bool = False, model: Any = None, **settings: Any) -> Memory3:
    settings = {"reference_length": 31, "chunk_length": 7, "references_per_chunk": 2, "dtype": "float32", **settings}
    tokenizer = tiny_chat_tokenizer() if chat else tiny_tokenizer()
    return Memory3(model or tiny_model(family), tokenizer, MemoryConfig(**settings), name="tiny")


@dataclass
class Asked:
    """A request, and what it is given alone."""

    question: str
    bank: RamBank | None
    k: int
    length: int
    alone: Any
    arrives: int
    leaves: int


def stream(m3: Memory3, question: str, bank: Any, k: int, length: int, **options: Any) -> Stream:
    settings, _ = decoding(m3.model, length, options)
    prompt = m3.prompts.build(question, "none" if bank is None or not k else "memory")
    chooser = Chooser(m3.model, settings, prompt, ends=[m3.tokenizer.eos_token_id])
    return Stream(m3.encoder, prompt, chooser, bank, m3.retrieval(k, None, None), text_of=m3.tokenizer.decode)


def find(one: Stream) -> None:
    """What a server's other thread does."""
    one.begin()
    if one.needs_memories:
        assert one.memory is not None
        bank: Any = one.source
        names = one.receive(bank.search(one.lookups, one.memory.retrieval.k))
        one.load(dict(zip(names, bank.memories(names), strict=True)))


def run(m3: Memory3, asked: list[Asked], draw: random.Random) -> dict[int, Stream]:
    """Everything that was asked, each at its own step. Returns what was not cancelled."""
    step, live, done = 0, dict[int, Stream](), dict[int, Stream]()
    with Batch(m3.model, m3.geometry) as batch:
        while len(done) < len(asked):
            for n, one in enumerate(asked):
                if one.arrives == step:
                    live[n] = stream(m3, one.question, one.bank, one.k, one.length)
                    find(live[n])
                if one.leaves == step and n in live:
                    done[n] = live.pop(n)
            # Some pause, as if they waited for their memories; and they stand in another order at every step.
            ready = [n for n in live if draw.random() < 0.8]
            draw.shuffle(ready)
            if ready:
                for one in batch.step([live[n] for n in ready], draw.choice([3, 11, 1000])):
                    if not one.is_done:
                        find(one)
            for n in [n for n, one in live.items() if one.is_done]:
                done[n] = live.pop(n)
                done[n].settle()
            step += 1
    return {n: one for n, one in done.items() if one.is_done}


@pytest.mark.parametrize("kind", [*FAMILIES, "chat", "windowed"])
def test_whatever_runs_beside_it(kind: str) -> None:
    model = tiny_model("qwen2", **WINDOWED) if kind == "windowed" else None
    m3 = memory3("llama" if kind in ("chat", "windowed") else kind, chat=kind == "chat", model=model)
    banks = [RamBank(m3, TEXTS[:2]), RamBank(m3, TEXTS[2:]), RamBank(m3, TEXTS), None]
    draw = random.Random(kind)
    finished = 0
    for many in (1, 2, 5, 16):
        asked = []
        for _ in range(many):
            question, bank, k, length = (
                draw.choice(QUESTIONS),
                draw.choice(banks),
                draw.choice([0, 1, 3]),
                draw.choice([1, 5, 23]),
            )
            alone = m3.generate(
                question, bank, mode="memory" if bank else "none", k=k if bank else None, max_new_tokens=length
            )  # type: ignore[call-overload]
            leaves = draw.choice([-1, -1, -1, 4, 9])
            asked.append(Asked(question, bank, k, length, alone, draw.randrange(12), leaves))
        done = run(m3, asked, draw)
        finished += len(done)
        for n, one in done.items():
            alone = asked[n].alone
            assert one.answer == alone.token_ids
            if one.memory is not None:
                said = [(c.reference_id, pytest.approx(c.share, abs=1e-4)) for c in alone.citations]
                assert sorted((name, share) for name, share, _ in one.memory.shares()) == sorted(said)
                did = one.memory.statistics
                assert (did.recalls, did.references, did.bytes_read) == (
                    alone.usage.recalls,
                    alone.usage.references,
                    alone.usage.bytes_read,
                )
    assert finished > 12


def test_attention_of_each_token_adds_up() -> None:
    m3 = memory3()
    bank = RamBank(m3, TEXTS)
    one = stream(m3, QUESTIONS[1], bank, 2, 23)
    with Batch(m3.model, m3.geometry) as batch:
        find(one)
        while not one.is_done:
            batch.step([one])
            one.settle()
            if not one.is_done:
                find(one)
    assert one.memory is not None
    assert len(one.memory.paid) == len(one.chosen) == 23  # what chose each of them
    whole = {name: share for name, share, _ in one.memory.shares()}
    assert {name: pytest.approx(share) for name, share, _ in one.shares(0, 23)} == whole
    first = {name for name, _, _ in one.shares(0, 5)}
    assert first < set(whole)  # later ones were read after the memories had been renewed


def test_a_seat_whose_memories_find_no_room_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = memory3()
    one = stream(m3, QUESTIONS[1], RamBank(m3, TEXTS), 2, 5)
    with Batch(m3.model, m3.geometry) as batch:
        find(one)
        batch.step([one])
        find(one)
        with monkeypatch.context() as patched:
            patched.setattr(Lane, "lead", fails)
            with pytest.raises(MemoryError):
                batch.step([one])
        seat = one.seat
        assert seat is not None
        one.leave()
        batch.sweep()
    assert one.seat is None
    assert seat.lane.is_empty


def fails(*_: object) -> None:
    raise MemoryError


OPTIONS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"min_new_tokens": 9},
    {"no_repeat_ngram_size": 2},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
    {"do_sample": True, "top_k": 5, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_tokens_are_chosen_as_generate_does(options: dict[str, Any]) -> None:
    m3 = memory3()
    torch.manual_seed(5)
    alone = m3.generate("Who built it?", mode="none", max_new_tokens=13, **options)
    prompt = m3.prompts.build("Who built it?")
    settings, _ = decoding(m3.model, 13, options)
    chooser = Chooser(m3.model, settings, prompt, ends=[m3.tokenizer.eos_token_id], seed=5)
    one = Stream(m3.encoder, prompt, chooser, text_of=m3.tokenizer.decode)
    with Batch(m3.model, m3.geometry) as batch:
        while not one.is_done:
            batch.step([one])
    assert one.answer == alone.token_ids


def test_log_probabilities_are_the_models() -> None:
    m3 = memory3()
    prompt = m3.prompts.build("Who built it?")
    settings, _ = decoding(m3.model, 5, {"repetition_penalty": 1.7})
    chooser = Chooser(m3.model, settings, prompt, logprobs=3)
    one = Stream(m3.encoder, prompt, chooser, text_of=m3.tokenizer.decode)
    with Batch(m3.model, m3.geometry) as batch:
        while not one.is_done:
            batch.step([one])
    ids = torch.tensor([prompt + [choice.token for choice in one.chosen]])
    with torch.no_grad():
        expected = m3.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for choice, row in zip(one.chosen, expected, strict=True):
        assert choice.logprob == pytest.approx(float(row[choice.token]), abs=1e-4)
        values, tokens = row.topk(3)
        assert [token for token, _ in choice.likeliest] == tokens.tolist()
        assert [value for _, value in choice.likeliest] == pytest.approx(values.tolist(), abs=1e-4)


def test_beams_are_refused() -> None:
    m3 = memory3()
    settings, _ = decoding(m3.model, 5, {"num_beams": 3})
    with pytest.raises(ConfigError, match="num_beams"):
        Chooser(m3.model, settings, [1, 2, 3])
