"""What `memory3 check` found of a model, said once where memories of it are written or served."""

from __future__ import annotations

from dataclasses import dataclass

from memory3.bank.format.manifest import BankManifest
from memory3.bank.protocol import MemoryWriter
from memory3.errors import ModelError
from memory3.models.verdicts import VerdictScope, find_verdict, has_verdicts

__all__ = ["Advice", "advice", "scope_of"]

#: What was said in this process; a bank that is written every hour should not say it every hour.
_SAID: set[VerdictScope] = set()


@dataclass(frozen=True)
class Advice:
    """What should be known before memories are trusted.

    Attributes:
        text: in a sentence or two, with the command to run.
        refuted: whether a check said not to use them; else no check spoke for them.
    """

    text: str
    refuted: bool


def scope_of(m3: MemoryWriter, codec: str, code_book: str) -> VerdictScope | None:
    """What a verdict on memories of a writer is kept for; None where there is no language model behind it.

    Args:
        m3: who writes them.
        codec: name of the codec.
        code_book: fingerprint of its codebook; empty: it has none.
    """
    model = getattr(m3, "whole_model", None)
    if not isinstance(model, str):
        return None
    return VerdictScope(model, m3.fingerprint, codec, code_book, m3.config.memory_temperature, m3.config.arrangement)


def advice(m3: MemoryWriter, manifest: BankManifest, location: str) -> Advice | None:
    """What should be said of memories that go into a bank: once for each model, settings and codec in a process. None: they
    were checked and found good, or it was said already.

    Args:
        m3: who writes or reads them.
        manifest: of the bank.
        location: of the bank, for the command to run.
    """
    scope = scope_of(m3, manifest.codec, manifest.code_book)
    if scope is None or scope in _SAID:
        return None
    _SAID.add(scope)
    remedy = f"`memory3 check --bank {location}` says whether they can be trusted"
    if "://" in location:
        remedy = f"`memory3 check --model {m3.name}` says whether they can be trusted"
    try:
        verdict = find_verdict(scope)
    except ModelError as error:
        return Advice(f"{error}. Until then nothing is known of memories of {m3.name}: {remedy}", False)
    if verdict is None:
        how = "with these settings and this codec" if has_verdicts(scope.model) else "against its text"
        return Advice(f"memories of {m3.name} were never checked {how}: {remedy}", False)
    if verdict.ok and not verdict.settings:
        return None
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in sorted(verdict.settings.items()))
    instead = f" A new bank with `{options}` follows it." if options else " They are written and read all the same."
    return Advice(f"memory3 check found of memories of {m3.name}: {verdict.sentence}{instead}", not verdict.ok)
