"""Every error memory3 raises on purpose, as one tree.

    Memory3Error
    ├── ConfigError            a setting is out of range or two settings contradict each other      (also ValueError)
    ├── InputError             a document, a question or a path cannot be used as given              (also ValueError)
    │   ├── ReadError          a file could not be turned into text; carries the path
    │   └── SourceConflict     documents in the bank under the same ids came from other sources; carries the report
    ├── ModelError             a model or tokenizer cannot be loaded or attached
    │   ├── DownloadError      a catalogue file could not be fetched, checked or stored
    │   └── UnsupportedModel   no full attention where memories are wanted, or memories are read otherwise than text
    ├── TrainingError          a training run cannot start, go on or be resumed
    │   ├── LossNotFinite      the loss or its gradient is not a number; the last checkpoint is from before
    │   └── CheckpointFull     no space left for a checkpoint; those before it are intact
    ├── RecallError            generation was driven in a way recall cannot follow
    ├── ServingError           a server cannot start, or cannot answer a request
    │   ├── EngineBusy         as many requests wait as may; later there is room again
    │   └── EngineClosed       it is shutting down
    ├── WorkerLost             processes that encode shards died or fell silent, one after the other
    ├── JudgeError             the judge of an evaluation cannot be reached, refuses, or answers in another form
    ├── MissingDependency      an optional package is needed; names the extra to install              (also ImportError)
    ├── NeedsCheckout          a command of research was given where the repository is not            (also ImportError)
    └── BankError              a bank on disk cannot be used
        ├── BankNotFound       no bank at this path
        ├── BankBusy           another process is writing this bank
        ├── BankFull           no space left on the device; what was committed before is intact
        ├── BankCorrupt        a checksum or a length is wrong; names the rows
        │   └── CodecError     a record or a codebook cannot be decoded: what codecs raise, which know no bank
        ├── BankChanged        the version being read was replaced and then removed
        ├── BankUnreachable    a bank of another machine: the server does not answer, and what is wanted is not cached
        ├── BankRefused        a bank of another machine: it may not be read with this key, or not be written from here
        ├── BankVersion        written by another format version
        └── FingerprintMismatch  memories of another model or of other settings; carries both fingerprints

Messages name the offending value and the remedy. A setting that a message mentions is written by `setting`: Python reads
``max_new_tokens=7``, and the command line prints ``--max-new-tokens 7``. It prints the message alone and exits with
status 1 (2 for usage).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = [
    "BankBusy",
    "BankChanged",
    "BankCorrupt",
    "BankError",
    "BankFull",
    "BankNotFound",
    "BankRefused",
    "BankUnreachable",
    "BankVersion",
    "CheckpointFull",
    "CodecError",
    "ConfigError",
    "DownloadError",
    "EngineBusy",
    "EngineClosed",
    "FingerprintMismatch",
    "InputError",
    "JudgeError",
    "LossNotFinite",
    "Memory3Error",
    "MissingDependency",
    "ModelError",
    "NeedsCheckout",
    "ReadError",
    "RecallError",
    "ServingError",
    "SourceConflict",
    "TrainingError",
    "UnsupportedModel",
    "WorkerLost",
]

#: Around a setting in a message: its name, its value or nothing, and how Python says it. No text of a user has these
#: (Unicode's noncharacters).
_OPEN, _NEXT, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_SETTING = re.compile(f"{_OPEN}([^{_NEXT}]*){_NEXT}([^{_NEXT}]*){_NEXT}([^{_CLOSE}]*){_CLOSE}")


def setting(name: str, value: object = "", *, python: str = "") -> str:
    """A setting as the message of an error mentions it: ``k`` or, with a value, ``k=3``; on the command line ``--k`` or
    ``--k 3``.

    Args:
        name: of the parameter.
        value: what it is, or what it should be.
        python: how Python says it where that is not name and value, such as ``"MemoryConfig(prefix=...)"``.
    """
    text = "" if value == "" else str(value)
    return f"{_OPEN}{name}{_NEXT}{text}{_NEXT}{python or (f'{name}={value!r}' if text else name)}{_CLOSE}"


class Memory3Error(Exception):
    """Base of every error memory3 raises on purpose."""

    def __str__(self) -> str:
        """The message in the words of Python."""
        return _SETTING.sub(lambda found: found[3], super().__str__())

    def worded(self, option: Callable[[str], str]) -> str:
        """The message with every setting as ``option`` says its name, such as ``--max-new-tokens``, and its value behind
        it.
        """
        return _SETTING.sub(lambda found: " ".join(filter(None, (option(found[1]), found[2]))), super().__str__())


class ConfigError(Memory3Error, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class InputError(Memory3Error, ValueError):
    """A document, a question or a path cannot be used as given."""


class ReadError(InputError):
    """A file could not be turned into text."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = _SETTING.sub(lambda found: found[3], reason)


class SourceConflict(InputError):
    """Documents were not written: the bank has others under their ids, from other sources. All others were written."""

    def __init__(self, message: str, report: object) -> None:
        super().__init__(message)
        self.report = report


class ModelError(Memory3Error):
    """A model or tokenizer cannot be loaded or attached."""


class DownloadError(ModelError):
    """A catalogue file could not be fetched, checked or stored."""


class UnsupportedModel(ModelError):
    """The architecture has no full attention where memories are wanted, or reads memories otherwise than text."""


class TrainingError(Memory3Error):
    """A training run cannot start, go on or be resumed."""


class LossNotFinite(TrainingError):
    """The loss or its gradient is not a number. The step was not taken, and the last checkpoint is from before."""


class CheckpointFull(TrainingError):
    """No space left on the device for a checkpoint. Those before it are intact."""


class RecallError(Memory3Error):
    """Generation was driven in a way recall cannot follow."""


class ServingError(Memory3Error):
    """A server cannot start, or cannot answer a request."""


class EngineBusy(ServingError):
    """As many requests are being answered, or wait for it, as may be. Later there is room again."""


class EngineClosed(ServingError):
    """The engine is shutting down, or shut down before the request was answered."""


class WorkerLost(Memory3Error):
    """A process that encodes shards died, fell silent or failed. A write raises it when that happened time and again."""


class JudgeError(Memory3Error):
    """The judge of an evaluation cannot be reached, refuses, or answers in another form. What was graded before is kept."""


class MissingDependency(Memory3Error, ImportError):
    """An optional package is needed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install 'memory3[{extra}]'")
        self.package = package
        self.extra = extra


class NeedsCheckout(Memory3Error, ImportError):
    """A command of research was given where the repository is not: it lies beside the package, in ``research/``."""

    def __init__(self, command: str, looked_in: Path) -> None:
        super().__init__(
            f"`{command}` is research, which is no part of the installed package ({looked_in / 'research'} does not exist): "
            "run it in a checkout of the repository, with memory3 installed from there (make setup, then .venv/bin/memory3)"
        )


class BankError(Memory3Error):
    """A bank on disk cannot be used."""


class BankNotFound(BankError):
    """No bank at this path."""


class BankBusy(BankError):
    """Another process is writing this bank."""


class BankFull(BankError):
    """No space left on the device. What was committed before is intact."""


class BankCorrupt(BankError):
    """A checksum or a length is wrong."""

    def __init__(self, message: str, reference_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reference_ids = tuple(reference_ids)


class CodecError(BankCorrupt):
    """A record or a codebook cannot be decoded. Raised by codecs, which know no bank: a bank raises BankCorrupt with the
    remedy.
    """


class BankChanged(BankError):
    """The version being read was replaced by others and then removed."""


class BankUnreachable(BankError):
    """The server of a bank does not answer, and what is wanted of it is not in the cache of this machine."""


class BankRefused(BankError):
    """A bank of another machine may not be read with this key, or cannot be written from here."""


class BankVersion(BankError):
    """Written by another format version."""


class FingerprintMismatch(BankError):
    """Memories of another model, or of other settings."""

    def __init__(self, bank: str, model: str, detail: str = "") -> None:
        super().__init__(
            f"this bank holds memories of fingerprint {bank}, the model given has {model}"
            f"{': ' + detail if detail else ''}. Memories are only readable by the model and settings that wrote them: "
            "load that model, or re-encode the stored texts with `memory3 rebuild --bank DIR --model MODEL`."
        )
        self.bank = bank
        self.model = model
