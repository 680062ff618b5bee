"""Settings chosen for a model by the measurements of a check: selector and temperature first, then budget and codec.

Questions that chose do not judge: those of every other reference choose selector and temperature, those of the rest are the
check's. A setting is left for another only where that is surely better, question by question (the whole 95% interval of the
difference); so where figures are even, what was configured stays. Budget and codec are the check's own advice, followed until
it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from memory3.bank.codebooks import cached_codebook
from memory3.calibration.codec import calibrate
from memory3.checking.check import MARGIN, QUESTIONS, check
from memory3.checking.questions import LEAST, Item, items_of, sampled
from memory3.checking.selection import Arm, measure
from memory3.checking.verdict import USE
from memory3.codec import RawCodec
from memory3.codec.registry import default_codec, find
from memory3.config import MemoryConfig
from memory3.encode.selectors import is_fitted
from memory3.errors import InputError
from memory3.evaluation.intervals import interval
from memory3.llm import Memory3
from memory3.models.chosen import keep_settings
from memory3.types import Document

__all__ = ["CHOOSING", "choose", "compared"]

#: Questions that choose selector and temperature.
CHOOSING = 64
_SELECTORS = ("reconstruction", "learned", "blended", "weighed")
_TEMPERATURES = (1.0, 0.9, 0.8)
#: Checks at most: one, and one after each of budget and codec was changed.
_CHECKS = 3

Progress = Callable[[str, float, str], None]


def choose(
    m3: Memory3,
    documents: Callable[[], Iterable[Document]],
    *,
    choosing: int = CHOOSING,
    questions: int = QUESTIONS,
    margin: float = MARGIN,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Choose selector, temperature, budget and codec, and keep them for this model where the verdict allows its memories.

    Args:
        m3: the model, with the settings to begin at.
        documents: gives those to choose and to check on, anew at each call; codecs that nobody fitted yet are fitted to them.
        choosing: questions for selector and temperature.
        questions: for the check.
        margin: see `memory3.checking.check.check`.
        seed: of what questions leave out.
        progress: told what is being done, how much of it is done (0 to 1), and more of it.

    Returns:
        ``settings`` (the memory's, as JSON), ``steps`` (each with ``setting``, ``value``, ``nll``, ``difference`` to what was
        configured and its ``interval``, ``taken``), ``check`` (of `check`, the last one), ``kept`` (path, or None).

    Raises:
        InputError: the documents give too few questions.
    """
    items = items_of(sampled(m3, documents(), choosing + questions, seed=seed), choosing + questions, seed=seed)
    if len(items) < 2 * LEAST:
        raise InputError(
            f"these documents give {len(items)} questions, {2 * LEAST} are needed to choose and to judge by different ones: "
            "give more of them"
        )
    number = max(LEAST, len(items) * choosing // (choosing + questions))
    mine = {n * len(items) // number for n in range(number)}
    own = [item for n, item in enumerate(items) if n in mine]
    held = [item.reference for n, item in enumerate(items) if n not in mine]
    say = progress or (lambda what, done, more: None)
    config, steps = m3.config, list[dict[str, Any]]()
    for setting, values in (("selector", _selectors(m3)), ("memory_temperature", _temperatures(m3))):
        best, tried = _best(m3, config, setting, values, own, say)
        config, steps = best, steps + tried
    found: dict[str, Any] = {}
    for _ in range(_CHECKS):
        now = _with(m3, config)
        _fit_codec(now, documents, say)
        found = check(
            now,
            held,
            questions=questions,
            margin=margin,
            seed=seed,
            progress=lambda done, what: say("checking", done, what),
        )
        advice = {name: value for name, value in found["verdict"]["settings"].items() if _says(config, name) != value}
        if not advice:
            break
        config = config.replace(**advice)
        steps += [{"setting": name, "value": value, "taken": True} for name, value in advice.items()]
    kept = keep_settings(m3.name, config) if found["verdict"]["choice"] == USE else None
    return {"settings": config.to_dict(), "steps": steps, "check": found, "kept": str(kept) if kept else None}


def _selectors(m3: Memory3) -> list[str]:
    """Those that need no fit, or were fitted to this model, the configured one first."""
    ready = (name for name in _SELECTORS if not is_fitted(name) or m3.fitted(name) is not None)
    return list(dict.fromkeys((m3.config.selector, *ready)))


def _temperatures(m3: Memory3) -> list[float]:
    return list(dict.fromkeys((float(m3.config.memory_temperature), *_TEMPERATURES)))


def _best(
    m3: Memory3, config: MemoryConfig, setting: str, values: Sequence[Any], items: Sequence[Item], say: Progress
) -> tuple[MemoryConfig, list[dict[str, Any]]]:
    """The settings with the value that `compared` takes."""
    nll: dict[Any, Sequence[float]] = {}
    for n, value in enumerate(values):
        variant = _with(m3, config.replace(**{setting: value}))
        arm = Arm(str(variant.config.budget), variant.config.budget, configured=True)

        def tell(done: int, total: int, n: int = n, value: Any = value) -> None:
            say(f"choosing {setting.replace('_', ' ')}", (n + done / total) / len(values), str(value))

        nll[value] = measure(variant, items, [arm], RawCodec(variant.shape), tell).nll[arm.name]
    taken, steps = compared(nll)
    return config.replace(**{setting: taken}), [{"setting": setting, **step} for step in steps]


def compared(nll: Mapping[Any, Sequence[float]]) -> tuple[Any, list[dict[str, Any]]]:
    """The value of least NLL among those surely better than the first, or the first; and what was found of each.

    Args:
        nll: of every question, nats a token, by value; what is configured first.

    Returns:
        the value that is taken, and of each ``value``, ``nll``, ``difference`` to the first and its ``interval``, ``taken``.
    """
    means = {value: float(np.mean(each)) for value, each in nll.items()}
    first = next(iter(nll))
    gaps = {value: np.subtract(each, nll[first]).tolist() for value, each in nll.items()}
    intervals = {value: [float(end) for end in interval(gap)] for value, gap in gaps.items()}
    better = [value for value in nll if intervals[value][1] < 0]
    taken = min(better, key=means.__getitem__, default=first)
    return taken, [
        {
            "value": value,
            "nll": means[value],
            "difference": float(np.mean(gaps[value])),
            "interval": intervals[value],
            "taken": value == taken,
        }
        for value in nll
    ]


def _fit_codec(m3: Memory3, documents: Callable[[], Iterable[Document]], say: Progress) -> None:
    """The codec that a new bank would be written with, if it has a codebook and nobody fitted it yet."""
    codec = default_codec(m3.shape.head_dim) if m3.config.codec == "auto" else m3.config.codec
    if find(codec).is_fitted and cached_codebook(codec, m3.fingerprint) is None:
        calibrate(
            m3,
            documents(),
            codec=codec,
            progress=lambda what, done, total: say("fitting the codec", done / (total or 1), what),
        )


def _with(m3: Memory3, config: MemoryConfig) -> Memory3:
    return Memory3(m3.model, m3.tokenizer, config, name=m3.name, batch_size=m3.batch_size)


def _says(config: MemoryConfig, name: str) -> str:
    return str(getattr(config, name))
