"""Benchmarks: speed, memory and answers, measured on real models and printed as JSON. Run by ``memory3 bench``.

Those in `RESEARCH` were made to find something out rather than to be run by users. They lie in ``research/benchmarks``
and need a checkout of the repository.

Two arms are compared in one process, alternating, by medians and ratios, because machines are noisy. Every accuracy
figure has its controls (no memory, text, random memories), its count and its interval.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from memory3.checkout import research
from memory3.errors import ConfigError

__all__ = ["BENCHMARKS", "RESEARCH", "about", "run"]

#: What each benchmark measures. The module of the same name, here or in ``research/benchmarks``, has ``run(**options) ->
#: dict``.
BENCHMARKS: dict[str, str] = {
    "decode": "tokens per second with memory against without: distinct references, RAM cache off",
    "first_token": "time to first token: memory against the same references as text",
    "speed": "the speed table: tokens per second, first token and peak memory of all modes, worst case and warm",
    "device": "tokens per second of a device that reads a bank over a slow network, against no memory",
    "write": "references encoded per second against a plain forward pass of the same tokens",
    "writing": "references written per second, end to end: CPU of every stage, peak of memory, by threads and number formats",
    "codec": "bytes, error, encoding and decoding time of every codec",
    "kernels": "milliseconds of every attention kernel that serves here against torch's own, which tells no log-sum-exp",
    "train_step": "a training step with memories against one without, on the same sequences",
    "overlap": "milliseconds of the leak guard's overlap, a sequence against a reference",
    "serve": "a server under load: requests, tokens and first token in mode memory against mode text and other servers",
    "vllm": "a server on vLLM under load: memories against five passages in the prompt, and against nothing read",
    "ahead": "what is fetched ahead: chunks of an answer that find all that they read in RAM, by what is guessed",
    "resident": "resident memory over many recalls",
    "scale": "many writers and the bank they leave: rows per second, commits, RAM, searches, reads",
    "compaction": "time and peak RAM of compaction against the number of rows",
    "front": "answer NLL and answers against bytes on disk, for every selector, budget and codec",
    "answers": "answers on a question set: memory, text, none and random memories, with intervals",
}
RESEARCH = frozenset({"train_step", "overlap", "resident", "ahead", "front", "answers"})


def about(name: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark is, in its own words, and its options with their defaults.

    Args:
        name: of `BENCHMARKS`.

    Raises:
        NeedsCheckout: it is one of `RESEARCH`, and the package was installed without the repository.
    """
    module = _module(name)
    return (module.__doc__ or "").strip(), dict(module.OPTIONS)


def run(name: str, options: dict[str, str]) -> dict[str, Any]:
    """Run a benchmark; ``options`` as text, e.g. ``{"repeats": "5"}``. The result is plain JSON.

    Args:
        name: of `BENCHMARKS`.
        options: as text; what is left out has the benchmark's default.

    Raises:
        ConfigError: no such benchmark, no such option, or a value of another type.
        NeedsCheckout: it is one of `RESEARCH`, and the package was installed without the repository.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark {name!r} is unknown: use one of {', '.join(BENCHMARKS)}")
    module = _module(name)
    known: dict[str, Any] = module.OPTIONS
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"benchmark {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    values = dict(known)
    for key, text in options.items():
        kind = type(known[key])
        try:
            values[key] = kind(text)
        except ValueError:
            raise ConfigError(f"option {key}={text!r} of benchmark {name!r} must be of type {kind.__name__}") from None
    from memory3.evaluation.machine import machine

    return {"benchmark": name, "options": values, "machine": machine(), **module.run(**values)}


def _module(name: str) -> Any:
    if name in RESEARCH:
        return research(f"benchmarks.{name}", f"memory3 bench {name}")
    return import_module(f"memory3.benchmarks.{name}")
