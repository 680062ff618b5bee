"""Several threads, one model: every answer and every memory is what one thread alone gets, or the thread is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest
import torch
from ram_bank import RamBank
from tiny import tiny_model, tiny_tokenizer
from transformers import StoppingCriteria
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from memory3.attention import attach
from memory3.attention.attach import Seen, attached
from memory3.codec.raw import encode_record
from memory3.config import MemoryConfig
from memory3.errors import RecallError
from memory3.llm import Memory3
from memory3.parity import own_attention
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


def test_generations_of_one_model_run_at_the_same_time(m3):
    """Neither ends before the other has begun, whatever memories they read."""
    banks = [RamBank(m3, TEXTS[:2]), RamBank(m3, TEXTS[2:])]
    alone = [m3.generate("Who built it?", bank, max_new_tokens=23).token_ids for bank in banks]
    assert alone[0] != alone[1]
    barrier = Barrier(2, timeout=60)

    class Meet(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            barrier.wait()
            return torch.zeros(ids.shape[0], dtype=torch.bool)

    def job(bank):
        return m3.generate("Who built it?", bank, max_new_tokens=23, stopping_criteria=[Meet()]).token_ids

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(job, banks)) == alone
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
        with ThreadPoolExecutor(1) as pool:  # which does not wait for this thread
            assert len(pool.submit(m3.generate, "Who?", bank, max_new_tokens=2).result(timeout=60).token_ids) == 2
    assert "another thread is recalling" in seen[0]


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_attention_is_restored_by_the_last_who_leaves(own):
    model = tiny_model("llama")
    model.set_attn_implementation(own)
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        untouched = model(tokens).logits
        first, second = attached(model), attached(model)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert model.config._attn_implementation.startswith("memory3")
        torch.testing.assert_close(model(tokens).logits, untouched, rtol=1e-5, atol=1e-5)
        # A pass of another thread may find its mask made by one and its attention by the other.
        masks = []
        hook = model.model.layers[0].register_forward_pre_hook(
            lambda *a: masks.append(a[2].get("attention_mask")), with_kwargs=True
        )
        model(tokens)
        hook.remove()
        assert (masks[0] is None) == (own == "sdpa")
        second.__exit__(None, None, None)
        assert model.config._attn_implementation == own
        torch.testing.assert_close(model(tokens).logits, untouched, rtol=0, atol=0)


@pytest.mark.parametrize("mask", ["none", "added", "true or false"])
def test_a_token_without_memories_is_read_as_the_stock_function_reads_it(mask):
    """Whoever made the mask: a pass of another thread may have made it before our attention took over."""
    layer = torch.nn.Module().eval()
    layer.num_key_value_groups, layer.is_causal = 3, True
    query, key, value = (torch.randn(2, heads, size, 5) for heads, size in ((6, 1), (2, 7), (2, 7)))
    shown = torch.arange(7) >= torch.tensor([0, 4])[:, None, None, None]
    stock = None if mask == "none" else shown
    given = {"none": None, "added": torch.zeros(2, 1, 1, 7).masked_fill(~shown, -1e30), "true or false": shown}[mask]
    with torch.no_grad():
        ours = attach._attention(layer, query, key, value, given, scaling=0.3)[0]
        theirs = sdpa_attention_forward(layer, query, key, value, stock, scaling=0.3, is_causal=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_proof_leaves_the_attention_to_who_is_attached_beside_it(m3):
    ids, seen = torch.arange(5)[None], Seen()
    with torch.inference_mode():
        alone = m3.model(ids).logits
        beside, proof = attached(m3.model), own_attention(m3.model)
        beside.__enter__()
        proof.__enter__()  # as a thread that proves while another encodes
        m3.model(ids, memory3=seen)
        assert len(seen.layers) == m3.geometry.num_layers
        beside.__exit__(None, None, None)
        assert torch.equal(m3.model(ids).logits, alone)
        proof.__exit__(None, None, None)
    assert m3.model.config._attn_implementation == "sdpa"
