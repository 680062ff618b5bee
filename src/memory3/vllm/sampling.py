"""How a job's tokens are chosen, in the words of vLLM's ``SamplingParams``."""

from __future__ import annotations

from typing import Any

from memory3.choosing import Chooser
from memory3.errors import ConfigError
from memory3.serving.job import Job

__all__ = ["sampling_options"]

#: Settings of transformers that vLLM has too; the rest must be as they always are.
_KNOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
#: Settings that do not choose tokens, or are looked at elsewhere.
_OTHERS = {
    *_KNOWN,
    "_from_model_config",
    "cache_implementation",
    "do_sample",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "max_new_tokens",
    "max_length",
    "transformers_version",
    "use_cache",
}


def sampling_options(model: Any, job: Job, chooser: Chooser) -> dict[str, Any]:
    """What ``SamplingParams`` is made of.

    Args:
        model: of transformers, whose ``generation_config`` fills in what is left open.
        job: what is asked.
        chooser: that transformers' way would choose by: it knows where answers end, and how long they may be.

    Raises:
        ConfigError: a setting that vLLM has not, or cannot keep to.
    """
    settings = job.settings
    odd = sorted(name for name in settings.to_diff_dict() if name not in _OTHERS)
    if odd:
        raise ConfigError(f"{', '.join(odd)}: --engine vllm chooses by {', '.join(_KNOWN)} alone")
    if job.seed is not None and settings.do_sample:
        # A prompt that is read in parts draws a number too many, which vLLM takes back in a way that only GPUs know. On a CPU
        # its engine ends there, with all requests.
        raise ConfigError("seed: vLLM cannot keep to it on a CPU: leave it out, or serve with --engine transformers")
    options: dict[str, Any] = {
        "max_tokens": chooser.length,
        "stop_token_ids": [] if job.ignore_eos else sorted(chooser.ends),
        "ignore_eos": job.ignore_eos,
        "logprobs": job.logprobs,
        "temperature": 0.0,
    }
    found = {name: getattr(settings, name, None) for name in _KNOWN}
    for name, value in found.items():
        filled = getattr(model.generation_config, name, None) if value is None else value
        if filled is not None and (settings.do_sample or name == "repetition_penalty"):
            options[name] = filled
    if settings.do_sample:
        options["temperature"] = float(options["temperature"] or 1.0)
    return options
