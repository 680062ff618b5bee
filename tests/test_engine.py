"""The engine: threads, queues, cancellation and faults around continuous batching."""

from __future__ import annotations

import gc
import queue
import random
import threading
import time
import weakref
from typing import Any

import pytest
import served
import torch
from bank_writer import HashingEmbedder
from ram_bank import RamBank
from tiny import tiny_model, tiny_tokenizer

from memory3.bank import Bank
from memory3.config import MemoryConfig
from memory3.decoding import decoding
from memory3.errors import BankChanged, BankCorrupt, EngineBusy, EngineClosed, InputError, ServingError
from memory3.llm import Memory3
from memory3.serving.engine import Engine
from memory3.serving.job import Cited, Failed, Finished, Job, Text

TEXTS = [
    "The river rises in the mountains. It reaches the sea near the old town.",
    "The bridge was built in 1874 by the engineer of the county.",
    "Memories are keys and values.",
    "Keys are rotated, values are not; the reader reads them while the answer is being written.",
]
QUESTIONS = ("Who built it?", "Where does the river rise, and where does it reach the sea near the old town?", "Keys?")


@pytest.fixture(scope="module")
def m3() -> Memory3:
    config = MemoryConfig(reference_length=31, chunk_length=7, references_per_chunk=2, dtype="float32")
    return Memory3(tiny_model("llama"), tiny_tokenizer(), config, name="tiny")


def job(m3: Memory3, question: Any, bank: Any = None, mode: str = "memory", length: int = 23, **options: Any) -> Job:
    settings, _ = decoding(m3.model, length, options.pop("decoding", {}))
    return Job(question, settings, mode if bank else "none", bank, m3.retrieval(None, None, None), **options)


def test_many_at_once_from_many_threads(m3: Memory3) -> None:
    """Random arrivals, banks, modes, lengths and cancellations: every answer is the one it would be alone."""
    banks = [RamBank(m3, TEXTS[:2]), RamBank(m3, TEXTS), None]
    draw = random.Random(7)
    plan = [
        (draw.choice(QUESTIONS), draw.choice(banks), draw.choice(["memory", "text"]), draw.choice([1, 9, 30]), draw.random())
        for _ in range(40)
    ]
    alone = [
        m3.generate(question, bank, mode=mode if bank else "none", max_new_tokens=length)
        for question, bank, mode, length, _ in plan
    ]
    got: dict[int, Any] = {}
    with Engine(m3, slots=5, waiting=40, prompt_tokens=17) as engine:

        def ask(numbers: list[int]) -> None:
            for n in numbers:
                question, bank, mode, length, chance = plan[n]
                handle = engine.submit(job(m3, question, bank, mode, length))
                if chance < 0.25:
                    time.sleep(chance / 10)
                    handle.cancel()
                got[n] = (handle, list(handle))

        threads = [threading.Thread(target=ask, args=(list(range(t, 40, 8)),)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert engine.state.running == engine.state.waiting == 0
    whole = 0
    for n, (_, events) in got.items():
        end = events[-1]
        assert isinstance(end, Finished)
        said = "".join(event.text for event in events if isinstance(event, Text))
        assert said == end.text
        if end.reason == "cancelled":
            assert end.token_ids == alone[n].token_ids[: len(end.token_ids)]
            continue
        whole += 1
        assert (end.token_ids, end.text, end.usage) == (alone[n].token_ids, alone[n].text, alone[n].usage)
        assert [c.reference_id for c in end.citations] == [c.reference_id for c in alone[n].citations]
    assert whole >= 25


def test_a_request_leaves_nothing_behind(m3: Memory3) -> None:
    bank = RamBank(m3, TEXTS)
    with Engine(m3) as engine:
        handle = engine.submit(job(m3, QUESTIONS[0], bank))
        while (answer := handle.answer) is None:
            time.sleep(0.001)
        cache = weakref.ref(answer.stream.cache)
        del answer
        handle.result()
        time.sleep(0.05)
        gc.collect()
        assert handle.answer is None
        assert cache() is None


def test_answers_are_cited_stretch_by_stretch(m3: Memory3) -> None:
    bank = RamBank(m3, TEXTS)
    with Engine(m3) as engine:
        events = list(engine.submit(job(m3, QUESTIONS[1], bank, length=60)))
    end = events[-1]
    assert isinstance(end, Finished)
    cited = [event for event in events if isinstance(event, Cited)]
    assert cited
    for one in cited:
        assert end.text[one.stretch.start : one.stretch.end].strip()
        assert sum(c.share for c in one.citations) == pytest.approx(1)
    assert [c.stretch.start for c in cited] == sorted(c.stretch.start for c in cited)


def test_a_stop_text_ends_it_and_is_not_shown(m3: Memory3) -> None:
    alone = m3.generate(QUESTIONS[1], mode="none", max_new_tokens=40).text
    stop = alone[11:14]
    with Engine(m3) as engine:
        handle = engine.submit(job(m3, QUESTIONS[1], length=40, stop=[stop]))
        events = list(handle)
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.text) == ("stop", alone[: alone.index(stop)].rstrip())
    assert "".join(e.text for e in events if isinstance(e, Text)) == end.text


def test_a_broken_bank_fails_its_own_requests_alone(m3: Memory3) -> None:
    class Broken(RamBank):
        def search(self, *args: Any, **kwargs: Any) -> Any:
            raise BankCorrupt("row 3 is damaged")

    good, broken = RamBank(m3, TEXTS), Broken(m3, TEXTS)
    alone = m3.generate(QUESTIONS[0], good, max_new_tokens=23)
    with Engine(m3) as engine:
        handles = [engine.submit(job(m3, QUESTIONS[0], bank)) for bank in (good, broken, good, broken)]
        ends = [list(handle)[-1] for handle in handles]
        assert engine.state.running == 0
    assert [type(end) for end in ends] == [Finished, Failed, Finished, Failed]
    assert isinstance(ends[1], Failed)
    assert isinstance(ends[1].error, BankCorrupt)
    assert isinstance(ends[2], Finished)
    assert ends[2].token_ids == alone.token_ids


def test_a_question_that_cannot_be_asked_fails_no_other(m3: Memory3) -> None:
    with Engine(m3) as engine:
        good, empty, long = (engine.submit(job(m3, q)) for q in (QUESTIONS[0], "  ", "river " * 600))
        assert good.result().token_ids
        for handle in (empty, long):
            with pytest.raises(InputError):
                handle.result()


def test_a_model_that_fails_leaves_the_engine_alive(m3: Memory3) -> None:
    with Engine(m3) as engine:
        hook = m3.model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
        try:
            with pytest.raises(ServingError, match="division by zero"):
                engine.submit(job(m3, QUESTIONS[0])).result()
        finally:
            hook.remove()
        assert engine.submit(job(m3, QUESTIONS[0])).result().token_ids


def test_full_queues_refuse(m3: Memory3) -> None:
    gate = threading.Event()

    class Slow(RamBank):
        def search(self, *args: Any, **kwargs: Any) -> Any:
            gate.wait(30)
            return super().search(*args, **kwargs)

    bank = Slow(m3, TEXTS)
    with Engine(m3, slots=2, waiting=3) as engine:
        handles = [engine.submit(job(m3, QUESTIONS[0], bank)) for _ in range(5)]
        with pytest.raises(EngineBusy, match="5 requests"):
            engine.submit(job(m3, QUESTIONS[0], bank))
        handles[4].cancel()
        assert handles[4].result().reason == "cancelled"  # though it has not been looked up
        engine.submit(job(m3, QUESTIONS[0]))
        gate.set()
        assert all(handle.result().reason == "length" for handle in handles[:4])


def test_time_is_bounded(m3: Memory3) -> None:
    with Engine(m3) as engine:
        end = engine.submit(job(m3, QUESTIONS[0], length=400, seconds=0.05)).result()
    assert end.reason == "time"
    assert len(end.token_ids) < 400


def test_draining_and_closing(m3: Memory3) -> None:
    engine = Engine(m3)
    handle = engine.submit(job(m3, QUESTIONS[0]))
    assert engine.drain(30)
    assert handle.result().reason == "length"
    with pytest.raises(EngineClosed):
        engine.submit(job(m3, QUESTIONS[0]))
    engine.close()
    engine = Engine(m3)
    handle = engine.submit(job(m3, QUESTIONS[0], length=400))
    engine.close()
    with pytest.raises(EngineClosed):
        handle.result()
    assert m3.model.config._attn_implementation == "sdpa"


def test_a_prompt_that_is_tokens_stands_as_it_is(m3: Memory3) -> None:
    tokens = m3.prompts.ids("The river rises in")
    with torch.no_grad():
        expected = m3.model.generate(torch.tensor([tokens]), max_new_tokens=9, do_sample=False)[0, len(tokens) :].tolist()
    with Engine(m3) as engine:
        assert engine.submit(job(m3, tokens, length=9)).result().token_ids == m3.prompts.trim(expected)


def test_looking_up_takes_one_thread_and_no_one_elses(m3: Memory3) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: dict[str, int] = {}

        class Looking(RamBank):
            def search(self, *args: Any, **kwargs: Any) -> Any:
                seen["lookup"] = torch.get_num_threads()
                return super().search(*args, **kwargs)

        bank = Looking(m3, TEXTS)
        with Engine(m3) as engine:
            hook = m3.model.model.register_forward_pre_hook(lambda *_: seen.update(passes=torch.get_num_threads()))
            engine.submit(job(m3, QUESTIONS[0], bank)).result()
            thread = threading.Thread(target=lambda: seen.update(later=torch.get_num_threads()))
            thread.start()
            thread.join()
        hook.remove()
        assert seen == {"passes": 2, "lookup": 1, "later": 2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Vanishing:
    """A bank that is found in, and gone when it is read."""

    def __init__(self, bank):
        self.bank = bank

    def pin(self):
        return self

    def __getattr__(self, name):
        return getattr(self.bank, name)

    def search(self, *arguments, **options):
        time.sleep(0.3)  # so that those that come meanwhile are looked up together
        return self.bank.search(*arguments, **options)

    def memories(self, *_, **__):
        raise BankChanged("its files are gone")


def test_of_requests_that_are_looked_up_together_all_are_told_when_the_bank_is_gone_between_finding_and_reading(tmp_path):
    m3 = served.tiny_memory3()
    with Bank.open(tmp_path / "bank", m3, embedder=HashingEmbedder()) as bank, Engine(m3) as engine:
        bank.write(served.BANKS["docs"])
        settings, _ = decoding(m3.model, 3, {})
        gone, ends = Vanishing(bank), queue.Queue()
        for _ in range(4):
            engine.submit(
                Job("Who built the bridge?", settings, bank=gone, retrieval=m3.retrieval(None, None, None)), ends.put
            )
        for _ in range(4):
            assert isinstance(ends.get(timeout=20).error, BankChanged)
        assert (
            engine.submit(Job("Who built the bridge?", settings, bank=bank, retrieval=m3.retrieval(None, None, None)))
            .result()
            .token_ids
        )


def test_memories_are_fetched_ahead_where_the_answer_goes_on(m3: Memory3) -> None:
    config = m3.config.replace(chunk_length=17)
    longer = Memory3(m3.model, m3.tokenizer, config, name="tiny")
    bank, guessed = RamBank(longer, TEXTS), list[int]()
    with Engine(longer) as engine:
        prefetch = engine._lookup.prefetch

        def noted(handle: Any) -> None:
            guessed.append(handle.number)
            prefetch(handle)

        engine._lookup.prefetch = noted  # type: ignore[method-assign]
        done = [engine.submit(job(longer, QUESTIONS[0], bank, length=length, ignore_eos=True)) for length in (16, 17, 40)]
        for handle in done:
            handle.result()
    assert guessed == [done[2].number] * 2
