"""What of `memory3.vllm` needs no vLLM: planning, pool and attention over a paged cache, in a stand-in for its engine; and
what is refused.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import tiny
import torch
from bank_writer import HashingEmbedder
from paged import Asked, PagedEngine, text

from memory3 import Bank, Document, Memory3, MemoryConfig
from memory3.errors import ConfigError, ModelError, ServingError, UnsupportedModel
from memory3.vllm import release, told
from memory3.vllm.asked import wanted
from memory3.vllm.card import Card, make_folder
from memory3.vllm.decoder import Decoder
from memory3.vllm.inner import Inner
from memory3.vllm.paying import Payments
from memory3.vllm.pool import Pool
from memory3.vllm.refusals import check_config, own_heads
from memory3.vllm.shelf import Shelf, shelf_of
from memory3.vllm.step import Packed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    config = MemoryConfig(reference_length=29, chunk_length=11, references_per_chunk=3, budget="adaptive:1/3", codec="raw")
    m3 = Memory3(tiny.tiny_model(), tiny.tiny_chat_tokenizer(), config, name="tiny")
    bank = Bank.open(str(folder / "bank"), m3, embedder=HashingEmbedder())
    bank.write([Document(f"d{n}", text(n, 20 + n), metadata={"half": n % 2}) for n in range(13)])
    shelf = Shelf(str(make_folder(m3, folder / "model")))
    shelf.put("b", bank)
    return SimpleNamespace(m3=m3, bank=bank, shelf=shelf, folder=folder)


def chat(seed, length, system=None):
    front = [{"role": "system", "content": system}] if system else []
    return [*front, {"role": "user", "content": text(seed, length)}]


#: (prompt, new tokens, what is read; None: nothing)
ASKED = [
    (text(101, 3), 25, {}),
    (text(102, 23), 14, {"k": 2}),
    (chat(103, 7, text(7, 5)), 30, {}),
    (text(104, 9), 17, None),
    (text(105, 5), 40, {"references": ["d3#0", "d5#0"]}),
    (chat(106, 31), 13, {"where": {"half": 1}, "gap": 0.5}),
    (chat(107, 2, text(8, 11)), 3, {"k": 1}),
]


@pytest.mark.parametrize(("block", "turned"), [(4, True), (7, False), (64, True)])
def test_any_schedule_gives_the_tokens_of_generate(made, block, turned):
    """Portions of any size, rows in any order, requests put off at any moment."""
    draw = random.Random(block)
    engine = PagedEngine(made.m3, made.shelf, block=block, blocks=300, turned=turned, seed=block)
    requests = {}
    for n, (prompt, new, memory) in enumerate(ASKED):
        tokens = made.m3.prompts.build(prompt, "none" if memory is None else "memory")
        asked = None if memory is None else {"memory3": {"bank": "b", **memory}}
        requests[n] = Asked(str(n), tokens, asked, new)
    waiting, running, put_off = list(requests), [], 0
    while waiting or running:
        if waiting and draw.random() < 0.3:
            n = waiting.pop(0)
            engine.add(requests[n])
            running.append(n)
        chosen = [n for n in running if draw.random() < 0.8]
        portions = []
        for n in chosen:
            left = len(requests[n].all_token_ids) - requests[n].computed
            portions.append((requests[n], draw.randint(1, left) if left > 1 else 1))
        if portions:
            engine.step(portions)
        for n in list(running):
            if len(requests[n].answer) >= requests[n].max_tokens:
                running.remove(n)
                engine.end(requests[n])
            elif draw.random() < 0.04:
                engine.put_off(requests[n])
                put_off += 1
    assert put_off > 2
    for n, (prompt, new, memory) in enumerate(ASKED):
        source, mode = (None, "none") if memory is None else (made.bank, "memory")
        twin = made.m3.generate(prompt, source, mode=mode, max_new_tokens=new, min_new_tokens=new, **(memory or {}))
        # The stand-in goes on after an end of text; so does the twin, but it writes another token.
        end = next((i for i, (a, b) in enumerate(zip(requests[n].answer, twin.token_ids, strict=False)) if a != b), new)
        assert end == new or requests[n].answer[end] == made.m3.tokenizer.eos_token_id, (n, end)
        assert end > 0
    engine.planner.close()


def test_two_who_ask_the_same_at_once_share_blocks_that_are_being_written(made):
    """vLLM's prefix cache gives the second the blocks of the first in the very step that fills them. Where all but its last
    token lie in them, it is a row of one token whose context is not there when the step begins.
    """
    prompt = next(one for one in (text(211, n) for n in range(9, 40)) if len(made.m3.prompts.build(one, "memory")) % 4 == 1)
    engine = PagedEngine(made.m3, made.shelf, block=4, seed=3)
    tokens = made.m3.prompts.build(prompt, "memory")
    first, second = (Asked(name, tokens, {"memory3": {"bank": "b"}}, 15) for name in ("first", "second"))
    for one in (first, second):
        engine.add(one)
    shared = len(tokens) // 4
    first.blocks = [engine.free.pop() for _ in range(shared + 1)]
    second.blocks, second.computed = first.blocks[:shared], 4 * shared
    engine.step([(first, len(tokens)), (second, 1)])
    while min(len(first.answer), len(second.answer)) < 15:
        engine.step([(one, 1) for one in (first, second) if len(one.answer) < 15])
    twin = made.m3.generate(prompt, made.bank, max_new_tokens=15, min_new_tokens=15).token_ids
    assert first.answer == twin
    assert second.answer == twin
    engine.planner.close()


def test_attention_paid_is_that_of_generate(made):
    """Counted whenever somebody asks, for rows that come, go and begin anew: the same shares as where one request is alone."""
    draw, payments, paid = random.Random(5), Payments(), {}

    engine = PagedEngine(made.m3, made.shelf, block=8, blocks=300, seed=5, payments=payments)
    asked = {n: one for n, one in enumerate(ASKED) if one[2] is not None}
    requests = {}
    for n, (prompt, new, memory) in asked.items():
        tokens = made.m3.prompts.build(prompt, "memory")
        requests[n] = Asked(str(n), tokens, {"memory3": {"bank": "b", **memory}}, new)
        engine.add(requests[n])
    running, put_off = list(requests), 0
    while running:
        chosen = [requests[n] for n in running if draw.random() < 0.9]
        if chosen:
            engine.step([(one, draw.randint(1, len(one.all_token_ids) - one.computed)) for one in chosen])
        for n in list(running):
            if len(requests[n].answer) >= requests[n].max_tokens:
                running.remove(n)
                paid.setdefault(n, {}).update(payments.take(str(n)))
                engine.end(requests[n])
            elif draw.random() < 0.1:
                paid.setdefault(n, {}).update(payments.take(str(n)))
            elif draw.random() < 0.06:
                engine.put_off(requests[n])
                put_off += 1
    assert put_off > 2
    compared = 0
    for n, (prompt, new, memory) in asked.items():
        twin = made.m3.generate(prompt, made.bank, max_new_tokens=new, **memory)
        if twin.token_ids != requests[n].answer:
            continue  # the stand-in goes on after an end of text
        compared += 1
        first = requests[n].num_prompt_tokens - 1
        mass = {}
        for at in range(first, first + new):
            for name, value in paid[n][at].items():
                mass[name] = mass.get(name, 0.0) + value
        shares = {name: value / sum(mass.values()) for name, value in mass.items()}
        assert shares == pytest.approx({one.reference_id: one.share for one in twin.citations}, abs=1e-4)
    assert compared > 2
    engine.planner.close()


def test_the_key_of_the_cache_is_what_is_read(made):
    def salt(prompt, **memory):
        engine = PagedEngine(made.m3, made.shelf)
        request = Asked(
            "r", made.m3.prompts.build(prompt, "memory"), {"memory3": {"bank": "b", **memory}}, 5, memory.pop("salt", None)
        )
        engine.add(request)
        engine.planner.close()
        return request.cache_salt

    one = text(201, 19)
    assert salt(one) == salt(one)
    others = [
        salt(one, k=1),
        salt(one, references=["d1#0"]),
        salt(one, gap=0.01),
        salt(one, where={"half": 0}),
        salt(text(202, 19)),
    ]
    assert len({salt(one), *others}) == 6


def test_a_pool_keeps_what_is_read_and_what_fits(made):
    records = {id_: made.bank.pin().records([id_])[0] for id_ in ("d1#0", "d2#0", "d3#0", "d4#0", "d5#0")}
    decoder = Decoder(made.shelf.card, 0)
    form = decoder.form_of(made.bank.pin())
    packed = [Packed(("b", "v", id_), record, form.key) for id_, record in records.items()]
    size = made.bank.memories(["d1#0"])[0].nbytes
    pool = Pool(2 * size, decoder.decode)
    assert not pool.take(packed[:3])
    pool.update({"r": tuple(one.name for one in packed[:3])}, [])
    assert len(pool) == 3  # all of them are read
    pool.take(packed[3:])
    pool.update({"s": (packed[3].name, packed[0].name)}, [])
    assert len(pool) == 4
    assert pool.decoded == 5
    pool.take(packed[:2])
    assert pool.decoded == 5
    pool.update({}, ["r"])
    assert len(pool) == 2
    assert set(pool.get([packed[3].name, packed[0].name])) == {packed[3].name, packed[0].name}
    with pytest.raises(Exception, match="was not sent"):
        pool.get([packed[2].name])


def test_a_card_says_what_its_model_says(made):
    card = Card.read(made.folder / "model")
    assert (card.fingerprint, card.shape, card.frame, card.config) == (
        made.m3.fingerprint,
        made.m3.shape,
        made.m3.frame,
        made.m3.config,
    )
    assert all(torch.equal(a, b) for a, b in zip(card.angles, made.m3.geometry.angles, strict=True))
    assert torch.equal(card.token_vectors, made.m3.token_vectors)
    with pytest.raises(ModelError, match=r"card\.json"):
        Card.read(made.folder)


def test_requests_say_what_they_read():
    config = MemoryConfig()
    assert wanted(None, config, None) is None
    assert wanted({"memory3": False}, config, "b") is None
    assert wanted({}, config, "b").retrieval.k == config.references_per_chunk
    assert wanted({"memory3": {"k": 2}}, config, "b").retrieval.gap == 2
    for bad in ({"bank": 3}, {"k": -1}, {"k": "2"}, {"where": 1}, {"gap": 9}, {"references": "a"}, {"mode": "text"}, [1]):
        with pytest.raises(ConfigError):
            wanted({"memory3": bad}, config, "b")


def test_nobody_reads_a_whole_bank_at_once():
    """A few bytes of a request would have a server decode and lay out all that a bank holds."""
    for many in ({"k": 65}, {"k": 10**30}, {"references": ["a#0"] * 65}):
        with pytest.raises(ConfigError, match="64 at most"):
            wanted({"memory3": many}, MemoryConfig(), "b")
        assert wanted({"memory3": many}, MemoryConfig(), "b", 10**30)
    assert wanted({"memory3": {"k": 64}}, MemoryConfig(), "b").retrieval.k == 64


def test_a_key_of_the_cache_cannot_be_made_by_others(made, monkeypatch):
    """A request brings a salt of its own if it wants. Made of what everybody can know, it would leave blocks that read nothing
    where those who read look for theirs.
    """
    tokens, salts = made.m3.prompts.build(text(203, 19), "memory"), set()
    for secret in ("one", "other"):
        monkeypatch.setattr(told, "_SECRET", secret)
        engine = PagedEngine(made.m3, made.shelf)
        request = Asked("r", tokens, {"memory3": {"bank": "b"}}, 5)
        engine.add(request)
        engine.planner.close()
        salts.add(request.cache_salt)
    assert len(salts) == 2


def test_a_shelf_knows_a_name_that_is_given_to_another_bank_and_a_folder_that_is_made_anew(made, tmp_path):
    other = Bank.open(str(tmp_path / "other"), made.m3)
    other.write([Document("x", text(1, 20))])
    shelf = Shelf(str(made.folder / "model"))
    shelf.offer({"c": str(made.folder / "bank")})
    assert len(shelf.bank("c").pin()) == len(made.bank)
    shelf.offer({"c": str(tmp_path / "other")})
    assert len(shelf.bank("c").pin()) == len(other) < len(made.bank)
    folder = str(make_folder(made.m3, tmp_path / "model"))
    first = shelf_of(folder)
    assert shelf_of(folder) is first
    make_folder(Memory3(made.m3.model, made.m3.tokenizer, made.m3.config.replace(references_per_chunk=2), name="tiny"), folder)
    assert shelf_of(folder).card.config.references_per_chunk == 2


def config_of(**changes):
    """As vLLM's, as far as it is looked at; each change is one that is refused."""
    parts = {
        "model_config": SimpleNamespace(use_mla=False, dtype=torch.float32),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1, enable_dbo=False),
        "scheduler_config": SimpleNamespace(async_scheduling=False),
        "cache_config": SimpleNamespace(cache_dtype="auto"),
        "device_config": SimpleNamespace(device_type="cpu"),
        "speculative_config": None,
        "lora_config": None,
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            setattr(parts[part], field, value)
        else:
            parts[part] = value
    return SimpleNamespace(**parts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"speculative_config": object()}, "speculative"),
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context"),
        ({"parallel_config__enable_dbo": True}, "dual-batch"),
        ({"scheduler_config__async_scheduling": True}, "asynchronous"),
        ({"cache_config__cache_dtype": "fp8_e5m2"}, "quantised"),
        ({"cache_config__cache_dtype": "turboquant_3bit_nc"}, "quantised"),
        ({"cache_config__cache_dtype": "bfloat16"}, "another dtype"),
        ({"lora_config": object()}, "LoRA"),
        ({"device_config__device_type": "cuda"}, "CPU platform"),
        ({"model_config__use_mla": True}, "latents"),
    ],
)
def test_what_cannot_be_right_is_refused(made, change, reason):
    card, cache = made.shelf.card, SimpleNamespace(kv_cache_groups=[1])
    check_config(config_of(), cache, card, {}, ())
    with pytest.raises((ConfigError, UnsupportedModel), match=reason):
        check_config(config_of(**change), cache, card, {}, ())
    with pytest.raises(UnsupportedModel, match="whole context"):
        check_config(config_of(), SimpleNamespace(kv_cache_groups=[1, 2]), card, {}, ())
    check_config(config_of(cache_config__cache_dtype="float32"), cache, card, {}, ())
    for settings, wrong in (({"colour": 1}, "colour"), ({"most_references": 0}, "most_references")):
        with pytest.raises(ConfigError, match=wrong):
            check_config(config_of(), cache, card, settings, ("banks", "most_references"))


def test_another_release_is_refused_by_its_number(monkeypatch):
    monkeypatch.setattr(release, "version", lambda name: "0.31.4")
    with pytest.raises(UnsupportedModel, match=r"0\.31\.4.*0\.32\.0"):
        release.check_release()


def test_every_head_is_one_workers():
    for heads, ranks in ((6, 1), (6, 2), (6, 3), (5, 5)):
        mine = [list(range(heads))[own_heads(heads, ranks, rank)] for rank in range(ranks)]
        assert [head for some in mine for head in some] == list(range(heads))
    assert [own_heads(2, 6, rank).start for rank in range(6)] == [0, 0, 0, 1, 1, 1]


def test_a_folder_that_another_process_made_anew_meanwhile_is_not_served(made):
    """Two servers of one model share a folder; its card says how the last one reads."""
    closed = []
    inner = SimpleNamespace(planner=SimpleNamespace(shelf=made.shelf), close=lambda: closed.append(True))
    Inner.check_card(inner, made.m3)
    assert not closed
    other = Memory3(made.m3.model, made.m3.tokenizer, made.m3.config.replace(references_per_chunk=2), name="tiny")
    with pytest.raises(ServingError, match="made anew"):
        Inner.check_card(inner, other)
    assert closed
