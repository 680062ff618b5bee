"""Sentence embeddings as the mean of a BERT's token vectors, without importing sentence-transformers, which takes seconds.

This is the arithmetic of sentence-transformers for the commonest of its models (a BERT, mean pooling, normalisation:
all-MiniLM-L6-v2), to the bit; a test
compares the two. A folder that asks for anything else is not taken, and the library reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from memory3.files import read_json

__all__ = ["MeanPooling"]

#: The modules of such a model, in order. Normalisation is applied in any case.
_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
#: What may be set in sentence_bert_config.json, and to what; None: anything.
_ALLOWED = {"max_seq_length": None, "do_lower_case": False}


class MeanPooling:
    """A BERT and its tokenizer. Vectors are means over the tokens of a text, of length 1.

    ``norms``: how often a vector is divided by its length. The second time moves its last bit, and stored embeddings have that
    bit.
    """

    def __init__(self, model: Any, tokenizer: Any, norms: int = 1) -> None:
        self._norms = norms
        self._model = model.eval()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: str, device: str | None = None) -> MeanPooling | None:
        """The model in a folder, or None if it is not of this kind.

        Args:
            folder: of a sentence-transformers model.
            device: as torch names it; None: a GPU where there is one.
        """
        place = Path(folder)
        if (device is None and torch.backends.mps.is_available()) or not _is_plain(place):
            return None
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type != "bert" or config.is_decoder:
            return None
        length = read_json(place / "sentence_bert_config.json").get("max_seq_length")
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, **({} if length is None else {"model_max_length": length})
        )
        if length is None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
        model = AutoModel.from_pretrained(folder, config=config, trust_remote_code=False, use_safetensors=True)
        norms = len(read_json(place / "modules.json")) - 1  # the module Normalize, and what is asked for in any case
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer, norms)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 32, **_: Any) -> np.ndarray:
        """Vectors ``[len(texts), dimension]`` of length 1.

        Texts of like length go through the model together, the longest first.

        Args:
            texts: what to embed; each is cut at the model's length.
            batch_size: texts per forward pass.
        """
        order = np.argsort([-len(text) for text in texts])
        vectors: list[torch.Tensor] = []
        for start in range(0, len(texts), batch_size):
            batch = [texts[index] for index in order[start : start + batch_size]]
            rows = self._tokenizer(batch, padding=True, truncation="longest_first", return_tensors="pt").to(self._model.device)
            tokens = self._model(**rows).last_hidden_state  # [batch, tokens, dimension]
            mask = rows["attention_mask"].unsqueeze(-1).to(tokens.dtype)
            sums = torch.float32 if tokens.dtype in (torch.float16, torch.bfloat16) else tokens.dtype
            means = (tokens * mask).sum(dim=1, dtype=sums) / torch.clamp(mask.sum(dim=1, dtype=sums), min=1e-9)
            found = means.to(tokens.dtype)
            for _again in range(self._norms):
                found = torch.nn.functional.normalize(found, p=2, dim=1)
            vectors.extend(found.cpu())
        return torch.stack([vectors[index] for index in np.argsort(order)]).float().numpy()


def _is_plain(place: Path) -> bool:
    """Whether the files of a sentence-transformers folder ask for a Transformer, the mean over tokens, and nothing else."""
    try:
        modules = read_json(place / "modules.json")
        transformer = read_json(place / "sentence_bert_config.json")
        pooling = read_json(place / modules[1]["path"] / "config.json")
        about = read_json(place / "config_sentence_transformers.json")
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        known = all(module["type"].startswith("sentence_transformers.") for module in modules)
        modes = {name for name, on in pooling.items() if name.startswith("pooling_mode") and on}
        single = modes == {"pooling_mode_mean_tokens"} or pooling.get("pooling_mode") in ("mean", ["mean"])
        return (
            known
            and kinds in _MODULES
            and modules[0]["path"] == ""
            and single
            and pooling.get("include_prompt", True) is True
            and all(name in _ALLOWED and _ALLOWED[name] in (None, value) for name, value in transformer.items())
            and not about.get("default_prompt_name")
            and not (place / "adapter_config.json").exists()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
