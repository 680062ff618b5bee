"""A job's prompt, and what it asks of vLLM."""

from __future__ import annotations

from typing import Any

from memory3.asking import prepare
from memory3.choosing import Chooser
from memory3.llm import Memory3
from memory3.recall.retrieval import one_version
from memory3.serving.job import Job
from memory3.serving.stretches import GrowingText
from memory3.vllm.asked import KEY
from memory3.vllm.opened import Opened
from memory3.vllm.sampling import sampling_options
from memory3.vllm.shelf import Shelf

__all__ = ["open_job"]


def open_job(m3: Memory3, job: Job, shelf: Shelf) -> Opened:
    """Make a job's prompt.

    Args:
        m3: the model.
        job: what is asked.
        shelf: where the connector finds the job's bank.

    Raises:
        Memory3Error: it cannot be answered.
    """
    bank = one_version(job.bank)
    prompt: Any = job.prompt
    (asked,) = prepare([prompt], [job.retrieval], m3.prompts, bank, job.mode)
    m3.prompts.check_length([asked.tokens], job.settings.max_new_tokens or 0, job.mode)
    end = m3.tokenizer.eos_token_id
    chooser = Chooser(m3.model, job.settings, asked.tokens, ends=[] if end is None else [end])
    options = sampling_options(m3.model, job, chooser)
    wanted: Any = False
    if job.mode == "memory" and bank is not None and not job.retrieval.finds_nothing(bank):
        how, name = job.retrieval, str(id(job.bank))
        shelf.put(name, job.bank)
        wanted = {"bank": name, "k": how.k, "gap": how.gap, "where": how.where}
        if how.references is not None:
            wanted["references"] = list(how.references)
    options["extra_args"] = {"kv_transfer_params": {KEY: wanted}}
    text = GrowingText(lambda ids: str(m3.tokenizer.decode(ids, skip_special_tokens=True)), job.stop)
    return Opened(asked, text, options, set() if job.ignore_eos else chooser.ends)
