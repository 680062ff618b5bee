"""Loading models for commands: by the name a person gave or the bank remembers, without the noise of the libraries below."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory3.cli.output import err
from memory3.config import MemoryConfig
from memory3.garbage import collecting_later

if TYPE_CHECKING:
    from memory3.bank import Bank
    from memory3.llm import Memory3

__all__ = ["full_name", "load_model", "open_bank", "silence"]


def load_model(
    name: str, config: MemoryConfig | None = None, *, device: str | None = None, dtype: str | None = None, batch_size: int = 16
) -> Memory3:
    """The model of this name under these settings, or those it was trained for. A first download shows its own progress."""
    from memory3.models.adapter import adapter_of
    from memory3.models.catalogue import resolve_model

    resolve_model(adapter_of(name)[0])
    with err.status(f"loading {name}"), collecting_later():
        silence()
        from memory3.llm import Memory3

        return Memory3.from_pretrained(name, config=config, device=device, dtype=dtype, batch_size=batch_size)


def open_bank(
    path: Path | str,
    model: str | None = None,
    *,
    adapter: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    temperature: float | None = None,
    embedder: bool = True,
    cache: Mapping[str, int] | None = None,
) -> tuple[Memory3, Bank]:
    """The bank at ``path`` with the model it remembers, or with another that must be able to read it. One that another
    machine serves is read with the default model, or the one that is named: it does not say what is loaded here.

    ``temperature``: of memories, in place of the bank's. ``embedder``: load it now, so that the first answer's time does not
    count it. ``cache``: bounds of its tiers, as `options.cache_bytes` gives them.
    """
    sizes: dict[str, Any] = dict(cache or {})
    with collecting_later():
        from memory3.bank import Bank
        from memory3.bank.address import is_address

    if is_address(path):
        from memory3.models.catalogue import DEFAULT_ADAPTED
        from memory3.models.chosen import settings_of

        name = full_name(model or DEFAULT_ADAPTED, adapter)
        settings = None
        if temperature is not None:
            settings = (settings_of(name) or MemoryConfig()).replace(memory_temperature=temperature)
        m3 = load_model(name, settings, device=device, dtype=dtype)
        return m3, Bank.open(path, m3, **sizes)
    manifest = Bank.describe(path)
    config = manifest.config if temperature is None else manifest.config.replace(memory_temperature=temperature)
    m3 = load_model(full_name(model or manifest.model, adapter), config, device=device, dtype=dtype)
    bank = Bank.open(path, m3, create=False, **sizes)
    if embedder:
        with err.status(f"loading {manifest.embedder}"), collecting_later():
            _ = bank.embedder
    return m3, bank


def full_name(name: str, adapter: str | None = None) -> str:
    """A folder's absolute path, so that a bank finds its model from any working folder; other names as they are.

    ``adapter``: see `memory3.models.adapter.with_adapter`.
    """
    from memory3.models.adapter import adapter_of, with_adapter
    from memory3.models.catalogue import EMBEDDERS, MODELS

    model, folder = adapter_of(with_adapter(name, adapter))
    is_folder = model not in MODELS and model not in EMBEDDERS and Path(model).is_dir()
    model = str(Path(model).resolve()) if is_folder else model
    return f"{model}+{folder}" if folder else model


def silence() -> None:
    """Progress bars and hints of transformers and sentence-transformers are not for the users of a command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|torch)\b")
