"""What a renewal costs a step of vLLM: requests decode at once, each renews its memories every 64 tokens, and the steps around
its renewals are held against the others.

    .venv-vllm/bin/python research/vllm/renewals.py --bank BANK --requests 1,4,16 --tokens 260 --out FILE

``extra_ms``: time of the steps around a renewal beyond as many median steps, per renewal: what one renewal costs all requests
that decode meanwhile. ``longest_ms``: the longest of these steps, at the median of renewals. Needs the default model and a
machine without other work. Uses only names that memory3 had before renewals were found beside the steps, so that it can be run
on a checkout of that time, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

QUESTIONS = ("Who built the bridge", "Where does the river rise", "What do memories hold", "When was the town founded")
#: Steps around a renewal that count as its own: the one before its first token, in which it may be searched beside, and those
#: until it has been laid out.
BEFORE, AFTER = 2, 2


def engine_of(m3: Any, folder: Path, bank: str, requests: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from memory3.vllm.card import make_folder
    from memory3.vllm.plugin import CONNECTOR, register

    path = make_folder(m3, folder)
    register()
    from vllm import EngineArgs
    from vllm.config import KVTransferConfig
    from vllm.v1.engine.llm_engine import LLMEngine

    banks = {"banks": {"b": bank}}
    transfer = KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_consumer", kv_connector_extra_config=banks)
    arguments = EngineArgs(
        model=str(path),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_seqs=requests,
        kv_cache_memory_bytes=1 << 30,
        disable_hybrid_kv_cache_manager=True,
        disable_log_stats=True,
        kv_transfer_config=transfer,
    )
    return LLMEngine.from_engine_args(arguments)


def run(engine: Any, m3: Any, requests: int, tokens: int, apart: int) -> dict[str, Any]:
    """Requests come ``apart`` steps after one another, so that they renew at different steps."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"kv_transfer_params": {"memory3": {"bank": "b"}}},
    )
    left = [f"{QUESTIONS[n % len(QUESTIONS)]}, and what of number {n}?" for n in range(requests)]
    said: dict[str, int] = {}
    times: list[float] = []
    renewals: list[int] = []
    full: list[int] = []  # steps in which all requests decode
    while left or engine.has_unfinished_requests():
        if left and len(times) % apart == 0:
            ids = m3.prompts.build(left.pop(), "memory")
            engine.add_request(str(len(left)), {"prompt_token_ids": ids}, params)
        began = time.perf_counter()
        outputs = engine.step()
        times.append(time.perf_counter() - began)
        for output in outputs:
            given = len(output.outputs[0].token_ids)
            said[output.request_id] = said.get(output.request_id, 0) + given
            # The step just made chose token n + 1 by feeding token n: 64 k + 1 is the first that reads anew.
            if given and (said[output.request_id] - 2) % 64 == 0 and said[output.request_id] > 64:
                renewals.append(len(times) - 1)
        if sum(len(one.outputs[0].token_ids) for one in outputs) == requests:
            full.append(len(times) - 1)
    near = {at for one in renewals for at in range(one - BEFORE, one + AFTER + 1)}
    counted = [one for one in renewals if all(at in set(full) for at in range(one - BEFORE, one + AFTER + 1))]
    plain = statistics.median(times[at] for at in full if at not in near)
    spans = [times[one - BEFORE : one + AFTER + 1] for one in counted]
    extra = [sum(span) - len(span) * plain for span in spans]
    return {
        "requests": requests,
        "renewals": len(counted),
        "step_ms": round(1000 * plain, 2),
        "extra_ms": round(1000 * statistics.mean(extra), 2) if extra else None,
        "extra_ms_median": round(1000 * statistics.median(extra), 2) if extra else None,
        "longest_ms": round(1000 * statistics.median(max(span) for span in spans), 2) if extra else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", required=True)
    parser.add_argument("--requests", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=260)
    parser.add_argument("--apart", type=int, default=13)
    parser.add_argument("--out")
    options = parser.parse_args()
    from memory3 import Memory3

    m3 = Memory3.from_pretrained()
    counts = [int(one) for one in options.requests.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(m3, Path(folder) / "model", options.bank, max(counts))
        run(engine, m3, 1, 70, 1)  # what is loaded at first is no step's
        rows = [run(engine, m3, count, options.tokens, options.apart) for count in counts]
        engine.engine_core.shutdown()
    text = json.dumps(rows, indent=1)
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
