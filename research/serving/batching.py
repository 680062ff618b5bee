"""Our scheduler against transformers' own: tokens per second of requests that come at once and read no memory.

    python research/serving/batching.py --out batching.json
    python research/serving/batching.py --out batching.json --requests 4 --repeats 1

One process, one model in float32, greedy answers of one length, arms in turn, medians:

    engine        `memory3.serving.engine.Engine`: its queue, lookup thread and detokenising included
    manager       `ContinuousBatchingManager` of transformers with torch's attention; no detokenising
    manager-eager the same with its eager attention over pages
    generate      `model.generate` on all requests as one batch: what no request that comes later can join

Prompts are tokens, of one length, so that `generate` pads nothing. Only one arm's threads live at a time: with more teams of
threads than CPUs, none of them waits awake (`memory3.serving.threads`). An arm's answers must be `generate`'s: ``same``
is the share of tokens in front of the first that differs, since sums in another order can choose otherwise at a tie.

Of its own accord the manager puts 8,192 tokens into a pass, all of which look at one another through a dense mask, and takes
0.6 of the RAM that is free. Neither is to its advantage here, so both are set.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: Threads of torch.
THREADS = 2
#: Tokens that a page of transformers' manager holds, and how many pages it gets.
PAGE, PAGES = 256, 128


class Engine:
    """Ours."""

    def __init__(self, m3: Any) -> None:
        self._m3 = m3

    def __call__(self, prompts: Sequence[list[int]], length: int) -> tuple[float, list[list[int]]]:
        """Seconds, and answers."""
        from memory3.decoding import decoding
        from memory3.serving import engine
        from memory3.serving.job import Job

        settings, _ = decoding(self._m3.model, length, {})
        with engine.Engine(self._m3, threads=THREADS) as running:
            started = time.perf_counter()
            handles = [running.submit(Job(prompt, settings, "none", ignore_eos=True)) for prompt in prompts]
            answers = [handle.result().token_ids for handle in handles]
            return time.perf_counter() - started, answers


class Manager:
    """Transformers' continuous batching."""

    def __init__(self, model: Any, attention: str, most: int) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self._model, self._attention = model, attention
        model.set_attn_implementation(attention)
        config = ContinuousBatchingConfig(page_size=PAGE, num_blocks=PAGES, max_batch_tokens=most)
        self._manager = model.init_continuous_batching(GenerationConfig(do_sample=False, eos_token_id=-1), config)

    def __call__(self, prompts: Sequence[list[int]], length: int) -> tuple[float, list[list[int]]]:
        """Seconds, and answers."""
        manager = self._manager
        self._model.set_attn_implementation(self._attention)
        manager.start()
        while manager.batch_processor is None:
            time.sleep(0.01)
        time.sleep(0.3)  # it looks for requests every 0.1 s while it has none, and is woken up when one comes
        try:
            started = time.perf_counter()
            ids = manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=length)
            found: dict[str, list[int]] = {}
            while len(found) < len(ids):
                result = manager.get_result(timeout=60)
                if result is None or result.error is not None:
                    raise SystemExit(f"transformers' manager failed: {result and result.error}")
                if result.is_finished():
                    found[result.request_id] = list(result.generated_tokens)
            return time.perf_counter() - started, [found[name] for name in ids]
        finally:
            manager.stop(block=True, keep_for_next_session=True)


class Generate:
    """One batch from its first token to its last."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, prompts: Sequence[list[int]], length: int) -> tuple[float, list[list[int]]]:
        """Seconds, and answers."""
        from memory3.serving.threads import apart

        return apart(lambda: self._generate(prompts, length), THREADS)

    def _generate(self, prompts: Sequence[list[int]], length: int) -> tuple[float, list[list[int]]]:
        import torch
        from transformers import GenerationConfig

        config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=length)
        tokens = torch.tensor(prompts)
        self._model.set_attn_implementation("sdpa")
        started = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
        return time.perf_counter() - started, out[:, tokens.shape[1] :].tolist()


# ---- measuring -------------------------------------------------------------------------------------------------------


def same(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """Share of tokens that stand in front of the first difference."""
    equal = 0
    for mine, theirs in zip(found, wanted, strict=True):
        pairs = list(zip(mine, theirs, strict=True))
        equal += next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return equal / sum(map(len, wanted))


def compared(arms: dict[str, Any], prompts: Callable[[int, int], list[list[int]]], many: int, asked: Any) -> dict[str, Any]:
    """One number of requests: medians of tokens per second, ratios to our engine turn by turn, and how equal answers are."""
    from memory3.benchmarks.measure import alternate, ratio

    equal: dict[str, list[float]] = {name: [] for name in arms}
    latest: dict[str, Any] = {}

    def arm(name: str) -> Callable[[], float]:
        def run() -> float:
            if name in latest or not latest:  # the next turn: all arms get the same prompts
                latest.clear()
                latest[""] = prompts(many, asked.tokens_in)
            seconds, answers = arms[name](latest[""], asked.tokens_out)
            if [len(answer) for answer in answers] != [asked.tokens_out] * many:
                raise SystemExit(f"{name}: answers have {[len(answer) for answer in answers]} tokens")
            latest[name] = answers
            if len(latest) == len(arms) + 1:
                for one in arms:
                    equal[one].append(same(latest[one], latest["generate"]))
            return many * asked.tokens_out / seconds

        return run

    figures = alternate({name: arm(name) for name in arms}, asked.repeats)
    best = max((name for name in arms if name != "engine"), key=lambda name: sorted(figures[name])[asked.repeats // 2])
    return {
        "tokens_per_second": {name: sorted(values)[len(values) // 2] for name, values in figures.items()},
        "turns": figures,
        "engine_over": {name: ratio(figures, "engine", name)["ratio"] for name in arms if name != "engine"},
        "best_alternative": best,
        "same": {name: min(values) for name, values in equal.items()},
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parser.add_argument("--requests", default="1,4,8,16", help="at once, between commas [1,4,8,16]")
    parser.add_argument("--tokens-in", type=int, default=32, help="of a prompt [32]")
    parser.add_argument("--tokens-out", type=int, default=64, help="of an answer [64]")
    parser.add_argument("--pass-tokens", type=int, default=512, help="in a pass of transformers' manager at most [512]")
    parser.add_argument("--repeats", type=int, default=5, help="turns [5]")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # before torch is there
    import torch
    from transformers import __version__

    from memory3 import Memory3
    from memory3.evaluation.machine import machine
    from memory3.models.catalogue import DEFAULT_ADAPTED
    from memory3.serving.threads import apart

    # Models are made in a thread that ends: none of the main thread's may stay beside those that are measured.
    m3, other = apart(lambda: [Memory3.from_pretrained(DEFAULT_ADAPTED) for _ in range(2)], THREADS)
    torch.set_num_threads(THREADS)
    draw = random.Random(0)
    topics = " ".join(text for _, text in sorted(_topics().items()))
    tokens = m3.tokenizer(topics)["input_ids"]

    def prompts(many: int, length: int) -> list[list[int]]:
        return [tokens[at : at + length] for at in draw.sample(range(len(tokens) - length), many)]

    arms = {
        "engine": Engine(m3),
        "manager": Manager(other.model, "sdpa", asked.pass_tokens),
        "manager-eager": Manager(other.model, "paged|eager", asked.pass_tokens),
        "generate": Generate(other.model),
    }
    found = {f"{many} requests": compared(arms, prompts, many, asked) for many in map(int, asked.requests.split(","))}
    options = {name: value for name, value in vars(asked).items() if name != "out"}
    told = {"options": options, "threads": THREADS, "transformers": __version__, "machine": machine()}
    asked.out.write_text(json.dumps({**told, **found}, indent=2) + "\n")
    for name, one in found.items():
        print(name, {key: round(value, 1) for key, value in one["tokens_per_second"].items()}, one["engine_over"], one["same"])


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # a checkout of the repository
    main()
