"""Several threads, one model: every answer and every memory is what one thread alone gets, or the thread is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
from ram_bank import RamBank
from tiny import tiny_model, tiny_tokenizer

from memory3.attention import exclusive as exclusive_module
from memory3.codec.raw import encode_record
from memory3.config import MemoryConfig
from memory3.errors import RecallError
from memory3.llm import Memory3
from memory3.types import Document

TEXTS = ["The river rises in the mountains.", "The bridge was built in 1874.", "Keys and values.", "A town by the sea."]


@pytest.fixture
def m3():
    config = MemoryConfig(reference_length=31, chunk_length=7, references_per_chunk=2, dtype="float32")
    return Memory3(tiny_model("llama"), tiny_tokenizer(), config, name="tiny")


def test_eight_threads_get_what_one_gets(m3):
    bank = RamBank(m3, TEXTS)
    twin = Memory3(m3.model, m3.tokenizer, m3.config, name="tiny")  # another Memory3 over the same model
    references = [r for n, text in enumerate(TEXTS) for r in m3.split(Document(f"d{n}", text))]

    def job(n):
        mine = (m3, twin)[n % 2]
        if n % 5 == 4:
            return [encode_record(memory, mine.shape) for memory in mine.encode(references)]
        if n % 5 == 3:
            return mine.log_likelihood([f"Who built {n}?"], ["the county"], bank)
        return mine.generate(f"Who built {n}?", bank, mode=("memory", "none", "text")[n % 5], max_new_tokens=11).token_ids

    alone = [job(n) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(job, range(24))) == alone
    assert m3.model.config._attn_implementation == "sdpa"


def test_a_thread_that_runs_the_model_itself_beside_a_recall_is_refused(m3):
    bank, seen = RamBank(m3, TEXTS), []

    def raw():
        try:
            m3.model(m3.tokenizer("Who?", return_tensors="pt")["input_ids"])
        except RecallError as error:
            seen.append(str(error))

    with m3.recall(bank):
        thread = Thread(target=raw)
        thread.start()
        thread.join()
    assert "another thread is recalling" in seen[0]


def test_waiting_for_the_one_who_waits_ends(m3, monkeypatch):
    monkeypatch.setattr(exclusive_module, "IDLE_SECONDS", 0.2)
    bank = RamBank(m3, TEXTS)
    with m3.recall(bank), ThreadPoolExecutor(1) as pool, pytest.raises(RecallError, match="has a recall of this model open"):
        pool.submit(m3.generate, "Who?", bank).result()
    assert len(m3.generate("Who?", bank, max_new_tokens=2).token_ids) == 2
    with m3.recall(bank), pytest.raises(RecallError, match="recalling already"), m3.recall(bank):
        pass
    with ThreadPoolExecutor(1) as pool:  # what was refused has let go
        assert pool.submit(m3.generate, "Who?", bank, max_new_tokens=2).result(timeout=60).token_ids
