"""All measurements of a check, one after the other, and the verdict."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from memory3.bank.codebooks import new_codec
from memory3.bank.trust import scope_of
from memory3.calibration.formats import serve_formats
from memory3.checking.questions import items_of
from memory3.checking.reading import measure_parity
from memory3.checking.selection import arms_of, measure, summed_up
from memory3.checking.speed import measure_speed
from memory3.checking.verdict import Verdict, judge, refused
from memory3.codec import Codec
from memory3.errors import UnsupportedModel
from memory3.evaluation.machine import machine
from memory3.llm import Memory3
from memory3.models.verdicts import KeptVerdict, keep_verdict
from memory3.types import Reference

__all__ = ["MARGIN", "QUESTIONS", "TEXTS", "check", "check_refused"]

#: Questions, and texts for parity: minutes for the default model on two cores. 96 questions took 191 s of one of them.
QUESTIONS, TEXTS = 160, 6
#: Share of text's gain over nothing that a budget may lose against all pairs.
MARGIN = 0.1

#: Told how much of the whole is done, 0 to 1, and what is being done.
Progress = Callable[[float, str], None]
#: Shares of the whole time that the stretches take, about, with the default model.
_SHARES = (("parity", 0.03), ("questions", 0.9), ("speed", 0.07))


def check(
    m3: Memory3,
    references: Sequence[Reference],
    *,
    questions: int = QUESTIONS,
    margin: float = MARGIN,
    codec: Codec | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check a model on references, and say what may be done with it.

    Args:
        m3: the model, with the settings that memories would be written with.
        references: in random order, some times as many as questions.
        questions: at most.
        margin: share of text's gain over nothing that a budget may lose against all pairs.
        codec: of a bank; None: what a new bank would be written with.
        seed: of what questions leave out.
        progress: see `Progress`.

    The verdict is kept for this model, these settings, this codec, temperature and arrangement
    (`memory3.models.verdicts`), where writing finds it.

    Returns:
        plain JSON values: ``model``, ``settings``, ``scope`` (what the verdict is for), ``machine``, ``parity`` (None where
        logits are not finite), ``selection``, ``speed`` (None where parity failed), ``verdict``, ``seconds``; and ``not_kept``
        with the reason where the cache folder could not take the verdict.

    Raises:
        InputError: the references give too few questions.
    """
    started = time.perf_counter()
    codec = codec or new_codec(m3, None)[0].with_vectors(m3.token_vectors)
    items = items_of(references, questions, seed=seed)
    ahead = {name: sum(share for _, share in _SHARES[:n]) for n, (name, _) in enumerate(_SHARES)}

    def telling(name: str, what: str) -> Callable[[int, int], None]:
        share = dict(_SHARES)[name]
        return lambda done, total: (progress or _silent)(ahead[name] + share * done / total, what)

    texts = items[: 2 * min(TEXTS, len(items) // 2)]
    parity = selection = speed = verdict = None
    try:
        parity = measure_parity(m3, texts, telling("parity", "reading from memory and as text"))
    except UnsupportedModel as error:
        verdict = refused(str(error))
    if parity and parity["ok"]:
        arms = arms_of(m3)
        found = measure(m3, items, arms, codec, telling("questions", f"{len(items)} questions, {len(arms)} ways"))
        selection = summed_up(m3, arms, found, codec, margin)
        speed = measure_speed(m3, items, found.records, codec, telling("speed", "timing answers"))
    verdict = verdict or judge(parity or {}, selection)
    scope = scope_of(m3, codec.name, getattr(getattr(codec, "codebook", None), "fingerprint", ""))
    assert scope is not None
    settings = {"settings": m3.config.to_dict(), "fingerprint": m3.fingerprint, "scope": asdict(scope)}
    report = _report(m3.name, settings, parity, selection, speed, verdict, started)
    kept = KeptVerdict(
        scope,
        m3.name,
        str(m3.model.dtype).removeprefix("torch."),
        str(m3.config.budget),
        m3.config.selector,
        **verdict.to_dict(),
        questions=selection["questions"] if selection else 0,
        finished=report["finished"],
        version=report["machine"]["versions"]["memory3"],
    )
    try:
        keep_verdict(kept)
        serve_formats(m3)
    except OSError as error:  # minutes of measuring are told all the same
        report["not_kept"] = str(error)
    return report


def check_refused(model: str, reason: str) -> dict[str, Any]:
    """What `check` gives for a model that could not be attached.

    Args:
        model: its name.
        reason: in a sentence.
    """
    return _report(
        model, {"settings": None, "fingerprint": None, "scope": None}, None, None, None, refused(reason), time.perf_counter()
    )


def _silent(done: float, what: str) -> None:
    """Nobody asked."""


def _report(
    model: str, settings: dict[str, Any], parity: Any, selection: Any, speed: Any, verdict: Verdict, started: float
) -> dict[str, Any]:
    return {
        "model": model,
        **settings,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "parity": parity,
        "selection": selection,
        "speed": speed,
        "verdict": verdict.to_dict(),
        "seconds": time.perf_counter() - started,
    }
