"""How an answer is decoded.

What the caller says stands over the caller's `GenerationConfig`, that over greedy, and that over what the model's makers
recommend.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria

from memory3.errors import ConfigError, setting

__all__ = ["ANSWER_TOKENS", "TokenClock", "decoding"]

#: Length of an answer at most, where nobody says another.
ANSWER_TOKENS = 128


class TokenClock(StoppingCriteria):
    """Takes the time of every token, in seconds of `time.perf_counter`; stops nothing.

    Attributes:
        times: one for each token chosen so far.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Asked by transformers after every token."""
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def decoding(
    model: PreTrainedModel, max_new_tokens: int | None, options: Mapping[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The settings of a generation, and those options that are none: logits processors and the like.

    The model's own settings fill in what is left open, but do not switch on sampling or a static cache, which recall cannot
    follow.

    Args:
        model: whose ``generation_config`` fills in.
        max_new_tokens: length of an answer at most; None: what the settings say, else 128.
        options: as `Memory3.generate` was given them.

    Raises:
        ConfigError: an option that transformers does not know, a value it refuses, or one that would run code of a model's
            folder.
    """
    options = dict(options)
    given = options.pop("generation_config", None)
    if options.pop("trust_remote_code", False) or isinstance(options.get("custom_generate"), str):
        raise ConfigError("custom_generate and trust_remote_code are refused: memory3 runs no code of a model's folder")
    settings = copy.deepcopy(given) if given is not None else GenerationConfig()
    asked = settings.max_new_tokens if max_new_tokens is None else max_new_tokens
    length = ANSWER_TOKENS if asked is None else asked
    if length < 1:
        raise ConfigError(f"{setting('max_new_tokens', length)}: an answer has at least 1 token")
    try:
        others = settings.update(**options)
        settings.update(max_new_tokens=length, max_length=None)
        settings.update(do_sample=bool(settings.do_sample))
        own = model.generation_config.cache_implementation
        if settings.cache_implementation is None and own is not None:
            settings.update(cache_implementation="dynamic")
        complete = copy.deepcopy(settings)
        defaults = complete._get_default_generation_params()
        complete.update(**{name: value for name, value in defaults.items() if getattr(complete, name, None) is None})
        complete.validate()
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"these options cannot be used: {' '.join(str(error).split())}") from error
    generate: Any = model.generate
    known = {*inspect.signature(generate).parameters, *inspect.signature(model.forward).parameters, "tokenizer"}
    unknown = sorted(set(others) - known - {"assistant_tokenizer"})
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*known, *vars(GenerationConfig())], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"transformers' generate has no option {unknown[0]!r}.{hint}")
    return settings, others
