"""One engine of vLLM in this process, with a tiny model and a bank on disk, and what `Memory3.generate` says to the same."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch

from memory3 import Bank, Memory3, MemoryConfig
from memory3.types import Document
from memory3.vllm.card import make_folder
from memory3.vllm.plugin import CONNECTOR, register

WORDS = (
    *("river", "bridge", "mountain", "county", "reader", "memory", "key", "value"),
    *("town", "sea", "engineer", "1874", "old", "new", "built", "answer", "question"),
)


def text(seed, length):
    """Words in an order that no other seed gives."""
    at, words = seed * 7919 + 13, []
    for _ in range(length):
        at = (at * 1103515245 + 12345) % (1 << 31)
        words.append(WORDS[(at >> 8) % len(WORDS)])
    return " ".join(words)


def chat(seed, length, system=None):
    front = [{"role": "system", "content": system}] if system else []
    return [*front, {"role": "user", "content": text(seed, length)}]


#: (prompt, new tokens, what is read). Answers of more than 23 tokens renew, prompts of more have several chunks.
ASKED = [
    (text(101, 5), 7, {}),
    (text(102, 60), 71, {}),
    (text(103, 11), 50, None),
    (text(104, 3), 101, {"k": 2}),
    (text(105, 40), 29, {"where": {"half": 1}}),
    (text(106, 13), 80, {"references": ["d3#0", "d5#0"]}),
    (chat(107, 30), 47, {}),
    (chat(108, 21, "You are old. " + text(5, 9)), 61, {"k": 1, "gap": 0.3}),
    (text(102, 60), 71, {}),
    (text(109, 90), 30, None),
    (chat(108, 21, "You are old. " + text(5, 9)), 61, {"k": 3}),
    (text(110, 2), 120, {}),
    (text(106, 13), 80, {"references": ["d4#0"]}),
    (text(111, 70), 24, {}),
    (text(112, 8), 90, {}),
    (text(103, 11), 50, {}),
    (chat(113, 1), 100, {"k": 5}),
]


class Inside:
    """Attributes: ``m3``, ``bank``, ``llm`` of vLLM, ``steps``, which every `Step` is added to, and ``paid``: where ``shares``
    are counted, what each worker counted for each request of the last run, by number.
    """

    def __init__(self, folder: Path, dtype="float32", shares=False, **settings):
        config = MemoryConfig(reference_length=37, chunk_length=23, references_per_chunk=3, budget="adaptive:1/3", codec="raw")
        model = tiny.tiny_model(head_dim=32, max_position_embeddings=1024).to(getattr(torch, dtype))
        self.m3 = Memory3(model, tiny.tiny_chat_tokenizer(), config, name="tiny")
        self.bank = Bank.open(str(folder / "bank"), self.m3)
        documents = [Document(f"d{n}", text(n, 30 + n), metadata={"half": n % 2}) for n in range(17)]
        self.bank.write(documents)
        path = make_folder(self.m3, folder / "model")
        register()
        from vllm import LLM
        from vllm.config import KVTransferConfig

        transfer = KVTransferConfig(
            kv_connector=CONNECTOR,
            kv_role="kv_consumer",
            kv_connector_extra_config={"banks": {"b": str(folder / "bank")}, "pool_bytes": 300_000, "shares": shares},
        )
        options = {
            "dtype": dtype,
            "enforce_eager": True,
            "enable_prefix_caching": True,
            "block_size": 32,
            "max_model_len": 640,
            "max_num_seqs": 11,
            "disable_hybrid_kv_cache_manager": True,
            "kv_transfer_config": transfer,
        }
        self.llm = LLM(model=str(path), **(options | settings))
        self.engine = self.llm.llm_engine
        self.steps, self.shares, self.paid = [], shares, {}
        core = getattr(self.engine.engine_core, "engine_core", None)  # None: in a process of its own
        if core is not None:
            self.core, self.connector = core, core.scheduler.connector
            self._spy()

    def _spy(self):
        planned = self.connector.planner.step

        def step(scheduled):
            self.steps.append(planned(scheduled))
            return self.steps[-1]

        self.connector.planner.step = step

    @staticmethod
    def connector_of_worker():
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return get_kv_transfer_group()

    @property
    def ends(self):
        eos = self.m3.model.generation_config.eos_token_id
        return sorted({self.m3.tokenizer.eos_token_id, *([eos] if isinstance(eos, int) else eos or [])})

    def submit(self, name, prompt, new, memory, **options):
        from vllm import SamplingParams

        tokens = self.m3.prompts.build(prompt, "none" if memory is None else "memory")
        extra = None if memory is None else {"kv_transfer_params": {"memory3": {"bank": "b", **memory}}}
        params = SamplingParams(
            temperature=0, max_tokens=new, min_tokens=new, stop_token_ids=self.ends, extra_args=extra, **options
        )
        self.engine.add_request(name, {"prompt_token_ids": tokens}, params)

    def run(self, asked, every=1):
        """Run requests (prompt, new tokens, memory or None), one more let in after ``every`` steps. Returns their outputs."""
        waiting, outputs, steps = list(enumerate(asked)), {}, 0
        while waiting or self.engine.has_unfinished_requests():
            if waiting and steps % every == 0:
                n, (prompt, new, memory) = waiting.pop(0)
                self.submit(str(n), prompt, new, memory)
            for output in self.engine.step():
                if output.finished:
                    number = int(output.request_id.split("-")[0])
                    outputs[number] = output
                    names = {
                        row.request for step in self.steps for row in step.rows if row.request.split("-")[0] == str(number)
                    }
                    if self.shares and names:  # before the next step, which tells workers that it has ended
                        self.paid[number] = self._paid(*names)
            steps += 1
        return [outputs[n] for n in range(len(asked))]

    def _paid(self, name):
        from memory3.vllm.connector import paid

        return self.llm.collective_rpc(paid, args=(name,))

    def answer(self, prompt, new, memory, **options):
        """The answer of `Memory3.generate`."""
        lengths = {"max_new_tokens": new, "min_new_tokens": new}
        if memory is None:
            return self.m3.generate(prompt, mode="none", **lengths, **options)
        return self.m3.generate(prompt, self.bank, **lengths, **memory, **options)

    def twin(self, prompt, new, memory, **options):
        """Its tokens."""
        return self.answer(prompt, new, memory, **options).token_ids


def said(output):
    return list(output.outputs[0].token_ids)
