"""Writing speed: references per second against a plain forward pass of the same tokens, up to the last memory layer, in
the same batch size.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from memory3.benchmarks.measure import alternate, python_documents, ratio
from memory3.config import MemoryConfig
from memory3.encode.selectors import SELECTORS, is_fitted
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {"model": DEFAULT_MODEL, "batch": 16, "batches": 2, "repeats": 5}


def run(model: str, batch: int, batches: int, repeats: int) -> dict[str, Any]:
    """One line per selector, with the default preset's layers and budget, and one for the paper's preset.

    Args:
        model: name or path.
        batch: references of a batch.
        batches: how many.
        repeats: turns measured.
    """
    loaded = Memory3.from_pretrained(model)
    documents = python_documents(loaded, batch * batches)
    references = [r for d in documents for r in loaded.split(d)][: batch * batches]
    references.sort(key=lambda r: len(r.token_ids))
    groups = [references[i : i + batch] for i in range(0, len(references), batch)]
    device = loaded.model.device
    ready = [name for name in SELECTORS if not is_fitted(name) or loaded.fitted(name)]
    configs = {name: MemoryConfig(selector=name) for name in ready} | {"paper preset": MemoryConfig.preset("paper")}
    results: dict[str, Any] = {}
    for name, config in configs.items():
        m3 = Memory3(loaded.model, loaded.tokenizer, config, name=loaded.name)
        layers = max(m3.shape.layers) + 1

        def plain(layers: int = layers) -> float:
            started = time.perf_counter()
            base: Any = loaded.model.base_model
            whole = base.config.num_hidden_layers
            try:
                base.config.num_hidden_layers = layers  # transformers runs so many layers
                with torch.inference_mode():
                    for group in groups:
                        width = max(len(r.token_ids) for r in group)
                        tokens = torch.tensor([[*r.token_ids, *[0] * (width - len(r.token_ids))] for r in group])
                        mask = torch.tensor([[1] * len(r.token_ids) + [0] * (width - len(r.token_ids)) for r in group])
                        base(tokens.to(device), attention_mask=mask.to(device), use_cache=False)
            finally:
                base.config.num_hidden_layers = whole
            return len(references) / (time.perf_counter() - started)

        def encode(m3: Memory3 = m3) -> float:
            started = time.perf_counter()
            for group in groups:
                m3.encode(group)
            return len(references) / (time.perf_counter() - started)

        results[name] = {
            "references_per_second": ratio(alternate({"encode": encode, "plain": plain}, repeats), "encode", "plain")
        }
    results["references"] = len(references)
    return results
