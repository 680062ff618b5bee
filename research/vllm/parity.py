"""Are greedy tokens inside vLLM those of `Memory3.generate` alone? 200 questions on a real model, in vLLM's environment.

    python research/vllm/parity.py --data ../shared/data --work /tmp/parity --out research/vllm/parity.json

For each dtype, in a process of its own: banks are written, every question is answered by `m3.generate` by itself, then all
of them by one engine of vLLM, into which they come one after another while others are answered. Its paged cache is so small
that requests are put off and begin anew; prompts are fed in portions; prefix caching is on, and questions are repeated. What
is done is kept in the work folder, answer by answer: a run that was stopped goes on.

Where tokens differ, the first of them is looked at: how far apart the logits of the two tokens are, in `m3.generate` and in
vLLM, beside how far the two engines' logits differ where they choose the same token.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cases import COUNT, Case, cases, paragraphs

from memory3.files import write_atomically

DTYPES = ("float32", "bfloat16")
#: Requests at once, tokens of a block and of a step, and blocks of the paged cache: too few for all who are let in.
_ROWS, _BLOCK, _TOKENS, _BLOCKS = 8, 32, 96, 28
#: In other dtypes than float32 the demo's bank is written of its small topics alone: characters of a topic at most.
_SMALL = 12_000


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


class Kept:
    """Answers by number, each a line of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.all: dict[int, dict[str, Any]] = {}
        if path.exists():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            self.all = {one["number"]: one for one in map(json.loads, whole)}
            path.write_text("".join(whole))

    def add(self, **answer: Any) -> None:
        self.all[answer["number"]] = answer
        with self._path.open("a") as file:
            file.write(json.dumps(answer) + "\n")


# ---- alone -----------------------------------------------------------------------------------------------------------


class Watch:
    """A logits processor that changes nothing: keeps how far the two largest logits of every step are apart, and how large
    they are.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[list[int], list[float]]] = []

    def __call__(self, ids: Any, scores: Any) -> Any:
        values = scores[0].float().clone()
        first = int(values.argmax())  # of equals, the one that is chosen
        largest, values[first] = float(values[first]), -math.inf
        second = int(values.argmax())
        self.steps.append(([first, second], [largest, float(values[second])]))
        return scores


def alone(m3: Any, banks: dict[str, Any], asked: Sequence[Case], kept: Kept) -> None:
    """Answer every case by itself."""
    from transformers import LogitsProcessorList

    by_key = {asked[number].key: answer for number, answer in kept.all.items()}
    for number, case in enumerate(asked):
        if number in kept.all:
            continue
        if case.key not in by_key:
            watch = Watch()
            options = {
                "max_new_tokens": case.most,
                "min_new_tokens": case.least or None,
                "logits_processor": LogitsProcessorList([watch]),
                **case.reading,
            }
            if case.bank:
                answer = m3.generate(case.prompt, banks[case.bank], **options)
            else:
                answer = m3.generate(case.prompt, mode="none", **options)
            tokens = [tokens[0] for tokens, _ in watch.steps]
            assert tokens[: len(answer.token_ids)] == answer.token_ids
            second = [tokens[1] for tokens, _ in watch.steps]
            gaps = [values[0] - values[1] for _, values in watch.steps]
            largest = [values[0] for _, values in watch.steps]
            by_key[case.key] = {"tokens": tokens, "second": second, "gaps": gaps, "largest": largest}
        kept.add(**{**by_key[case.key], "number": number})
        if number % 10 == 9:
            say(f"m3.generate: {len(kept.all)} of {len(asked)}")


# ---- inside vLLM -----------------------------------------------------------------------------------------------------


def inside(m3: Any, folder: Path, banks: dict[str, str], asked: Sequence[Case], kept: Kept) -> None:
    """Answer all cases in one engine of vLLM, as they arrive."""
    left = [number for number in range(len(asked)) if number not in kept.all]
    if not left:
        return
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from memory3.vllm.card import make_folder
    from memory3.vllm.plugin import CONNECTOR, register

    register()
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    transfer = KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_consumer", kv_connector_extra_config={"banks": banks})
    llm = LLM(
        model=str(make_folder(m3, folder / "model")),
        dtype=str(m3.model.dtype).removeprefix("torch."),
        enforce_eager=True,
        enable_prefix_caching=True,
        block_size=_BLOCK,
        num_gpu_blocks_override=_BLOCKS,
        kv_cache_memory_bytes=1 << 28,  # else vLLM wants nearly all of the machine to itself
        max_model_len=(_BLOCKS - 2) * _BLOCK,
        max_num_seqs=_ROWS,
        max_num_batched_tokens=_TOKENS,
        disable_hybrid_kv_cache_manager=True,
        kv_transfer_config=transfer,
    )
    engine: Any = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    eos = m3.model.generation_config.eos_token_id
    ends = sorted({m3.tokenizer.eos_token_id, *([eos] if isinstance(eos, int) else eos or [])})
    draw = random.Random(len(left))
    put_off: dict[str, int] = {}
    due = 0
    steps = 0
    while left or engine.has_unfinished_requests():
        if left and steps >= due:
            number = left.pop(0)
            case = asked[number]
            memory = {"bank": case.bank, **case.reading} if case.bank else False
            params = SamplingParams(
                temperature=0,
                max_tokens=case.most,
                min_tokens=case.least,
                stop_token_ids=ends,
                logprobs=3,
                extra_args={"kv_transfer_params": {"memory3": memory}},
            )
            tokens = m3.prompts.build(case.prompt, "memory" if case.bank else "none")
            engine.add_request(str(number), {"prompt_token_ids": tokens}, params)
            due = steps + draw.choice((0, 1, 5, 20))
        for name, request in scheduler.requests.items():
            put_off[name] = request.num_preemptions
        for output in engine.step():
            if output.finished:
                kept.add(
                    **answered(m3, output, put_off, ends if asked[int(output.request_id.partition("-")[0])].least else ())
                )
                if len(kept.all) % 10 == 0:
                    say(f"vLLM: {len(kept.all)} of {len(asked)}, {sum(one['put_off'] for one in kept.all.values())} put off")
        steps += 1
    engine.engine_core.shutdown()


def answered(m3: Any, output: Any, put_off: dict[str, int], ends: Sequence[int]) -> dict[str, Any]:
    """What is kept of an answer."""
    mine = output.request_id.partition("-")[0]
    told = (output.kv_transfer_params or {}).get("memory3", {})
    if "error" in told:
        raise SystemExit(f"question {mine}: {told['error']}")
    said = output.outputs[0]
    # Of vLLM's logarithms none is masked: where an end was not allowed yet it does not count.
    steps = [sorted((one.logprob for token, one in step.items() if token not in ends), reverse=True) for step in said.logprobs]
    return {
        "number": int(mine),
        "tokens": list(said.token_ids),
        "gaps": [step[0] - step[1] if len(step) > 1 else None for step in steps],
        "put_off": max((times for name, times in put_off.items() if name.partition("-")[0] == mine), default=0),
        "renewals": told["recalls"] - recalls_of_prompt(m3, output.prompt_token_ids) if told else 0,
        "read": told.get("read", 0),
        "cached": output.num_cached_tokens or 0,
    }


def recalls_of_prompt(m3: Any, prompt: Sequence[int]) -> int:
    """How often a prompt looks something up, whatever it finds."""
    from memory3.recall.retrieval import Retrieval
    from memory3.vllm.follower import Follower

    follower = Follower(m3.frame, m3.config, Retrieval(1), prompt, m3.tokenizer.decode)
    if follower.memory.is_waiting:
        follower.receive([[] for _ in follower.lookups])
    return follower.memory.statistics.recalls


# ---- both ------------------------------------------------------------------------------------------------------------


def differences(asked: Sequence[Case], twins: Kept, answers: Kept) -> Iterator[dict[str, Any]]:
    """Of each case whose tokens differ: where first, and how close the two tokens were."""
    for number, case in enumerate(asked):
        twin, answer = twins.all[number], answers.all[number]
        at = first_difference(twin["tokens"], answer["tokens"])
        if at is None:
            continue
        spacing = 2.0 ** (math.floor(math.log2(abs(twin["largest"][at]))) - 7)  # between neighbours in bfloat16
        yield {
            "number": number,
            "reads": bool(case.bank),
            "at": at,
            "of": len(twin["tokens"]),
            "is_second": twin["second"][at] == answer["tokens"][at],
            "gap": round(twin["gaps"][at], 5),
            "gap_in_vllm": None if answer["gaps"][at] is None else round(answer["gaps"][at], 5),
            "spacing_in_bfloat16": spacing,
        }


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """None: they are the same."""
    if one == other:
        return None
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def summary(dtype: str, asked: Sequence[Case], twins: Kept, answers: Kept) -> dict[str, Any]:
    """Figures of one dtype."""
    found = list(differences(asked, twins, answers))
    first = {one["number"]: one["at"] for one in found}
    agreed = [first.get(number, len(twins.all[number]["tokens"])) for number in range(len(asked))]
    same, apart = sum(agreed), []
    for number, until in enumerate(agreed):
        pairs = zip(twins.all[number]["gaps"][:until], answers.all[number]["gaps"][:until], strict=True)
        apart += [abs(a - b) for a, b in pairs if b is not None]
    apart.sort()
    reads = [number for number, case in enumerate(asked) if case.bank]
    plain = [number for number, case in enumerate(asked) if not case.bank]
    kept = [answers.all[number] for number in range(len(asked))]

    def equal(numbers: Sequence[int]) -> str:
        return f"{sum(number not in first for number in numbers)} of {len(numbers)}"

    return {
        "dtype": dtype,
        "equal_answers": equal(range(len(asked))),
        "equal_answers_with_memories": equal(reads),
        "equal_answers_without": equal(plain),
        # A token is compared where all before it are the same: behind the first difference the questions are others.
        "tokens_compared": same + len(found),
        "differences_in_1000_tokens": {
            name: round(1000 * len(differ) / (sum(agreed[number] for number in numbers) + len(differ)), 2)
            for name, numbers in (("with_memories", reads), ("without", plain))
            for differ in [[number for number in numbers if number in first]]
        },
        "largest_gap_of_a_difference": max((one["gap"] for one in found), default=None),
        "tokens_equal": same,
        "share_of_tokens_equal": round(same / (same + len(found)), 6),
        "gap_of_the_two_largest_logits_differs_by": {
            "median": round(apart[len(apart) // 2], 6),
            "of_1_in_100": round(apart[int(0.99 * len(apart))], 6),
            "at_most": round(apart[-1], 6),
        },
        "answers_put_off": sum(one["put_off"] > 0 for one in kept),
        "times_put_off": sum(one["put_off"] for one in kept),
        "answers_renewed": sum(one["renewals"] > 0 for one in kept),
        "renewals_while_decoding": sum(one["renewals"] for one in kept),
        "answers_of_more_than_128_tokens": sum(len(one["tokens"]) > 128 for one in kept),
        "answers_of_64_tokens_or_more": sum(len(one["tokens"]) >= 64 for one in kept),
        "answers_with_a_cached_prefix": sum(one["cached"] > 0 for one in kept),
        "prompts_repeated": sum(case.repeats for case in asked),
        "memories_read": sum(one["read"] for one in kept),
        "differences": found,
    }


def one_dtype(dtype: str, data: Path, work: Path) -> None:
    """All of one dtype; its figures are left in the work folder."""
    from memory3 import Bank, Memory3
    from memory3.demo import PART, bank_folder, documents

    folder = work / dtype
    folder.mkdir(parents=True, exist_ok=True)
    m3 = Memory3.from_pretrained(dtype=dtype)
    asked = cases(data)
    topics = documents() if dtype == "float32" else [one for one in documents() if len(one.text) < _SMALL]
    paths = {"wiki": folder / "wiki", "demo": bank_folder(m3) if dtype == "float32" else folder / "demo"}
    banks = {name: Bank.open(path, m3) for name, path in paths.items()}
    say(f"{dtype}: writing banks, {len(PART)} topics of the demo and {len(paragraphs(data))} paragraphs")
    banks["wiki"].write(paragraphs(data))
    banks["demo"].write(topics)
    twins, answers = Kept(folder / "alone.jsonl"), Kept(folder / "vllm.jsonl")
    alone(m3, banks, asked, twins)
    inside(m3, folder, {name: str(path) for name, path in paths.items()}, asked, answers)
    found = {"model": m3.name, **summary(dtype, asked, twins, answers)}
    write_atomically(folder / "summary.json", json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with wiki_qa/dev.jsonl.gz and kb.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="where banks and answers are kept until all is done")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one_dtype(given.one, given.data, given.work)
        return
    found = []
    for dtype in given.dtypes.split(","):  # vLLM can be started once in a process
        summarised = given.work / dtype / "summary.json"
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", dtype], check=True)
        found.append(json.loads(summarised.read_text()))
    settings = {"rows": _ROWS, "tokens_of_a_block": _BLOCK, "blocks": _BLOCKS, "tokens_of_a_step": _TOKENS}
    report = {"date": time.strftime("%Y-%m-%d"), "questions": COUNT, "engine": settings, "results": found}
    write_atomically(given.out, json.dumps(report, indent=1) + "\n")
    say(f"{given.out}: " + ", ".join(f"{one['dtype']} {one['equal_answers']}" for one in found))


if __name__ == "__main__":
    main()
