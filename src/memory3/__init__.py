"""memory3 gives language models explicit memory.

Documents are encoded once into attention key-values, kept in a bank on disk, and recalled while the model generates.

    from memory3 import Bank, Memory3, read_documents

    m3 = Memory3.from_pretrained()
    bank = Bank.open("bank", m3)
    bank.write(read_documents("docs/"))
    answer = m3.generate("What does the warranty cover?", bank=bank)
    print(answer.text, answer.citations)

Names are imported when first used, so ``import memory3`` takes milliseconds and changes nothing in torch or transformers.
Everything listed in ``__all__`` is public; modules below it may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory3.bank import Bank
    from memory3.config import Budget, MemoryConfig
    from memory3.errors import (
        BankBusy,
        BankChanged,
        BankCorrupt,
        BankError,
        BankFull,
        BankNotFound,
        BankRefused,
        BankUnreachable,
        BankVersion,
        CheckpointFull,
        CodecError,
        ConfigError,
        DownloadError,
        EngineBusy,
        EngineClosed,
        FingerprintMismatch,
        InputError,
        JudgeError,
        LossNotFinite,
        Memory3Error,
        MissingDependency,
        ModelError,
        NeedsCheckout,
        ReadError,
        RecallError,
        ServingError,
        SourceConflict,
        TrainingError,
        UnsupportedModel,
        WorkerLost,
    )
    from memory3.llm import Answer, Memory3
    from memory3.text.readers import read_documents
    from memory3.types import Citation, Document, Reference

    __version__: str

__all__ = [
    "Answer",
    "Bank",
    "BankBusy",
    "BankChanged",
    "BankCorrupt",
    "BankError",
    "BankFull",
    "BankNotFound",
    "BankRefused",
    "BankUnreachable",
    "BankVersion",
    "Budget",
    "CheckpointFull",
    "Citation",
    "CodecError",
    "ConfigError",
    "Document",
    "DownloadError",
    "EngineBusy",
    "EngineClosed",
    "FingerprintMismatch",
    "InputError",
    "JudgeError",
    "LossNotFinite",
    "Memory3",
    "Memory3Error",
    "MemoryConfig",
    "MissingDependency",
    "ModelError",
    "NeedsCheckout",
    "ReadError",
    "RecallError",
    "Reference",
    "ServingError",
    "SourceConflict",
    "TrainingError",
    "UnsupportedModel",
    "WorkerLost",
    "__version__",
    "read_documents",
]

#: Where a public name lives. The classes of the error tree are the rest.
_HOMES = {
    "Answer": "memory3.llm",
    "Bank": "memory3.bank",
    "Budget": "memory3.config",
    "Citation": "memory3.types",
    "Document": "memory3.types",
    "Memory3": "memory3.llm",
    "MemoryConfig": "memory3.config",
    "Reference": "memory3.types",
    "read_documents": "memory3.text.readers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'memory3' has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("memory3")
    else:
        from importlib import import_module

        from memory3.garbage import collecting_later

        with collecting_later():
            value = getattr(import_module(_HOMES.get(name, "memory3.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
