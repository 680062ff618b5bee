"""What cannot be right with memories is refused when vLLM starts, with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memory3.errors import ConfigError, UnsupportedModel
from memory3.vllm.card import Card

__all__ = ["check_config", "check_layers", "own_heads"]


def check_config(config: Any, cache: Any, card: Card, settings: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse engines in which memories could not be read right.

    Args:
        config: vLLM's of the engine.
        cache: vLLM's layout of the paged cache.
        card: of the model.
        settings: of the connector.
        known: their names.

    Raises:
        ConfigError: a setting.
        UnsupportedModel: the model.
    """
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"kv_connector_extra_config has {', '.join(unknown)}: it knows {', '.join(known)}")
    banks, default = settings.get("banks", {}), settings.get("default_bank")
    if not isinstance(banks, Mapping) or not all(isinstance(one, str) for pair in banks.items() for one in pair):
        raise ConfigError('kv_connector_extra_config.banks: give {"name": "folder"}')
    if default is not None and not isinstance(default, str):
        raise ConfigError("kv_connector_extra_config.default_bank: give the name of a bank")
    most = settings.get("most_references", 1)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError("kv_connector_extra_config.most_references: give a whole number above 0")
    model, parallel, scheduling = config.model_config, config.parallel_config, config.scheduler_config
    for is_so, why in (
        (
            config.speculative_config is not None,
            "speculative decoding feeds tokens that may be taken back, and memories are renewed by tokens that stay: "
            "leave it out",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            "pipeline parallelism schedules a token before the one ahead of it is known, by which memories are found: "
            "use tensor parallelism",
        ),
        (
            getattr(parallel, "decode_context_parallel_size", 1) > 1
            or getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "context parallelism cuts a row's context in pieces, and memories would be counted in each: leave it out",
        ),
        (
            bool(scheduling.async_scheduling),
            "asynchronous scheduling plans a step before the last token is known, by which memories are found: "
            "--no-async-scheduling",
        ),
        (
            str(config.cache_config.cache_dtype) not in ("auto", str(model.dtype).removeprefix("torch.")),
            "a quantised cache, or one of another dtype than the model's, is read by vLLM's own kernels alone: "
            "--kv-cache-dtype auto",
        ),
        (config.lora_config is not None, "LoRA changes keys and values, and memories with them: merge the adapter"),
        (bool(getattr(parallel, "enable_dbo", False)), "dual-batch overlap cuts a step in two: leave it out"),
    ):
        if is_so:
            raise ConfigError(f"memories cannot be read here: {why}")
    if str(config.device_config.device_type) != "cpu":
        raise ConfigError(
            f"memories are read on vLLM's CPU platform alone, this is {config.device_config.device_type}: "
            "`memory3 serve` without --engine vllm reads them there"
        )
    groups = getattr(cache, "kv_cache_groups", None) or ()
    if bool(getattr(model, "use_mla", False)):
        raise UnsupportedModel(
            f"{card.name} keeps latents in place of keys and values (MLA): memories cannot be laid beside them"
        )
    if len(groups) > 1 or len(card.full_layers) < card.num_layers:
        raise UnsupportedModel(
            f"{card.name} has layers that do not see the whole context (windows, or linear attention): inside vLLM memories "
            "are read where all do. `memory3 serve` reads them without --engine vllm"
        )


def check_layers(layers: Mapping[str, Any]) -> None:
    """Refuse attention that is more than a softmax of products.

    Args:
        layers: vLLM's attention layers by name.

    Raises:
        UnsupportedModel: one of them is.
    """
    from memory3.vllm.attention import MemoryAttentionBackend

    own = MemoryAttentionBackend.get_impl_cls()
    for name, layer in layers.items():
        impl = layer.impl
        odd = [
            what
            for what, is_so in (
                ("ALiBi", impl.alibi_slopes is not None),
                ("a window", impl.sliding_window not in (-1, None)),
                ("capped logits", bool(impl.logits_soft_cap)),
                ("sinks", impl.sinks is not None),
                ("another layer's keys", impl.kv_sharing_target_layer_name is not None),
            )
            if is_so
        ]
        if odd:
            raise UnsupportedModel(f"{name} attends with {', '.join(odd)}: memories cannot be merged into it")
        if not isinstance(impl, own):
            raise ConfigError(
                f"{name} is computed by {type(impl).__name__}, not by memory3's attention: install memory3 where vLLM runs, "
                "and leave VLLM_PLUGINS unset or name memory3 in it"
            )


def own_heads(heads: int, ranks: int, rank: int) -> slice:
    """KV heads of one worker, as vLLM shares them out.

    Args:
        heads: that the model has.
        ranks: workers of tensor parallelism.
        rank: of this one.
    """
    if ranks <= heads:
        each = heads // ranks
        return slice(rank * each, (rank + 1) * each)
    one = rank // (ranks // heads)
    return slice(one, one + 1)
